//! `ProbeLayer`: who is asked, with what, how often, and what is remembered. The answers are in
//! `refusal_table.rs`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use mcp_forward::{
    CaptureLayer, Challenge, ClientFactory, ProbeLayer, Refusal, RefusalLayer, Relay, Rule,
    Upstream, outbound,
};
use support::{
    OK, RawUpstream, Recorded, capture, check_error, http_client, identity, own_error, post, raw,
    refusal::{answer, takes_credential, text},
    serve, status,
};
use tokio::{sync::Semaphore, task::JoinSet, time::advance};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const TOKEN: &str = "authorization: Bearer alice\r\n";
const URL: &str = "https://up.example/mcp";

/// The raw answer of a service that says `served`, behind a probe of what `select` gives.
async fn probed<F, U>(upstreams: &[&Upstream], select: F, request: &str) -> String
where
    F: Fn(&Parts) -> U + Send + Sync + 'static,
    U: IntoIterator<Item = Upstream> + 'static,
{
    let served = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served")))
    });
    let capture = CaptureLayer::for_upstreams(upstreams.iter().copied());
    let capture = capture.allow_fan_out("authorization").build().unwrap();
    let probe = ProbeLayer::new(http_client(), select);
    let addr = serve(capture.layer(probe.layer(served))).await;
    raw(addr, request.replace("{addr}", &addr.to_string())).await
}

fn request(method: &str, lines: &str) -> String {
    format!(
        "{method} /mcp HTTP/1.1\r\nhost: {{addr}}\r\nconnection: close\r\n{lines}content-length: 0\r\n\r\n"
    )
}

#[tokio::test]
async fn who_is_not_asked() {
    let server = RawUpstream::answering(answer(401, "")).await;
    let builder = || Upstream::builder("up", server.url("/mcp"));
    let credential = || Rule::credential("authorization");
    let plain = builder().rule(credential());
    let admitted = builder().rule(credential().only_with("x-proxy-key"));
    let own = builder().set("authorization", "Bearer own").allow("x-user");
    let fallback = mcp_forward::OnConflict::Caller;
    let fallback = builder()
        .rule(credential().on_conflict(fallback))
        .set("authorization", "Bearer own");
    let required = builder().rule(credential().required());
    let rows = [
        ("no credential", plain.clone(), "POST", "x-user: alice\r\n"),
        ("no admission header", admitted.clone(), "POST", TOKEN),
        (
            "the operator's credential",
            own,
            "POST",
            "x-user: alice\r\n",
        ),
        ("its fallback", fallback, "POST", ""),
        ("a required one is missing", required, "POST", ""),
        ("GET", plain.clone(), "GET", TOKEN),
        ("DELETE", plain.clone(), "DELETE", TOKEN),
    ];
    for (row, builder, method, lines) in rows {
        let up = builder.build().unwrap();
        let target = up.clone();
        let answer = probed(&[&up], move |_| [target.clone()], &request(method, lines)).await;
        assert!(answer.ends_with("served"), "{row}: {answer}");
    }
    // An upstream that the selector does not give: not authorised, not known, named by the caller.
    let up = plain.build().unwrap();
    let named = format!("{TOKEN}x-upstream: up\r\nx-url: {}\r\n", server.url("/mcp"));
    let answer = probed(&[&up], |_| None::<Upstream>, &request("POST", &named)).await;
    assert!(answer.ends_with("served"), "{answer}");
    assert!(server.requests().is_empty());

    // And with the admission header it is asked.
    let up = admitted.build().unwrap();
    let target = up.clone();
    let lines = format!("{TOKEN}x-proxy-key: k\r\n");
    let answer = probed(&[&up], move |_| [target.clone()], &request("POST", &lines)).await;
    assert_eq!(status(&answer), 401);
    let sent = server.only_request();
    assert!(sent.all("x-proxy-key").is_empty());
}

