//! What `RefusalLayer` costs: requests per second, and the delay of the first byte, with and without it.
//!
//! All services stand behind `CaptureLayer`, on one thread; callers and upstream share another. A pair
//! is the same service with and without the layer, and rounds take turns. Without `--bench` (`cargo test
//! --benches`) it only shows that it runs.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and fails loudly"
)]

#[path = "support/load.rs"]
mod load;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use load::{Caller, Effort, client, compare, connect, json, median, request, runtime, serve};
use mcp_forward::{CaptureLayer, RefusalLayer, Relay, Upstream};
use tokio::task::LocalSet;
use tower::{Layer, service_fn};

const GOAL: f64 = 0.97;

/// What is held: a whole body, an event stream that is primed first, and (never) a relay's.
const CASES: [&str; 3] = ["JSON", "events", "relay"];

fn main() {
    let effort = Effort::asked();
    let here = runtime();
    let upstream = here.block_on(serve(service_fn(answer)));
    let there = runtime();
    let services = there.block_on(services(upstream));
    // For as long as the process lives.
    std::thread::spawn(move || there.block_on(std::future::pending::<()>()));

    let local = LocalSet::new();
    let rates = local.block_on(&here, compare(services, effort));
    let delays = local.block_on(&here, delays(services, effort));
    println!(
        "\n| service | requests/s without | with | ratio | first byte without, µs | with | ratio |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (at, case) in CASES.iter().enumerate() {
        let [without, with] = [0, 1].map(|it| median(&rates[2 * at + it]));
        let [sooner, later] = [0, 1].map(|it| median(&delays[2 * at + it]));
        let ratio = with / without;
        let verdict = if ratio >= GOAL { "met" } else { "missed" };
        println!(
            "| {case} | {without:.0} | {with:.0} | {ratio:.3}, >= {GOAL} {verdict} | {sooner:.1} | {later:.1} | {:.3} |",
            later / sooner
        );
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    Ok(typed(Full::new(json()), "application/json"))
}

/// As rmcp begins: a priming event, and then the result.
async fn events(
    request: Request<Incoming>,
) -> Result<
    Response<StreamBody<impl stream::Stream<Item = Result<Frame<Bytes>, hyper::Error>>>>,
    hyper::Error,
> {
    request.into_body().collect().await?;
    let priming = Bytes::from_static(b"id: 0\nretry: 3000\ndata:\n\n");
    let event = [b"data: ", &json()[..], b"\n\n"].concat().into();
    let frames = [priming, event].map(|bytes| Ok(Frame::data(bytes)));
    Ok(typed(
        StreamBody::new(stream::iter(frames)),
        "text/event-stream",
    ))
}

fn typed<B>(body: B, media_type: &'static str) -> Response<B> {
    let response = Response::builder().header("content-type", media_type);
    response.body(body).unwrap()
}

const SERVICES: usize = 2 * CASES.len();

/// Each case without the layer, and with it.
async fn services(upstream: SocketAddr) -> [SocketAddr; SERVICES] {
    let rules = Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow_credential("authorization")
        .allow("x-user-id")
        .allow("x-tenant-id")
        .set("x-proxy", "edge-1")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let refusal = RefusalLayer::new();
    let relay = Relay::new(&rules, client());
    [
        serve(capture.layer(service_fn(answer))).await,
        serve(capture.layer(refusal.layer(service_fn(answer)))).await,
        serve(capture.layer(service_fn(events))).await,
        serve(capture.layer(refusal.layer(service_fn(events)))).await,
        serve(capture.layer(relay.clone())).await,
        serve(capture.layer(refusal.layer(relay))).await,
    ]
}

/// Microseconds from a request to the first byte of its answer's body, one at a time.
async fn delays(services: [SocketAddr; SERVICES], effort: Effort) -> [Vec<f64>; SERVICES] {
    let mut callers = Vec::new();
    for service in services {
        callers.push(connect(service).await.remove(0));
    }
    let mut delays = [const { Vec::new() }; SERVICES];
    // So that a round takes about as long as one of requests per second.
    let calls = effort.round.div_duration_f64(Duration::from_micros(200)) as usize / SERVICES;
    for at in 0..effort.rounds {
        for call in 0..calls.max(1) {
            for turn in 0..SERVICES {
                let which = (at + call + turn) % SERVICES;
                delays[which].push(delay(&mut callers[which]).await);
            }
        }
    }
    delays
}

async fn delay(caller: &mut Caller) -> f64 {
    let request = request(json());
    caller.ready().await.unwrap();
    let start = Instant::now();
    let mut body = caller.send_request(request).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    let delay = start.elapsed();
    body.collect().await.unwrap();
    delay.as_secs_f64() * 1e6
}
