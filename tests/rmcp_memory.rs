//! What the factory keeps does not grow with the number of callers.
//!
//! Bytes are counted on this thread, where everything of the factory runs; the upstream has a thread
//! of its own. 10,000 callers take a minute without optimisations, so there are that many only with
//! them: `cargo test --release --test rmcp_memory -- --nocapture`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::{
    convert::Infallible,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use mcp::{LEGACY, NEWEST, builder, call, told, until};
use mcp_forward::{ClientFactory, Rule, Upstream, rmcp::Factory};
use serde_json::{Value, json};
use support::{capture, serve};
use tokio::runtime::{Builder, Handle, Runtime};
use tower::service_fn;

const KEPT: usize = 100;
const FEW: usize = 200;
const MANY: usize = if cfg!(debug_assertions) {
    1_000
} else {
    10_000
};

/// An upstream on a thread of its own that keeps no more than the number of its sessions.
struct Counting {
    upstream: Upstream,
    sessions: Arc<AtomicUsize>,
}

impl Counting {
    fn start(newest: bool) -> Self {
        Self::serve(newest, json!([]))
    }

    fn with_tools(tools: Value) -> Self {
        Self::serve(true, tools)
    }

    fn serve(newest: bool, tools: Value) -> Self {
        let sessions = Arc::<AtomicUsize>::default();
        let (tell, told) = mpsc::channel();
        let counter = Arc::clone(&sessions);
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let service = service_fn(move |request| {
                    exchange(newest, tools.clone(), Arc::clone(&counter), request)
                });
                tell.send(serve(service).await).unwrap();
                std::future::pending::<()>().await;
            });
        });
        let url = format!("http://{}/mcp", told.recv().unwrap());
        let upstream = Upstream::builder("up", url).rule(Rule::credential("authorization"));
        Self {
            upstream: upstream.build().unwrap(),
            sessions,
        }
    }
}

async fn exchange(
    newest: bool,
    tools: Value,
    sessions: Arc<AtomicUsize>,
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut response = Response::builder();
    let result = match message["method"].as_str() {
        Some("server/discover") if newest => json!({
            "supportedVersions": [NEWEST],
            "capabilities": { "tools": {} },
            "ttlMs": 0,
            "cacheScope": "private",
        }),
        Some("initialize") if !newest => {
            let id = sessions.fetch_add(1, Ordering::Relaxed);
            response = response.header("mcp-session-id", format!("session-{id}"));
            json!({
                "protocolVersion": LEGACY,
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "up", "version": "1" },
            })
        }
        Some("tools/list") => json!({ "tools": tools, "ttlMs": 0, "cacheScope": "private" }),
        Some("tools/call") => json!({ "content": [{ "type": "text", "text": "1" }] }),
        Some("notifications/initialized") => {
            let accepted = response.status(StatusCode::ACCEPTED);
            return Ok(accepted.body(Full::default().boxed_unsync()).unwrap());
        }
        None if head.method == Method::GET => {
            let silence = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
            let response = response.header("content-type", "text/event-stream");
            return Ok(response
                .body(StreamBody::new(silence).boxed_unsync())
                .unwrap());
        }
        None if head.method == Method::DELETE => {
            sessions.fetch_sub(1, Ordering::Relaxed);
            return Ok(response.body(Full::default().boxed_unsync()).unwrap());
        }
        _ => {
            let unknown = response.status(StatusCode::NOT_FOUND);
            return Ok(unknown.body(Full::default().boxed_unsync()).unwrap());
        }
    };
    let mut answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
    if newest {
        answer["result"]["resultType"] = json!("complete");
    }
    let body = Full::from(answer.to_string()).boxed_unsync();
    let response = response.header("content-type", "application/json");
    Ok(response.body(body).unwrap())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// One call of each of `callers`, each with a token of its own.
async fn calls(factory: &Factory, upstream: &Upstream, callers: Range<usize>) {
    for caller in callers {
        let token = format!("Bearer caller-{caller:032}");
        let inbound = capture(&[upstream], [("authorization", &*token)]).await;
        let client = factory.connect_for(upstream, &inbound).await.unwrap();
        assert_eq!(
            told(client.call_tool(call("any", json!({}))).await.unwrap()),
            1
        );
    }
}

/// Waits until what was closed has ended: no more tasks live than `alive`.
async fn settled(alive: usize) {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    until("closed connections stay alive", async || tasks() <= alive).await;
}

/// The live bytes after `FEW` callers, and how many more after `MANY`, where `kept` connections stay.
fn grown(newest: bool, factory: &Factory, kept: usize) -> (i64, i64) {
    let upstream = Counting::start(newest);
    let runtime = runtime();
    let mut alive = 0;
    let few = measure(|| {
        runtime.block_on(async {
            calls(factory, &upstream.upstream, 0..kept).await;
            // And those of the HTTP client's own idle connections.
            alive = Handle::current().metrics().num_alive_tasks() + 8;
            calls(factory, &upstream.upstream, kept..FEW).await;
            settled(alive).await;
        });
    });
    let more = measure(|| {
        runtime.block_on(async {
            calls(factory, &upstream.upstream, FEW..MANY).await;
            settled(alive).await;
        });
    });
    let sessions = upstream.sessions.load(Ordering::Relaxed);
    assert!(newest || sessions.abs_diff(kept) < 2, "{sessions} sessions");
    (few.bytes_current, more.bytes_current)
}

fn assert_bounded((few, more): (i64, i64)) {
    println!("{few} bytes after {FEW} callers, {more} more after {MANY}");
    assert!(few > 0);
    assert!(more.abs() * 10 <= few, "{few} and {more}");
}

fn pooled() -> Factory {
    let factory = builder().max_connections(KEPT.try_into().unwrap());
    factory.build().unwrap()
}

#[test]
fn kept_sessions_do_not_grow_with_the_callers() {
    assert_bounded(grown(false, &pooled(), KEPT));
}

#[test]
fn kept_connections_to_2026_07_28_do_not_grow_with_the_callers() {
    assert_bounded(grown(true, &pooled(), KEPT));
}

#[test]
fn nothing_stays_where_nothing_is_kept() {
    let factory = builder().fresh().build().unwrap();
    let (few, more) = grown(false, &factory, 0);
    println!("{few} bytes after {FEW} callers, {more} more after {MANY}");
    // So little stays that what the HTTP client lets go of shows.
    assert!(few > 0 && more * 10 <= few, "{few} and {more}");
}

/// A name above many annotations is in the list once.
#[test]
fn a_list_of_tools_takes_no_more_than_its_size() {
    let leaf = |at: usize| {
        let schema = json!({ "type": "string", "x-mcp-header": format!("h{at}") });
        (at.to_string(), schema)
    };
    let leaves: serde_json::Map<_, _> = (0..1_000).map(leaf).collect();
    let above = json!({ "a".repeat(256 * 1024): { "type": "object", "properties": leaves } });
    let schema = json!({ "type": "object", "properties": above });
    let upstream = Counting::with_tools(json!([{ "name": "any", "inputSchema": schema }]));
    let inbound = runtime().block_on(capture(&[&upstream.upstream], []));
    let factory = builder().build().unwrap();
    let taken = measure(|| {
        runtime().block_on(async {
            let client = factory.connect_for(&upstream.upstream, &inbound).await;
            let listed = client.unwrap().list_tools(None).await.unwrap();
            assert_eq!(listed.tools.len(), 1);
        });
    });
    println!("{} bytes", taken.bytes_max);
    assert!(taken.bytes_max < 32 * 1024 * 1024, "{}", taken.bytes_max);
}
