//! The upstream: an rmcp server that records every HTTP request, and can be made to fail.

use std::{
    borrow::Cow,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mcp_forward::{Rule, Upstream, UpstreamBuilder};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, ListToolsResult, PaginatedRequestParams,
        ProtocolVersion, ServerCapabilities, ServerConfig,
    },
    service::{Peer, RequestContext},
    transport::streamable_http_server::{
        StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, Semaphore},
    task::{AbortHandle, JoinSet},
};
use tower::{ServiceExt, service_fn};

use super::{Kind, PATIENCE, text};

/// One HTTP request, and how it was answered.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub headers: HeaderMap,
    pub body: Value,
    /// The session id in the answer.
    pub assigned: Option<String>,
    /// 0 while there is no answer.
    pub status: u16,
}

impl Seen {
    /// The method of the message, or the HTTP method where there is none.
    pub fn rpc(&self) -> &str {
        let answer = self
            .body
            .get("id")
            .map_or(self.method.as_str(), |_| "answer");
        self.body["method"].as_str().unwrap_or(answer)
    }

    /// The only line under `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.get_all(name).iter();
        let line = lines.next().map(|value| value.to_str().unwrap());
        assert!(lines.next().is_none(), "{name} has several lines");
        line
    }

    pub fn token(&self) -> Option<&str> {
        self.header("authorization")
    }

    pub fn session(&self) -> Option<&str> {
        self.header("mcp-session-id")
    }
}

pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

pub fn answer(status: u16, lines: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in lines {
        response = response.header(*name, *value);
    }
    response
        .body(Full::new(body.into()).boxed_unsync())
        .unwrap()
}

/// Says that nothing is wrong with the request, or how it is answered instead.
type Intercept = Arc<dyn Fn(&Seen) -> Option<Answer> + Send + Sync>;

/// What the upstream's handlers, its HTTP side and the test share.
struct Shared {
    seen: Mutex<Vec<Seen>>,
    intercept: Mutex<Option<Intercept>>,
    /// What happened in handlers.
    events: Mutex<Vec<String>>,
    changed: Notify,
    later: Semaphore,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            intercept: Mutex::default(),
            events: Mutex::default(),
            changed: Notify::default(),
            later: Semaphore::new(0),
        }
    }
}

impl Shared {
    fn tell(&self, event: impl Into<String>) {
        self.events.lock().unwrap().push(event.into());
        self.changed.notify_waiters();
    }
}

type RmcpService = StreamableHttpService<Handler, LocalSessionManager>;

/// The upstream: an rmcp server, recorded.
#[derive(Clone)]
pub struct Server {
    pub addr: SocketAddr,
    kind: Kind,
    shared: Arc<Shared>,
    gate: Arc<Semaphore>,
    service: Arc<Mutex<RmcpService>>,
    running: Arc<Mutex<AbortHandle>>,
    /// Keeps the port while nothing listens.
    _port: Arc<TcpSocket>,
}

impl Server {
    pub async fn start(kind: Kind) -> Self {
        let shared = Arc::<Shared>::default();
        let gate = Arc::new(Semaphore::new(0));
        let handler = Handler {
            kind,
            shared: Arc::clone(&shared),
            gate: Arc::clone(&gate),
        };
        let service = Arc::new(Mutex::new(handler.serve()));
        // Which does not listen itself, so that another socket may.
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = port.local_addr().unwrap();
        let listener = TcpListener::bind(addr).await.unwrap();
        let running = tokio::spawn(std::future::ready(())).abort_handle();
        let server = Self {
            addr,
            kind,
            shared,
            gate,
            service,
            running: Arc::new(Mutex::new(running)),
            _port: Arc::new(port),
        };
        server.accept(listener);
        server
    }

