//! A proxy between rmcp's servers and rmcp's clients: upstreams that record what they hear, the proxy
//! on a socket, and its callers.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    deprecated,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    serve::ListenerExt,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request::Parts};
use mcp_forward::{
    CaptureLayer, RefusalLayer, Upstream, UpstreamBuilder,
    rmcp::{Factory, Proxy},
};
use rmcp::{
    ErrorData, RoleClient, RoleServer, ServerHandler, Service, ServiceError,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientConfig, ClientRequest,
        ClientResult, CompleteRequestParams, CompleteResult, ContentBlock, CustomRequest,
        CustomResult, GetMeta, GetPromptRequestParams, GetPromptResponse, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
        ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ServerConfig,
        ServerNotification, ServerRequest, ServerResult, SetLevelRequestParams,
        SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams,
    },
    service::{
        ClientLifecycleMode, ClientServiceExt, NotificationContext, Peer, RequestContext,
        RunningService, SubscriptionContext, SubscriptionSink,
    },
    transport::{
        StreamableHttpClientTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
        },
    },
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};

/// What every wait gives up after.
const PATIENCE: Duration = Duration::from_secs(20);

/// A list that somebody waits for.
#[derive(Default)]
pub struct Record<T> {
    all: Mutex<Vec<T>>,
    changed: Notify,
}

impl<T: Clone + std::fmt::Debug> Record<T> {
    pub fn add(&self, entry: T) {
        self.all.lock().unwrap().push(entry);
        self.changed.notify_waiters();
    }

    pub fn all(&self) -> Vec<T> {
        self.all.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.all.lock().unwrap().clear();
    }

    /// Waits until `done` holds of what there is.
    pub async fn wait(&self, what: &str, mut done: impl FnMut(&[T]) -> bool) -> Vec<T> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let all = self.all();
                if done(&all) {
                    return all;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("no {what}: {:#?}", self.all()))
    }
}

/// Ends a test that hangs.
pub async fn bounded<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    done.expect("it did not end")
}

/// One HTTP request at an upstream.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The method of the message, or the HTTP method where there is none.
    pub method: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Heard {
    /// The only line under `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.get_all(name).iter();
        let line = lines.next().map(|value| value.to_str().unwrap());
        assert!(lines.next().is_none(), "{name} has several lines");
        line
    }
}

/// What an upstream has, and how it speaks.
#[derive(Clone)]
pub struct Offer {
    pub newest: bool,
    pub tools: Vec<&'static str>,
    pub prompts: Vec<&'static str>,
    pub resources: Vec<&'static str>,
    pub templates: Vec<&'static str>,
    /// How many items a page has.
    pub page: usize,
    /// It never answers a list of tools.
    pub stuck: bool,
    /// Who is told that the tool `mirror` wants arguments as headers, too.
    pub mirrored: Vec<&'static str>,
    /// What they are told of its arguments.
    pub properties: Value,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            newest: false,
            tools: vec!["whoami"],
            prompts: vec!["greet"],
            resources: Vec::new(),
            templates: Vec::new(),
            page: 100,
            stuck: false,
            mirrored: Vec::new(),
            properties: json!({
                "region": { "type": "string", "x-mcp-header": "Region" },
                "deep": { "type": "object", "properties": {
                    "size": { "type": "integer", "x-mcp-header": "Size" },
                    "fast": { "type": "boolean", "x-mcp-header": "Fast" },
                } },
            }),
        }
    }
}

type Answering = Arc<dyn Fn(&Heard) -> Option<(u16, Value)> + Send + Sync>;

/// An upstream: an rmcp server, recorded.
#[derive(Clone)]
pub struct Site {
    pub name: &'static str,
    pub addr: SocketAddr,
    pub heard: Arc<Record<Heard>>,
    /// What happened in handlers.
    pub events: Arc<Record<String>>,
    offer: Arc<Mutex<Offer>>,
    /// With which status everything is refused.
    refusing: Arc<Mutex<Option<StatusCode>>>,
    /// How what came is answered before any handler.
    answering: Arc<Mutex<Option<Answering>>>,
    peers: Arc<Mutex<Vec<Peer<RoleServer>>>>,
    sinks: Arc<Mutex<Vec<SubscriptionSink>>>,
    gate: Arc<Notify>,
}

