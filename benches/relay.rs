//! Requests per second through `CaptureLayer` and `Relay`, against two proxies of hyper alone.
//!
//! The bare one sends on all headers as they came; the other at least those of its own hop instead
//! of the caller's, `host` and `content-length`, as a proxy to another host has to. All three run on one
//! thread, before the same upstream, behind the same callers (which share a second thread with the
//! upstream), with the same server and client of hyper. Rounds take turns; the table shows the
//! median of each, and the ratio of the medians. Without `--bench` (`cargo test --benches`) it only
//! shows that it runs.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails loudly"
)]

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    Request, Response,
    header::{CONTENT_LENGTH, HOST},
};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    server::conn::http1,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use mcp_forward::{CaptureLayer, Relay, Upstream};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::LocalSet,
};
use tower::{BoxError, Layer, Service, service_fn};

const CONNECTIONS: usize = 16;
const GOAL: f64 = 0.95;

/// How long it measures.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    round: Duration,
}

/// A JSON text of 1 KiB.
fn json() -> Bytes {
    let start = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"text":""#;
    let end = r#""}}"#;
    let text = "a".repeat(1024 - start.len() - end.len());
    format!("{start}{text}{end}").into()
}

fn main() {
    let effort = if std::env::args().any(|argument| argument == "--bench") {
        Effort {
            rounds: 61,
            round: Duration::from_millis(200),
        }
    } else {
        Effort {
            rounds: 1,
            round: Duration::from_millis(10),
        }
    };
    let here = runtime();
    let upstream = here.block_on(serve(service_fn(answer)));
    let there = runtime();
    let proxies = there.block_on(proxies(upstream));
    // For as long as the process lives.
    std::thread::spawn(move || there.block_on(std::future::pending::<()>()));

    let rates = LocalSet::new().block_on(&here, compare(proxies, effort));
    let [ours, bare, own_hop] = &rates;
    println!("\n| proxy | requests/s | ours to it | middle half of the rounds | goal |");
    println!("|---|---|---|---|---|");
    println!("| ours | {:.0} | | | |", median(ours));
    for (name, peer, goal) in [("bare", bare, Some(GOAL)), ("own hop", own_hop, None)] {
        let mut ratios: Vec<f64> = ours
            .iter()
            .zip(peer)
            .map(|(ours, peer)| ours / peer)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let quarter = ratios.len() / 4;
        let (low, high) = (ratios[quarter], ratios[ratios.len() - 1 - quarter]);
        let peer = median(peer);
        let ratio = median(ours) / peer;
        let goal = goal.map_or(String::new(), |goal| {
            let verdict = if ratio >= goal { "met" } else { "missed" };
            format!(">= {goal}, {verdict}")
        });
        println!("| {name} | {peer:.0} | {ratio:.3} | {low:.3} to {high:.3} | {goal} |");
    }
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// The upstream: it reads the whole body and answers with another.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    let mut response = Response::new(Full::new(json()));
    let json = "application/json".parse().unwrap();
    response.headers_mut().insert("content-type", json);
    Ok(response)
}

const PROXIES: usize = 3;

/// Ours, and those of hyper alone: they stream both bodies and copy the method and the headers.
async fn proxies(upstream: SocketAddr) -> [SocketAddr; PROXIES] {
    let rules = Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow_credential("authorization")
        .allow("x-user-id")
        .allow("x-tenant-id")
        .set("x-proxy", "edge-1")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let ours = capture.layer(Relay::new(&rules, client()));
    let of_hyper = |own_hop: bool| {
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
    };
    let (bare, own_hop) = (of_hyper(false), of_hyper(true));
    [serve(ours).await, serve(bare).await, serve(own_hop).await]
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Serves `service` on loopback for as long as the runtime runs.
async fn serve<S, R>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let service = TowerToHyperService::new(service.clone());
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    address
}

/// Requests per second through each proxy, by round; every round begins with another.
async fn compare(proxies: [SocketAddr; PROXIES], effort: Effort) -> [Vec<f64>; PROXIES] {
    let mut callers = Vec::new();
    for proxy in proxies {
        let mut connected = connect(proxy).await;
        // To warm up.
        round(&mut connected, effort.round).await;
        callers.push(connected);
    }
    let mut rates = [const { Vec::new() }; PROXIES];
    for at in 0..effort.rounds {
        for turn in 0..PROXIES {
            let which = (at + turn) % PROXIES;
            rates[which].push(round(&mut callers[which], effort.round).await);
        }
    }
    rates
}

type Caller = SendRequest<Full<Bytes>>;

async fn connect(proxy: SocketAddr) -> Vec<Caller> {
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(proxy).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (caller, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        callers.push(caller);
    }
    callers
}

/// Lets every caller send one request after the other, and says how many were answered a second.
async fn round(callers: &mut Vec<Caller>, time: Duration) -> f64 {
    let answered = Rc::new(Cell::new(0_u32));
    let start = Instant::now();
    let calls = callers.drain(..).map(|mut caller| {
        let answered = Rc::clone(&answered);
        tokio::task::spawn_local(async move {
            let body = json();
            while start.elapsed() < time {
                call(&mut caller, body.clone()).await;
                answered.set(answered.get() + 1);
            }
            caller
        })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        callers.push(call.await.unwrap());
    }
    f64::from(answered.get()) / start.elapsed().as_secs_f64()
}

async fn call(caller: &mut Caller, body: Bytes) {
    let request = Request::post("/mcp")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("user-agent", "example-client/1.0")
        .header("mcp-session-id", "0123456789abcdef0123456789abcdef")
        .header("mcp-protocol-version", "2025-11-25")
        .header("authorization", "Bearer 0123456789abcdef0123456789abcdef")
        .header("x-user-id", "0123456789abcdef")
        .header("x-tenant-id", "0123456789abcdef");
    let request = request.body(Full::new(body)).unwrap();
    caller.ready().await.unwrap();
    let response = caller.send_request(request).await.unwrap();
    assert!(response.status().is_success());
    response.into_body().collect().await.unwrap();
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
