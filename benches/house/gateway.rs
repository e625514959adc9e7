//! The gateway, with rmcp on both sides, beside the least that rmcp allows, a proxy of hyper alone, and the
//! upstream itself.
//!
//! The upstream is from before 2026-07-28, has sessions, and counts its requests: more than one of them for
//! a call is a failure.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mcp_forward::{
    CaptureLayer, RefusalLayer, SessionLayer,
    rmcp::{Factory, Proxy},
};
use rmcp::{
    ErrorData, RoleClient, RoleServer, ServerHandler, ServiceExt,
    model::{CallToolRequestParams, CallToolResponse},
    service::{RequestContext, RunningService},
    transport::{
        StreamableHttpClientTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
        },
    },
};
use serde_json::{Value, json};
use tower::{Layer, Service, service_fn};

use crate::{
    measure::{Case, Measured},
    relay::{of_hyper, rules},
    sockets::Stage,
    table::{Goal::AtLeast, Report, Row},
};

/// What the Rust crate `mcp-proxy` 0.6, which forwards no header, reached of a bare hyper proxy.
const PEER: f64 = 0.43;

pub(crate) fn cases() -> Vec<Case> {
    let stage = Stage::new();
    let requests = Arc::new(AtomicU64::new(0));
    let upstream = stage.upstream(upstream(Arc::clone(&requests)));
    let rules = rules(upstream);
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let sessions = SessionLayer::bind_header("x-user-id").unwrap();
    let proxy = Proxy::new([&rules], Factory::builder().build().unwrap()).unwrap();
    let gateway = capture.layer(sessions.layer(RefusalLayer::new().layer(served(proxy))));
    let mut called = stage.calls("", stage.proxy(gateway));
    let gateway = Case::new("gateway", move |count| {
        let before = requests.load(Ordering::Relaxed);
        let spent = (called.run)(count);
        let each = (requests.load(Ordering::Relaxed) - before) as f64 / count as f64;
        // What comes now and then beside the calls, such as a ping, is no cost of a call.
        assert!(count == 1 || (1.0..1.01).contains(&each), "{each} a call");
        spent
    });
    let url = rules.url().to_string();
    let client = stage.there(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        let transport = StreamableHttpClientTransport::with_client(http, config);
        ().serve(transport).await.unwrap()
    });
    let by_hand = stage.proxy(served(ByHand(Arc::new(client))));
    let bare = stage.proxy(of_hyper(&rules, true));
    vec![
        gateway,
        stage.calls("by hand", by_hand),
        stage.calls("bare", bare),
        stage.calls("direct", upstream),
    ]
}

pub(crate) fn report(measured: &Measured) -> Report {
    let rows = [
        Row::new("beside a hyper proxy", "gateway", "bare", "").goal(AtLeast(PEER)),
        Row::new("beside rmcp alone", "gateway", "by hand", ""),
        Row::new("beside the upstream itself", "gateway", "direct", ""),
    ];
    let mut report = Report::default();
    report.rates("gateway, 16 callers", measured, &rows);
    report
}

fn served<H: ServerHandler + Clone>(handler: H) -> StreamableHttpService<H, LocalSessionManager> {
    StreamableHttpService::new(
        move || Ok(handler.clone()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    )
}

/// The least gateway: one client for all callers, whose headers go nowhere.
#[derive(Clone)]
struct ByHand(Arc<RunningService<RoleClient, ()>>);

impl ServerHandler for ByHand {
    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let called = self.0.call_tool(request).await;
        let result = called.map_err(|_| ErrorData::internal_error("the upstream failed", None))?;
        Ok(result.into())
    }
}

fn upstream(
    requests: Arc<AtomicU64>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Full<Bytes>>,
    Error = hyper::Error,
    Future: Send,
> + Clone
+ Send {
    service_fn(move |request: Request<Incoming>| {
        let number = requests.fetch_add(1, Ordering::Relaxed);
        async move {
            let is_message = request.method() == Method::POST;
            let ends = request.method() == Method::DELETE;
            let body = request.into_body().collect().await?.to_bytes();
            let message: Value = serde_json::from_slice(&body).unwrap_or_default();
            let method = message["method"].as_str().unwrap_or_default();
            let response = Response::builder();
            if !is_message {
                let status = if ends { 200 } else { 405 };
                return Ok(response.status(status).body(Full::default()).unwrap());
            }
            if message["id"].is_null() {
                return Ok(response.status(202).body(Full::default()).unwrap());
            }
            let mut response = response.header("content-type", "application/json");
            if method == "initialize" {
                response = response.header("mcp-session-id", format!("session-{number:032}"));
            }
            let id = &message["id"];
            let answer = match result(method, &message["params"]) {
                Some(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
                None => {
                    response = response.status(404);
                    let error = json!({"code": -32601, "message": "unknown"});
                    json!({"jsonrpc": "2.0", "id": id, "error": error})
                }
            };
            Ok(response.body(answer.to_string().into()).unwrap())
        }
    })
}

fn result(method: &str, params: &Value) -> Option<Value> {
    Some(match method {
        "initialize" => json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bare", "version": "1"},
        }),
        "ping" => json!({}),
        "tools/list" => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}),
        "tools/call" => {
            let text = &params["arguments"]["text"];
            json!({"content": [{"type": "text", "text": text}]})
        }
        _ => return None,
    })
}
