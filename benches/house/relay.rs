//! A relay on loopback, beside two proxies of hyper alone.
//!
//! The bare one sends on all headers as they came; the other at least those of its own hop instead of the
//! caller's, `host` and `content-length`, as a proxy to another host has to. All stand before the same
//! upstream, behind the same callers, with the same server and client of hyper.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{
    Request, Response,
    header::{CONTENT_LENGTH, HOST},
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, RefusalLayer, Relay, SessionLayer, Upstream};
use tower::{Layer, Service, service_fn};

use crate::{
    measure::{Case, Measured},
    sockets::{Stage, client, kilobyte},
    table::{Goal::AtLeast, Report, Row},
};

pub(crate) fn cases() -> Vec<Case> {
    let stage = Stage::new();
    let rules = rules(stage.upstream(upstream()));
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let relay = Relay::new(&rules, client());
    let sessions = SessionLayer::bind_header("x-user-id").unwrap();
    let layered = sessions.layer(RefusalLayer::new().layer(relay.clone()));
    let proxies = [
        ("every layer", stage.proxy(capture.layer(layered))),
        ("capture", stage.proxy(capture.layer(relay))),
        ("bare", stage.proxy(of_hyper(&rules, false))),
        ("own hop", stage.proxy(of_hyper(&rules, true))),
    ];
    let cases = proxies.map(|(name, address)| stage.calls(name, address));
    cases.into()
}

pub(crate) fn report(measured: &Measured) -> Report {
    let rows = [
        Row::new(
            "capture, session and refusal layer",
            "every layer",
            "bare",
            "",
        )
        .goal(AtLeast(0.95)),
        Row::new("capture layer alone", "capture", "bare", ""),
        Row::new(
            "capture layer alone; hyper writes its own `host` and `content-length`",
            "capture",
            "own hop",
            "",
        ),
    ];
    let mut report = Report::default();
    report.rates("relay, beside a hyper proxy", measured, &rows);
    report
}

/// What the caller's headers may do at `upstream`.
pub(crate) fn rules(upstream: SocketAddr) -> Upstream {
    Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow_credential("authorization")
        .allow("x-user-id")
        .allow("x-tenant-id")
        .set("x-proxy", "edge-1")
        .build()
        .unwrap()
}

/// A proxy of hyper alone: it streams both bodies, and copies the method and the headers.
pub(crate) fn of_hyper(
    rules: &Upstream,
    own_hop: bool,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Incoming>,
    Error = hyper_util::client::legacy::Error,
    Future: Send,
> + Clone
+ Send
+ use<> {
    let client = client();
    let url = rules.url().clone();
    service_fn(move |inbound: Request<Incoming>| {
        let (mut head, body) = inbound.into_parts();
        if own_hop {
            head.headers.remove(HOST);
            head.headers.remove(CONTENT_LENGTH);
        }
        let mut outbound = Request::new(body);
        *outbound.method_mut() = head.method;
        *outbound.uri_mut() = url.clone();
        *outbound.headers_mut() = head.headers;
        client.request(outbound)
    })
}

/// It reads the whole body and answers with another; and begins a session where there is none.
pub(crate) fn upstream()
-> impl Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = hyper::Error, Future: Send>
+ Clone
+ Send {
    let begun = Arc::new(AtomicUsize::new(0));
    let start = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#;
    let result = kilobyte(start, r#""}]}}"#);
    service_fn(move |request: Request<Incoming>| {
        let is_in_session = request.headers().contains_key("mcp-session-id");
        let session = (!is_in_session).then(|| begun.fetch_add(1, Ordering::Relaxed));
        let result = result.clone();
        async move {
            request.into_body().collect().await?;
            let mut response = Response::builder().header("content-type", "application/json");
            if let Some(session) = session {
                response = response.header("mcp-session-id", format!("session-{session:032}"));
            }
            Ok(response.body(Full::new(result)).unwrap())
        }
    })
}
