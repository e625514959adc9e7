//! A front that is built on the factory, and callers of it, whose messages are written by hand so that
//! their headers can change. The upstream behind it is in `mcp_server.rs`.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "mcp_server.rs"]
mod server;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use mcp_forward::{
    CaptureLayer, ClientFactory, Inbound, Upstream,
    rmcp::{Client, ContextExt, Error, Factory, FactoryBuilder},
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult,
        PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
pub use server::*;
use tokio::{sync::mpsc, task::JoinHandle};
use tower::Layer;

use crate::support::{HttpClient, headers, http_client};

pub const NEWEST: &str = "2026-07-28";
pub const LEGACY: &str = "2025-11-25";
/// What every wait gives up after.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How an rmcp server is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sessions,
    StatelessSse,
    StatelessJson,
    /// 2026-07-28. (It also serves older clients, in sessions.)
    Newest,
    /// 2026-07-28 and nothing else.
    NewestOnly,
}

pub const KINDS: [Kind; 4] = [
    Kind::Sessions,
    Kind::StatelessSse,
    Kind::StatelessJson,
    Kind::Newest,
];

impl Kind {
    fn config(self) -> StreamableHttpServerConfig {
        let config = StreamableHttpServerConfig::default();
        match self {
            Self::Sessions | Self::Newest | Self::NewestOnly => config,
            Self::StatelessSse => config.with_legacy_session_mode(false),
            Self::StatelessJson => config
                .with_legacy_session_mode(false)
                .with_json_response(true),
        }
    }

    fn versions(self) -> &'static [ProtocolVersion] {
        match self {
            Self::Newest => ProtocolVersion::KNOWN_VERSIONS,
            Self::NewestOnly => {
                let all = ProtocolVersion::KNOWN_VERSIONS;
                &all[all.len() - 1..]
            }
            _ => ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25),
        }
    }
}

/// Waits until `done` holds, by looking again and again.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{what}");
}

fn text(value: &Value) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(value.to_string())]).into()
}

/// The proxy: an rmcp server whose handlers call one upstream through the factory.
#[derive(Clone)]
pub struct Front {
    pub addr: SocketAddr,
    pub kind: Kind,
    lent: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Inbound>>>,
    errors: Arc<Mutex<Vec<Error>>>,
}

#[derive(Clone)]
struct Gateway {
    upstream: Upstream,
    factory: Factory,
    lend: mpsc::UnboundedSender<Inbound>,
    errors: Arc<Mutex<Vec<Error>>>,
}

impl Gateway {
    fn note(&self, error: Error) -> ErrorData {
        self.errors.lock().unwrap().push(error.clone());
        error.into()
    }
}

impl ServerHandler for Gateway {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let caller = context.inbound()?;
        let client = self.factory.connect_for(&self.upstream, &caller).await?;
        client.list_tools(request).await.map_err(|it| self.note(it))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let caller = context.inbound()?;
        if request.name == "lend" {
            self.lend.send(caller).unwrap();
            return Ok(text(&Value::Null));
        }
        let client = self.factory.connect_for(&self.upstream, &caller).await?;
        client.call_tool(request).await.map_err(|it| self.note(it))
    }
}

impl Front {
    pub async fn start(kind: Kind, upstream: &Upstream, factory: &Factory) -> Self {
        let (lend, lent) = mpsc::unbounded_channel();
        let errors = Arc::<Mutex<Vec<Error>>>::default();
        let gateway = Gateway {
            upstream: upstream.clone(),
            factory: factory.clone(),
            lend,
            errors: Arc::clone(&errors),
        };
        let service = StreamableHttpService::new(
            move || Ok(gateway.clone()),
            Arc::<LocalSessionManager>::default(),
            kind.config(),
        );
        let capture = CaptureLayer::for_upstreams([upstream]).build().unwrap();
        Self {
            addr: crate::support::serve(capture.layer(service)).await,
            kind,
            lent: Arc::new(tokio::sync::Mutex::new(lent)),
            errors,
        }
    }

    /// The caller as a handler finds it.
    pub async fn inbound(&self, caller: &Caller) -> Inbound {
        caller.call("lend", json!({})).await;
        self.lent().await
    }

    /// The caller of the tool `lend`.
    pub async fn lent(&self) -> Inbound {
        self.lent.lock().await.recv().await.unwrap()
    }

    /// Why calls through the front have failed.
    pub fn errors(&self) -> Vec<Error> {
        self.errors.lock().unwrap().clone()
    }
}

