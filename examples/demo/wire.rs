//! A server on a loopback port of its own that ends when told to, and an MCP client.

use std::{collections::HashMap, io};

use axum::Router;
use http::{HeaderName, HeaderValue};
use rmcp::{
    RoleClient, ServiceExt,
    service::RunningService,
    transport::streamable_http_client::{
        StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
    },
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tower::BoxError;

/// A running server.
pub(crate) struct Server {
    pub(crate) url: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    pub(crate) async fn start(app: Router) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/mcp", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel();
        let serve = axum::serve(listener, app).with_graceful_shutdown(async {
            // Dropping the sender stops it as well.
            let _ = stopped.await;
        });
        Ok(Self {
            url,
            stop,
            task: tokio::spawn(async { serve.await }),
        })
    }

    /// Ends after the last open request.
    pub(crate) async fn stop(self) -> Result<(), BoxError> {
        drop(self.stop);
        Ok(self.task.await??)
    }
}

pub(crate) type McpClient = RunningService<RoleClient, ()>;

/// An MCP client that sends `headers` with each of its requests.
pub(crate) async fn connect(
    url: String,
    headers: HashMap<HeaderName, HeaderValue>,
) -> Result<McpClient, BoxError> {
    // A redirect, or an HTTP proxy from the environment, would carry the headers elsewhere.
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    let config = StreamableHttpClientTransportConfig::with_uri(url).custom_headers(headers);
    let transport = StreamableHttpClientTransport::with_client(http, config);
    Ok(().serve(transport).await?)
}
