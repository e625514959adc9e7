//! The adversarial catalogue, groups I and K: concurrency, cancelling, panics, one function per case.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. I4, I5 and I6 have their function beside
//! the scope; I3 and K9 have another one there.
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
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use mcp_forward::{
    CaptureLayer, ClientFactory, ForwardLayer, Inbound, InboundExt, Outbound, OutboundError,
    OutboundErrorKind, Relay, Upstream, task,
};
use support::{
    OK, RawUpstream, capture, http_client, http2_client, identity, own_error, post, raw, serve,
    status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Barrier, mpsc, oneshot},
    task::{JoinSet, LocalSet},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

fn upstream(url: &str) -> Upstream {
    let builder = Upstream::builder("up", url).allow_credential("authorization");
    builder.allow("x-user").build().unwrap()
}

async fn user(name: &str) -> Inbound {
    let up = upstream("https://up.example/mcp");
    capture(&[&up], [("x-user", name)]).await
}

/// The user of the running task: a name, "" for a caller who sent none, "-" for no inbound.
fn who() -> String {
    match Inbound::current() {
        None => "-".to_owned(),
        Some(inbound) => {
            let value = inbound.get(&"x-user".parse().unwrap());
            value.map_or(String::new(), |value| value.to_str().unwrap().to_owned())
        }
    }
}

/// An upstream that answers with the request's `authorization` and body, after `together` of them
/// have come.
async fn echo(together: usize) -> SocketAddr {
    let barrier = Arc::new(Barrier::new(together));
    serve(service_fn(move |request: Request<Incoming>| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            let token = request.headers().get("authorization").cloned();
            let token = token.unwrap_or_else(|| HeaderValue::from_static("none"));
            let body = request.into_body().collect().await?.to_bytes();
            let text = [token.as_bytes(), b" ", &body].concat();
            Ok::<_, hyper::Error>(Response::new(Full::<Bytes>::from(text)))
        }
    }))
    .await
}

/// A relay to `upstream`, with its capture layer.
async fn relay(upstream: SocketAddr, http2: bool) -> SocketAddr {
    let up = self::upstream(&format!("http://{upstream}/mcp"));
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let client = if http2 { http2_client() } else { http_client() };
    serve(capture.layer(Relay::new(&up, client))).await
}

async fn call(
    client: &support::HttpClient<Full<Bytes>>,
    addr: SocketAddr,
    token: &str,
    body: &str,
) -> String {
    let mut request = Request::post(format!("http://{addr}/mcp"));
    if !token.is_empty() {
        request = request.header("authorization", token);
    }
    let request = request.body(Full::from(body.to_owned())).unwrap();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    String::from_utf8(support::body_of(response).await).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i1_over_shared_connections_nobody_meets() {
    for http2 in [false, true] {
        let proxy = relay(echo(1).await, http2).await;
        let client = if http2 { http2_client() } else { http_client() };
        let mut callers = JoinSet::new();
        for caller in 0..64 {
            let client = client.clone();
            callers.spawn(async move {
                for number in 0..20 {
                    let token = format!("Bearer {caller}-{number}");
                    // Every fifth comes without, and must not find anybody's.
                    let token = if number % 5 == 0 { "" } else { &token };
                    let answer = call(&client, proxy, token, &token.replace(' ', "+")).await;
                    let seen = if token.is_empty() { "none" } else { token };
                    assert_eq!(answer, format!("{seen} {}", token.replace(' ', "+")));
                }
            });
        }
        callers.join_all().await;
    }
}

#[tokio::test]
async fn i2_one_json_rpc_id_of_two_callers() {
    for http2 in [false, true] {
        let proxy = relay(echo(2).await, http2).await;
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let client = http2_client();
        // Both are at the upstream before either is answered.
        let (alice, bob) = tokio::join!(
            call(&client, proxy, "Bearer alice", body),
            call(&client, proxy, "Bearer bob", body),
        );
        assert_eq!(alice, format!("Bearer alice {body}"));
        assert_eq!(bob, format!("Bearer bob {body}"));
    }
}

type Job = (
    Request<Full<Bytes>>,
    oneshot::Sender<Result<Response<Incoming>, BoxError>>,
);

#[tokio::test]
async fn i3_a_worker_is_nobody_until_the_message_says_who() {
    let server = RawUpstream::answering(OK).await;
    let up = upstream(&server.url("/mcp"));
    let client = ForwardLayer::new(&up).layer(http_client::<Full<Bytes>>());
    let alice = capture(&[&up], [("x-user", "alice")]).await;
    let bob = capture(&[&up], [("x-user", "bob")]).await;
    let (jobs, mut queue) = mpsc::channel::<Job>(1);
    // As `tower::Buffer`: whoever calls first starts the worker.
    let worker = async move {
        while let Some((request, answer)) = queue.recv().await {
            let _ = answer.send(client.clone().oneshot(request).await);
        }
    };
    alice.clone().sync_scope(|| tokio::spawn(worker));
    let send = |attached: Option<Inbound>| {
        let mut request = Request::post(server.url("/mcp"))
            .body(Full::default())
            .unwrap();
        if let Some(inbound) = attached {
            inbound.attach(request.extensions_mut());
        }
        let jobs = jobs.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            jobs.send((request, answer)).await.unwrap();
            answered.await.unwrap()
        }
    };
    let error = send(None).with_inbound(alice).await.unwrap_err();
    let error = error.downcast::<OutboundError>().unwrap();
    assert_eq!(error.kind(), OutboundErrorKind::NoInbound);
    assert!(server.requests().is_empty());
    send(Some(bob)).await.unwrap();
    assert_eq!(server.only_request().all("x-user"), ["bob"]);
}

