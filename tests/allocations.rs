//! How often each part allocates: hard bounds, on the request that the benchmarks time.
//!
//! Counted on this thread alone, so that tests at its side do not matter; every count is taken after
//! a first run, which fills what is made only once. Nothing here measures time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "../benches/house/request.rs"]
#[allow(dead_code, unreachable_pub, reason = "the benchmarks use more of it")]
mod request;

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, Request};
use http_body::{Body as _, Frame};
use mcp_forward::{ForwardLayer, Inbound, InboundExt, Rule, Upstream, task};
use request::{
    ABSENT, Arguments, Body, Connection, Head, PRESENT, bare, bare_for, capture, exchange, inbound,
    scoped, server_id, tool_call, upstream,
};
use tower::{Layer, Service};

/// The allocations of `work` on this thread.
fn count(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

/// The allocations of one call of `service`, until the response is dropped.
fn call<S: Service<Head>>(mut service: S, mut make: impl FnMut() -> Head) -> u64
where
    S::Error: Sized,
{
    exchange(&mut service, make());
    let request = make();
    count(|| exchange(&mut service, request))
}

/// What a [`CaptureLayer`](mcp_forward::CaptureLayer) for `names` adds to a service that allocates
/// nothing.
fn captured(names: &[&str], make: impl FnMut() -> Head) -> u64 {
    call(capture(names).layer(bare()), make)
}

/// What one insert of a shared handle costs into the extensions of such a request.
fn inserted(mut make: impl FnMut() -> Head) -> u64 {
    #[derive(Clone)]
    struct Handle(#[allow(dead_code, reason = "only its size counts")] Arc<[u8]>);

    let mut request = make();
    let handle = Handle(Arc::from(*b"handle"));
    count(|| {
        request.extensions_mut().insert(handle);
    })
}

/// Makes requests whose extensions are empty.
fn plain() -> impl FnMut() -> Head {
    let mut connection = Connection::default();
    move || connection.request()
}

/// Makes requests with an extension of an outer layer.
fn in_use() -> impl FnMut() -> Head {
    let mut make = plain();
    move || {
        let mut request = make();
        request.extensions_mut().insert("of an outer layer");
        request
    }
}

#[test]
fn the_service_below_allocates_nothing() {
    assert_eq!(call(bare(), plain()), 0);
}

#[test]
fn the_request_is_as_hyper_makes_it() {
    let mut connection = Connection::default();
    let request = connection.request();
    assert_eq!(request.headers().len(), 20);
    let mut copies = Vec::with_capacity(20);
    let cloned = count(|| copies.extend(request.headers().values().cloned()));
    assert_eq!(cloned, 0, "a value owns its bytes");
}

#[test]
fn nothing_captured_allocates_nothing() {
    assert_eq!(captured(&ABSENT[..1], plain()), 0);
    assert_eq!(captured(&ABSENT, plain()), 0);
    let mut connection = Connection::keep_alive();
    assert_eq!(captured(&ABSENT, move || connection.request()), 0);
}

#[test]
fn a_capture_allocates_the_snapshot_and_its_extension() {
    for names in [&PRESENT[..1], &PRESENT[..4]] {
        assert_eq!(captured(names, plain()), 1 + inserted(plain()));
        assert_eq!(captured(names, in_use()), 1 + inserted(in_use()));
    }
}

#[test]
fn a_capture_of_sixteen_allocates_at_most_once_more() {
    assert!(captured(&PRESENT, plain()) <= 2 + inserted(plain()));
    assert!(captured(&PRESENT, in_use()) <= 2 + inserted(in_use()));
}

/// Yields without end, or never.
struct Source {
    waits: bool,
}

impl Stream for Source {
    type Item = u8;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u8>> {
        if self.waits {
            Poll::Pending
        } else {
            Poll::Ready(Some(1))
        }
    }
}

impl http_body::Body for Source {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.waits {
            Poll::Pending
        } else {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data")))))
        }
    }
}

#[test]
fn a_poll_in_scope_allocates_nothing() {
    let inbound = inbound(&PRESENT[..4]);
    let mut context = Context::from_waker(Waker::noop());

    let seen = || Poll::<()>::Pending.map(|()| assert!(Inbound::current().is_some()));
    let mut future = pin!(poll_fn(|_| seen()).with_inbound(inbound.clone()));
    let polls = count(|| {
        for _ in 0..100 {
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
    });
    assert_eq!(polls, 0, "future");

    for waits in [true, false] {
        let mut stream = pin!(Source { waits }.with_inbound(inbound.clone()));
        let polls = count(|| {
            for _ in 0..100 {
                assert_eq!(stream.as_mut().poll_next(&mut context).is_pending(), waits);
            }
        });
        assert_eq!(polls, 0, "stream that waits: {waits}");
    }

    let mut body = pin!(Source { waits: false }.with_inbound(inbound));
    let polls = count(|| {
        for _ in 0..100 {
            assert!(body.as_mut().poll_frame(&mut context).is_ready());
        }
    });
    assert_eq!(polls, 0, "body frame");
}

#[test]
fn a_body_that_waits_copies_its_values_once() {
    let mut context = Context::from_waker(Waker::noop());
    for names in [&PRESENT[..4], &ABSENT] {
        let inbound = inbound(names);
        let compacted = count(|| drop(inbound.compact()));
        let mut body = pin!(Source { waits: true }.with_inbound(inbound));
        for expected in [compacted, 0, 0] {
            let poll = count(|| assert!(body.as_mut().poll_frame(&mut context).is_pending()));
            assert_eq!(poll, expected);
        }
    }
}

#[test]
fn a_carried_spawn_allocates_no_more_than_a_plain_one() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let spawns = |spawn: fn() -> tokio::task::JoinHandle<()>| {
        let inbound = inbound(&PRESENT[..4]);
        let spawned = async move {
            for _ in 0..10 {
                spawn().await.unwrap();
            }
        };
        let spawned = spawned.with_inbound(inbound);
        count(|| runtime.block_on(spawned))
    };
    async fn work(carried: bool) {
        assert_eq!(Inbound::current().is_some(), carried);
    }
    spawns(|| tokio::spawn(work(false)));
    assert_eq!(spawns(|| tokio::spawn(work(false))), 10);
    assert_eq!(spawns(|| task::spawn(work(true))), 10);
}

/// The headers of an MCP client's request, with room for `spare` more.
fn outbound_headers(spare: usize) -> HeaderMap {
    let lines = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("user-agent", "example-client/1.0"),
        ("mcp-session-id", "0123456789abcdef"),
        ("mcp-protocol-version", "2025-11-25"),
    ];
    let mut headers = HeaderMap::new();
    headers.reserve(lines.len() + spare);
    for (name, value) in lines {
        headers.insert(name, value.parse().unwrap());
    }
    headers
}

