//! One poll in scope, and one carried spawn, beside the scopes and wrappers of others.
//!
//! tokio has a scope for futures only, so its peer of a stream or a body is a future in scope that polls one.

use std::{
    convert::Infallible,
    future::poll_fn,
    hint::black_box,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use http_body::Frame;
use mcp_forward::{Inbound, InboundExt, task};
use opentelemetry::{Context as Telemetry, context::FutureExt};
use tracing::Instrument;

use crate::{
    measure::{Case, Measured},
    request::{PRESENT, inbound},
    table::{Goal::AtMost, Report, Row},
};

tokio::task_local! {
    static INBOUND: Inbound;
    static HEADERS: Arc<HeaderMap>;
}

/// Yields without end.
struct Endless;

impl Stream for Endless {
    type Item = u8;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u8>> {
        Poll::Ready(Some(black_box(1)))
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data")))))
    }
}

fn future(name: &str, future: impl Future<Output = ()> + 'static) -> Case {
    let mut future = Box::pin(future);
    Case::new(name, move |count| {
        let mut context = Context::from_waker(Waker::noop());
        let start = Instant::now();
        for _ in 0..count {
            assert!(future.as_mut().poll(black_box(&mut context)).is_pending());
        }
        start.elapsed()
    })
}

fn waiting() -> impl Future<Output = ()> {
    poll_fn(|context| black_box(Poll::<()>::Pending).map(|()| drop(context.waker().clone())))
}

/// Takes an item with each poll, and is never done.
fn items(stream: impl Stream) -> impl Future<Output = ()> {
    let mut stream = Box::pin(stream);
    poll_fn(move |context| {
        black_box(stream.as_mut().poll_next(context)).is_ready();
        Poll::Pending
    })
}

/// Takes a frame with each poll, and is never done.
fn frames(body: impl http_body::Body) -> impl Future<Output = ()> {
    let mut body = Box::pin(body);
    poll_fn(move |context| {
        black_box(body.as_mut().poll_frame(context)).is_ready();
        Poll::Pending
    })
}

pub(crate) fn cases() -> Vec<Case> {
    // Without a subscriber a span is nothing. It may be there already.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    let value = inbound(&PRESENT[..4]);
    let telemetry = Telemetry::current_with_value(value.clone());
    let stream = Endless.with_inbound(value.clone());
    let body = Endless.with_inbound(value.clone());
    vec![
        future("future", waiting()),
        future("future, ours", waiting().with_inbound(value.clone())),
        future("future, tokio", INBOUND.scope(value.clone(), waiting())),
        future("future, telemetry", waiting().with_context(telemetry)),
        future(
            "future, tracing",
            waiting().instrument(tracing::info_span!("work")),
        ),
        future("stream", items(Endless)),
        future("stream, ours", items(stream)),
        future(
            "stream, tokio",
            INBOUND.scope(value.clone(), items(Endless)),
        ),
        future("body", frames(Endless)),
        future("body, ours", frames(body)),
        future("body, tokio", INBOUND.scope(value, frames(Endless))),
    ]
}

pub(crate) fn report(measured: &Measured) -> Report {
    let goal = AtMost(1.0);
    let rows = [
        Row::new("future", "future, ours", "future, tokio", "future").goal(goal),
        Row::new(
            "stream, one item",
            "stream, ours",
            "stream, tokio",
            "stream",
        )
        .goal(goal),
        Row::new("body, one frame", "body, ours", "body, tokio", "body").goal(goal),
        Row::new(
            "future, against OpenTelemetry's `with_context`",
            "future, ours",
            "future, telemetry",
            "future",
        ),
        Row::new(
            "future, against tracing's `instrument`",
            "future, ours",
            "future, tracing",
            "future",
        ),
    ];
    let mut report = Report::default();
    report.added("one poll in scope", measured, &rows);
    report
}

/// A spawn from inside a scope until it is joined, on a runtime of one thread.
pub(crate) fn spawns() -> Vec<Case> {
    fn case<F: Future<Output = Duration>>(
        name: &str,
        mut spawns: impl FnMut(u64) -> F + 'static,
    ) -> Case {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.unwrap();
        Case::new(name, move |count| runtime.block_on(spawns(count)))
    }
    let value = inbound(&PRESENT[..4]);
    let headers: HeaderMap = value
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let (ours, theirs, headers) = (value.clone(), value, Arc::new(headers));
    vec![
        case("nothing", async |count| {
            let start = Instant::now();
            for _ in 0..count {
                tokio::spawn(async {}).await.unwrap();
            }
            start.elapsed()
        }),
        case("ours", move |count| {
            let spawns = async move {
                let start = Instant::now();
                for _ in 0..count {
                    task::spawn(async {}).await.unwrap();
                }
                start.elapsed()
            };
            spawns.with_inbound(ours.clone())
        }),
        case("tokio", move |count| {
            INBOUND.scope(theirs.clone(), async move {
                let start = Instant::now();
                for _ in 0..count {
                    let carried = INBOUND.scope(INBOUND.get(), async {});
                    tokio::spawn(carried).await.unwrap();
                }
                start.elapsed()
            })
        }),
        case("tokio, one Arc", move |count| {
            HEADERS.scope(Arc::clone(&headers), async move {
                let start = Instant::now();
                for _ in 0..count {
                    let carried = HEADERS.scope(HEADERS.get(), async {});
                    tokio::spawn(carried).await.unwrap();
                }
                start.elapsed()
            })
        }),
    ]
}

pub(crate) fn report_spawns(measured: &Measured) -> Report {
    let row = |label, peer| Row::new(label, "ours", peer, "nothing");
    let rows = [
        row("until it is joined", "tokio").goal(AtMost(1.0)),
        row("the same, against an `Arc<HeaderMap>`", "tokio, one Arc"),
    ];
    let mut report = Report::default();
    report.added("one carried spawn", measured, &rows);
    report
}