#[tokio::test]
async fn i7_work_that_outlives_its_request_keeps_only_its_own() {
    let up = upstream("https://up.example/mcp");
    let (tell, mut told) = mpsc::unbounded_channel();
    let (go, wait) = tokio::sync::watch::channel(false);
    let layer = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let service = layer.layer(service_fn(move |_: Request<()>| {
        if who() == "alice" {
            let late = |how: &'static str| {
                let (mut wait, tell) = (wait.clone(), tell.clone());
                async move {
                    wait.wait_for(|gone| *gone).await.unwrap();
                    tell.send(format!("{how} {}", who())).unwrap();
                }
            };
            task::spawn(late("carried"));
            tokio::spawn(late("plain"));
            task::spawn(late("detached").detached());
        }
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    }));
    for user in ["alice", "bob"] {
        let request = Request::builder().header("x-user", user).body(());
        let response = service.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        drop(response);
    }
    go.send(true).unwrap();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(told.recv().await.unwrap());
    }
    all.sort();
    assert_eq!(all, ["carried alice", "detached -", "plain -"]);
}

#[tokio::test]
async fn i8_a_renewed_token_is_used_at_once() {
    // Both at once, so that neither can have waited for the other; then one after the other.
    for together in [2, 1] {
        let proxy = relay(echo(together).await, false).await;
        let client = http_client();
        let old = call(&client, proxy, "Bearer old", "1");
        let new = call(&client, proxy, "Bearer new", "2");
        let (old, new) = if together == 2 {
            tokio::join!(old, new)
        } else {
            (old.await, new.await)
        };
        assert_eq!(
            (old.as_str(), new.as_str()),
            ("Bearer old 1", "Bearer new 2")
        );
    }
}

#[derive(Clone)]
struct Issuer(&'static str);

#[tokio::test]
async fn i10_a_cache_by_outbound_never_mixes_principals() {
    let up = Upstream::builder("up", "https://up.example/mcp")
        .allow_credential("authorization")
        .allow("x-issuer")
        .build()
        .unwrap();
    let merged = |token: &'static str, issuer: &'static str| {
        let up = up.clone();
        let layer = CaptureLayer::for_upstreams([&up])
            .attest("x-issuer", |parts| {
                Some(parts.extensions.get::<Issuer>()?.0.into())
            })
            .build()
            .unwrap();
        let (tell, mut told) = mpsc::unbounded_channel::<Outbound>();
        async move {
            let service = layer.layer(service_fn(move |_: Request<()>| {
                let (tell, up) = (tell.clone(), up.clone());
                async move {
                    tell.send(identity().connect(&up).await.unwrap()).unwrap();
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            }));
            let mut request = Request::builder().header("authorization", token);
            // What the caller claims is not what was verified.
            request = request.header("x-issuer", "same");
            let mut request = request.body(()).unwrap();
            request.extensions_mut().insert(Issuer(issuer));
            service.oneshot(request).await.unwrap();
            told.recv().await.unwrap()
        }
    };
    let mut cache = HashMap::new();
    for (token, issuer) in [("a", "i1"), ("a", "i2"), ("b", "i1"), ("b", "i2")] {
        let key = merged(token, issuer).await;
        assert_eq!(cache.insert(key, (token, issuer)), None);
    }
    let again = merged("a", "i2").await;
    assert_eq!(cache[&again], ("a", "i2"));
}

/// A client that may only be called where it was ready, and whose clones are not.
struct Strict(bool);

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self(false)
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0 = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.0), "called without being ready");
        let user = request.headers().get("x-user").cloned();
        let user = Bytes::from(user.map_or(Vec::new(), |user| user.as_bytes().to_vec()));
        std::future::ready(Ok(Response::new(Full::new(user))))
    }
}