    fn accept(&self, listener: TcpListener) {
        let this = self.clone();
        let running = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                let service = service_fn(move |request| this.clone().exchange(request));
                connections.spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                        .await;
                });
            }
        });
        *self.running.lock().unwrap() = running.abort_handle();
    }

    async fn exchange(self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return Ok(answer(400, &[], "")),
        };
        let seen = Seen {
            method: parts.method.clone(),
            headers: parts.headers.clone(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
            assigned: None,
            status: 0,
        };
        let at = {
            let mut all = self.shared.seen.lock().unwrap();
            all.push(seen.clone());
            all.len() - 1
        };
        self.shared.changed.notify_waiters();
        let intercept = self.shared.intercept.lock().unwrap().clone();
        let response = match intercept.and_then(|intercept| intercept(&seen)) {
            Some(response) => response,
            None => {
                let service = self.service.lock().unwrap().clone();
                let request = Request::from_parts(parts, Full::new(body));
                let response = service.oneshot(request).await.unwrap();
                response.map(BodyExt::boxed_unsync)
            }
        };
        if let Some(seen) = self.shared.seen.lock().unwrap().get_mut(at) {
            let assigned = response.headers().get("mcp-session-id");
            seen.assigned = assigned.map(|id| id.to_str().unwrap().to_owned());
            seen.status = response.status().as_u16();
        }
        self.shared.changed.notify_waiters();
        Ok(response)
    }

    /// Everything that is connected loses its connection, and every session is gone. Nothing listens.
    pub fn stop(&self) {
        self.running.lock().unwrap().abort();
        self.forget_sessions();
    }

    /// Listens again, after [`stop`](Self::stop).
    pub async fn restart(&self) {
        let listener = loop {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.accept(listener);
    }

    pub fn forget_sessions(&self) {
        let handler = Handler {
            kind: self.kind,
            shared: Arc::clone(&self.shared),
            gate: Arc::clone(&self.gate),
        };
        *self.service.lock().unwrap() = handler.serve();
    }

    /// Answers what `intercept` answers, from now on.
    pub fn intercept(&self, intercept: impl Fn(&Seen) -> Option<Answer> + Send + Sync + 'static) {
        *self.shared.intercept.lock().unwrap() = Some(Arc::new(intercept));
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.addr)
    }

    /// This server as an upstream that takes the caller's token.
    pub fn upstream(&self) -> Upstream {
        self.builder().build().unwrap()
    }

    pub fn builder(&self) -> UpstreamBuilder {
        Upstream::builder("up", self.url())
            .rule(Rule::credential("authorization"))
            .allow("x-user")
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// What came with this JSON-RPC method, or this HTTP method where there is no message.
    pub fn of(&self, rpc: &str) -> Vec<Seen> {
        let all = self.shared.seen.lock().unwrap();
        all.iter()
            .filter(|seen| seen.rpc() == rpc)
            .cloned()
            .collect()
    }

    /// The JSON-RPC methods that came, in order.
    pub fn order(&self) -> Vec<String> {
        let all = self.shared.seen.lock().unwrap();
        all.iter().map(|seen| seen.rpc().to_owned()).collect()
    }

    pub fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
        self.shared.events.lock().unwrap().clear();
    }

    pub fn events(&self) -> Vec<String> {
        self.shared.events.lock().unwrap().clone()
    }

    /// Lets `calls` calls of `hold` end.
    pub fn release(&self, calls: usize) {
        self.gate.add_permits(calls);
    }

    /// Lets `questions` of `ask_later` be asked.
    pub fn ask_now(&self, questions: usize) {
        self.shared.later.add_permits(questions);
    }

    /// Waits until `done` holds, which only something that happens here can make so.
    pub async fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "no {what}: {:#?}", self.order());
    }

    pub async fn wait_for(&self, rpc: &str, count: usize) -> Vec<Seen> {
        self.wait(rpc, |this| this.of(rpc).len() >= count).await;
        self.of(rpc)
    }

    pub async fn wait_event(&self, event: &str) {
        self.wait(event, |this| this.events().iter().any(|it| it == event))
            .await;
    }
}

/// The upstream's handlers.
#[derive(Clone)]
struct Handler {
    kind: Kind,
    shared: Arc<Shared>,
    gate: Arc<Semaphore>,
}

impl Handler {
    fn serve(self) -> RmcpService {
        let config = self.kind.config();
        let make = move || Ok(self.clone());
        StreamableHttpService::new(make, Arc::<LocalSessionManager>::default(), config)
    }
}

fn lines(context: &RequestContext<RoleServer>) -> Value {
    let parts = context.extensions.get::<http::request::Parts>().unwrap();
    let all = |name: &str| -> Vec<_> {
        let lines = parts.headers.get_all(name).iter();
        lines
            .map(|line| line.to_str().unwrap().to_owned())
            .collect()
    };
    json!({ "authorization": all("authorization"), "x-user": all("x-user") })
}

/// What asks, answers or refuses; the JSON of both.
async fn ask(peer: Peer<RoleServer>, request: Value) -> Value {
    let request = serde_json::from_value(request).unwrap();
    match peer.send_request(request).await {
        Ok(answer) => serde_json::to_value(answer).unwrap(),
        Err(rmcp::ServiceError::McpError(error)) => json!({ "error": error.code.0 }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.kind.versions())
    }

    /// One tool for everybody, on a page of its own, and one that only this caller has.
    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let user = lines(&context)["x-user"][0].as_str().map(str::to_owned);
        let first = request.is_none_or(|page| page.cursor.is_none());
        let mut list = match first {
            true => {
                json!({ "tools": [tool(&user.unwrap_or("nobody".to_owned()))], "nextCursor": "2" })
            }
            false => json!({ "tools": [annotated()] }),
        };
        // It may be kept for an hour, by everybody.
        list["ttlMs"] = json!(3_600_000);
        list["cacheScope"] = json!("public");
        Ok(serde_json::from_value(list).unwrap())
    }

    fn get_tool(&self, name: &str) -> Option<rmcp::model::Tool> {
        (name == "region").then(|| serde_json::from_value(annotated()).unwrap())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = Value::from(request.arguments.unwrap_or_default());
        match &*request.name {
            "hold" => {
                self.shared.tell("holding");
                let ended = tokio::select! {
                    permit = self.gate.acquire() => {
                        permit.unwrap().forget();
                        "released"
                    }
                    () = context.ct.cancelled() => "cancelled",
                };
                self.shared.tell(ended);
                let released = ended == "released";
                Ok(text(&if released {
                    lines(&context)
                } else {
                    Value::Null
                }))
            }
            "ask" => Ok(text(&ask(context.peer, arguments["request"].clone()).await)),
            "ask_later" => {
                // A task of its own belongs to no call.
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    shared.later.acquire().await.unwrap().forget();
                    let answer = ask(context.peer, arguments["request"].clone()).await;
                    shared.tell(answer.to_string());
                });
                Ok(text(&Value::Null))
            }
            "fail" => {
                let text = arguments["text"].as_str().unwrap().to_owned();
                Err(ErrorData::invalid_params(text, Some(arguments)))
            }
            "whoami" => Ok(text(&lines(&context))),
            _ => Ok(text(&Value::Null)),
        }
    }
}

fn tool(name: &str) -> Value {
    json!({ "name": name, "inputSchema": { "type": "object" } })
}

/// A tool that wants an argument as a header, too.
fn annotated() -> Value {
    json!({ "name": "region", "inputSchema": {
        "type": "object",
        "properties": { "region": { "type": "string", "x-mcp-header": "Region" } },
    } })
}
