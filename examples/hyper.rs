//! Adds the crate to a bare hyper server, as a relay to one MCP server:
//! `cargo run --example hyper -- http://127.0.0.1:8000/mcp`.
#![allow(clippy::print_stdout, reason = "says where it listens")]

use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::{server::conn::auto, service::TowerToHyperService};
use mcp_forward::{CaptureLayer, Relay, Upstream};
use tower::{BoxError, ServiceBuilder};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1);
    let url = url.unwrap_or_else(|| "http://127.0.0.1:8000/mcp".into());
    let upstream = Upstream::builder("tools", url).allow("x-user-id").build()?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new()
        .layer(CaptureLayer::for_upstreams([&upstream]).build()?)
        .service(Relay::new(&upstream, client));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}/mcp", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A connection that fails concerns nobody but its caller.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
