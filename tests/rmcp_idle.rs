//! Upstreams that close connections which nobody uses: no call goes out on one of those.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use mcp::{NEWEST, call};
use mcp_forward::{ClientFactory, Inbound, Upstream, rmcp::Factory};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// On which connection each `tools/call` came.
type Calls = Arc<Mutex<Vec<usize>>>;

async fn answered(
    request: Request<Incoming>,
    connection: usize,
    calls: &Calls,
) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap();
    let result = match message["method"].as_str().unwrap() {
        "server/discover" => json!({ "supportedVersions": [NEWEST], "capabilities": {} }),
        "tools/list" => json!({ "tools": [] }),
        _ => {
            calls.lock().unwrap().push(connection);
            json!({ "content": [] })
        }
    };
    let mut answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
    for (name, value) in [("resultType", "complete"), ("cacheScope", "private")] {
        answer["result"][name] = json!(value);
    }
    answer["result"]["ttlMs"] = json!(0);
    let response = Response::builder().header("content-type", "application/json");
    response.body(Full::from(answer.to_string())).unwrap()
}

async fn called(factory: &Factory, upstream: &Upstream) {
    let client = factory.connect_for(upstream, &Inbound::empty()).await;
    let answer = client.unwrap().call_tool(call("any", json!({}))).await;
    answer.unwrap();
}

/// A connection that was idle for longer than this is closed where another request comes on it, as by
/// servers whose close crosses that request.
const KEPT: Duration = Duration::from_millis(4_400);

async fn forgetful(listener: TcpListener, calls: Calls) {
    for connection in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        let calls = Arc::clone(&calls);
        let last = Arc::new(Mutex::new(Instant::now()));
        let service = service_fn(move |request| {
            let (calls, last) = (Arc::clone(&calls), Arc::clone(&last));
            async move {
                if last.lock().unwrap().elapsed() > KEPT {
                    return Err("closed");
                }
                let response = answered(request, connection, &calls).await;
                *last.lock().unwrap() = Instant::now();
                Ok(response)
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

#[tokio::test]
async fn a_connection_is_not_used_for_longer_than_servers_keep_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let calls = Calls::default();
    tokio::spawn(forgetful(listener, Arc::clone(&calls)));
    let factory = Factory::builder().build().unwrap();
    let upstream = Upstream::builder("up", url).build().unwrap();
    for pause in [
        Duration::ZERO,
        KEPT + Duration::from_millis(100),
        Duration::ZERO,
    ] {
        // Real time: the HTTP client and the server go by it.
        tokio::time::sleep(pause).await;
        called(&factory, &upstream).await;
        called(&factory, &upstream).await;
    }
    assert_eq!(*calls.lock().unwrap(), [0, 0, 1, 1, 1, 1]);
}