/// What merge and apply of `upstream` into one request cost, and what the growth of its map does.
fn merged(upstream: &Upstream, spare: usize) -> (u64, u64) {
    let make = || {
        let mut request = Request::post("https://up.example/mcp").body(Body::default());
        *request.as_mut().unwrap().headers_mut() = outbound_headers(spare);
        request.unwrap()
    };
    let inbound = inbound(&PRESENT[..4]);
    let forward = ForwardLayer::new(upstream).layer(bare());
    let ours = inbound.clone().sync_scope(|| call(forward, make));

    let lines: Vec<_> = inbound
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut headers = outbound_headers(spare);
    let growth = count(|| {
        headers.reserve(lines.len());
        headers.extend(lines);
    });
    (ours, growth)
}

#[test]
fn a_merge_allocates_no_more_than_its_map() {
    let upstream = upstream(&PRESENT[..4]);
    for spare in [0, 20] {
        let (ours, growth) = merged(&upstream, spare);
        assert_eq!(ours, growth, "room for {spare} more");
    }
}

#[test]
fn a_bearer_prefix_allocates_its_value() {
    let rules = |builder: mcp_forward::UpstreamBuilder, bearers: usize| {
        let targets = ["authorization", "x-second-token"];
        let builder = (0..bearers).fold(builder, |builder, at| {
            builder.rule(Rule::new(PRESENT[at]).to(targets[at]).bearer())
        });
        let rest = &PRESENT[bearers..4];
        let builder = rest
            .iter()
            .fold(builder, |builder, name| builder.allow(name));
        builder.build().unwrap()
    };
    for bearers in [1, 2] {
        let builder = Upstream::builder("up", "https://up.example/mcp");
        let (ours, growth) = merged(&rules(builder, bearers), 20);
        assert_eq!(ours, growth + bearers as u64);
    }
}