impl Site {
    pub async fn start(name: &'static str, offer: Offer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Self {
            name,
            addr: listener.local_addr().unwrap(),
            heard: Arc::default(),
            events: Arc::default(),
            offer: Arc::new(Mutex::new(offer)),
            refusing: Arc::default(),
            answering: Arc::default(),
            peers: Arc::default(),
            sinks: Arc::default(),
            gate: Arc::default(),
        };
        let (handler, recorder) = (site.clone(), site.clone());
        let service = StreamableHttpService::new(
            move || Ok(handler.clone()),
            Arc::<LocalSessionManager>::default(),
            StreamableHttpServerConfig::default(),
        );
        let record = move |request, next| recorder.clone().record(request, next);
        let app = Router::new()
            .route_service("/mcp", service)
            .layer(from_fn(record));
        serve(listener, app);
        site
    }

    async fn record(self, request: Request, next: Next) -> Response {
        let (parts, body) = request.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let method = match body["method"].as_str() {
            Some(method) => method.to_owned(),
            None if body.get("id").is_some() => "answer".to_owned(),
            None => parts.method.to_string(),
        };
        let headers = parts.headers.clone();
        let heard = Heard {
            method,
            headers,
            body,
        };
        self.heard.add(heard.clone());
        let answering = self.answering.lock().unwrap().clone();
        if let Some((status, answer)) = answering.and_then(|answering| answering(&heard)) {
            return Response::builder()
                .status(status)
                .header("content-type", "application/json")
                .body(answer.to_string().into())
                .unwrap();
        }
        if let Some(status) = *self.refusing.lock().unwrap() {
            let challenge = "Bearer resource_metadata=\"http://up.example/secret\"";
            return Response::builder()
                .status(status)
                .header("www-authenticate", challenge)
                .body(Body::empty())
                .unwrap();
        }
        next.run(Request::from_parts(parts, Body::from(bytes)))
            .await
    }

    pub fn builder(&self) -> UpstreamBuilder {
        Upstream::builder(self.name, format!("http://{}/mcp", self.addr))
    }

    /// It receives who the caller is, as `x-user`.
    pub fn upstream(&self) -> Upstream {
        self.builder().allow("x-user").build().unwrap()
    }

    pub fn offer(&self, change: impl FnOnce(&mut Offer)) {
        change(&mut self.offer.lock().unwrap());
    }

    pub fn refuse(&self, status: Option<StatusCode>) {
        *self.refusing.lock().unwrap() = status;
    }

    /// Answers with a status and a message what `answering` answers, from now on.
    pub fn answer(
        &self,
        answering: impl Fn(&Heard) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) {
        *self.answering.lock().unwrap() = Some(Arc::new(answering));
    }

    /// What came with this method.
    pub fn of(&self, method: &str) -> Vec<Heard> {
        let mut all = self.heard.all();
        all.retain(|heard| heard.method == method);
        all
    }

    /// Lets whoever holds a call in a tool end.
    pub fn release(&self) {
        self.gate.notify_waiters();
    }

    /// Says something that belongs to no call, in every session.
    pub async fn say(&self, notification: Value) {
        let notification: ServerNotification = serde_json::from_value(notification).unwrap();
        // A session is ready once its handler was told so, which may be after its first call.
        let begun = self.of("notifications/initialized").len();
        let ready = |all: &[String]| all.iter().filter(|it| *it == "initialized").count() >= begun;
        self.events.wait("session", ready).await;
        let peers = self.peers.lock().unwrap().clone();
        for peer in peers {
            let _ = peer.send_notification(notification.clone()).await;
        }
    }

    /// Asks something that belongs to no call, in the newest session.
    pub async fn ask(&self, request: Value) -> Value {
        let peer = self.peers.lock().unwrap().last().cloned().unwrap();
        ask(&peer, request).await
    }

    /// Says something in every subscription that wants it.
    pub async fn publish(&self, notification: Value) {
        let notification: ServerNotification = serde_json::from_value(notification).unwrap();
        let sinks = self.sinks.lock().unwrap().clone();
        for sink in sinks {
            let _ = sink.send(notification.clone()).await;
        }
    }

    fn page(
        &self,
        field: &str,
        items: Vec<Value>,
        request: Option<PaginatedRequestParams>,
    ) -> Result<Value, ErrorData> {
        let size = self.offer.lock().unwrap().page;
        let at = match request.and_then(|page| page.cursor) {
            None => 0,
            Some(cursor) => cursor
                .strip_prefix(self.name)
                .and_then(|at| at.parse().ok())
                .ok_or_else(|| ErrorData::invalid_params("not my cursor", None))?,
        };
        let more = at + size < items.len();
        let page: Vec<_> = items.into_iter().skip(at).take(size).collect();
        let mut result = json!({ field: page });
        if more {
            result["nextCursor"] = json!(format!("{}{}", self.name, at + size));
        }
        // Whoever caches this gives one caller's list to another.
        result["ttlMs"] = json!(3_600_000);
        result["cacheScope"] = json!("public");
        Ok(result)
    }
}

