//! A reverse proxy for one MCP server: `cargo run --example relay -- --help`.
//!
//! Stdout has one line, which says where it listens. Logs go to stderr: `RUST_LOG` chooses them, and
//! `--features tracing` adds those of the crate. No header value is printed anywhere.
#![allow(clippy::print_stdout, reason = "the line that says where it listens")]

#[path = "../shared/mod.rs"]
mod shared;

use clap::Parser;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use mcp_forward::{CaptureLayer, Relay, Upstream};
use tower::BoxError;

use shared::{
    built,
    front::{Flags, Front},
    give_up,
    headers::Headers,
    serve::{any_https, app, http_client, https, log_to_stderr, serve},
};

/// Relays MCP over HTTP to one server, with those headers of the caller that flags name.
///
/// No other header travels, except those of MCP's transport itself. NAME, FROM and TO are header
/// names; every flag that takes one can be repeated, except --admission-header and
/// --principal-header.
#[derive(Parser)]
struct Args {
    /// The MCP server, http or https
    #[arg(long, value_name = "URL")]
    upstream: String,
    #[command(flatten)]
    headers: Headers,
    #[command(flatten)]
    front: Flags,
}

/// What the flags mean, without a mistake in it.
struct Config {
    upstream: Upstream,
    capture: CaptureLayer,
    front: Front,
}

impl Args {
    /// The configuration; or every mistake in it.
    fn config(&self) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        let upstream = self.headers.upstream("mcp", &self.upstream, &mut mistakes);
        Headers::check_admission(&[&self.headers], &mut mistakes);
        // For the one upstream; for none, if it has mistakes.
        let capture = built(
            CaptureLayer::for_upstreams(&upstream).build(),
            &mut mistakes,
        );
        let front = self.front.front(&mut mistakes);
        match (upstream, capture, front) {
            (Some(upstream), Some(capture), Some(front)) if mistakes.is_empty() => Ok(Config {
                upstream,
                capture,
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
    if any_https(std::slice::from_ref(&config.upstream)) {
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
        upstream,
        capture,
        front,
    } = config;
    let client = http_client(connector);
    let names = capture.names().to_vec();
    // It has its origin guard inside.
    let relay = Relay::new(&upstream, client.clone()).origin_guard(front.guard.clone());
    let app = app(&front, &[upstream], capture, client, relay);
    serve(front.listen, app, &names).await
}
