//! What the tests of sessions share: a bound service at three places, and a caller who speaks MCP.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body as HttpBody;
use http_body_util::Full;
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, Inbound, Relay, SessionLayer, Upstream, inbound::Principal};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ServerCapabilities,
        ServerConfig,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use super::support::{http_client, raw, serve, status};

/// What stands behind the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// A service of bare hyper, which makes a session of every POST without an id.
    Hyper,
    /// A relay, and rmcp's server as its upstream.
    Relay,
    /// rmcp's server.
    Rmcp,
}

pub const STAGES: [Stage; 3] = [Stage::Hyper, Stage::Relay, Stage::Rmcp];

/// A verified user: of `Bearer alice.2` it is `alice`, whose token is her second.
pub fn user(parts: &Parts) -> Option<String> {
    let token = parts.headers.get("authorization")?.to_str().ok()?;
    let token = token.strip_prefix("Bearer ")?;
    Some(token.split('.').next()?.to_owned())
}

/// As whom a request acts: by what was captured, where that came here, else by its header.
pub fn acts_as(parts: &Parts) -> String {
    let name = "authorization".parse().unwrap();
    let captured = Inbound::of(&parts.extensions).get(&name).cloned();
    let header = || parts.headers.get(&name).cloned();
    let value = captured.or_else(header);
    value.map_or("nobody".to_owned(), |value| {
        value.to_str().unwrap().to_owned()
    })
}

#[derive(Clone)]
pub struct Echo;

impl ServerHandler for Echo {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let parts = context.extensions.get::<Parts>().unwrap();
        Ok(CallToolResult::success(vec![ContentBlock::text(acts_as(parts))]).into())
    }
}

pub type McpService = StreamableHttpService<Echo, LocalSessionManager>;

pub fn mcp() -> McpService {
    StreamableHttpService::new(|| Ok(Echo), Arc::default(), Default::default())
}

/// Answers as whom the request acts, and a POST without an id with a new session.
async fn hyper(
    request: Request<Incoming>,
    made: Arc<AtomicUsize>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, _) = request.into_parts();
    let name = "authorization".parse().unwrap();
    let current = Inbound::current().unwrap().get(&name).cloned();
    let attached = Inbound::of(&parts.extensions).get(&name).cloned();
    assert_eq!(current, attached, "the scope and the extension differ");
    let mut response = Response::new(Full::from(acts_as(&parts)));
    if parts.method == "POST" && !parts.headers.contains_key("mcp-session-id") {
        let id = format!("session-{}", made.fetch_add(1, Ordering::Relaxed));
        let headers = response.headers_mut();
        headers.insert("mcp-session-id", id.parse().unwrap());
    }
    Ok(response)
}

/// A bound service that listens.
pub struct Front {
    pub addr: SocketAddr,
    reached: Arc<AtomicUsize>,
}

/// `layer` inside a capture layer, in front of `stage`.
pub async fn front<P: Principal>(stage: Stage, layer: &SessionLayer<P>) -> Front {
    let upstream = serve(mcp()).await;
    let upstream = Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow_credential("authorization")
        .build()
        .unwrap();
    match stage {
        Stage::Hyper => {
            let made = Arc::<AtomicUsize>::default();
            let service = service_fn(move |request| hyper(request, Arc::clone(&made)));
            Front::start(&upstream, layer, service).await
        }
        Stage::Relay => {
            let relay = Relay::new(&upstream, http_client());
            Front::start(&upstream, layer, relay).await
        }
        Stage::Rmcp => Front::start(&upstream, layer, mcp()).await,
    }
}

impl Front {
    pub async fn start<P, S, R>(upstream: &Upstream, layer: &SessionLayer<P>, service: S) -> Self
    where
        P: Principal,
        S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        R: HttpBody + Send + 'static,
        R::Data: Send + From<Bytes>,
        R::Error: Into<BoxError>,
    {
        let reached = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&reached);
        let counted = service.map_request(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            request
        });
        let capture = CaptureLayer::for_upstreams([upstream]).build().unwrap();
        Self {
            addr: serve(capture.layer(layer.layer(counted))).await,
            reached,
        }
    }

    /// How many requests came to the service behind.
    pub fn reached(&self) -> usize {
        self.reached.load(Ordering::Relaxed)
    }

    /// An MCP client's request, with `lines` in front.
    pub fn request(&self, method: &str, lines: &str, body: &str) -> String {
        let (addr, length) = (self.addr, body.len());
        format!(
            "{method} /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n{lines}\
             content-type: application/json\r\naccept: application/json, text/event-stream\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
    }

    /// The whole answer, but for the time.
    pub async fn send(&self, method: &str, lines: &str, body: &str) -> String {
        let answer = raw(self.addr, self.request(method, lines, body)).await;
        let lines = answer.split_inclusive("\r\n");
        lines.filter(|line| !line.starts_with("date: ")).collect()
    }

    /// The status of an answer that may have no end; the stream is open until it is dropped.
    pub async fn open(&self, method: &str, lines: &str) -> (u16, TcpStream) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = self.request(method, lines, "");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0, "no head");
        }
        (status(&String::from_utf8_lossy(&head)), stream)
    }

    /// The answer to `initialize`.
    pub async fn initialize(&self, lines: &str) -> String {
        self.send("POST", lines, INITIALIZE).await
    }

    /// A new session, ready for calls.
    pub async fn begin(&self, lines: &str) -> String {
        let answer = self.initialize(lines).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let id = id(&answer).expect("no session").to_owned();
        let lines = format!("{lines}mcp-session-id: {id}\r\n");
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let answer = self.send("POST", &lines, initialized).await;
        assert!(status(&answer) < 300, "{answer}");
        id
    }

    /// The answer to a call in the session `id`.
    pub async fn call(&self, id: &str, lines: &str) -> String {
        let lines = format!("{lines}mcp-session-id: {id}\r\nmcp-protocol-version: 2025-11-25\r\n");
        self.send("POST", &lines, CALL).await
    }

    /// Checks that a call in the session `id` acts as `token`.
    pub async fn check(&self, id: &str, lines: &str, token: &str) {
        let answer = self.call(id, lines).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains(token), "{answer}");
    }
}

/// The session that an answer names.
pub fn id(answer: &str) -> Option<&str> {
    let mut lines = answer.split("\r\n");
    lines.find_map(|line| line.strip_prefix("mcp-session-id: "))
}

pub const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
pub const CALL: &str =
    r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;

pub const ALICE: &str = "authorization: Bearer alice.1\r\n";
pub const ALICE_RENEWED: &str = "authorization: Bearer alice.2\r\n";
pub const BOB: &str = "authorization: Bearer bob.1\r\n";