/// Who called, as the upstream was told.
fn user(context: &RequestContext<RoleServer>) -> String {
    let parts = context.extensions.get::<Parts>().unwrap();
    let user = parts.headers.get("x-user");
    user.map_or("nobody", |user| user.to_str().unwrap())
        .to_owned()
}

pub async fn ask(peer: &Peer<RoleServer>, request: Value) -> Value {
    let request: ServerRequest = serde_json::from_value(request).unwrap();
    match peer.send_request(request).await {
        Ok(answer) => serde_json::to_value(answer).unwrap(),
        Err(ServiceError::McpError(error)) => json!({ "error": error.code.0 }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

pub fn elicitation(message: &str) -> Value {
    json!({ "method": "elicitation/create", "params": {
        "message": message,
        "requestedSchema": { "type": "object", "properties": {} },
    } })
}

pub fn sampling(text: &str) -> Value {
    json!({ "method": "sampling/createMessage", "params": {
        "messages": [{ "role": "user", "content": { "type": "text", "text": text } }],
        "maxTokens": 10,
    } })
}

pub fn roots() -> Value {
    json!({ "method": "roots/list" })
}

fn text(value: &Value) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(value.to_string())]).into()
}

/// Tells whether the call was cancelled before it ended.
struct Held(Arc<Record<String>>, Option<String>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(user) = self.1.take() {
            self.0.add(format!("cancelled {user}"));
        }
    }
}

