//! The MCP server behind the proxies: its one tool answers with the HTTP headers of its own call.

use std::sync::Arc;

use axum::Router;
use http::request::Parts;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ListToolsResult,
        PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpService, session::local::LocalSessionManager,
    },
};

use crate::verdict::Headers;

/// The name of the tool.
pub(crate) const TOOL: &str = "headers";

/// `handler` as an MCP server at `/mcp`; it makes a session for each client.
pub(crate) fn mcp<H: ServerHandler + Clone>(handler: H) -> McpService<H> {
    StreamableHttpService::new(
        move || Ok(handler.clone()),
        Arc::default(),
        Default::default(),
    )
}

pub(crate) type McpService<H> = StreamableHttpService<H, LocalSessionManager>;

pub(crate) fn app() -> Router {
    Router::new().route_service("/mcp", mcp(Upstream))
}

#[derive(Clone)]
struct Upstream;

impl ServerHandler for Upstream {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let no_arguments = serde_json::Map::from_iter([("type".to_owned(), "object".into())]);
        let tool = Tool::new(TOOL, "The HTTP headers of this call", no_arguments);
        Ok(ListToolsResult::with_all_items(vec![tool]))
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let parts = parts.ok_or_else(|| ErrorData::internal_error("no HTTP request", None))?;
        let headers = serde_json::json!(headers(&parts.headers));
        Ok(CallToolResult::structured(headers).into())
    }
}

fn headers(map: &http::HeaderMap) -> Headers {
    let joined = |name: &http::HeaderName| {
        let lines = map.get_all(name).iter();
        let lines: Vec<_> = lines
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        lines.join(" | ")
    };
    map.keys()
        .map(|name| (name.to_string(), joined(name)))
        .collect()
}
