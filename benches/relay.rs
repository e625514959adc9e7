//! Requests per second through `CaptureLayer` and `Relay`, against two proxies of hyper alone.
//!
//! The bare one sends on all headers as they came; the other at least those of its own hop instead
//! of the caller's, `host` and `content-length`, as a proxy to another host has to. All three run on one
//! thread, before the same upstream, behind the same callers (which share a second thread with the
//! upstream), with the same server and client of hyper. Rounds take turns; the table shows the
//! median of each, and the ratio of the medians. Without `--bench` (`cargo test --benches`) it only
//! shows that it runs.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails loudly"
)]

#[path = "support/load.rs"]
mod load;

use std::net::SocketAddr;

use bytes::Bytes;
use http::{
    Request, Response,
    header::{CONTENT_LENGTH, HOST},
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use load::{Effort, client, compare, json, median, runtime, serve};
use mcp_forward::{CaptureLayer, Relay, Upstream};
use tokio::task::LocalSet;
use tower::{Layer, service_fn};

const GOAL: f64 = 0.95;

fn main() {
    let effort = Effort::asked();
    let here = runtime();
    let upstream = here.block_on(serve(service_fn(answer)));
    let there = runtime();
    let proxies = there.block_on(proxies(upstream));
    // For as long as the process lives.
    std::thread::spawn(move || there.block_on(std::future::pending::<()>()));

    let rates = LocalSet::new().block_on(&here, compare(proxies, effort));
    let [ours, bare, own_hop] = &rates;
    println!("\n| proxy | requests/s | ours to it | middle half of the rounds | goal |");
    println!("|---|---|---|---|---|");
    println!("| ours | {:.0} | | | |", median(ours));
    for (name, peer, goal) in [("bare", bare, Some(GOAL)), ("own hop", own_hop, None)] {
        let mut ratios: Vec<f64> = ours
            .iter()
            .zip(peer)
            .map(|(ours, peer)| ours / peer)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let quarter = ratios.len() / 4;
        let (low, high) = (ratios[quarter], ratios[ratios.len() - 1 - quarter]);
        let peer = median(peer);
        let ratio = median(ours) / peer;
        let goal = goal.map_or(String::new(), |goal| {
            let verdict = if ratio >= goal { "met" } else { "missed" };
            format!(">= {goal}, {verdict}")
        });
        println!("| {name} | {peer:.0} | {ratio:.3} | {low:.3} to {high:.3} | {goal} |");
    }
}

/// The upstream: it reads the whole body and answers with another.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    let mut response = Response::new(Full::new(json()));
    let json = "application/json".parse().unwrap();
    response.headers_mut().insert("content-type", json);
    Ok(response)
}

const PROXIES: usize = 3;

/// Ours, and those of hyper alone: they stream both bodies and copy the method and the headers.
async fn proxies(upstream: SocketAddr) -> [SocketAddr; PROXIES] {
    let rules = Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow_credential("authorization")
        .allow("x-user-id")
        .allow("x-tenant-id")
        .set("x-proxy", "edge-1")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let ours = capture.layer(Relay::new(&rules, client()));
    let of_hyper = |own_hop: bool| {
        let client = client();
        let url = rules.url().clone();
        service_fn(move |inbound: Request<Incoming>| {
            let (mut head, body) = inbound.into_parts();
            if own_hop {
                head.headers.remove(HOST);
                head.headers.remove(CONTENT_LENGTH);
            }
            let mut outbound = Request::new(body);
            *outbound.method_mut() = head.method;
            *outbound.uri_mut() = url.clone();
            *outbound.headers_mut() = head.headers;
            client.request(outbound)
        })
    };
    let (bare, own_hop) = (of_hyper(false), of_hyper(true));
    [serve(ours).await, serve(bare).await, serve(own_hop).await]
}
