//! What has to hold of any bytes, one file for each fuzz target.
//!
//! `fuzz/` runs these on what it makes up, `corpus.rs` on what it kept. Each says whether the bytes came
//! to what it is about, so that a corpus which comes to nothing is seen.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

pub mod challenge;
pub mod config;
pub mod connection;
pub mod hold;
pub mod merge;
mod model;
#[path = "../support/oracle.rs"]
pub mod oracle;
#[path = "../support/restricted.rs"]
mod restricted;
pub mod rules;
mod script;
pub mod session;
mod visit;

use std::{convert::Infallible, future::ready};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use mcp_forward::{CaptureLayer, ClientFactory, Inbound, Outbound, Refusal, Upstream};
use oracle::done;
use tower::{Layer, ServiceExt, service_fn};

/// Runs `future` where no time passes but that for which everything waits.
pub fn paused<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future)
}

/// `name: value` on each line, without those that HTTP would not let through.
pub fn headers(text: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = parts.next().unwrap_or_default();
        let value = HeaderValue::from_bytes(value.strip_prefix(b" ").unwrap_or(value));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// What `layer` captures of a request with `headers`, and those that go on; or the status with which it
/// refuses it.
pub fn capture(layer: &CaptureLayer, headers: HeaderMap) -> Result<(Inbound, HeaderMap), u16> {
    let service = layer.layer(service_fn(|request: Request<()>| {
        let mut response = Response::new(());
        let inbound = Inbound::current().expect("no scope");
        let headers = request.into_parts().0.headers;
        response.extensions_mut().insert((inbound, headers));
        ready(Ok::<_, Infallible>(response))
    }));
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    let mut response = done(service.oneshot(request)).unwrap();
    let captured = response.extensions_mut().remove();
    captured.ok_or(response.status().as_u16())
}

/// A factory whose client is the `Outbound` itself.
pub fn identity() -> impl ClientFactory<Client = Outbound> {
    |outbound: Outbound| async move { Ok::<_, Infallible>(outbound) }
}

/// What an answer of an upstream that takes the caller's `authorization` is.
pub fn refusal(status: u16, headers: &HeaderMap) -> Refusal {
    let upstream = Upstream::builder("up", "https://up.example/mcp");
    let upstream = upstream.allow_credential("authorization").build().unwrap();
    let outbound = done(identity().connect_for(&upstream, &Inbound::empty())).unwrap();
    let status = status.try_into().unwrap();
    outbound.refusal(status, headers).expect("401 or 403")
}
