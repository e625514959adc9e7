//! Events: what the relay could not deliver is named in the log, without a value.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use mcp_forward::{CaptureLayer, Relay, Upstream};
use support::{OK, RawUpstream, http_client, post, raw, serve, status};
use tower::Layer;
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The status and the log, at every level, of one call through a relay to `url`.
async fn call(url: String) -> (u16, String) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // This runtime has one thread, so everything runs below this subscriber.
    let _subscribed = tracing::subscriber::set_default(subscriber);
    let up = Upstream::builder("up", url)
        .allow_credential("authorization")
        .set("x-key", "s3cret")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
    let answer = raw(addr, post(addr, "authorization: Bearer s3cret\r\n")).await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (status(&answer), log)
}

/// The lines of this crate.
fn own(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("mcp_forward"))
        .collect()
}

#[tokio::test]
async fn a_redirect_names_its_targets_origin() {
    let server = RawUpstream::answering(
        "HTTP/1.1 307 x\r\nlocation: http://Other.example:8443/s3cret?t=s3cret\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let (status, log) = call(server.url("/mcp?key=s3cret")).await;
    assert_eq!(status, 502);
    let own = own(&log);
    assert_eq!(own.len(), 1, "{log}");
    for part in [
        "WARN",
        "upstream=\"up\"",
        "status=307",
        "http://other.example:8443",
    ] {
        assert!(own[0].contains(part), "{log}");
    }
    assert!(!own[0].contains("s3cret"));
}

#[tokio::test]
async fn an_upstream_that_is_down_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let (status, log) = call(format!("http://{addr}/mcp?key=s3cret")).await;
    assert_eq!(status, 502);
    let own = own(&log);
    assert_eq!(own.len(), 1, "{log}");
    assert!(
        own[0].contains("upstream=\"up\"") && !own[0].contains("s3cret"),
        "{log}"
    );
}

#[tokio::test]
async fn the_good_path_is_silent_and_nothing_logs_a_value() {
    let server = RawUpstream::answering(OK).await;
    let (status, log) = call(server.url("/mcp")).await;
    assert_eq!(status, 200);
    assert!(own(&log).is_empty(), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
}
