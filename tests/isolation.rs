//! Isolation: many callers at once through one proxy, each upstream request carries its caller's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router, body::Body, extract::State, http::Request, response::IntoResponse, routing::post,
};
use http::HeaderMap;
use http_body_util::BodyExt;
use mcp_forward::{CaptureLayer, Relay, Upstream};
use support::http_client;
use tokio::{net::TcpListener, task::JoinSet};

const CALLERS: usize = 16;
const CALLS: usize = 200;

async fn axum(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    addr
}

/// Answers with what it received: `authorization` and `x-user`, line by line.
async fn echo() -> SocketAddr {
    axum(Router::new().route(
        "/mcp",
        post(|headers: HeaderMap| async move {
            tokio::task::yield_now().await;
            let lines = ["authorization", "x-user"].map(|name| {
                let values = headers
                    .get_all(name)
                    .iter()
                    .map(|value| value.to_str().unwrap());
                values.collect::<Vec<_>>().join("|")
            });
            lines.join(" ")
        }),
    ))
    .await
}

/// Calls `proxy` as many callers at once, and counts answers that are not the caller's own.
async fn mismatches(proxy: SocketAddr) -> usize {
    let client = http_client::<Body>();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            let mut wrong = 0;
            for call in 0..CALLS {
                let token = format!("Bearer {caller}-{call}");
                let user = format!("user-{caller}");
                let mut request = Request::post(format!("http://{proxy}/mcp"));
                // Every eighth call comes without a token, and must not find anybody's.
                let anonymous = call % 8 == 0;
                if !anonymous {
                    request = request.header("authorization", &token);
                }
                let request = request
                    .header("x-user", &user)
                    .body(Body::from("{}"))
                    .unwrap();
                let response = client.request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let token = if anonymous { "" } else { &token };
                wrong += usize::from(body != format!("{token} {user}").as_bytes());
            }
            wrong
        });
    }
    callers.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i1_through_axum_and_relay_nobody_meets() {
    let upstream = Upstream::builder("echo", format!("http://{}/mcp", echo().await))
        .allow_credential("authorization")
        .allow("x-user")
        .build()
        .unwrap();
    let router = Router::new()
        .nest_service("/mcp", Relay::new(&upstream, http_client()))
        .layer(CaptureLayer::for_upstreams([&upstream]).build().unwrap());
    assert_eq!(mismatches(axum(router).await).await, 0);
}

/// The proxy that this crate is for: its client keeps the values of whoever came last.
#[derive(Clone)]
struct Broken {
    upstream: SocketAddr,
    last: Arc<Mutex<HeaderMap>>,
}

async fn broken(State(proxy): State<Broken>, request: Request<Body>) -> impl IntoResponse {
    *proxy.last.lock().unwrap() = request.headers().clone();
    tokio::task::yield_now().await;
    let mut outbound = Request::post(format!("http://{}/mcp", proxy.upstream))
        .body(Body::from("{}"))
        .unwrap();
    for name in ["authorization", "x-user"] {
        if let Some(value) = proxy.last.lock().unwrap().get(name) {
            outbound.headers_mut().insert(name, value.clone());
        }
    }
    http_client::<Body>()
        .request(outbound)
        .await
        .unwrap()
        .map(Body::new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_harness_sees_values_in_one_global() {
    let proxy = Broken {
        upstream: echo().await,
        last: Arc::default(),
    };
    let router = Router::new().route("/mcp", post(broken)).with_state(proxy);
    assert!(mismatches(axum(router).await).await > 0);
}