#[tokio::test]
async fn i12_clones_share_no_credential_and_no_readiness() {
    let up = upstream("https://up.example/mcp");
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let service = capture.layer(Relay::new(&up, Strict(false)));
    let request = |user: &str| {
        let request = Request::post("/mcp").header("host", "localhost");
        request.header("x-user", user).body(()).unwrap()
    };
    let (mut one, mut two) = (service.clone(), service.clone());
    // Ready in one order, called in the other, polled in a third.
    for service in [&mut one, &mut two] {
        ServiceExt::<Request<()>>::ready(service).await.unwrap();
    }
    let bob = two.call(request("bob"));
    let alice = one.call(request("alice"));
    let carol = service.oneshot(request("carol"));
    let (carol, alice, bob) = tokio::join!(carol, alice, bob);
    for (response, user) in [(alice, "alice"), (bob, "bob"), (carol, "carol")] {
        let body = support::body_of(response.unwrap()).await;
        assert_eq!(body, user.as_bytes());
    }
}

#[tokio::test]
async fn i13_a_connections_scheme_is_not_the_next_users() {
    let proxy = relay(echo(1).await, false).await;
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let mut say = async |token: &str, end: &str| {
        let request = format!(
            "POST /mcp HTTP/1.1\r\nhost: {proxy}\r\nauthorization: {token}\r\n{end}content-length: 2\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // To the end of the body: ours is an object, the echo's ends with one.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\"2.0\"}") && !answer.ends_with(b" {}") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        String::from_utf8(answer).unwrap()
    };
    for scheme in ["NTLM TlRM", "Negotiate YII="] {
        let answer = say(scheme, "").await;
        assert_eq!(status(&answer), 400);
        own_error(&answer, -32600);
    }
    let answer = say("Bearer bob", "connection: close\r\n").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("Bearer bob {}"), "{answer}");
}

/// Says when the memory of a value is let go.
struct Owner(Arc<AtomicBool>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        b"Bearer s3cret"
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A request of a caller whose token is gone from memory once the flag is set.
fn owned() -> (Request<()>, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let bytes = Bytes::from_owner(Owner(Arc::clone(&gone)));
    let value = HeaderValue::from_maybe_shared(bytes).unwrap();
    let mut request = Request::new(());
    request.headers_mut().insert("authorization", value);
    (request, gone)
}

#[tokio::test]
async fn k1_a_caller_who_goes_takes_everything_along() {
    let up = upstream("https://up.example/mcp");
    let layer = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let is_gone = |gone: &AtomicBool| gone.load(Ordering::SeqCst);

    // Before the upstream's head.
    let (request, gone) = owned();
    let pending = layer
        .clone()
        .layer(service_fn(|request: Request<()>| async move {
            let _held = (request, Inbound::current());
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }));
    let mut future = Box::pin(pending.oneshot(request));
    assert!(futures_util::poll!(future.as_mut()).is_pending());
    assert!(!is_gone(&gone));
    drop(future);
    assert!(is_gone(&gone));

    // After it, with a body that nobody has polled.
    let (request, gone) = owned();
    let silent = || futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
    let streaming = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(StreamBody::new(silent())))
    }));
    let response = streaming.oneshot(request).await.unwrap();
    assert!(!is_gone(&gone));
    drop(response);
    assert!(is_gone(&gone));

    // On the wire: the upstream's connection ends with the caller's.
    for head in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let (came, mut arrived) = mpsc::unbounded_channel();
        let closed = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(head.as_bytes()).await.unwrap();
            came.send(()).unwrap();
            stream.read_to_end(&mut Vec::new()).await
        });
        let proxy = relay(upstream, false).await;
        let mut caller = TcpStream::connect(proxy).await.unwrap();
        let request = post(proxy, "authorization: Bearer s3cret\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();
        arrived.recv().await.unwrap();
        if !head.is_empty() {
            assert!(caller.read(&mut [0; 4096]).await.unwrap() > 0);
        }
        drop(caller);
        let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
        let _ = closed.expect("the upstream's connection stays").unwrap();
    }
}

/// Panics for one user, and tells every other one who it is.
async fn panicking<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let user = who();
    if user.starts_with("mallory") {
        panic!("{:?}", Inbound::of(request.extensions()));
    }
    Ok(Response::new(Full::from(user)))
}

