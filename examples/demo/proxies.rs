//! Three proxies for one MCP server: one without rules, and the crate's two ways to have some.

use axum::{Router, body::Body};
use http::request::Parts;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mcp_forward::{
    BoxClientFactory, BuildError, CaptureLayer, ClientFactory, Inbound, Outbound, Relay, Upstream,
    outbound,
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, ListToolsResult, PaginatedRequestParams,
        ServerCapabilities, ServerConfig,
    },
    service::{RequestContext, ServiceError},
};
use tower::ServiceBuilder;

use crate::{
    upstream::mcp,
    wire::{McpClient, connect},
};

/// What the rules below allow. `cookie` has no rule.
pub(crate) const ALLOWED: [&str; 5] = [
    "authorization",
    "x-user-id",
    "x-organization-id",
    "x-organization-ids",
    "x-custom-header",
];

fn with_rules(url: &str) -> Result<Upstream, BuildError> {
    Upstream::builder("with-rules", url)
        .allow_credential("authorization")
        .allow("x-user-id")
        .allow("x-organization-id")
        .allow("x-organization-ids")
        .allow("x-custom-header")
        .build()
}

/// A relay that was told nothing, and so forwards nothing.
pub(crate) fn no_rules(url: &str) -> Result<Router, BuildError> {
    let upstream = Upstream::builder("no-rules", url).build()?;
    Ok(Router::new().route_service("/mcp", Relay::new(&upstream, http_client())))
}

/// A relay with rules: it copies the HTTP exchange and knows nothing of MCP's messages.
pub(crate) fn relay(url: &str) -> Result<Router, BuildError> {
    let upstream = with_rules(url)?;
    let service = ServiceBuilder::new()
        .layer(CaptureLayer::for_upstreams([&upstream]).build()?)
        .service(Relay::new(&upstream, http_client()));
    Ok(Router::new().route_service("/mcp", service))
}

/// An MCP server whose handler calls the upstream with an MCP client, made for each caller.
pub(crate) fn factory(url: &str) -> Result<Router, BuildError> {
    let upstream = with_rules(url)?;
    let capture = CaptureLayer::for_upstreams([&upstream]).build()?;
    let factory = |outbound: Outbound| async move {
        let url = outbound.upstream().url().to_string();
        let headers = outbound.iter();
        let headers = headers.map(|(name, value)| (name.clone(), value.clone()));
        connect(url, headers.collect()).await
    };
    let gateway = Gateway {
        upstream,
        factory: BoxClientFactory::new(factory),
    };
    let service = ServiceBuilder::new().layer(capture).service(mcp(gateway));
    Ok(Router::new().route_service("/mcp", service))
}

fn http_client() -> Client<HttpConnector, outbound::Body<Body>> {
    Client::builder(TokioExecutor::new()).build_http()
}

#[derive(Clone)]
struct Gateway {
    upstream: Upstream,
    factory: BoxClientFactory<McpClient>,
}

impl Gateway {
    /// A client that acts as whoever sent this message.
    async fn client(&self, context: &RequestContext<RoleServer>) -> Result<McpClient, ErrorData> {
        // rmcp runs each handler in a task of its own, where no inbound is current; the one of the
        // message comes with its HTTP request.
        let parts = context.extensions.get::<Parts>();
        let parts = parts.ok_or_else(|| internal("the message came without an HTTP request"))?;
        let inbound = Inbound::of(&parts.extensions);
        let client = self.factory.connect_for(&self.upstream, &inbound).await;
        client.map_err(|error| internal(error.to_string()))
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
        let client = self.client(&context).await?;
        let tools = client.list_tools(request).await;
        close(client).await;
        tools.map_err(passed_on)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let client = self.client(&context).await?;
        let answer = client.call_tool_once(request).await;
        close(client).await;
        answer.map_err(passed_on)
    }
}

/// Ends the client's session at the upstream. The caller has its answer whether or not this works.
async fn close(client: McpClient) {
    let _ = client.cancel().await;
}

/// The upstream's own error; of the transport's no text, which may quote what was sent.
fn passed_on(error: ServiceError) -> ErrorData {
    match error {
        ServiceError::McpError(error) => error,
        _ => internal("the upstream gave no answer"),
    }
}

fn internal(message: impl Into<std::borrow::Cow<'static, str>>) -> ErrorData {
    ErrorData::internal_error(message, None)
}
