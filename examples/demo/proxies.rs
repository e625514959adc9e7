//! Three proxies for one MCP server: one without rules, and the crate's two ways to have some.

use axum::{Router, body::Body};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mcp_forward::{
    BuildError, CaptureLayer, ClientFactory, Relay, Upstream, outbound,
    rmcp::{ContextExt, Factory},
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, ListToolsResult, PaginatedRequestParams,
        ServerCapabilities, ServerConfig,
    },
    service::RequestContext,
};
use tower::ServiceBuilder;

use crate::upstream::mcp;

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

/// An MCP server whose handler calls the upstream with an MCP client, as each caller.
pub(crate) fn factory(url: &str) -> Result<Router, BuildError> {
    let upstream = with_rules(url)?;
    let capture = CaptureLayer::for_upstreams([&upstream]).build()?;
    let gateway = Gateway {
        upstream,
        factory: Factory::builder().build()?,
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
    factory: Factory,
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
        Ok(client.list_tools(request).await?)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let caller = context.inbound()?;
        let client = self.factory.connect_for(&self.upstream, &caller).await?;
        Ok(client.in_call(&context).call_tool(request).await?)
    }
}