#[tokio::test]
async fn k2_a_panicking_handler_hurts_nobody_else() {
    let up = upstream("https://up.example/mcp");
    let layer = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let service = layer.clone().layer(service_fn(panicking));
    let call = |user: &str| {
        let request = Request::builder().header("x-user", user).body(());
        AssertUnwindSafe(service.clone().oneshot(request.unwrap())).catch_unwind()
    };
    let panic = call("mallory-s3cret").await.unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert_eq!(text, r#"Inbound ["x-user"]"#);
    assert_eq!(who(), "-");
    let response = call("alice").await.unwrap().unwrap();
    assert_eq!(support::body_of(response).await, b"alice");

    // On the wire: the connection of the panic ends, and no other. A 500 is for a layer above, which
    // has the whole stack below it.
    let addr = serve(layer.layer(service_fn(panicking))).await;
    let mut mallory = TcpStream::connect(addr).await.unwrap();
    let request = post(addr, "x-user: mallory\r\n");
    mallory.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = mallory.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    let answer = raw(addr, post(addr, "x-user: alice\r\n")).await;
    assert!(answer.ends_with("alice"), "{answer}");
}

#[tokio::test]
async fn k3_a_panicking_hook_poisons_nothing() {
    let up = upstream("https://up.example/mcp");
    let layer = CaptureLayer::for_upstreams([&up])
        .attest("x-user", |parts| {
            let path = parts.uri.path();
            assert_ne!(path, "/panic", "expected");
            Some(path.into())
        })
        .build()
        .unwrap();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(who())))
    }));
    let call = |path: &str| {
        let request = Request::builder().uri(path).body(()).unwrap();
        AssertUnwindSafe(service.clone().oneshot(request)).catch_unwind()
    };
    for _ in 0..2 {
        assert!(call("/panic").await.is_err());
        assert_eq!(who(), "-");
        let response = call("/alice").await.unwrap().unwrap();
        assert_eq!(support::body_of(response).await, b"/alice");
    }
}

#[tokio::test]
async fn k4_a_dropped_event_stream_ends_at_the_upstream() {
    for http2 in [false, true] {
        let (send, receive) = mpsc::unbounded_channel::<&'static str>();
        let receive = Arc::new(std::sync::Mutex::new(Some(receive)));
        let upstream = serve(service_fn(move |_: Request<Incoming>| {
            let events = receive.lock().unwrap().take().expect("asked twice");
            let frames = futures_util::stream::unfold(events, |mut events| async {
                let event = events.recv().await?;
                let frame = http_body::Frame::data(Bytes::from(event));
                Some((Ok::<_, Infallible>(frame), events))
            });
            async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
        }))
        .await;
        let proxy = relay(upstream, http2).await;
        let client = if http2 { http2_client() } else { http_client() };
        let request = Request::get(format!("http://{proxy}/mcp"))
            .header("authorization", "Bearer s3cret")
            .body(Full::<Bytes>::default())
            .unwrap();
        let mut body = client.request(request).await.unwrap().into_body();
        send.send("data: 1\n\n").unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "data: 1\n\n");
        assert!(!send.is_closed());
        drop(body);
        let closed = tokio::time::timeout(Duration::from_secs(10), send.closed());
        closed.await.expect("the upstream goes on");
    }
}

#[tokio::test]
async fn k8_what_waits_for_readiness_holds_no_credential() {
    let up = upstream("https://up.example/mcp");
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request<()>, Response<Full<Bytes>>, _>(capture);
    let (request, gone) = owned();
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    // Sent, and then only the mock has the request: nothing stays in the layer.
    let future = service.call(request);
    assert!(!gone.load(Ordering::SeqCst));
    drop(future);
    drop(handle.next_request().await.unwrap());
    assert!(gone.load(Ordering::SeqCst));
    handle.send_error("gone");
    assert!(matches!(service.poll_ready(), Poll::Ready(Err(_))));
}

#[test]
fn k9_every_runtime_or_none() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let alice = runtime.block_on(user("alice"));
    // None at all.
    assert_eq!(alice.clone().sync_scope(who), "alice");
    let ready = async { who() }.with_inbound(alice.clone());
    assert_eq!(
        futures_util::FutureExt::now_or_never(ready).unwrap(),
        "alice"
    );
    // One thread, and tasks that cannot leave it.
    let local = LocalSet::new();
    let inside = local.run_until(async {
        let spawning = async {
            let carried = task::spawn_local(async { who() });
            let plain = tokio::task::spawn_local(async { who() });
            (carried.await.unwrap(), plain.await.unwrap())
        };
        spawning.with_inbound(alice.clone()).await
    });
    let seen = runtime.block_on(inside);
    assert_eq!(seen, ("alice".to_owned(), "-".to_owned()));
    assert_eq!(who(), "-");
}