#[tokio::test]
async fn m1_without_an_inbound_nobody_is_asked() {
    let server = RawUpstream::answering(OK).await;
    let up = takes_credential(server.url("/mcp"));
    let served = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let probe = ProbeLayer::new(http_client(), move |_| [up.clone()]);
    let addr = serve(probe.layer(served)).await;
    let answer = raw(addr, post(addr, TOKEN)).await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("put `CaptureLayer` outside `ProbeLayer`"));
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn m2_the_caller_names_no_upstream() {
    let [ours, theirs] = [
        RawUpstream::answering(OK).await,
        RawUpstream::answering(OK).await,
    ];
    let up = takes_credential(ours.url("/mcp"));
    let target = up.clone();
    // A selector for one path; what the request says beside it changes nothing.
    let select = move |parts: &Parts| (parts.uri.path() == "/mcp").then(|| target.clone());
    let elsewhere = theirs.url("/mcp");
    let lines = format!(
        "{TOKEN}x-forwarded-host: {0}\r\nreferer: {elsewhere}\r\n",
        theirs.addr
    );
    let answer = probed(&[&up], select, &request("POST", &lines)).await;
    assert!(answer.ends_with("served"), "{answer}");
    assert_eq!(ours.requests().len(), 1);
    assert!(theirs.requests().is_empty());
}

/// What is not of the transport.
fn forwarded(request: &Recorded) -> Vec<(String, String)> {
    const TRANSPORT: [&str; 8] = [
        "accept",
        "content-length",
        "content-type",
        "host",
        "mcp-method",
        "mcp-protocol-version",
        "user-agent",
        "mcp-session-id",
    ];
    let lines = request.headers.iter();
    let lines = lines.filter(|(name, _)| !TRANSPORT.contains(&name.as_str()));
    let mut lines: Vec<_> = lines.cloned().collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn the_probe_arrives_as_the_real_call_does() {
    let server = RawUpstream::new(|request| {
        let session = "mcp-session-id: probe-1\r\n";
        let is_first = request
            .body
            .windows(12)
            .any(|bytes| bytes == b"\"initialize\"");
        answer(200, if is_first { session } else { "" }).into()
    })
    .await;
    let up = Upstream::builder("up", server.url("/mcp?tenant=1"))
        .allow_credential("authorization")
        .rule(Rule::new("x-token").to("x-up-token").bearer())
        .rule(Rule::new("x-many").multi())
        .allow("x-absent")
        .set("x-proxy", "edge-1")
        .build()
        .unwrap();
    for (version, method) in [
        ("", "initialize"),
        ("mcp-protocol-version: 2025-11-25\r\n", "initialize"),
        ("mcp-protocol-version: 2026-07-28\r\n", "server/discover"),
    ] {
        let before = server.requests().len();
        let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
        // One client, one pool.
        let client = http_client();
        let target = up.clone();
        let layers = ServiceBuilder::new()
            .layer(capture)
            .layer(ProbeLayer::new(client.clone(), move |_| [target.clone()]))
            .layer(RefusalLayer::new());
        let addr = serve(layers.service(Relay::new(&up, client))).await;
        let lines = format!(
            "{TOKEN}{version}x-token: t\r\nx-many: 1\r\nx-many: 2\r\nx-proxy: evil\r\nx-other: o\r\n\
             mcp-session-id: callers\r\n"
        );
        let answer = raw(addr, post(addr, &lines)).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let is_first = method == "initialize";
        let all = server.wait_for(before + if is_first { 3 } else { 2 });
        let waited = tokio::time::timeout(Duration::from_secs(10), all).await;
        waited.expect("the probe, its end or the call is missing");
        let requests = server.requests().split_off(before);
        let is_probe = |it: &&Recorded| !it.body.is_empty() && it.body != b"{}";
        let probe = requests.iter().find(is_probe).unwrap();
        let real = requests.iter().find(|it| it.body == b"{}").unwrap();
        assert_eq!(forwarded(probe), forwarded(real));
        assert_eq!(
            (probe.line.as_str(), real.line.as_str()),
            ("POST /mcp?tenant=1 HTTP/1.1", "POST /mcp?tenant=1 HTTP/1.1")
        );
        assert!(probe.all("mcp-session-id").is_empty());
        let message: serde_json::Value = serde_json::from_slice(&probe.body).unwrap();
        assert_eq!(message["method"], method);
        assert_eq!(probe.all("mcp-protocol-version").is_empty(), is_first);
        assert_eq!(probe.all("mcp-method").is_empty(), is_first);

        // The session that the probe began is ended, as the same caller.
        if is_first {
            let end = requests
                .iter()
                .find(|it| it.line.starts_with("DELETE"))
                .unwrap();
            assert_eq!(end.all("mcp-session-id"), ["probe-1"]);
            assert_eq!(forwarded(end), forwarded(real));
        }
    }
}

#[tokio::test]
async fn m6_a_redirect_is_not_followed() {
    let elsewhere = RawUpstream::answering(OK).await;
    let location = format!("location: {}\r\n", elsewhere.url("/latest/meta-data"));
    let server = RawUpstream::answering(answer(307, &location)).await;
    let up = takes_credential(server.url("/mcp"));
    let target = up.clone();
    let answer = probed(&[&up], move |_| [target.clone()], &request("POST", TOKEN)).await;
    assert!(answer.ends_with("served"), "{answer}");
    assert_eq!(server.requests().len(), 1);
    assert!(elsewhere.requests().is_empty());
}

/// Of several, in the order of the selector, whichever answers first.
#[tokio::test]
async fn the_first_selected_refusal_is_told() {
    let forbidden = RawUpstream::answering(answer(403, "")).await;
    let wants = RawUpstream::answering(answer(401, "")).await;
    let broken = RawUpstream::answering("").await;
    let named = |name: &str, server: &RawUpstream| {
        let builder = Upstream::builder(name, server.url("/mcp"));
        builder.allow_credential("authorization").build().unwrap()
    };
    let [a, b, c] = [
        named("a", &broken),
        named("b", &forbidden),
        named("c", &wants),
    ];
    for (order, expected) in [([&a, &b, &c], 403), ([&a, &c, &b], 401)] {
        let targets = order.map(Clone::clone);
        let answer = probed(&order, move |_| targets.clone(), &request("POST", TOKEN)).await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
}

type Sent = Request<outbound::Body<Full<Bytes>>>;

/// A service in memory that says 200, behind a probe by `client`.
fn in_memory<C>(
    layer: impl FnOnce(ProbeLayer<C>) -> ProbeLayer<C>,
    client: C,
) -> impl Service<
    Request<Full<Bytes>>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = Infallible>>,
    Error = Infallible,
    Future: Send,
> + Clone
where
    C: Service<Sent, Response = Response<()>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    let target = takes_credential(URL);
    let capture = CaptureLayer::for_upstreams([&target]).build().unwrap();
    let probe = layer(ProbeLayer::new(client, move |_| [target.clone()]));
    let served = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("served")))
    });
    capture.layer(probe.layer(served))
}

