//! Isolation: many callers at once through one proxy, and each upstream request carries its caller's
//! values and nobody else's, whatever is delayed, cancelled or panics around it.
//!
//! The upstream judges each request by itself, so that a cancelled call is judged too: the request
//! names its call in `mcp-name`, which no rule reads, and in its body; its credentials have to be that
//! call's. Two controls keep all values in one global, and have to be found out.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, extract::State, response::IntoResponse, routing::post};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mcp_forward::{
    CaptureLayer, ClientFactory, ForwardLayer, Inbound, InboundExt, Relay, Upstream, outbound, task,
};
use support::{HttpClient, http_client, http2_client, identity, serve};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::{JoinSet, yield_now},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};

/// One call of one caller; all else about it follows from these two numbers.
#[derive(Clone, Copy)]
struct Call {
    caller: u64,
    call: u64,
}

/// What happens on the way.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Plain,
    /// The caller leaves while the upstream works.
    Held,
    /// The caller leaves at any time.
    Dropped,
    /// The handler panics, in its first poll or, alone on its connection, before it.
    HandlerPanics,
    /// Work that the handler spawned panics.
    TaskPanics,
    /// Another scope inside the handler panics.
    ScopePanics,
}

/// How the call gets to the upstream, and by what the caller is known there.
#[derive(Clone, Copy)]
enum Way {
    /// `Relay`, by the request's extensions.
    Relay,
    /// `Relay` in a spawned task, by the task.
    RelayInTask,
    /// `ForwardLayer` in a spawned task, by the task.
    Forward,
    /// `ForwardLayer` in a task that carries nothing, by the message.
    Message,
    /// `ForwardLayer` when the body of the answer is polled, by the body.
    Body,
    /// `ClientFactory` in a set of tasks, by the task.
    Factory,
}

