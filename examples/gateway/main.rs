//! One MCP server in front of several: `cargo run --example gateway -- --help`.
//!
//! Stdout has one line, which says where it listens. Logs go to stderr: `RUST_LOG` chooses them, and
//! `--features tracing` adds those of the crate. No header value is printed anywhere.
#![allow(clippy::print_stdout, reason = "the line that says where it listens")]

#[path = "../shared/mod.rs"]
mod shared;
mod upstreams;

use std::sync::Arc;

use clap::Parser;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use mcp_forward::{
    CaptureLayer, Upstream,
    rmcp::{Factory, Proxy},
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tower::BoxError;

use shared::{
    built,
    front::{Flags, Front},
    give_up,
    headers::Headers,
    serve::{any_https, app, http_client, https, log_to_stderr, serve},
};
use upstreams::upstreams;

/// Serves MCP from one or several servers, with those headers of the caller that flags name.
///
/// No other header travels, except those of MCP's transport itself. NAME, FROM and TO are header
/// names; every flag that takes one can be repeated, except --admission-header and
/// --principal-header.
///
/// --allow, --allow-credential, --rename, --bearer, --require, --set and --set-env are for all upstreams;
/// with an upstream's name and `:` in front, as in `--allow github:x-user-id`, for that one. Every other
/// flag is for all.
///
/// With one upstream, everything has the upstream's own names; with several, tools and prompts are
/// named `<upstream>_<name>`.
#[derive(Parser)]
struct Args {
    /// An MCP server, http or https. Where it is the only one, it needs no name
    #[arg(long, value_name = "NAME=URL", required = true)]
    upstream: Vec<String>,
    /// Let upstreams of different origins have the same authorization, cookie or proxy-authorization,
    /// which each of them can then use at the others
    #[arg(long, value_name = "NAME")]
    allow_fan_out: Vec<String>,
    #[command(flatten)]
    headers: Headers,
    #[command(flatten)]
    front: Flags,
}

/// What the flags mean, without a mistake in it.
struct Config {
    upstreams: Vec<Upstream>,
    capture: CaptureLayer,
    proxy: Proxy,
    front: Front,
}

impl Args {
    /// The configuration; or every mistake in it.
    fn config(&self) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        let upstreams = upstreams(&self.upstream, &self.headers, &mut mistakes);
        let capture = CaptureLayer::for_upstreams(&upstreams);
        let names = self.allow_fan_out.iter();
        let capture = names.fold(capture, |capture, name| capture.allow_fan_out(name));
        let capture = built(capture.build(), &mut mistakes);
        let front = self.front.front(&mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let factory = built(Factory::builder().build(), &mut mistakes);
        let proxy = factory.and_then(|it| built(Proxy::new(&upstreams, it), &mut mistakes));
        match (capture, proxy, front) {
            (Some(capture), Some(proxy), Some(front)) => Ok(Config {
                upstreams,
                capture,
                proxy,
                front,
            }),
            _ => Err(mistakes),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let config = Args::parse().config();
    let config = config.unwrap_or_else(|mistakes| give_up(&mistakes));
    log_to_stderr();
    if any_https(&config.upstreams) {
        run(config, https()?).await
    } else {
        run(config, HttpConnector::new()).await
    }
}

async fn run<C>(config: Config, connector: C) -> Result<(), BoxError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let Config {
        upstreams,
        capture,
        proxy,
        front,
    } = config;
    let names = capture.names().to_vec();
    // The guard stands outside.
    let mcp = StreamableHttpServerConfig::default().disable_allowed_hosts();
    let sessions = Arc::new(LocalSessionManager::default());
    let mcp = StreamableHttpService::new(move || Ok(proxy.clone()), sessions, mcp);
    let app = app(&front, &upstreams, capture, http_client(connector), mcp);
    let app = app.route_layer(front.guard);
    serve(front.listen, app, &names).await
}
