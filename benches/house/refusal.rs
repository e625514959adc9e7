//! `RefusalLayer`, beside the same service without it: calls per second, and the delay of the first byte.
//!
//! Held are a whole body, an event stream that is primed first, and (never) a relay's answer. All stand
//! behind `CaptureLayer`.

use std::{net::SocketAddr, rc::Rc};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, RefusalLayer, Relay};
use tower::{Layer, service_fn};

use crate::{
    measure::{Case, Measured},
    relay::{rules, upstream},
    sockets::{Stage, client, kilobyte},
    table::{Goal::AtLeast, Report, Row},
};

/// As rmcp answers: a priming event, and then the result.
async fn events(
    request: Request<Incoming>,
) -> Result<
    Response<StreamBody<impl stream::Stream<Item = Result<Frame<Bytes>, hyper::Error>>>>,
    hyper::Error,
> {
    request.into_body().collect().await?;
    let priming = Bytes::from_static(b"id: 0\nretry: 3000\ndata:\n\n");
    let start = r#"data: {"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#;
    let event = kilobyte(start, "\"}]}}\n\n");
    let frames = [priming, event].map(|bytes| Ok(Frame::data(bytes)));
    let response = Response::builder()
        .header("content-type", "text/event-stream")
        .header("mcp-session-id", "0123456789abcdef0123456789abcdef");
    let body = StreamBody::new(stream::iter(frames));
    Ok(response.body(body).unwrap())
}

/// Each service without the layer, and with it.
fn services() -> (Rc<Stage>, [(&'static str, SocketAddr); 6]) {
    let stage = Stage::new();
    let rules = rules(stage.upstream(upstream()));
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let refusal = RefusalLayer::new();
    let relay = Relay::new(&rules, client());
    let json = upstream();
    let services = [
        ("JSON, without", stage.proxy(capture.layer(json.clone()))),
        ("JSON", stage.proxy(capture.layer(refusal.layer(json)))),
        (
            "events, without",
            stage.proxy(capture.layer(service_fn(events))),
        ),
        (
            "events",
            stage.proxy(capture.layer(refusal.layer(service_fn(events)))),
        ),
        ("relay, without", stage.proxy(capture.layer(relay.clone()))),
        ("relay", stage.proxy(capture.layer(refusal.layer(relay)))),
    ];
    (stage, services)
}

pub(crate) fn cases() -> Vec<Case> {
    let (stage, services) = services();
    let cases = services.map(|(name, address)| stage.calls(name, address));
    cases.into()
}

pub(crate) fn report(measured: &Measured) -> Report {
    let row = |label, without| Row::new(label, label, without, "").goal(AtLeast(0.97));
    let rows = [
        row("JSON", "JSON, without"),
        row("events", "events, without"),
        row("relay", "relay, without"),
    ];
    let mut report = Report::default();
    report.rates("refusal layer, beside none", measured, &rows);
    report
}

pub(crate) fn first_bytes() -> Vec<Case> {
    let (stage, services) = services();
    let cases = services.map(|(name, address)| stage.first_bytes(name, address));
    cases.into()
}

pub(crate) fn report_first_bytes(measured: &Measured) -> Report {
    let rows = [
        Row::new("JSON", "JSON", "JSON, without", ""),
        Row::new("events", "events", "events, without", ""),
        Row::new("relay", "relay", "relay, without", ""),
    ];
    let mut report = Report::default();
    report.times("first byte, beside none", measured, &rows);
    report
}