impl Call {
    /// As many sides as there are fates and ways, and more; the same for the same call.
    fn roll(self, what: u64, sides: u64) -> u64 {
        // SplitMix64.
        let mut bits =
            (self.caller << 40 | self.call << 8 | what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % sides
    }

    fn fate(self) -> Fate {
        match self.roll(0, 40) {
            0 | 1 => Fate::Held,
            2 | 3 => Fate::Dropped,
            4 => Fate::HandlerPanics,
            5 => Fate::TaskPanics,
            6 => Fate::ScopePanics,
            _ => Fate::Plain,
        }
    }

    fn way(self) -> Way {
        match self.roll(1, 6) {
            0 => Way::Relay,
            1 => Way::RelayInTask,
            2 => Way::Forward,
            3 => Way::Message,
            4 => Way::Body,
            _ => Way::Factory,
        }
    }

    /// A quarter of the callers each: HTTP/1 or HTTP/2 on either side.
    fn inbound_version(self) -> Version {
        if self.caller & 1 == 0 {
            Version::HTTP_11
        } else {
            Version::HTTP_2
        }
    }

    fn outbound_version(self) -> Version {
        if self.caller & 2 == 0 {
            Version::HTTP_11
        } else {
            Version::HTTP_2
        }
    }

    /// Lets others run in between: mostly at once, now and then a millisecond.
    async fn delay(self, place: u64) {
        for _ in 0..self.roll(place, 4) {
            yield_now().await;
        }
        if self.roll(place + 1, 24) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn id(self) -> String {
        format!("{}-{}", self.caller, self.call)
    }

    fn parse(headers: &HeaderMap) -> Option<Self> {
        let (caller, call) = headers.get("mcp-name")?.to_str().ok()?.split_once('-')?;
        Some(Self {
            caller: caller.parse().ok()?,
            call: call.parse().ok()?,
        })
    }

    /// Every eighth call comes without a token, and must not find anybody's.
    fn token(self) -> String {
        if self.call.is_multiple_of(8) {
            String::new()
        } else {
            format!("Bearer {}-{}", self.caller, self.call)
        }
    }

    /// What the upstream has to receive.
    fn credentials(self) -> String {
        format!("{} user-{}", self.token(), self.caller)
    }

    fn request(self, proxy: SocketAddr) -> Request<Full<Bytes>> {
        let mut request = Request::post(format!("http://{proxy}/mcp"))
            .header("mcp-name", self.id())
            .header("x-user", format!("user-{}", self.caller));
        if !self.token().is_empty() {
            request = request.header("authorization", self.token());
        }
        request.body(Full::from(self.id())).unwrap()
    }
}

/// `authorization` and `x-user`, line by line.
fn credentials(headers: &HeaderMap) -> String {
    let lines = ["authorization", "x-user"].map(|name| {
        let values = headers.get_all(name).iter();
        let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        values.collect::<Vec<_>>().join("|")
    });
    lines.join(" ")
}

/// What the upstream saw.
#[derive(Default)]
struct Judge {
    seen: Mutex<HashMap<String, usize>>,
    wrong: Mutex<Vec<String>>,
    held: Mutex<HashMap<String, Held>>,
}

/// A call that waits at the upstream until its caller has left.
struct Held {
    arrived: oneshot::Sender<()>,
    left: oneshot::Receiver<()>,
}

impl Judge {
    fn hold(&self, call: Call) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (arrived, arrival) = oneshot::channel();
        let (leave, left) = oneshot::channel();
        let held = Held { arrived, left };
        self.held.lock().unwrap().insert(call.id(), held);
        (arrival, leave)
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    fn head(&self, request: &Request<Incoming>) -> Option<Call> {
        let found = credentials(request.headers());
        let Some(call) = Call::parse(request.headers()) else {
            self.wrong(format!("a request of nobody's, with {found:?}"));
            return None;
        };
        *self.seen.lock().unwrap().entry(call.id()).or_default() += 1;
        if found != call.credentials() {
            self.wrong(format!("{} came as {found:?}", call.id()));
        }
        if request.version() != call.outbound_version() {
            self.wrong(format!("{} came by {:?}", call.id(), request.version()));
        }
        Some(call)
    }

    /// Answers with the credentials that came.
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        // Outside every scope, though on threads where scopes come and go.
        if Inbound::current().is_some() {
            self.wrong("the upstream runs as a caller".to_owned());
        }
        let found = credentials(request.headers());
        let Some(call) = self.head(&request) else {
            return Response::new(Full::default());
        };
        let held = self.held.lock().unwrap().remove(&call.id());
        if let Some(Held { arrived, left }) = held {
            let _ = arrived.send(());
            let _ = left.await;
        }
        call.delay(10).await;
        // A caller who left may have taken the rest of the body along.
        if let Ok(body) = request.into_body().collect().await
            && body.to_bytes() != call.id()
        {
            self.wrong(format!("{} came with another body", call.id()));
        }
        Response::new(Full::from(found))
    }
}

/// How many handlers, and tasks of theirs, there can be at once.
const MAX_BUSY: u32 = 1 << 20;

/// A handler that calls the upstream on behalf of whoever called it.
#[derive(Clone)]
struct Gateway {
    upstream: Upstream,
    relays: [Relay<HttpClient<outbound::Body<Body>>>; 2],
    clients: [HttpClient<Body>; 2],
    /// One permit for each piece of work.
    busy: Arc<Semaphore>,
    /// The control: whoever came last is the caller.
    global: Option<Arc<Mutex<Inbound>>>,
}

impl Gateway {
    fn new(judge: SocketAddr, global: Option<Arc<Mutex<Inbound>>>) -> Self {
        let upstream = Upstream::builder("judge", format!("http://{judge}/mcp"))
            .allow_credential("authorization")
            .allow("x-user")
            .build()
            .unwrap();
        Self {
            relays: [http_client(), http2_client()].map(|client| Relay::new(&upstream, client)),
            clients: [http_client(), http2_client()],
            upstream,
            busy: Arc::new(Semaphore::new(MAX_BUSY as usize)),
            global,
        }
    }

    async fn serve(&self) -> SocketAddr {
        let capture = CaptureLayer::for_upstreams([&self.upstream]);
        let this = self.clone();
        let handler = service_fn(move |request: Request<Incoming>| {
            let this = this.clone();
            let call = Call::parse(request.headers()).unwrap();
            let busy = Arc::clone(&this.busy).try_acquire_owned().unwrap();
            if call.fate() == Fate::HandlerPanics && request.version() == Version::HTTP_11 {
                fall();
            }
            let global = this.global.clone();
            let mut request = request.map(Body::new);
            async move {
                let answer = match global {
                    None => this.call(call, request, busy).await,
                    Some(global) => {
                        *global.lock().unwrap() = Inbound::current().unwrap();
                        call.delay(20).await;
                        let last = global.lock().unwrap().clone();
                        last.clone().attach(request.extensions_mut());
                        let work = this.call(call, request, busy);
                        work.with_inbound(last).await
                    }
                };
                Ok::<_, Infallible>(answer.unwrap_or_else(|error| {
                    let mut response = Response::new(Body::from(error.to_string()));
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    response
                }))
            }
        });
        serve(capture.build().unwrap().layer(handler)).await
    }

