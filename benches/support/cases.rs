//! Every case that is timed, each beside its peers.
//!
//! `cost.rs` gives them to criterion, `ratios.rs` runs them in turns; both time the same code.

use std::{
    convert::Infallible,
    future::poll_fn,
    hint::black_box,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use mcp_forward::{
    CaptureLayer, ForwardLayer, Inbound, InboundExt, OriginGuardLayer, Relay, Rule, Upstream, task,
};
use tower::{Layer, Service, ServiceBuilder};
use tower_http::{
    propagate_header::PropagateHeader,
    request_id::{MakeRequestUuid, SetRequestIdLayer},
};

use super::request::{
    ABSENT, Body, Connection, Head, PRESENT, bare, bare_for, capture, exchange, inbound, scoped,
    server_id, tool_call,
};

tokio::task_local! {
    static INBOUND: Inbound;
    static HEADERS: Arc<HeaderMap>;
}

/// How many requests are made before they are sent: few, so that they stay in the cache.
const BATCH: u64 = 64;

/// One thing that is timed: `run` does it so many times, and says how long that took.
pub struct Case {
    pub group: &'static str,
    pub name: &'static str,
    pub run: Box<dyn FnMut(u64) -> Duration>,
}

impl Case {
    fn new(
        group: &'static str,
        name: &'static str,
        run: impl FnMut(u64) -> Duration + 'static,
    ) -> Self {
        let run = Box::new(run);
        Self { group, name, run }
    }

    /// Sends what `make` makes, which is not timed, through `service`.
    fn service<S>(
        group: &'static str,
        name: &'static str,
        mut service: S,
        mut make: impl FnMut() -> Head + 'static,
    ) -> Self
    where
        S: Service<Head> + 'static,
    {
        let mut requests = Vec::new();
        Self::new(group, name, move |count| {
            let mut left = count;
            let mut spent = Duration::ZERO;
            while left > 0 {
                let batch = left.min(BATCH);
                left -= batch;
                requests.extend((0..batch).map(|_| make()));
                let start = Instant::now();
                for request in requests.drain(..) {
                    exchange(&mut service, request);
                }
                spent += start.elapsed();
            }
            spent
        })
    }
}

/// Everything.
pub fn all() -> Vec<Case> {
    let groups = [
        layers(),
        polls(),
        spawns(),
        merges(),
        relays(),
        server_ids(),
        large_server_ids(),
    ];
    groups.into_iter().flatten().collect()
}

/// Capture, scope and extension, against tower-http's layers.
pub fn layers() -> Vec<Case> {
    const GROUP: &str = "layer";
    fn plain<S: Service<Head> + 'static>(name: &'static str, service: S) -> Case {
        let mut connection = Connection::default();
        Case::service(GROUP, name, service, move || connection.request())
    }
    fn keep_alive<S: Service<Head> + 'static>(name: &'static str, service: S) -> Case {
        let mut connection = Connection::keep_alive();
        Case::service(GROUP, name, service, move || connection.request())
    }
    fn in_use<S: Service<Head> + 'static>(name: &'static str, service: S) -> Case {
        let mut connection = Connection::default();
        Case::service(GROUP, name, service, move || {
            let mut request = connection.request();
            request.extensions_mut().insert("of an outer layer");
            request
        })
    }
    let ours = |names: &[&str]| capture(names).layer(bare());
    let request_id = SetRequestIdLayer::new(HeaderName::from_static("x-made-id"), MakeRequestUuid);
    let known_id = SetRequestIdLayer::new(HeaderName::from_static("x-user-id"), MakeRequestUuid);
    let handle: Arc<str> = Arc::from("handle");
    let extension = ServiceBuilder::new()
        .map_request(move |mut request: Head| {
            request.extensions_mut().insert(Arc::clone(&handle));
            request
        })
        .service(bare());
    vec![
        plain("bare", bare()),
        plain("ours, 1 absent", ours(&ABSENT[..1])),
        plain("ours, 4 absent", ours(&ABSENT)),
        plain("ours, 1 present", ours(&PRESENT[..1])),
        plain("ours, 4 present", ours(&PRESENT[..4])),
        plain("ours, 16 present", ours(&PRESENT)),
        plain("PropagateHeader, 1 absent", stacked1(ABSENT[0])),
        plain("PropagateHeader, 4 absent", stacked4(ABSENT)),
        plain("PropagateHeader, 1 present", stacked1(PRESENT[0])),
        plain(
            "PropagateHeader, 4 present",
            stacked4([PRESENT[0], PRESENT[1], PRESENT[2], PRESENT[3]]),
        ),
        plain("PropagateHeader, 16 present", stacked16(PRESENT)),
        plain("SetRequestId, made", request_id.layer(bare())),
        plain("SetRequestId, present", known_id.layer(bare())),
        plain("one extension", extension),
        keep_alive("bare, keep-alive", bare()),
        keep_alive("ours, 1 absent, keep-alive", ours(&ABSENT[..1])),
        keep_alive("ours, 4 absent, keep-alive", ours(&ABSENT)),
        keep_alive("ours, 4 present, keep-alive", ours(&PRESENT[..4])),
        in_use("bare, extensions in use", bare()),
        in_use("ours, 1 present, extensions in use", ours(&PRESENT[..1])),
        in_use("ours, 4 present, extensions in use", ours(&PRESENT[..4])),
    ]
}