impl ServerHandler for Site {
    fn get_info(&self) -> ServerConfig {
        let capabilities = json!({
            "tools": { "listChanged": true },
            "prompts": { "listChanged": true },
            "resources": { "subscribe": true, "listChanged": true },
            "completions": {},
            "logging": {},
        });
        ServerConfig::new(serde_json::from_value(capabilities).unwrap())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(match self.offer.lock().unwrap().newest {
            true => ProtocolVersion::KNOWN_VERSIONS,
            false => ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25),
        })
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.peers.lock().unwrap().push(context.peer);
        self.events.add("initialized".to_owned());
    }

    async fn on_roots_list_changed(&self, context: NotificationContext<RoleServer>) {
        let parts = context.extensions.get::<Parts>().unwrap();
        let user = parts.headers["x-user"].to_str().unwrap();
        self.events.add(format!("roots changed {user}"));
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let offer = self.offer.lock().unwrap().clone();
        if offer.stuck {
            let _held = Held(Arc::clone(&self.events), Some(user(&context)));
            context.ct.cancelled().await;
        }
        let mirrored = offer.mirrored.contains(&&*user(&context));
        let tool = |name: &str| match name {
            "mirror" if mirrored => json!({ "name": name, "inputSchema": {
                "type": "object", "properties": offer.properties,
            } }),
            _ => json!({ "name": name, "inputSchema": { "type": "object" } }),
        };
        let mut tools: Vec<_> = offer.tools.iter().map(|it| tool(it)).collect();
        tools.push(tool(&format!("for-{}", user(&context))));
        let page = self.page("tools", tools, request)?;
        Ok(serde_json::from_value(page).unwrap())
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let offer = self.offer.lock().unwrap().clone();
        let prompts = offer.prompts.iter().map(|it| json!({ "name": it }));
        let page = self.page("prompts", prompts.collect(), request)?;
        Ok(serde_json::from_value(page).unwrap())
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let offer = self.offer.lock().unwrap().clone();
        let resources = offer.resources.iter();
        let resources = resources.map(|it| json!({ "uri": it, "name": self.name }));
        let page = self.page("resources", resources.collect(), request)?;
        Ok(serde_json::from_value(page).unwrap())
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let offer = self.offer.lock().unwrap().clone();
        let templates = offer.templates.iter();
        let templates = templates.map(|it| json!({ "uriTemplate": it, "name": self.name }));
        let page = self.page("resourceTemplates", templates.collect(), request)?;
        Ok(serde_json::from_value(page).unwrap())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = Value::from(request.arguments.unwrap_or_default());
        let user = user(&context);
        let told = arguments["text"].as_str().unwrap_or_default();
        let answer = match &*request.name {
            "whoami" => json!({ "at": self.name, "user": user, "text": told }),
            "elicit" => ask(&context.peer, elicitation(told)).await,
            "sample" => ask(&context.peer, sampling(told)).await,
            "roots" => ask(&context.peer, roots()).await,
            "progress" => {
                let token = context.meta.get_progress_token();
                for progress in 1..=arguments["steps"].as_u64().unwrap() {
                    let progress: ServerNotification = serde_json::from_value(json!({
                        "method": "notifications/progress",
                        "params": { "progressToken": token, "progress": progress, "message": told },
                    }))
                    .unwrap();
                    context.peer.send_notification(progress).await.unwrap();
                }
                json!({ "token": token, "user": user })
            }
            "log" => {
                let said = serde_json::from_value(log(told)).unwrap();
                context.peer.send_notification(said).await.unwrap();
                json!({ "user": user })
            }
            "hold" => {
                let mut held = Held(Arc::clone(&self.events), Some(user.clone()));
                let released = self.gate.notified();
                tokio::pin!(released);
                released.as_mut().enable();
                self.events.add(format!("holding {user}"));
                tokio::select! {
                    () = released => held.1 = None,
                    () = context.ct.cancelled() => drop(held),
                }
                json!({ "user": user })
            }
            // What cannot be asked meanwhile is asked by the result.
            "mrtr" => {
                let answers = request
                    .input_responses
                    .map(|it| serde_json::to_value(it).unwrap());
                let Some(answers) = answers else {
                    let ask = json!({
                        "resultType": "input_required",
                        "inputRequests": { "who": elicitation("who?") },
                        "requestState": format!("of {}", self.name),
                    });
                    return Ok(CallToolResponse::InputRequired(
                        serde_json::from_value(ask).unwrap(),
                    ));
                };
                json!({ "answers": answers, "state": request.request_state })
            }
            "fail" => return Err(ErrorData::invalid_params("no such luck", Some(json!(told)))),
            "meta" => json!(context.meta),
            "mirror" => arguments,
            name => return Err(ErrorData::invalid_params(format!("no tool {name}"), None)),
        };
        Ok(text(&answer))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let said = format!("{} {} {}", self.name, request.name, user(&context));
        let result = json!({ "messages": [
            { "role": "user", "content": { "type": "text", "text": said } },
        ] });
        Ok(GetPromptResponse::Complete(
            serde_json::from_value(result).unwrap(),
        ))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let said = format!("{} {}", self.name, user(&context));
        let result = json!({ "contents": [{ "uri": request.uri, "text": said }] });
        Ok(ReadResourceResponse::Complete(
            serde_json::from_value(result).unwrap(),
        ))
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let asked = serde_json::to_value(&request.r#ref).unwrap();
        let values = json!([self.name, user(&context), asked.to_string()]);
        let result = json!({ "completion": { "values": values } });
        Ok(serde_json::from_value(result).unwrap())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let user = user(&context);
        self.events.add(format!("subscribe {} {user}", request.uri));
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let user = user(&context);
        self.events
            .add(format!("unsubscribe {} {user}", request.uri));
        Ok(())
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let level = serde_json::to_value(request.level).unwrap();
        let user = user(&context);
        self.events.add(format!("level {level} {user}"));
        Ok(())
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let said = json!({ "at": self.name, "method": request.method, "params": request.params,
            "user": user(&context) });
        Ok(CustomResult::new(said))
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.sinks.lock().unwrap().push(context.sink().clone());
        let wanted = serde_json::to_value(context.accepted()).unwrap();
        let user = user(context.request_context());
        self.events.add(format!("listening {wanted} {user}"));
        context.cancelled().await;
        self.events.add(format!("no longer {user}"));
        Ok(())
    }
}