    async fn call(
        self,
        call: Call,
        request: Request<Body>,
        busy: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, BoxError> {
        assert_eq!(request.version(), call.inbound_version());
        call.delay(30).await;
        self.panic_around(call).await;
        let http2 = usize::from(call.outbound_version() == Version::HTTP_2);
        let relay = self.relays[http2].clone();
        let client = self.clients[http2].clone();
        let forward = ForwardLayer::new(&self.upstream).layer(client.clone());
        let inbound = Inbound::of(request.extensions());
        let (parts, body) = request.into_parts();
        // A request of our own: it names the call, and has neither headers nor extensions of the caller.
        let own = |body| {
            let request = Request::post(self.upstream.url()).header("mcp-name", call.id());
            request.body(body).unwrap()
        };
        match call.way() {
            Way::Relay => {
                let response = relay.oneshot(Request::from_parts(parts, body)).await?;
                Ok(response.map(Body::new))
            }
            Way::RelayInTask => {
                let mut bare = Request::new(body);
                *bare.method_mut() = parts.method;
                *bare.uri_mut() = parts.uri;
                *bare.headers_mut() = parts.headers;
                let response = task::spawn(async move {
                    let _busy = busy;
                    call.delay(40).await;
                    relay.oneshot(bare).await
                });
                let response = response.await??;
                Ok(response.map(Body::new))
            }
            Way::Forward => {
                let request = own(body);
                let response = task::spawn(async move {
                    let _busy = busy;
                    call.delay(40).await;
                    forward.oneshot(request).await
                });
                Ok(response.await??.map(Body::new))
            }
            Way::Message => {
                let mut request = own(body);
                inbound.attach(request.extensions_mut());
                let response = tokio::spawn(async move {
                    let _busy = busy;
                    call.delay(40).await;
                    assert!(Inbound::current().is_none(), "a plain spawn carries");
                    forward.oneshot(request).await
                });
                Ok(response.await??.map(Body::new))
            }
            Way::Body => {
                let request = own(body);
                let late = async move {
                    let _busy = busy;
                    call.delay(40).await;
                    let response = forward.oneshot(request).await?;
                    let answer = response.into_body().collect().await?;
                    Ok::<_, BoxError>(answer.to_bytes())
                };
                let late = futures_util::stream::once(late);
                Ok(Response::new(Body::from_stream(late)))
            }
            Way::Factory => {
                let mut request = own(body);
                let mut set = JoinSet::new();
                let work = async move {
                    let _busy = busy;
                    call.delay(40).await;
                    let outbound = identity().connect(&self.upstream).await?;
                    outbound.apply(request.headers_mut())?;
                    Ok::<_, BoxError>(client.request(request).await?)
                };
                set.spawn(work.with_current_inbound());
                Ok(set.join_next().await.unwrap()??.map(Body::new))
            }
        }
    }

    /// After each of these the caller has to be the caller still, here and in what ran beside.
    async fn panic_around(&self, call: Call) {
        match call.fate() {
            Fate::HandlerPanics => fall(),
            Fate::TaskPanics => {
                let spawned = task::spawn(async move {
                    call.delay(50).await;
                    fall();
                });
                assert!(spawned.await.unwrap_err().is_panic());
                assert!(task::spawn_blocking(fall).await.unwrap_err().is_panic());
            }
            Fate::ScopePanics => {
                let scope = || Inbound::empty().sync_scope(fall);
                assert!(catch_unwind(AssertUnwindSafe(scope)).is_err());
            }
            Fate::Plain | Fate::Held | Fate::Dropped => {}
        }
    }
}

/// Reads the inbound and panics, without a word on the terminal.
fn fall() {
    let inbound = Inbound::current();
    assert!(inbound.is_some());
    resume_unwind(Box::new("on purpose"));
}

/// Calls `proxy`, and leaves when the call's fate says so.
async fn one_call(client: HttpClient<Full<Bytes>>, proxy: SocketAddr, judge: &Judge, call: Call) {
    let hold = (call.fate() == Fate::Held).then(|| judge.hold(call));
    let exchange = async move {
        let response = client.request(call.request(proxy)).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, BoxError>((status, body))
    };
    let answer = match call.fate() {
        Fate::HandlerPanics => {
            assert!(exchange.await.is_err(), "{}: the handler panics", call.id());
            return;
        }
        Fate::Held => {
            let (arrival, leave) = hold.unwrap();
            tokio::select! {
                answer = exchange => panic!("{} did not wait: {answer:?}", call.id()),
                arrived = arrival => arrived.unwrap(),
            }
            // The exchange is gone now.
            leave.send(()).unwrap_or(());
            return;
        }
        Fate::Dropped => {
            let leaves = async {
                for _ in 0..call.roll(60, 400) {
                    yield_now().await;
                }
            };
            tokio::select! {
                biased;
                () = leaves => return,
                answer = exchange => answer,
            }
        }
        Fate::Plain | Fate::TaskPanics | Fate::ScopePanics => exchange.await,
    };
    let (status, body) = answer.unwrap();
    assert_eq!(status, 200, "{}: {body:?}", call.id());
    if body != call.credentials() {
        judge.wrong(format!("{} was answered {body:?}", call.id()));
    }
}

/// All that was wrong with `calls` calls each of 64 callers.
async fn interleave(calls: u64, global: Option<Arc<Mutex<Inbound>>>) -> Vec<String> {
    const CALLERS: u64 = 64;
    let judge = Arc::new(Judge::default());
    let service = Arc::clone(&judge);
    let upstream = service_fn(move |request| {
        let answer = Arc::clone(&service).answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let gateway = Gateway::new(serve(upstream).await, global);
    let proxy = gateway.serve().await;
    // One pool for each version, so that callers follow one another on a connection, or share it.
    let clients = [http_client(), http2_client()];
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let clients = clients.clone();
        let judge = Arc::clone(&judge);
        callers.spawn(async move {
            for call in 0..calls {
                let call = Call { caller, call };
                let http2 = usize::from(call.inbound_version() == Version::HTTP_2);
                one_call(clients[http2].clone(), proxy, &judge, call).await;
            }
        });
    }
    // A bound for a test that hangs, far beyond what it takes.
    let done = async {
        callers.join_all().await;
        // What goes on after its caller has left is judged too.
        let _idle = gateway.busy.acquire_many(MAX_BUSY).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(600), done)
        .await
        .expect("it hangs");

    let seen = judge.seen.lock().unwrap().clone();
    for caller in 0..CALLERS {
        for call in 0..calls {
            let call = Call { caller, call };
            let times = seen.get(&call.id()).copied().unwrap_or_default();
            match call.fate() {
                // It may never have left, or be on its way when its caller leaves.
                Fate::Dropped => assert!(times <= 1, "{}", call.id()),
                Fate::HandlerPanics => assert_eq!(times, 0, "{}", call.id()),
                _ => assert_eq!(times, 1, "{}", call.id()),
            }
        }
    }
    std::mem::take(&mut *judge.wrong.lock().unwrap())
}

fn none(wrong: &[String]) {
    let first = wrong.first();
    assert_eq!(wrong.len(), 0, "mismatches; the first: {first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_2_threads_nobody_meets() {
    none(&interleave(1_000, None).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn on_8_threads_nobody_meets() {
    none(&interleave(1_000, None).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_sees_inbounds_in_one_global() {
    let wrong = interleave(20, Some(Arc::default())).await;
    assert!(
        wrong.iter().any(|what| what.contains("came as")),
        "{wrong:?}"
    );
    assert!(
        wrong.iter().any(|what| what.contains("was answered")),
        "{wrong:?}"
    );
}

async fn axum(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    addr
}

/// Answers with what it received.
async fn echo() -> SocketAddr {
    axum(Router::new().route(
        "/mcp",
        post(|headers: HeaderMap| async move {
            yield_now().await;
            credentials(&headers)
        }),
    ))
    .await
}

/// Calls `proxy` as 16 callers at once, and counts answers that are not the caller's own.
async fn mismatches(proxy: SocketAddr) -> usize {
    let client = http_client();
    let mut callers = JoinSet::new();
    for caller in 0..16 {
        let client = client.clone();
        callers.spawn(async move {
            let mut wrong = 0;
            for call in 0..200 {
                let call = Call { caller, call };
                let response = client.request(call.request(proxy)).await.unwrap();
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                wrong += usize::from(body != call.credentials());
            }
            wrong
        });
    }
    callers.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i1_through_axum_and_relay_nobody_meets() {
    let upstream = Upstream::builder("echo", format!("http://{}/mcp", echo().await))
        .allow_credential("authorization")
        .allow("x-user")
        .build()
        .unwrap();
    let router = Router::new()
        .nest_service("/mcp", Relay::new(&upstream, http_client()))
        .layer(CaptureLayer::for_upstreams([&upstream]).build().unwrap());
    assert_eq!(mismatches(axum(router).await).await, 0);
}

/// The proxy that this crate is for: its client keeps the values of whoever came last.
#[derive(Clone)]
struct Broken {
    upstream: SocketAddr,
    last: Arc<Mutex<HeaderMap>>,
}

async fn broken(State(proxy): State<Broken>, request: Request<Body>) -> impl IntoResponse {
    *proxy.last.lock().unwrap() = request.headers().clone();
    yield_now().await;
    let mut outbound = Request::post(format!("http://{}/mcp", proxy.upstream))
        .body(Body::from("{}"))
        .unwrap();
    for name in ["authorization", "x-user"] {
        if let Some(value) = proxy.last.lock().unwrap().get(name) {
            outbound.headers_mut().insert(name, value.clone());
        }
    }
    http_client::<Body>()
        .request(outbound)
        .await
        .unwrap()
        .map(Body::new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_harness_sees_values_in_one_global() {
    let proxy = Broken {
        upstream: echo().await,
        last: Arc::default(),
    };
    let router = Router::new().route("/mcp", post(broken)).with_state(proxy);
    assert!(mismatches(axum(router).await).await > 0);
}