fn by(token: impl std::fmt::Display) -> Request<Full<Bytes>> {
    let request = Request::post("/").header("authorization", format!("Bearer {token}"));
    request.body(Full::default()).unwrap()
}

/// A client that counts, waits for permits, and answers with the status that a token names.
#[derive(Clone)]
struct Counting {
    asked: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
}

impl Counting {
    fn new() -> Self {
        Self {
            asked: Arc::default(),
            at_once: Arc::default(),
            most: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        }
    }

    fn client(
        &self,
    ) -> impl Service<Sent, Response = Response<()>, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send
    + 'static {
        let this = self.clone();
        service_fn(move |request: Sent| {
            let this = this.clone();
            async move {
                this.asked.fetch_add(1, Relaxed);
                let now = this.at_once.fetch_add(1, Relaxed) + 1;
                this.most.fetch_max(now, Relaxed);
                this.go.acquire().await.unwrap().forget();
                this.at_once.fetch_sub(1, Relaxed);
                let token = request.headers()["authorization"].to_str().unwrap();
                let status = match token {
                    "Bearer broken" => return Err("the connection broke".into()),
                    "Bearer bad" => 401,
                    "Bearer odd" => 404,
                    _ => 200,
                };
                let response = Response::builder().status(status);
                Ok(response.body(()).unwrap())
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered() {
    let counting = Counting::new();
    counting.go.add_permits(1000);
    let service = in_memory(|probe| probe, counting.client());
    let call = async |token: &str| service.clone().oneshot(by(token)).await.unwrap().status();
    let asked = || counting.asked.load(Relaxed);

    // 30 s for what was accepted, for exactly the same headers.
    assert_eq!(call("alice").await, 200);
    advance(Duration::from_millis(29_900)).await;
    assert_eq!(call("alice").await, 200);
    assert_eq!(asked(), 1);
    assert_eq!(call("bob").await, 200);
    assert_eq!(asked(), 2);
    advance(Duration::from_millis(100)).await;
    assert_eq!(call("alice").await, 200);
    assert_eq!(asked(), 3);
    // A refusal is not remembered.
    assert_eq!(call("bad").await, 401);
    assert_eq!(call("bad").await, 401);
    assert_eq!(asked(), 5);
    // What says neither is not asked for 5 s with the same headers; others are not concerned.
    assert_eq!(call("odd").await, 200);
    assert_eq!(call("odd").await, 200);
    assert_eq!(asked(), 6);
    assert_eq!(call("bad").await, 401);
    assert_eq!(asked(), 7);
    advance(Duration::from_secs(5)).await;
    assert_eq!(call("odd").await, 200);
    assert_eq!(asked(), 8);
    // Nor what does not answer.
    assert_eq!(call("broken").await, 200);
    assert_eq!(call("broken").await, 200);
    assert_eq!(asked(), 9);
    assert_eq!(call("bad").await, 401);
    assert_eq!(asked(), 10);
    advance(Duration::from_secs(5)).await;
    assert_eq!(call("broken").await, 200);
    assert_eq!(asked(), 11);
}

/// Nobody's headers close the door to the others.
#[tokio::test(start_paused = true)]
async fn what_one_callers_headers_do_is_told_to_that_caller_alone() {
    let counting = Counting::new();
    counting.go.add_permits(1000);
    let service = in_memory(ProbeLayer::fail_closed, counting.client());
    let call = async |token: &str| service.clone().oneshot(by(token)).await.unwrap().status();
    for _ in 0..2 {
        assert_eq!(call("odd").await, 502);
        assert_eq!(call("alice").await, 200);
    }
    assert_eq!(counting.asked.load(Relaxed), 2);
    // Nor headers at which the upstream breaks the connection, or is silent.
    assert_eq!(call("broken").await, 502);
    assert_eq!(call("bob").await, 200);
    assert_eq!(call("alice").await, 200);
    assert_eq!(counting.asked.load(Relaxed), 4);
    // Nor a version of MCP, where callers share a credential.
    let mut newest = by("alice");
    let version = http::HeaderValue::from_static("zzz");
    newest.headers_mut().insert("mcp-protocol-version", version);
    assert_eq!(service.clone().oneshot(newest).await.unwrap().status(), 200);
    assert_eq!(counting.asked.load(Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn at_most_1024_answers_are_kept() {
    let counting = Counting::new();
    counting.go.add_permits(10_000);
    let service = in_memory(|probe| probe, counting.client());
    let call = async |token: usize| service.clone().oneshot(by(token)).await.unwrap().status();
    let asked = || counting.asked.load(Relaxed);
    for token in 0..1_100 {
        assert_eq!(call(token).await, 200);
        advance(Duration::from_millis(1)).await;
    }
    assert_eq!(asked(), 1_100);
    // The first 76 have gone, which expire first.
    for token in 76..1_100 {
        assert_eq!(call(token).await, 200);
    }
    assert_eq!(asked(), 1_100);
    assert_eq!(call(0).await, 200);
    assert_eq!(call(77).await, 200);
    assert_eq!(asked(), 1_101);
    assert_eq!(call(76).await, 200);
    assert_eq!(asked(), 1_102);
    // Once the old ones are worth nothing, there is room.
    advance(Duration::from_secs(30)).await;
    for _ in 0..2 {
        assert_eq!(call(5_000).await, 200);
    }
    assert_eq!(asked(), 1_103);
}

#[test]
fn after_a_burst_the_room_of_the_answers_is_given_back() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    let counting = Counting::new();
    counting.go.add_permits(10_000);
    let service = in_memory(|probe| probe, counting.client());
    let grown = |after, tokens| {
        let calling = async {
            advance(after).await;
            for token in 0..tokens {
                let answer = service.clone().oneshot(by(token)).await.unwrap();
                assert_eq!(answer.status(), 200);
            }
        };
        allocation_counter::measure(|| runtime.block_on(calling)).bytes_current
    };
    let burst = grown(Duration::ZERO, 1_000);
    let left = burst + grown(Duration::from_secs(31), 1);
    assert!(left * 8 < burst, "{left} of {burst} bytes are left");
}

#[tokio::test]
async fn m10_many_callers_at_once_are_one_question_each_and_sixteen_in_all() {
    // The same headers: one question, whatever its answer is.
    for (token, expected) in [("alice", 200), ("bad", 401)] {
        let counting = Counting::new();
        let service = in_memory(|probe| probe, counting.client());
        let calls = (0..1_000).map(|_| tokio::spawn(service.clone().oneshot(by(token))));
        let calls: Vec<_> = calls.collect();
        while counting.asked.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        // Until all of them wait.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        counting.go.add_permits(1_000);
        for answer in join_all(calls).await {
            assert_eq!(answer.unwrap().unwrap().status(), expected);
        }
        assert_eq!(counting.asked.load(Relaxed), 1, "{token}");
    }
    // Other headers each: what is beyond sixteen is not asked.
    let counting = Counting::new();
    let service = in_memory(ProbeLayer::fail_closed, counting.client());
    let mut calls = JoinSet::new();
    for token in 0..1_000 {
        calls.spawn(service.clone().oneshot(by(token)));
    }
    for served in 1..=1_000 {
        let answer = calls.join_next().await.unwrap();
        assert_eq!(answer.unwrap().unwrap().status(), 200);
        if served == 1_000 - 16 {
            assert_eq!(counting.asked.load(Relaxed), 16);
            counting.go.add_permits(16);
        }
    }
    assert_eq!(counting.most.load(Relaxed), 16);
    assert_eq!(counting.asked.load(Relaxed), 16);
}

/// Whoever asks may go away: the next one who waits asks again.
#[tokio::test]
async fn a_question_outlives_whoever_asked_it() {
    let counting = Counting::new();
    let service = in_memory(|probe| probe, counting.client());
    let first = tokio::spawn(service.clone().oneshot(by("bad")));
    while counting.asked.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let second = tokio::spawn(service.clone().oneshot(by("bad")));
    first.abort();
    while counting.asked.load(Relaxed) == 1 {
        tokio::task::yield_now().await;
    }
    counting.go.add_permits(2);
    assert_eq!(second.await.unwrap().unwrap().status(), 401);
}

#[tokio::test]
async fn a_session_is_ended_also_where_nobody_waits_for_the_answer() {
    let (go, ended) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let asked = Arc::new(AtomicUsize::new(0));
    let (gate, end, count) = (Arc::clone(&go), Arc::clone(&ended), Arc::clone(&asked));
    let client = service_fn(move |request: Sent| {
        let (gate, end, count) = (Arc::clone(&gate), Arc::clone(&end), Arc::clone(&count));
        async move {
            if request.method() == http::Method::DELETE {
                assert_eq!(request.headers()["mcp-session-id"], "s");
                end.add_permits(1);
            } else {
                count.fetch_add(1, Relaxed);
                gate.acquire().await.unwrap().forget();
            }
            let response = Response::builder().header("mcp-session-id", "s");
            Ok::<_, BoxError>(response.body(()).unwrap())
        }
    });
    let service = in_memory(|probe| probe, client);
    let call = tokio::spawn(service.oneshot(by("alice")));
    while asked.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()));
    go.add_permits(1);
    let waited = tokio::time::timeout(Duration::from_secs(10), ended.acquire()).await;
    waited.expect("the session is left").unwrap().forget();
}

#[derive(Debug, thiserror::Error)]
#[error("the client failed")]
struct Wrapped(#[source] Refusal);

#[tokio::test]
async fn a_client_that_fails_with_a_refusal_is_refused() {
    let up = takes_credential(URL);
    let inbound = capture(&[&up], [("authorization", "Bearer alice")]).await;
    let outbound = identity().connect_for(&up, &inbound).await.unwrap();
    let scope = support::headers([("www-authenticate", "Bearer error=\"insufficient_scope\"")]);
    let refusal = outbound.refusal(StatusCode::FORBIDDEN, &scope).unwrap();
    let client = service_fn(move |_: Sent| {
        std::future::ready(Err::<Response<()>, _>(Wrapped(refusal.clone())))
    });
    let told =
        |probe: ProbeLayer<_>| probe.challenge(Challenge::rewrite("https://p.example/").unwrap());
    let service = in_memory(told, client);
    let answer = service.oneshot(by("alice")).await.unwrap();
    assert_eq!(answer.status(), 403);
    let expected = r#"Bearer error="insufficient_scope", resource_metadata="https://p.example/""#;
    assert_eq!(answer.headers()["www-authenticate"], expected);
    check_error(text(answer.into_body()).await.as_bytes(), -32000);
}

#[tokio::test]
async fn readiness_is_the_inner_services_and_the_one_that_is_ready_is_called() {
    let target = takes_credential(URL);
    let inbound = capture(&[&target], [("authorization", "Bearer alice")]).await;
    let client = service_fn(|_: Sent| async { Ok::<_, Infallible>(Response::new(())) });
    let layer = ProbeLayer::new(client, move |_| [target.clone()]);
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request<Full<Bytes>>, Response<Full<Bytes>>, _>(layer);
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let mut request = Request::post("/").body(Full::default()).unwrap();
    inbound.attach(request.extensions_mut());
    let call = service.call(request);
    let answer = async {
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_response(Response::default());
    };
    let (response, ()) = tokio::join!(call, answer);
    assert_eq!(response.unwrap().status(), 200);
}