/// One caller of a front.
#[derive(Clone)]
pub struct Caller {
    http: HttpClient<Full<Bytes>>,
    uri: String,
    kind: Kind,
    pub headers: HeaderMap,
    pub session: Option<String>,
}

impl Caller {
    /// Shakes hands where there are sessions.
    pub async fn open<const N: usize>(front: &Front, lines: [(&str, &str); N]) -> Self {
        let mut caller = Self {
            http: http_client(),
            uri: format!("http://{}/mcp", front.addr),
            kind: front.kind,
            headers: headers(lines),
            session: None,
        };
        if front.kind == Kind::Sessions {
            caller.initialize(json!({})).await;
        }
        caller
    }

    pub async fn initialize(&mut self, capabilities: Value) {
        let message = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": LEGACY,
            "capabilities": capabilities,
            "clientInfo": { "name": "caller", "version": "1" },
        } });
        let (status, head, _) = self.post(&message).await;
        assert_eq!(status, 200);
        let id = head.get("mcp-session-id").unwrap();
        self.session = Some(id.to_str().unwrap().to_owned());
        let message = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(self.post(&message).await.0, 202);
    }

    /// This caller with other headers, in the same session.
    pub fn with<const N: usize>(&self, lines: [(&str, &str); N]) -> Self {
        Self {
            headers: headers(lines),
            ..self.clone()
        }
    }

    pub async fn post(&self, message: &Value) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut request = Request::post(&self.uri)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        let mut message = message.clone();
        if self.kind == Kind::Newest {
            let method = message["method"].as_str().unwrap().to_owned();
            request = request
                .header("mcp-protocol-version", NEWEST)
                .header("mcp-method", method);
            if let Some(name) = message["params"]["name"].as_str() {
                request = request.header("mcp-name", name);
            }
            message["params"]["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": NEWEST,
                "io.modelcontextprotocol/clientInfo": { "name": "caller", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            });
        } else if message["method"] != "initialize" {
            request = request.header("mcp-protocol-version", LEGACY);
        }
        let body = Full::from(message.to_string());
        let mut request = request.body(body).unwrap();
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        let (head, body) = self.http.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        (head.status, head.headers, body)
    }

    /// The JSON-RPC answer, with its `result` or `error`.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        // rmcp tells the answers in one session apart by it, whoever asked.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let (status, _, body) = self.post(&message).await;
        let body = String::from_utf8(body).unwrap();
        let json = |text: &str| serde_json::from_str::<Value>(text).ok();
        let mut found = json(&body);
        for data in body.lines().filter_map(|line| line.strip_prefix("data:")) {
            found = json(data).filter(|it| it["id"] == id).or(found);
        }
        found.unwrap_or_else(|| panic!("{status}: {body}"))
    }

    /// What the tool answers, or the JSON-RPC error.
    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        let params = json!({ "name": tool, "arguments": arguments });
        let answer = self.ask("tools/call", params).await;
        match answer["result"]["content"][0]["text"].as_str() {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => answer,
        }
    }

    pub async fn delete(&self) -> StatusCode {
        let request = Request::delete(&self.uri)
            .header("mcp-session-id", self.session.as_ref().unwrap())
            .body(Full::default())
            .unwrap();
        self.http.request(request).await.unwrap().status()
    }
}

pub fn bearer(user: &str) -> String {
    format!("Bearer {user}")
}

/// The parameters of a call, as a client of the crate takes them.
pub fn call(tool: &str, arguments: Value) -> CallToolRequestParams {
    serde_json::from_value(json!({ "name": tool, "arguments": arguments })).unwrap()
}

/// What a tool of the upstream answered.
pub fn told(response: CallToolResponse) -> Value {
    let CallToolResponse::Complete(result) = response else {
        panic!("{response:?}");
    };
    let text = &result.content[0].as_text().unwrap().text;
    serde_json::from_str(text).unwrap()
}

/// A call that is under way at the upstream until it is released; it takes the client along.
pub async fn hold(server: &Server, client: Client) -> JoinHandle<Result<CallToolResponse, Error>> {
    let holding = |server: &Server| server.events().iter().filter(|it| *it == "holding").count();
    let before = holding(server);
    let held = tokio::spawn(async move { client.call_tool(call("hold", json!({}))).await });
    server.wait("call", |it| holding(it) > before).await;
    held
}

/// A builder that does not load the system's certificates, which takes longer than most tests.
pub fn builder() -> FactoryBuilder {
    let http = reqwest::Client::builder().no_proxy();
    Factory::builder().http(http.tls_certs_only([]))
}

pub fn factory() -> Factory {
    builder().build().unwrap()
}
