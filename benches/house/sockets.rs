//! Real sockets under load: callers and their upstream on one thread, what stands between them on
//! another.
//!
//! It may not know what is compared.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
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
    runtime::{Builder, Handle, Runtime},
    task::{LocalSet, spawn_local},
};
use tower::{BoxError, Service};

use crate::measure::Case;

const CALLERS: usize = 16;

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"load","version":"1"}}}"#;
const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// `start`, text and `end`, together 1 KiB.
pub(crate) fn kilobyte(start: &str, end: &str) -> Bytes {
    let text = "a".repeat(1024 - start.len() - end.len());
    format!("{start}{text}{end}").into()
}

fn tool_call() -> Bytes {
    let start = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":""#;
    kilobyte(start, r#""}}}"#)
}

pub(crate) type HttpClient<B> = Client<HttpConnector, B>;

pub(crate) fn client<B>() -> HttpClient<B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// The two threads, for as long as the process lives.
pub(crate) struct Stage {
    here: Runtime,
    local: LocalSet,
    there: Handle,
}

impl Stage {
    pub(crate) fn new() -> Rc<Self> {
        let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
        let there = runtime();
        let handle = there.handle().clone();
        std::thread::spawn(move || there.block_on(std::future::pending::<()>()));
        Rc::new(Self {
            here: runtime(),
            local: LocalSet::new(),
            there: handle,
        })
    }

    /// Serves `service` where the callers are.
    pub(crate) fn upstream<S, R>(&self, service: S) -> SocketAddr
    where
        S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        self.here.block_on(serve(service))
    }

    /// Serves `service` on the other thread.
    pub(crate) fn proxy<S, R>(&self, service: S) -> SocketAddr
    where
        S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        self.there.block_on(serve(service))
    }

    /// Does `work` on the other thread, while this one serves.
    pub(crate) fn there<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let done = self.there.spawn(work);
        self.local.block_on(&self.here, done).unwrap()
    }

    /// Calls by all callers at once, each one after the other.
    pub(crate) fn calls(self: &Rc<Self>, name: &str, address: SocketAddr) -> Case {
        let stage = Rc::clone(self);
        let connecting = async {
            let mut callers = Vec::new();
            for who in 0..CALLERS {
                callers.push(Caller::connect(address, who).await);
            }
            callers
        };
        let mut callers = stage.local.block_on(&stage.here, connecting);
        Case::new(name, move |count| {
            let round = round(&mut callers, count);
            stage.local.block_on(&stage.here, round)
        })
    }

    /// One call after the other, each timed until the first byte of its answer's body.
    pub(crate) fn first_bytes(self: &Rc<Self>, name: &str, address: SocketAddr) -> Case {
        let stage = Rc::clone(self);
        let mut caller = stage
            .local
            .block_on(&stage.here, Caller::connect(address, 0));
        Case::new(name, move |count| {
            stage.local.block_on(&stage.here, async {
                let mut spent = Duration::ZERO;
                for _ in 0..count {
                    let start = Instant::now();
                    let mut body = caller.call(tool_call()).await;
                    body.frame().await.unwrap().unwrap();
                    spent += start.elapsed();
                    body.collect().await.unwrap();
                }
                spent
            })
        })
    }
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

/// `count` calls by all `callers` together.
async fn round(callers: &mut Vec<Caller>, count: u64) -> Duration {
    let left = Rc::new(Cell::new(count));
    let start = Instant::now();
    let calls = callers.drain(..).map(|mut caller| {
        let left = Rc::clone(&left);
        let body = tool_call();
        spawn_local(async move {
            while left.get() > 0 {
                left.set(left.get() - 1);
                caller.call(body.clone()).await.collect().await.unwrap();
            }
            caller
        })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        callers.push(call.await.unwrap());
    }
    start.elapsed()
}

/// One user on a kept connection, in a session.
struct Caller {
    connection: SendRequest<Full<Bytes>>,
    who: usize,
    session: Option<HeaderValue>,
}

impl Caller {
    async fn connect(address: SocketAddr, who: usize) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (connection, driver) = handshake(TokioIo::new(stream)).await.unwrap();
        spawn_local(driver);
        let mut caller = Self {
            connection,
            who,
            session: None,
        };
        let begun = caller.send(INITIALIZE.into()).await;
        caller.session = begun.headers().get("mcp-session-id").cloned();
        assert!(caller.session.is_some(), "no session has begun");
        begun.into_body().collect().await.unwrap();
        caller
            .call(INITIALIZED.into())
            .await
            .collect()
            .await
            .unwrap();
        let answer = caller.call(tool_call()).await.collect().await.unwrap();
        let answer = String::from_utf8(answer.to_bytes().into()).unwrap();
        assert!(answer.contains(r#""content""#), "{answer}");
        caller
    }

    async fn call(&mut self, body: Bytes) -> Incoming {
        self.send(body).await.into_body()
    }

    async fn send(&mut self, body: Bytes) -> Response<Incoming> {
        let who = self.who;
        let mut request = Request::post("/mcp")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("user-agent", "example-client/1.0")
            .header("authorization", "Bearer 0123456789abcdef0123456789abcdef")
            .header("x-user-id", format!("caller-{who:08}"))
            .header("x-tenant-id", "0123456789abcdef");
        if let Some(session) = &self.session {
            request = request
                .header("mcp-session-id", session)
                .header("mcp-protocol-version", "2025-11-25");
        }
        self.connection.ready().await.unwrap();
        let request = request.body(Full::new(body)).unwrap();
        let response = self.connection.send_request(request).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        response
    }
}