#[test]
fn compact_allocates_the_snapshot_and_each_value() {
    for lines in [1, 4, 16] {
        let inbound = inbound(&PRESENT[..lines]);
        let compacted = count(|| drop(inbound.compact()));
        assert_eq!(compacted, 1 + lines as u64);
    }
    let nobody = inbound(&ABSENT);
    assert_eq!(count(|| drop(nobody.compact())), 0);
}

/// A body of several frames that says how long it is.
struct Frames(Bytes);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.0.len().min(16 * 1024);
        let frame = (length > 0).then(|| Ok(Frame::data(self.0.split_to(length))));
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.len() as u64)
    }
}

const KIB: usize = 1024;
const SIZES: [usize; 4] = [KIB, 64 * KIB, 1024 * KIB, 4096 * KIB];

#[test]
fn an_edit_allocates_the_same_for_every_size_and_copies_nothing() {
    let counts = SIZES.map(|size| {
        let body = tool_call(size, Arguments::Records);
        let mut service = server_id().layer(bare_for());
        exchange(&mut service, scoped(&body));
        let request = scoped(&body);
        let measured = allocation_counter::measure(|| exchange(&mut service, request));
        assert!(measured.bytes_total < 2 * KIB as u64, "{measured:?}");
        measured.count_total
    });
    assert_eq!(counts, [counts[0]; 4]);
    assert!(counts[0] <= 12, "{counts:?}");
}

#[test]
fn frames_are_copied_into_room_that_grows_with_them() {
    let counts = SIZES[1..].iter().map(|size| {
        let body = tool_call(*size, Arguments::Records);
        let mut service = server_id().layer(bare_for());
        let mut call = || {
            let request = scoped(&body).map(|_| Frames(body.clone()));
            let measured = allocation_counter::measure(|| {
                let answer = futures_util::FutureExt::now_or_never(service.call(request));
                assert!(answer.unwrap().is_ok());
            });
            // It doubles, and the old room is given back.
            let room = 2 * body.len() as u64 + 64 * KIB as u64;
            assert!(measured.bytes_max < 3 * room / 2, "{measured:?}");
            assert!(measured.bytes_total < 2 * room, "{measured:?}");
            measured.count_total
        };
        call();
        call()
    });
    let counts: Vec<_> = counts.collect();
    // 1 MiB is four times doubled, 4 MiB is twice more.
    assert!(
        counts[1] <= counts[0] + 5 && counts[2] <= counts[1] + 2,
        "{counts:?}"
    );
}

/// Says that 4 MiB come, and sends two bytes.
struct Claim(u8);

impl http_body::Body for Claim {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 == 0 {
            return Poll::Pending;
        }
        self.0 -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(4096 * KIB as u64)
    }
}

#[test]
fn a_length_that_is_only_claimed_takes_little_room() {
    let mut service = server_id().layer(bare_for());
    let request = scoped(&Bytes::new()).map(|_| Claim(2));
    let measured = allocation_counter::measure(|| {
        let answer = futures_util::FutureExt::now_or_never(service.call(request));
        assert!(answer.is_none());
    });
    assert!(measured.bytes_max < 66 * KIB as u64, "{measured:?}");
}
