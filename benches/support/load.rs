//! Real sockets under load: servers, callers and the counting, for the benchmarks that need them.
//!
//! It may not know what is compared.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
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
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tower::{BoxError, Service};

const CONNECTIONS: usize = 16;

/// How long it measures.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) round: Duration,
}

impl Effort {
    /// A whole run with `--bench`; else only enough to show that it runs.
    pub(crate) fn asked() -> Self {
        if std::env::args().any(|argument| argument == "--bench") {
            Self {
                rounds: 61,
                round: Duration::from_millis(200),
            }
        } else {
            Self {
                rounds: 1,
                round: Duration::from_millis(10),
            }
        }
    }
}

/// A JSON text of 1 KiB.
pub(crate) fn json() -> Bytes {
    let start = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"text":""#;
    let end = r#""}}"#;
    let text = "a".repeat(1024 - start.len() - end.len());
    format!("{start}{text}{end}").into()
}

pub(crate) fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

pub(crate) fn client<B>() -> Client<HttpConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Serves `service` on loopback for as long as the runtime runs.
pub(crate) async fn serve<S, R>(service: S) -> SocketAddr
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
pub(crate) async fn compare<const N: usize>(
    proxies: [SocketAddr; N],
    effort: Effort,
) -> [Vec<f64>; N] {
    let mut callers = Vec::new();
    for proxy in proxies {
        let mut connected = connect(proxy).await;
        // To warm up.
        round(&mut connected, effort.round).await;
        callers.push(connected);
    }
    let mut rates = [const { Vec::new() }; N];
    for at in 0..effort.rounds {
        for turn in 0..N {
            let which = (at + turn) % N;
            rates[which].push(round(&mut callers[which], effort.round).await);
        }
    }
    rates
}

pub(crate) type Caller = SendRequest<Full<Bytes>>;

pub(crate) async fn connect(proxy: SocketAddr) -> Vec<Caller> {
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

/// A caller's request with ten headers.
pub(crate) fn request(body: Bytes) -> Request<Full<Bytes>> {
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
    request.body(Full::new(body)).unwrap()
}

async fn call(caller: &mut Caller, body: Bytes) {
    let request = request(body);
    caller.ready().await.unwrap();
    let response = caller.send_request(request).await.unwrap();
    assert!(response.status().is_success());
    response.into_body().collect().await.unwrap();
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