pub fn log(text: &str) -> Value {
    json!({ "method": "notifications/message", "params": { "level": "info", "data": text } })
}

/// An event that waits for the acknowledgement of the one before it would come 40 ms late.
fn serve(listener: TcpListener, app: Router) {
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
}

/// The proxy on a socket, with the layers that its documentation asks for.
pub async fn front(upstreams: &[Upstream]) -> SocketAddr {
    let factory = Factory::builder().build().unwrap();
    front_of(upstreams, Proxy::new(upstreams, factory).unwrap()).await
}

pub async fn front_of(upstreams: &[Upstream], proxy: Proxy) -> SocketAddr {
    let app = Router::new().route_service("/mcp", mcp(proxy));
    listen(layered(upstreams, app)).await
}

pub fn mcp(proxy: Proxy) -> StreamableHttpService<Proxy, LocalSessionManager> {
    StreamableHttpService::new(
        move || Ok(proxy.clone()),
        Arc::<LocalSessionManager>::default(),
        StreamableHttpServerConfig::default(),
    )
}

pub fn layered(upstreams: &[Upstream], app: Router) -> Router {
    app.layer(RefusalLayer::new())
        .layer(CaptureLayer::for_upstreams(upstreams).build().unwrap())
}

pub async fn listen(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    serve(listener, app);
    addr
}

/// Which protocol a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// 2025-11-25, in a session.
    Sessions,
    /// 2026-07-28.
    Newest,
}

pub const ERAS: [Era; 2] = [Era::Sessions, Era::Newest];

/// What an rmcp client does with what the proxy says and asks.
#[derive(Clone)]
pub struct Ears {
    name: String,
    /// What it was told, in order.
    pub told: Arc<Record<Value>>,
    /// What it was asked.
    pub asked: Arc<Record<Value>>,
    capabilities: Value,
    /// It answers nothing while this is held.
    pub silent: Arc<tokio::sync::Mutex<()>>,
}

impl Service<RoleClient> for Ears {
    async fn handle_request(
        &self,
        request: ServerRequest,
        _: RequestContext<RoleClient>,
    ) -> Result<ClientResult, ErrorData> {
        let asked = serde_json::to_value(&request).unwrap();
        self.asked.add(asked.clone());
        let _speaking = self.silent.lock().await;
        let answer = match request {
            ServerRequest::PingRequest(_) => json!({}),
            ServerRequest::ElicitRequest(_) => json!({ "action": "accept", "content": {
                "by": self.name, "to": asked["params"]["message"],
            } }),
            ServerRequest::CreateMessageRequest(_) => json!({
                "role": "assistant", "model": self.name,
                "content": asked["params"]["messages"][0]["content"],
            }),
            ServerRequest::ListRootsRequest(_) => json!({ "roots": [
                { "uri": format!("file:///{}", self.name) },
            ] }),
            _ => return Err(ErrorData::invalid_params("no such question", None)),
        };
        Ok(serde_json::from_value(answer).unwrap())
    }

