//! The order of layers: the documented stack in both spellings, with tower-http's own layers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use mcp_forward::{
    CaptureLayer, InternalForwardLayer, OriginGuardLayer, ProbeLayer, RefusalLayer, Relay,
    ServerIdLayer, Upstream,
};
use support::{OK, RawUpstream, http_client, logged, message, own_error, post, raw, serve, status};
use tower::{BoxError, Layer, ServiceBuilder};
use tower_http::{
    compression::CompressionLayer,
    cors::{Any, CorsLayer},
    map_request_body::MapRequestBodyLayer,
    map_response_body::MapResponseBodyLayer,
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    timeout::RequestBodyTimeoutLayer,
    trace::{DefaultMakeSpan, TraceLayer},
};

const SENT: &str =
    "authorization: Bearer s3cret\r\nx-user-id: s3cret\r\norigin: http://localhost\r\n";

/// What stands in every stack.
struct Parts {
    upstream: Upstream,
    capture: CaptureLayer,
    server_id: ServerIdLayer,
    internal_forward: InternalForwardLayer,
}

fn parts(server: &RawUpstream) -> Parts {
    let upstream = Upstream::builder("up", server.url("/mcp"))
        .allow_credential("authorization")
        .allow("x-subject")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&upstream])
        .attest("x-subject", |parts| {
            parts
                .extensions
                .get::<Subject>()
                .map(|subject| subject.0.into())
        })
        .build()
        .unwrap();
    Parts {
        upstream,
        capture,
        server_id: ServerIdLayer::for_path("/{server_id}").build().unwrap(),
        internal_forward: InternalForwardLayer::for_peers(|_: &http::request::Parts| false),
    }
}

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::POST])
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Subject(&'static str);

#[cfg(feature = "session")]
fn sessions() -> mcp_forward::SessionLayer<Subject> {
    mcp_forward::SessionLayer::bind_extension().require_principal()
}

#[cfg(not(feature = "session"))]
fn sessions() -> tower::layer::util::Identity {
    tower::layer::util::Identity::new()
}

/// The embedder's authentication: it knows one token.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization");
    if token.is_none_or(|token| token != "Bearer s3cret") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    request.extensions_mut().insert(Subject("alice"));
    next.run(request).await
}

/// axum's `.layer` lines read inside out: the last one is the outermost.
async fn axum_lines(server: &RawUpstream) -> SocketAddr {
    let Parts {
        upstream,
        capture,
        server_id,
        internal_forward,
    } = parts(server);
    let sensitive = capture.names().to_vec();
    // One client, one pool.
    let (client, target) = (http_client(), upstream.clone());
    let app: Router = Router::new()
        .route_service("/mcp", Relay::new(&upstream, client.clone()))
        .layer(RefusalLayer::new())
        .layer(ProbeLayer::new(client, move |_| [target.clone()]))
        .layer(sessions())
        .layer(capture)
        .layer(server_id)
        .layer(from_fn(authenticate))
        .layer(internal_forward)
        .layer(OriginGuardLayer::loopback())
        .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(30)))
        .layer(trace())
        .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
        .layer(CompressionLayer::new())
        .layer(cors());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    addr
}

/// Bare hyper: one `ServiceBuilder`, outermost first. CORS wants a response body with a default, and
/// hyper's client a request body that is `Unpin`, which a time-out's is not: both are boxed.
async fn hyper_builder(server: &RawUpstream) -> SocketAddr {
    let Parts {
        upstream,
        capture,
        server_id,
        internal_forward,
    } = parts(server);
    let sensitive = capture.names().to_vec();
    let (client, target) = (http_client(), upstream.clone());
    let service = ServiceBuilder::new()
        .layer(cors())
        .layer(MapResponseBodyLayer::new(boxed))
        .layer(CompressionLayer::new())
        .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
        .layer(trace())
        .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(30)))
        .layer(OriginGuardLayer::loopback())
        .layer(internal_forward)
        .map_request(|mut request: http::Request<_>| {
            request.extensions_mut().insert(Subject("alice"));
            request
        })
        .layer(server_id)
        .layer(capture)
        .layer(sessions())
        .layer(MapRequestBodyLayer::new(boxed))
        .layer(ProbeLayer::new(client.clone(), move |_| [target.clone()]))
        .layer(RefusalLayer::new())
        .service(Relay::new(&upstream, client));
    serve(service).await
}

