//! What every worker serves: the tools of two servers, of which a scoped request sees one.

use std::sync::Arc;

use http::request::Parts;
use mcp_forward::ServerId;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool},
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpService, session::local::LocalSessionManager,
    },
};

/// Each server's tools.
const SERVERS: [(&str, &[&str]); 2] = [
    ("github", &["create_issue", "list_pulls"]),
    ("jira", &["create_ticket"]),
];

pub(crate) type Gateway = StreamableHttpService<Handler, LocalSessionManager>;

pub(crate) fn gateway() -> Gateway {
    StreamableHttpService::new(|| Ok(Handler), Arc::default(), Default::default())
}

#[derive(Clone)]
pub(crate) struct Handler;

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // Of this message, not of the one that made the session.
        let parts = context.extensions.get::<Parts>();
        let server = parts.and_then(|parts| parts.extensions.get::<ServerId>());
        let tools = SERVERS.iter().flat_map(|(name, tools)| {
            let prefix = match server {
                Some(server) if server.as_str() == *name => Some(String::new()),
                Some(_) => None,
                None => Some(format!("{name}_")),
            };
            prefix.into_iter().flat_map(|prefix| {
                let tools = tools.iter();
                tools.map(move |tool| format!("{prefix}{tool}"))
            })
        });
        let no_arguments = serde_json::Map::from_iter([("type".to_owned(), "object".into())]);
        let tools = tools.map(|name| Tool::new(name, "An example", no_arguments.clone()));
        Ok(ListToolsResult::with_all_items(tools.collect()))
    }
}
