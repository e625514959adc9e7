//! `SessionLayer::pin`: the headers of `initialize` are those of the session, whatever comes later.
#![cfg(feature = "session")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/session.rs"]
mod session;
mod support;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Frame;
use http_body_util::Full;
use hyper::body::Incoming;
use mcp_forward::{
    CaptureLayer, Inbound, RefusalLayer, Relay, SessionLayer, Upstream, inbound::Principal,
};
use session::{ALICE, ALICE_RENEWED, BOB, Front, STAGES, front, user};
use support::{
    RawUpstream, http_client, post, raw,
    refusal::{answer, call},
    serve, status,
};
use tower::{Layer, ServiceBuilder, service_fn};

fn pinned() -> SessionLayer<String> {
    SessionLayer::bind(user).pin()
}

fn line(id: &str) -> String {
    format!("mcp-session-id: {id}\r\n")
}

/// A principal of its own header, so that a request can go without a token.
fn by_name(parts: &Parts) -> Option<String> {
    Some(parts.headers.get("x-name")?.to_str().ok()?.to_owned())
}

const ACE: &str = "x-name: ace\r\n";

#[tokio::test]
async fn a_changed_header_is_not_used() {
    for stage in STAGES {
        let front = front(stage, &SessionLayer::bind(by_name).pin()).await;
        let id = front.begin(&format!("{ACE}{ALICE}")).await;
        for later in [ALICE, ALICE_RENEWED, BOB, ""] {
            front
                .check(&id, &format!("{ACE}{later}"), "Bearer alice.1")
                .await;
        }
        // Another session has headers of its own.
        let other = front.begin(&format!("{ACE}{ALICE_RENEWED}")).await;
        front
            .check(&other, &format!("{ACE}{ALICE}"), "Bearer alice.2")
            .await;
        front
            .check(&id, &format!("{ACE}{BOB}"), "Bearer alice.1")
            .await;
    }
}

/// A relay to an upstream that makes the session `s` of every POST without an id.
async fn relayed<P: Principal>(layer: &SessionLayer<P>) -> (RawUpstream, Front) {
    let server = RawUpstream::new(|request| {
        let begins = request.line.starts_with("POST") && request.all("mcp-session-id").is_empty();
        let id = if begins { "mcp-session-id: s\r\n" } else { "" };
        let head =
            format!("HTTP/1.1 200 OK\r\n{id}connection: close\r\ncontent-length: 2\r\n\r\nok");
        head.into_bytes()
    })
    .await;
    let up = upstream(&server.url("/mcp"));
    let relay = Relay::new(&up, http_client());
    let front = Front::start(&up, layer, relay).await;
    (server, front)
}

fn upstream(url: &str) -> Upstream {
    let builder = Upstream::builder("up", url).allow("x-team");
    builder.allow_credential("authorization").build().unwrap()
}

#[tokio::test]
async fn what_came_later_or_no_more_does_not_reach_the_upstream() {
    let (server, front) = relayed(&SessionLayer::bind(by_name).pin()).await;
    let first = format!("{ACE}{ALICE}");
    assert_eq!(status(&front.initialize(&first).await), 200);
    let later = format!("{ACE}x-team: red\r\n{BOB}{}", line("s"));
    for method in ["POST", "GET", "DELETE"] {
        assert_eq!(status(&front.send(method, &later, "").await), 200);
        let seen = server.requests().pop().unwrap();
        assert_eq!(seen.all("authorization"), ["Bearer alice.1"], "{method}");
        assert!(seen.all("x-team").is_empty(), "{method}");
    }
    // Who began without has none later.
    assert_eq!(status(&front.initialize(ACE).await), 200);
    assert_eq!(status(&front.send("POST", &later, "").await), 200);
    let seen = server.requests().pop().unwrap();
    assert!(seen.all("authorization").is_empty() && seen.all("x-team").is_empty());
}

#[tokio::test]
async fn a_protocol_without_sessions_is_not_pinned() {
    let (server, front) = relayed(&pinned()).await;
    assert_eq!(status(&front.initialize(ALICE).await), 200);
    let modern = "mcp-protocol-version: 2026-07-28\r\n";
    let lines = format!("{ALICE_RENEWED}{modern}{}", line("s"));
    assert_eq!(status(&front.send("GET", &lines, "").await), 200);
    let seen = server.requests().pop().unwrap();
    assert_eq!(seen.all("authorization"), ["Bearer alice.2"]);
    assert!(seen.all("mcp-session-id").is_empty());
}

#[tokio::test]
async fn begun_again_it_is_pinned_to_what_began_it() {
    let (server, front) = relayed(&pinned()).await;
    for token in [ALICE, ALICE_RENEWED] {
        // This server gives the same id to its owner again.
        assert_eq!(status(&front.initialize(token).await), 200);
        let lines = format!("authorization: Bearer alice.3\r\n{}", line("s"));
        assert_eq!(status(&front.send("POST", &lines, "").await), 200);
        let seen = server.requests().pop().unwrap();
        assert_eq!(
            format!("authorization: {}\r\n", seen.all("authorization")[0]),
            token
        );
    }
}

/// Whom the running task and the body act as, each poll.
struct Told {
    seen: Arc<Mutex<Vec<String>>>,
    is_told: bool,
}

fn current() -> String {
    let inbound = Inbound::current().expect("no inbound");
    let value = inbound.get(&http::header::AUTHORIZATION).cloned();
    value.map_or("nobody".to_owned(), |value| {
        value.to_str().unwrap().to_owned()
    })
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = (!self.is_told).then(|| {
            self.seen
                .lock()
                .unwrap()
                .push(format!("body {}", current()));
            Ok(Frame::data(Bytes::from_static(b"told")))
        });
        self.is_told = true;
        Poll::Ready(frame)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.seen
            .lock()
            .unwrap()
            .push(format!("drop {}", current()));
    }
}

