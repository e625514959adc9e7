//! `rmcp::Proxy`: what the log says of an upstream that failed, and a panic on the way.
#![cfg(feature = "tracing")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use mcp_forward::Upstream;
use proxy::{Caller, ERAS, Offer, Site, bounded, front};
use serde_json::json;
use tokio::net::TcpSocket;
use tracing::{Event, Subscriber};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

fn down() -> (Upstream, TcpSocket) {
    let (addr, socket) = support::closed();
    let upstream = Upstream::builder("down", format!("http://{addr}/mcp"));
    (upstream.build().unwrap(), socket)
}

#[tokio::test]
async fn the_log_names_an_upstream_that_is_left_out() {
    bounded(async {
        let site = Site::start("site", Offer::default()).await;
        let (down, _socket) = down();
        let addr = front(&[site.upstream(), down]).await;
        let caller = Caller::open(addr, ERAS[0], "s3cr3t").await;
        let ((), log) = support::logged(async {
            let (_, result) = caller.page("tools/list", None).await;
            assert_eq!(result["_meta"]["mcp-forward/failed"], json!(["down"]));
        })
        .await;
        let ours: Vec<_> = log
            .lines()
            .filter(|it| it.contains(" mcp_forward::"))
            .collect();
        let told = ours.iter().find(|line| line.contains("left out"));
        let told = told.unwrap_or_else(|| panic!("not in the log: {log}"));
        assert!(told.contains("WARN") && told.contains("\"down\""), "{told}");
        assert!(ours.iter().all(|line| !line.contains("s3cr3t")), "{ours:?}");
    })
    .await;
}

/// Panics where the proxy logs that an upstream is left out: in the middle of a caller's request.
struct Panics;

impl<S: Subscriber> Layer<S> for Panics {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = String::new();
        event.record(
            &mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                said.push_str(&format!("{value:?}"));
            },
        );
        if event.metadata().target().starts_with("mcp_forward") {
            assert!(!said.contains("left out"), "the log is full");
        }
    }
}

#[tokio::test]
async fn a_panic_becomes_an_error_answer() {
    bounded(async {
        let site = Site::start("site", Offer::default()).await;
        let (down, _socket) = down();
        let addr = front(&[site.upstream(), down]).await;
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            let panicking = support::subscribe(tracing_subscriber::registry().with(Panics));
            let answer = caller.ask("tools/list", json!({})).await;
            drop(panicking);
            let message = &answer["error"]["message"];
            assert_eq!(message, "the proxy failed on this message", "{answer}");
            // Nothing else is broken.
            assert_eq!(caller.list("tools/list").await.len(), 2);
        }
    })
    .await;
}