fn propagate<S>(inner: S, name: &str) -> PropagateHeader<S> {
    PropagateHeader::new(inner, HeaderName::from_bytes(name.as_bytes()).unwrap())
}

fn stacked1(name: &str) -> impl Service<Head> + use<> {
    propagate(bare(), name)
}

fn stacked4(names: [&str; 4]) -> impl Service<Head> + use<> {
    stack4(bare(), names)
}

fn stacked16(names: [&str; 16]) -> impl Service<Head> + use<> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = names;
    let inner = stack4(bare(), [a, b, c, d]);
    let inner = stack4(inner, [e, f, g, h]);
    stack4(stack4(inner, [i, j, k, l]), [m, n, o, p])
}

type Four<S> = PropagateHeader<PropagateHeader<PropagateHeader<PropagateHeader<S>>>>;

fn stack4<S>(inner: S, [a, b, c, d]: [&str; 4]) -> Four<S> {
    propagate(propagate(propagate(propagate(inner, a), b), c), d)
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

/// One poll in scope, against tokio's scope of the same value.
///
/// tokio has no scope for a stream or a body; what it offers for them is a `sync_scope` around each
/// poll, and for a stream a scope around each `next`.
pub fn polls() -> Vec<Case> {
    fn case(name: &'static str, mut poll: impl FnMut(&mut Context<'_>) + 'static) -> Case {
        Case::new("poll", name, move |count| {
            let mut context = Context::from_waker(Waker::noop());
            let start = Instant::now();
            for _ in 0..count {
                poll(black_box(&mut context));
            }
            start.elapsed()
        })
    }
    fn future(name: &'static str, future: impl Future<Output = ()> + 'static) -> Case {
        let mut future = Box::pin(future);
        case(name, move |context| {
            assert!(future.as_mut().poll(context).is_pending());
        })
    }
    let waiting = || {
        poll_fn(|context| black_box(Poll::<()>::Pending).map(|()| drop(context.waker().clone())))
    };
    let value = inbound(&PRESENT[..4]);

    let (for_stream, for_body) = (value.clone(), value.clone());
    let mut stream = Box::pin(Endless.with_inbound(value.clone()));
    let mut body = Box::pin(Endless.with_inbound(value.clone()));
    vec![
        future("future, no scope", waiting()),
        future("future, ours", waiting().with_inbound(value.clone())),
        future("future, tokio", INBOUND.scope(value, waiting())),
        case("stream, no scope", |context| {
            black_box(pin!(Endless).poll_next(context)).is_ready();
        }),
        case("stream, ours", move |context| {
            black_box(stream.as_mut().poll_next(context)).is_ready();
        }),
        case("stream, tokio", move |context| {
            let poll = || pin!(Endless).poll_next(context);
            black_box(INBOUND.sync_scope(for_stream.clone(), poll)).is_ready();
        }),
        case("body frame, no scope", |context| {
            black_box(pin!(Endless).poll_frame(context)).is_ready();
        }),
        case("body frame, ours", move |context| {
            black_box(body.as_mut().poll_frame(context)).is_ready();
        }),
        case("body frame, tokio", move |context| {
            let poll = || pin!(Endless).poll_frame(context);
            black_box(INBOUND.sync_scope(for_body.clone(), poll)).is_ready();
        }),
    ]
}

