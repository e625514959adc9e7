//! No log has a header value, a challenge or a text of the upstream's: of this crate, of rmcp about
//! this crate's errors, of the HTTP client.
#![cfg(feature = "tracing")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/canary.rs"]
mod canary;
#[path = "support/mcp.rs"]
mod mcp;
mod support;

use canary::{CANARY, PLACES, check, log};
use mcp::{Answer, Caller, Front, Kind, Server, answer, builder, factory, hold};
use mcp_forward::{ClientFactory, Inbound, OnConflict, Rule, Upstream, rmcp::Factory};
use serde_json::json;
use support::RawUpstream;

/// With the canary in its URL and in a static header.
fn upstream(url: &str) -> Upstream {
    Upstream::builder("up", format!("{url}?key={CANARY}"))
        .rule(Rule::credential("authorization"))
        .rule(Rule::new("x-token").to("x-up-token").bearer())
        .rule(Rule::new("x-many").multi())
        .rule(Rule::new("x-both").on_conflict(OnConflict::Caller))
        .set("x-static", CANARY)
        .set("x-both", CANARY)
        .build()
        .unwrap()
}

/// The canary, wherever an answer can have it.
fn echo(status: u16, challenged: bool, content_type: &str) -> Answer {
    let challenge = format!("Bearer error_description=\"{CANARY}\"");
    let lines = [
        ("content-type", content_type),
        ("location", PLACES[2]),
        ("x-echo", CANARY),
        ("www-authenticate", &challenge),
    ];
    let lines = &lines[..if challenged { 4 } else { 3 }];
    answer(status, lines, format!("data: {CANARY}\n\n"))
}

/// Connects and calls, and logs all that it is given of ours.
async fn attempt(factory: &Factory, upstream: &Upstream, inbound: &Inbound) {
    let client = match factory.connect_for(upstream, inbound).await {
        Ok(client) => client,
        Err(error) => return tracing::warn!(%error, ?error, "no client"),
    };
    let call = mcp::call("region", json!({ "region": "north" }));
    if let Err(error) = client.call_tool(call).await {
        tracing::warn!(%error, ?error, ?client, "failed");
    }
}

/// Everything that rmcp does over a connection, in each way that it can fail.
async fn everything(kind: Kind) {
    let server = Server::start(kind).await;
    let upstream = upstream(&server.url());
    let pooled = factory();
    let fresh = builder().fresh().build().unwrap();
    let front = Front::start(Kind::Sessions, &upstream, &pooled).await;
    let token = format!("Bearer {CANARY}");
    let lines = [
        ("authorization", token.as_str()),
        ("x-token", CANARY),
        ("x-many", CANARY),
        ("x-many", CANARY),
    ];
    let caller = Caller::open(&front, lines).await;
    let inbound = front.inbound(&caller).await;
    attempt(&pooled, &upstream, &inbound).await;
    for rpc in [
        "server/discover",
        "initialize",
        "notifications/initialized",
        "tools/list",
        "tools/call",
        "GET",
        "DELETE",
    ] {
        for (status, challenged, content_type) in [
            (200, false, "text/event-stream"),
            (200, false, "application/json"),
            (200, false, "text/html"),
            (307, false, "text/html"),
            (401, true, "application/json"),
            (401, false, "application/json"),
            (403, true, "text/html"),
            (404, false, "text/html"),
            (500, false, "application/json"),
        ] {
            server.intercept(move |seen| {
                (seen.rpc() == rpc).then(|| echo(status, challenged, content_type))
            });
            for factory in [&pooled, &fresh] {
                attempt(factory, &upstream, &inbound).await;
            }
            caller.call("region", json!({ "region": "north" })).await;
        }
    }

    // A caller who leaves, and an upstream that does.
    server.intercept(|_| None);
    for leaves in [true, false] {
        let client = pooled.connect_for(&upstream, &inbound).await.unwrap();
        let held = hold(&server, client).await;
        if leaves {
            held.abort();
            server.wait_event("cancelled").await;
        } else {
            server.stop();
            let ended = tokio::time::timeout(mcp::PATIENCE, held).await.unwrap();
            ended.unwrap().unwrap_err();
        }
    }
    attempt(&pooled, &upstream, &inbound).await;
    tracing::info!(?pooled, ?inbound, ?upstream, "gone");
}

/// A stream that breaks off in the middle of what it says, as no server of rmcp's does it.
async fn broken() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n",
        "HTTP/1.1 401 no\r\ncontent-length: 1000\r\n\r\n",
        "HTTP/1.1 401 no\r\nwww-authenticate: kQ7vZ2xW9bL4mT6pR8sJ\r\n",
        "kQ7vZ2xW9bL4mT6pR8sJ",
    ] {
        let answer = format!("{head}ff\r\nid: 1\ndata: {CANARY}\n\ndata: {CANARY}");
        let raw = RawUpstream::answering(answer).await;
        let upstream = upstream(&raw.url("/mcp"));
        let inbound = support::capture(&[&upstream], [("x-token", CANARY)]).await;
        let soon = std::time::Duration::from_millis(100);
        let factory = builder().connect_timeout(soon).build().unwrap();
        let error = factory.connect_for(&upstream, &inbound).await.unwrap_err();
        tracing::warn!(%error, ?error, "broken");
    }
}

#[tokio::test]
async fn no_log_has_it() {
    let log = log("trace");
    for kind in [Kind::Sessions, Kind::Newest] {
        everything(kind).await;
    }
    broken().await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for part in [
        "mcp_forward::events: injected",
        "mcp_forward::events: the upstream cannot be reached",
        "TRACE hyper_util::",
        "reqwest",
        "worker quit with fatal",
        "fail to get common stream",
        "fail to delete session",
        "sse stream",
        "response error",
    ] {
        assert!(log.contains(part), "{part}");
    }
    check("the log", &log);
}
