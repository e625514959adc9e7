//! What an upstream says, and what its caller gets: held, probed, and probed fail-closed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, ProbeLayer, RefusalLayer, Upstream};
use support::{
    RawUpstream, http_client, post, raw,
    refusal::{answer, challenges, early, event_stream, events, send, takes_credential},
    serve, status,
};
use tower::{Layer, ServiceBuilder, service_fn};

const TOKEN: &str = "authorization: Bearer alice\r\n";

/// Each way to learn what the upstream says.
#[derive(Clone, Copy, Debug)]
enum Way {
    Held,
    Probed,
    FailClosed,
}

use Way::{FailClosed, Held, Probed};

async fn proxy(upstream: &Upstream, way: Way) -> SocketAddr {
    let capture = CaptureLayer::for_upstreams([upstream]).build().unwrap();
    if matches!(way, Held) {
        let layers = ServiceBuilder::new()
            .layer(capture)
            .layer(RefusalLayer::new());
        return serve(layers.service(early::<Incoming>(upstream))).await;
    }
    let target = upstream.clone();
    let mut probe = ProbeLayer::new(http_client(), move |_| [target.clone()]);
    if matches!(way, FailClosed) {
        probe = probe.fail_closed();
    }
    let served = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served")))
    });
    serve(capture.layer(probe.layer(served))).await
}

/// What the caller gets of an upstream at `url`, by each way.
async fn cells(url: &str) -> [(u16, Vec<String>); 3] {
    let upstream = takes_credential(url);
    let mut cells = Vec::new();
    for way in [Held, Probed, FailClosed] {
        let addr = proxy(&upstream, way).await;
        let answer = raw(addr, post(addr, TOKEN)).await;
        let challenges = challenges(&answer).into_iter().map(str::to_owned);
        cells.push((status(&answer), challenges.collect()));
    }
    cells.try_into().unwrap()
}

const INVALID: &[&str] = &[r#"Bearer error="invalid_token""#];
const SCOPE: &[&str] = &[r#"Bearer error="insufficient_scope""#];
const NONE: &[&str] = &[];

#[tokio::test]
async fn the_table() {
    let elsewhere = RawUpstream::answering(support::OK).await;
    let redirect = format!("location: {}\r\n", elsewhere.url("/mcp"));
    let metadata = "www-authenticate: Bearer resource_metadata=\"https://up.example/md\"\r\n";
    let scope = "www-authenticate: Bearer error=\"insufficient_scope\", scope=\"a b\"\r\n";
    let denied = "www-authenticate: Bearer error=\"access_denied\"\r\n";
    // The upstream's answer; held, probed, and probed fail-closed.
    let rows: [(u16, &str, [u16; 3], &[&str]); 15] = [
        (200, "", [200, 200, 200], NONE),
        (
            200,
            "content-type: text/event-stream\r\n",
            [200, 200, 200],
            NONE,
        ),
        (204, "", [200, 200, 200], NONE),
        (302, &redirect, [200, 200, 502], NONE),
        (307, &redirect, [200, 200, 502], NONE),
        (401, "", [401, 401, 401], INVALID),
        (401, metadata, [401, 401, 401], INVALID),
        (403, "", [403, 403, 403], NONE),
        (403, denied, [403, 403, 403], NONE),
        (403, scope, [403, 403, 403], SCOPE),
        (404, "", [200, 200, 502], NONE),
        (405, "", [200, 200, 502], NONE),
        (406, "", [200, 200, 502], NONE),
        (429, "", [200, 200, 502], NONE),
        (500, "", [200, 200, 502], NONE),
    ];
    for (said, lines, statuses, expected) in rows {
        let server = RawUpstream::answering(answer(said, lines)).await;
        let cells = cells(&server.url("/mcp")).await;
        for ((status, challenges), (way, wanted)) in cells
            .iter()
            .zip([Held, Probed, FailClosed].iter().zip(statuses))
        {
            let row = format!("{said} {lines:?}, {way:?}");
            assert_eq!(*status, wanted, "{row}");
            assert_eq!(challenges, expected, "{row}");
        }
    }
    assert!(elsewhere.requests().is_empty(), "a redirect was followed");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_no_refusal() {
    let server = RawUpstream::answering("").await;
    let statuses = cells(&server.url("/mcp")).await.map(|(status, _)| status);
    assert_eq!(statuses, [200, 200, 502]);
}

#[tokio::test]
async fn m8_an_endless_event_stream_is_not_read() {
    let endless = service_fn(|_: Request<Incoming>| async {
        let (frames, body) = events();
        tokio::spawn(async move {
            while !frames.is_closed() {
                send(&frames, ": and on\n");
                tokio::task::yield_now().await;
            }
        });
        Ok::<_, Infallible>(event_stream(body))
    });
    let addr = serve(endless).await;
    let statuses = cells(&format!("http://{addr}/mcp")).await;
    assert_eq!(statuses.map(|(status, _)| status), [200, 200, 200]);
}

/// In memory, since a paused clock would run ahead of sockets.
#[tokio::test(start_paused = true)]
async fn m7_an_upstream_that_is_silent_costs_five_seconds_at_most() {
    use tower::ServiceExt;

    for (fail_closed, expected) in [(false, 200), (true, 502)] {
        let upstream = takes_credential("https://up.example/mcp");
        let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
        let silent = service_fn(|_: Request<mcp_forward::outbound::Body<Full<Bytes>>>| {
            std::future::pending::<Result<Response<()>, Infallible>>()
        });
        let target = upstream.clone();
        let mut probe = ProbeLayer::new(silent, move |_| [target.clone()]);
        if fail_closed {
            probe = probe.fail_closed();
        }
        let served = service_fn(|_: Request<Full<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        let service = capture.layer(probe.layer(served));
        let call = || {
            let request = Request::post("/").header("authorization", "Bearer alice");
            service
                .clone()
                .oneshot(request.body(Full::default()).unwrap())
        };
        let start = tokio::time::Instant::now();
        assert_eq!(call().await.unwrap().status(), expected);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        // The upstream is left alone for a while; then it is asked again.
        assert_eq!(call().await.unwrap().status(), expected);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(5)).await;
        call().await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(15));
    }
}