/// A spawn from inside a scope until it is joined, on a runtime of one thread.
pub fn spawns() -> Vec<Case> {
    fn case<F: Future<Output = Duration>>(
        name: &'static str,
        mut spawns: impl FnMut(u64) -> F + 'static,
    ) -> Case {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.unwrap();
        Case::new("spawn", name, move |count| runtime.block_on(spawns(count)))
    }
    let value = inbound(&PRESENT[..4]);
    let headers: HeaderMap = value
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let (ours, theirs, headers) = (value.clone(), value, Arc::new(headers));
    vec![
        case("nothing carried", async |count| {
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
        case("tokio, the same value", move |count| {
            INBOUND.scope(theirs.clone(), async move {
                let start = Instant::now();
                for _ in 0..count {
                    let carried = INBOUND.scope(INBOUND.get(), async {});
                    tokio::spawn(carried).await.unwrap();
                }
                start.elapsed()
            })
        }),
        case("tokio, an Arc of a HeaderMap", move |count| {
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

/// A request of an MCP client, as it stands before the caller's headers are put in.
pub fn outbound() -> Head {
    let request = Request::post("https://up.example/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("user-agent", "example-client/1.0")
        .header("mcp-session-id", "0123456789abcdef")
        .header("mcp-protocol-version", "2025-11-25");
    request.body(Body::default()).unwrap()
}

/// An upstream that gets four headers, one of them as a bearer token.
pub fn bearer() -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    let token = Rule::new(PRESENT[2]).to("authorization").bearer();
    let [a, b, _, c] = [PRESENT[0], PRESENT[1], PRESENT[2], PRESENT[3]];
    let builder = builder.allow(a).allow(b).rule(token).allow(c);
    builder.build().unwrap()
}

/// Four headers of the current inbound into a request, against the least code that does so.
pub fn merges() -> Vec<Case> {
    let value = inbound(&PRESENT[..4]);
    let scoped = |name, upstream: &Upstream| {
        let value = value.clone();
        let service = ForwardLayer::new(upstream).layer(bare());
        let mut case = Case::service("merge", name, service, outbound);
        Case::new("merge", name, move |count| {
            value.clone().sync_scope(|| (case.run)(count))
        })
    };
    let lines: Arc<[(HeaderName, HeaderValue)]> = value
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let by_hand = ServiceBuilder::new()
        .map_request(move |mut request: Head| {
            let headers = request.headers_mut();
            headers.reserve(lines.len());
            for (name, value) in lines.iter() {
                headers.insert(name.clone(), value.clone());
            }
            request
        })
        .service(bare());
    vec![
        Case::service("merge", "bare", bare(), outbound),
        scoped("ours, 4 headers", &super::request::upstream(&PRESENT[..4])),
        scoped("ours, 4 headers, 1 bearer", &bearer()),
        Case::service("merge", "by hand, 4 headers", by_hand, outbound),
    ]
}

/// An upstream that is no further than a function call: what remains is the relay itself.
fn upstream_in_memory<B: 'static>()
-> impl Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone {
    let lines = [
        ("content-type", "application/json"),
        ("content-length", "1024"),
        ("mcp-session-id", "0123456789abcdef"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ];
    tower::service_fn(move |request: Request<B>| {
        drop(black_box(request));
        let mut response = Response::new(Body::default());
        response.headers_mut().reserve(lines.len());
        for (name, value) in lines {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        async { Ok(response) }
    })
}

/// `CaptureLayer` and `Relay` without a network, and a proxy that only moves the headers.
pub fn relays() -> Vec<Case> {
    let rules = super::request::upstream(&PRESENT[..4]);
    let guard = OriginGuardLayer::builder().allow_host("mcp.example.com");
    let relay = Relay::new(&rules, upstream_in_memory()).origin_guard(guard.build().unwrap());
    let capture = CaptureLayer::for_upstreams([&rules]).build().unwrap();
    let ours = capture.layer(relay);

    let url = rules.url().clone();
    let bare = ServiceBuilder::new()
        .map_request(move |inbound: Head| {
            let (head, body) = inbound.into_parts();
            let mut outbound = Request::new(body);
            *outbound.method_mut() = head.method;
            *outbound.uri_mut() = url.clone();
            *outbound.headers_mut() = head.headers;
            outbound
        })
        .service(upstream_in_memory());

    fn case<S: Service<Head> + 'static>(name: &'static str, service: S) -> Case {
        let mut connection = Connection::default();
        let make = move || {
            let mut request = connection.request();
            *request.method_mut() = http::Method::POST;
            request
        };
        let mut case = Case::service("relay", name, service, make);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        Case::new("relay", name, move |count| {
            let _entered = runtime.enter();
            (case.run)(count)
        })
    }
    vec![case("bare", bare), case("ours", ours)]
}

/// The server id into messages of 1 and 64 KiB.
pub fn server_ids() -> Vec<Case> {
    const KIB: usize = 1024;
    vec![
        edits("ours, 1 KiB records", KIB, false, true),
        edits("Value, 1 KiB records", KIB, false, false),
        edits("ours, 1 KiB text", KIB, true, true),
        edits("Value, 1 KiB text", KIB, true, false),
        edits("ours, 64 KiB records", 64 * KIB, false, true),
        edits("Value, 64 KiB records", 64 * KIB, false, false),
        edits("ours, 64 KiB text", 64 * KIB, true, true),
        edits("Value, 64 KiB text", 64 * KIB, true, false),
    ]
}

/// And of 1 and 4 MiB.
pub fn large_server_ids() -> Vec<Case> {
    const MIB: usize = 1024 * 1024;
    vec![
        edits("ours, 1 MiB records", MIB, false, true),
        edits("Value, 1 MiB records", MIB, false, false),
        edits("ours, 1 MiB text", MIB, true, true),
        edits("Value, 1 MiB text", MIB, true, false),
        edits("ours, 4 MiB records", 4 * MIB, false, true),
        edits("Value, 4 MiB records", 4 * MIB, false, false),
        edits("ours, 4 MiB text", 4 * MIB, true, true),
        edits("Value, 4 MiB text", 4 * MIB, true, false),
    ]
}

/// The whole layer around a service that drops the message; or parse, edit and print alone.
fn edits(name: &'static str, length: usize, is_text: bool, is_ours: bool) -> Case {
    let call = tool_call(length, is_text);
    if is_ours {
        let service = server_id().layer(bare_for());
        return Case::service("server id", name, service, move || scoped(&call));
    }
    Case::new("server id", name, move |count| {
        let start = Instant::now();
        for _ in 0..count {
            let mut message: serde_json::Value = serde_json::from_slice(&call).unwrap();
            message["params"]["server_id"] = "github".into();
            black_box(serde_json::to_vec(&message).unwrap());
        }
        start.elapsed()
    })
}