fn boxed<B>(body: B) -> UnsyncBoxBody<Bytes, BoxError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// With the headers in its span: what they hold must be marked by then.
fn trace()
-> TraceLayer<tower_http::classify::SharedClassifier<tower_http::classify::ServerErrorsAsFailures>>
{
    TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().include_headers(true))
}

#[tokio::test]
async fn l7_both_spellings_serve_a_call_at_trace_and_print_no_value() {
    let ((), log) = logged(async {
        let server = RawUpstream::answering(OK).await;
        for addr in [axum_lines(&server).await, hyper_builder(&server).await] {
            let lines = format!("{SENT}x-subject: mallory\r\nx-forwarded-internally: 1\r\n");
            let answer = raw(addr, message(addr, "/mcp", &lines, r#"{"method":"m"}"#)).await;
            assert_eq!(status(&answer), 200, "{answer}");
            assert!(
                answer.contains("access-control-allow-origin: *\r\n"),
                "{answer}"
            );
            // The probe and the call.
            assert_eq!(server.requests().len() % 2, 0);
            for seen in server.requests().iter().rev().take(2) {
                assert_eq!(seen.all("authorization"), ["Bearer s3cret"]);
                assert_eq!(seen.all("x-subject"), ["alice"]);
                assert!(seen.all("x-user-id").is_empty() && seen.all("origin").is_empty());
            }
            let call = server.requests().pop().unwrap();
            assert_eq!(call.body, br#"{"params":{"server_id":"mcp"},"method":"m"}"#);
        }
    })
    .await;
    // The span holds the headers, so the test would see an unmarked one: `x-user-id` is not captured.
    let marked = log.replace("\"x-user-id\": \"s3cret\"", "");
    assert!(
        log.contains("\"authorization\": Sensitive") && log.len() > marked.len(),
        "{log}"
    );
    assert!(!marked.contains("s3cret"), "{marked}");
}

#[tokio::test]
async fn the_outer_layers_answer_before_ours() {
    let server = RawUpstream::answering(OK).await;
    let addr = axum_lines(&server).await;
    // Authentication stands outside the capture.
    let answer = raw(addr, post(addr, "authorization: Bearer other\r\n")).await;
    assert_eq!(status(&answer), 401);
    // The guard stands outside the authentication.
    let answer = raw(addr, post(addr, "origin: http://evil.example\r\n")).await;
    assert_eq!(status(&answer), 403);
    own_error(&answer, -32000);
    // CORS answers a preflight, which the relay would refuse.
    let preflight = format!(
        "OPTIONS /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\norigin: http://localhost\r\n\
         access-control-request-method: POST\r\n\r\n"
    );
    assert_eq!(status(&raw(addr, preflight).await), 200);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_layer_out_of_order_says_so() {
    let server = RawUpstream::answering(OK).await;
    let Parts {
        upstream, capture, ..
    } = parts(&server);
    // The relay stands where no capture layer is around it.
    let addr = serve(Relay::new(&upstream, http_client())).await;
    let answer = raw(addr, post(addr, SENT)).await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("put `CaptureLayer` around the service"));
    // An inner capture layer for another upstream hides the outer one.
    let other = Upstream::builder("other", "http://localhost/")
        .allow("x-a")
        .build()
        .unwrap();
    let inner = CaptureLayer::for_upstreams([&other]).build().unwrap();
    let addr = serve(capture.layer(inner.layer(Relay::new(&upstream, http_client())))).await;
    let answer = raw(addr, post(addr, SENT)).await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("innermost `CaptureLayer`"));
    assert!(server.requests().is_empty());
}