    async fn handle_notification(
        &self,
        mut notification: ServerNotification,
        context: NotificationContext<RoleClient>,
    ) -> Result<(), ErrorData> {
        *notification.get_meta_mut() = context.meta;
        self.told.add(serde_json::to_value(&notification).unwrap());
        Ok(())
    }

    fn get_info(&self) -> ClientConfig {
        let about = json!({
            "protocolVersion": "2025-11-25",
            "capabilities": self.capabilities,
            "clientInfo": { "name": self.name, "version": "1" },
        });
        serde_json::from_value(about).unwrap()
    }
}

/// An rmcp client.
pub struct Caller {
    pub name: String,
    pub ears: Ears,
    pub client: RunningService<RoleClient, Ears>,
}

impl Caller {
    /// Connects as `x-user: name`.
    pub async fn open(front: SocketAddr, era: Era, name: &str) -> Self {
        Self::with(front, era, name, &[("x-user", name)]).await
    }

    pub async fn with(front: SocketAddr, era: Era, name: &str, lines: &[(&str, &str)]) -> Self {
        Self::at(format!("http://{front}/mcp"), era, name, lines).await
    }

    pub async fn at(url: String, era: Era, name: &str, lines: &[(&str, &str)]) -> Self {
        let ears = Ears {
            name: name.to_owned(),
            told: Arc::default(),
            asked: Arc::default(),
            capabilities: json!({
                "elicitation": {}, "sampling": {}, "roots": { "listChanged": true },
            }),
            silent: Arc::default(),
        };
        let line = |(name, value): &(&str, &str)| {
            let name = HeaderName::try_from(*name).unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        };
        let config = StreamableHttpClientTransportConfig::with_uri(url)
            .max_concurrent_requests(1024)
            .custom_headers(lines.iter().map(line).collect());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let transport = StreamableHttpClientTransport::with_client(http, config);
        let lifecycle = match era {
            Era::Sessions => ClientLifecycleMode::Initialize,
            Era::Newest => ClientLifecycleMode::Discover {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            },
        };
        let client = ears.clone().serve_with_lifecycle(transport, lifecycle);
        Self {
            name: name.to_owned(),
            ears,
            client: client
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}")),
        }
    }

    /// The result, or the JSON-RPC error under `error`, or what else went wrong under `lost`.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        answer(self.client.send_request(request(method, params)).await)
    }

    /// What a tool answers; or the error.
    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        let params = json!({ "name": tool, "arguments": arguments });
        let answer = self.ask("tools/call", params).await;
        match answer["content"][0]["text"].as_str() {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => answer,
        }
    }

    /// What a list has under `field` for each item, and where it goes on.
    pub async fn page(&self, method: &str, cursor: Option<&str>) -> (Vec<String>, Value) {
        let params = cursor.map_or(json!({}), |cursor| json!({ "cursor": cursor }));
        let result = self.ask(method, params).await;
        let (list, field) = match method {
            "tools/list" => ("tools", "name"),
            "prompts/list" => ("prompts", "name"),
            "resources/list" => ("resources", "uri"),
            _ => ("resourceTemplates", "uriTemplate"),
        };
        let items = result[list].as_array().map(Vec::as_slice);
        let items = items.unwrap_or_else(|| panic!("{result}"));
        let items = items
            .iter()
            .map(|it| it[field].as_str().unwrap().to_owned());
        (items.collect(), result)
    }

    pub async fn list(&self, method: &str) -> Vec<String> {
        self.page(method, None).await.0
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for the callers")]
pub fn request(method: &str, params: Value) -> ClientRequest {
    let mut request = json!({ "method": method });
    request["params"] = params;
    serde_json::from_value(request).unwrap()
}

pub fn answer(answer: Result<ServerResult, ServiceError>) -> Value {
    match answer {
        Ok(result) => serde_json::to_value(result).unwrap(),
        Err(ServiceError::McpError(error)) => json!({ "error": error }),
        Err(error) => json!({ "lost": error.to_string() }),
    }
}