#[tokio::test]
async fn no_handle_changes_it_and_every_place_has_it() {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let tell = Arc::clone(&seen);
    let up = upstream("http://localhost/mcp");
    let other = support::capture(&[&up], [("authorization", "Bearer mallory.1")]).await;
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (tell, other) = (Arc::clone(&tell), other.clone());
        tell.lock().unwrap().push(format!("call {}", current()));
        async move {
            tokio::task::yield_now().await;
            tell.lock().unwrap().push(format!("future {}", current()));
            let handle = Inbound::of(request.extensions());
            let value = handle.get(&http::header::AUTHORIZATION).unwrap();
            assert!(value.is_sensitive());
            let value = value.to_str().unwrap();
            tell.lock().unwrap().push(format!("extension {value}"));
            // Whatever a handler does with what it got, it is its own.
            let mut copy = value.to_owned();
            copy.make_ascii_uppercase();
            drop(handle.compact());
            drop(handle);
            other.clone().attach(request.extensions_mut());
            other.sync_scope(|| assert_eq!(current(), "Bearer mallory.1"));
            request.headers_mut().clear();
            let body = Told {
                seen: tell,
                is_told: false,
            };
            let response = Response::builder().header("mcp-session-id", "s");
            response.body(body)
        }
    });
    let front = Front::start(&up, &pinned(), service).await;
    assert_eq!(status(&front.initialize(ALICE).await), 200);
    for _ in 0..2 {
        seen.lock().unwrap().clear();
        assert_eq!(status(&front.call("s", ALICE_RENEWED).await), 200);
        let places = ["call", "future", "extension", "body", "drop"];
        let expected = places.map(|place| format!("{place} Bearer alice.1"));
        assert_eq!(*seen.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn a_401_to_the_frozen_credential_ends_the_session() {
    for (layer, pins) in [(pinned(), true), (SessionLayer::bind(user), false)] {
        for refusal in [401, 403] {
            // One tool may be forbidden.
            let lives = !pins || refusal == 403;
            let server = RawUpstream::new(move |request| {
                let old = request.all("authorization") == ["Bearer alice.1"];
                let (status, id) = match request.all("mcp-session-id").is_empty() {
                    true => (200, "mcp-session-id: s\r\n"),
                    false if old => (refusal, ""),
                    false => (200, ""),
                };
                let head = format!("HTTP/1.1 {status} x\r\n{id}connection: close\r\n");
                format!("{head}content-length: 0\r\n\r\n").into_bytes()
            })
            .await;
            let up = upstream(&server.url("/mcp"));
            let relay = RefusalLayer::new().layer(Relay::new(&up, http_client()));
            let front = Front::start(&up, &layer, relay).await;
            assert_eq!(status(&front.initialize(ALICE).await), 200);
            let refused = front.call("s", ALICE).await;
            assert_eq!(status(&refused), refusal);
            // Told by the refusal layer.
            assert_eq!(refused.contains("www-authenticate: Bearer"), refusal == 401);
            assert_eq!(layer.live() == 1, lives);
            // So the client begins anew, with what it has now.
            if !lives {
                assert_eq!(status(&front.call("s", ALICE_RENEWED).await), 404);
                assert_eq!(status(&front.initialize(ALICE_RENEWED).await), 200);
            }
            let expected = if pins && lives { refusal } else { 200 };
            assert_eq!(status(&front.call("s", ALICE_RENEWED).await), expected);
            layer.remove("s");
        }
    }
}

#[tokio::test]
async fn the_operators_fault_ends_no_session() {
    let server = RawUpstream::new(|request| {
        let (status, id) = match request.all("mcp-session-id").is_empty() {
            true => (200, "mcp-session-id: s\r\n"),
            false => (401, ""),
        };
        let head = format!("HTTP/1.1 {status} x\r\n{id}connection: close\r\n");
        format!("{head}content-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let up = Upstream::builder("up", server.url("/mcp")).allow("x-team");
    let up = up.set("authorization", "Bearer op").build().unwrap();
    // Both by itself and behind the layer that tells of it.
    let relay = || Relay::new(&up, http_client());
    let told = RefusalLayer::new().layer(relay());
    let (alone, held) = (pinned(), pinned());
    let fronts = [
        (Front::start(&up, &alone, relay()).await, &alone, 401),
        (Front::start(&up, &held, told).await, &held, 502),
    ];
    for (front, layer, expected) in fronts {
        assert_eq!(status(&front.initialize(ALICE).await), 200);
        assert_eq!(status(&front.call("s", ALICE).await), expected);
        assert_eq!(layer.live(), 1);
    }
}

/// What the frozen headers replace is also where the answer waits.
#[tokio::test]
async fn a_report_as_the_frozen_headers_is_told() {
    let server = RawUpstream::answering(answer(401, "")).await;
    let up = upstream(&server.url("/mcp"));
    let target = up.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let target = target.clone();
        async move {
            let mut response = Response::new(Full::<Bytes>::default());
            if request.headers().contains_key("mcp-session-id") {
                assert_eq!(call(&target).await.unwrap(), 401);
            } else {
                let id = http::HeaderValue::from_static("s");
                response.headers_mut().insert("mcp-session-id", id);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(capture)
        .layer(RefusalLayer::new())
        .layer(pinned());
    let addr = serve(layers.service(service)).await;
    assert_eq!(status(&raw(addr, post(addr, ALICE)).await), 200);
    let later = post(addr, &format!("{ALICE}{}", line("s")));
    assert_eq!(status(&raw(addr, later).await), 401);
}
