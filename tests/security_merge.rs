//! The adversarial catalogue, groups G and H: policy, redirects and origins, one function per case.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. G1, H7 and H14 have their function
//! beside the capture, the redirects and the rules.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, io, iter, net::SocketAddr, sync::Arc, sync::Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mcp_forward::{
    BuildError, CaptureLayer, ClientFactory, ConnectErrorKind, ForwardLayer, Inbound, InboundExt,
    MistakeKind, OnConflict, OutboundErrorKind, Relay, Rule, Upstream, UpstreamBuilder,
};
use support::{
    OK, RawUpstream, Recorded, capture, headers, http_client, identity, lines, merge, own_error,
    post, raw, serve, status,
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::follow_redirect::{
    FollowRedirectLayer,
    policy::{Action, Attempt, Policy},
};

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
}

fn kinds(built: Result<Upstream, BuildError>) -> Vec<MistakeKind> {
    let error = built.expect_err("built");
    error.mistakes().iter().map(|m| m.kind()).collect()
}

async fn proxy(
    server: &RawUpstream,
    rules: impl FnOnce(UpstreamBuilder) -> UpstreamBuilder,
) -> SocketAddr {
    let up = rules(Upstream::builder("up", server.url("/mcp")))
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    serve(capture.layer(Relay::new(&up, http_client()))).await
}

#[tokio::test]
async fn g2_a_required_authorization_is_401_here() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.rule(Rule::credential("authorization").required())
            .allow("x-user")
    })
    .await;
    let answer = raw(addr, post(addr, "x-user: alice\r\n")).await;
    assert_eq!(status(&answer), 401);
    let challenge = "www-authenticate: Bearer error=\"invalid_token\"\r\n";
    assert!(answer.contains(challenge), "{answer}");
    own_error(&answer, -32000);
    assert!(server.requests().is_empty());
    let sent = "authorization: Bearer t\r\n";
    assert_eq!(status(&raw(addr, post(addr, sent)).await), 200);
}

#[tokio::test]
async fn g3_no_credential_is_made_up() {
    // DESIGN 4.2: without a word on who wins, a static header cannot stand under the same name.
    let rule = || Rule::credential("authorization");
    let both = builder().rule(rule()).set("authorization", "service");
    assert_eq!(kinds(both.build()), [MistakeKind::Conflict]);
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.rule(rule()).set("x-proxy", "edge")).await;
    assert_eq!(status(&raw(addr, post(addr, "")).await), 200);
    let names = ["content-length", "host", "x-proxy"];
    assert_eq!(server.only_request().names(), names);
}

#[tokio::test]
async fn g4_the_fallback_is_sent_and_known_as_the_operators() {
    let up = builder()
        .rule(Rule::credential("authorization").on_conflict(OnConflict::Caller))
        .set("authorization", "same")
        .build()
        .unwrap();
    let fallback = merge(&up, []).await.unwrap();
    assert_eq!(lines(&fallback), ["authorization: same"]);
    // The provenance is not in the text, and counts nevertheless.
    let caller = merge(&up, [("authorization", "same")]).await.unwrap();
    assert_eq!(lines(&caller), lines(&fallback));
    assert_ne!(caller, fallback);
    assert_eq!(fallback, merge(&up, [("x-other", "o")]).await.unwrap());
}

#[tokio::test]
async fn g5_10_000_merges_leave_the_static_headers() {
    let up = builder()
        .rule(Rule::new("x-a").on_conflict(OnConflict::Caller))
        .set("x-a", "static")
        .set("x-b", "s")
        .build()
        .unwrap();
    let place = |outbound: &mcp_forward::Outbound| {
        let value = outbound.iter().next().unwrap().1;
        std::ptr::from_ref(value)
    };
    let factory = identity();
    let nobody = Inbound::empty();
    let before = factory.connect_for(&up, &nobody).await.unwrap();
    let alice = capture(&[&up], [("x-a", "alice")]).await;
    for _ in 0..10_000 {
        let outbound = factory.connect_for(&up, &alice).await.unwrap();
        let mut map = headers([("x-b", "other")]);
        outbound.apply(&mut map).unwrap();
        assert_eq!(map["x-a"], "alice");
    }
    let after = factory.connect_for(&up, &nobody).await.unwrap();
    assert_eq!(before, after);
    assert_eq!(lines(&after), ["x-a: static", "x-b: s"]);
    assert_eq!(place(&before), place(&after), "the same memory");
}

#[tokio::test]
async fn g6_each_upstream_gets_its_own() {
    let servers = [
        RawUpstream::answering(OK).await,
        RawUpstream::answering(OK).await,
        RawUpstream::answering(OK).await,
    ];
    let build = |index: usize, name: &str| Upstream::builder(name, servers[index].url("/mcp"));
    let a = build(0, "a").allow("x-a").build().unwrap();
    let b = build(1, "b").allow("x-b").build().unwrap();
    let c = build(2, "c").build().unwrap();
    let sent = [("x-a", "1"), ("x-b", "2"), ("x-c", "3")];
    let alice = capture(&[&a, &b, &c], sent).await;
    let client = ServiceBuilder::new()
        .layer(ForwardLayer::new(&a))
        .layer(ForwardLayer::new(&b))
        .layer(ForwardLayer::new(&c))
        .service(http_client::<Full<Bytes>>());
    let call = |server: &RawUpstream| {
        let request = Request::post(server.url("/mcp"))
            .body(Full::default())
            .unwrap();
        client.clone().oneshot(request)
    };
    let all = futures_util::future::try_join_all(servers.iter().map(call));
    all.with_inbound(alice).await.unwrap();
    let own = servers.each_ref().map(|server| {
        let seen = server.only_request().headers.into_iter();
        seen.filter(|(name, _)| name.starts_with("x-"))
            .collect::<Vec<_>>()
    });
    let line = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert_eq!(own, [line("x-a", "1"), line("x-b", "2"), vec![]]);
}

#[tokio::test]
async fn g8_the_order_of_the_headers_changes_nothing() {
    let up = builder()
        .allow_credential("authorization")
        .allow("x-a")
        .rule(Rule::new("x-b").to("x-target"))
        .rule(Rule::new("x-c").on_conflict(OnConflict::Caller))
        .set("x-c", "s")
        .build()
        .unwrap();
    let mut sent = [
        ("authorization", "Bearer t"),
        ("x-a", "1"),
        ("x-b", "2"),
        ("x-c", "3"),
        ("x-d", "4"),
    ];
    let expected = merge(&up, sent).await.unwrap();
    assert_eq!(expected.iter().count(), 4);
    // Heap's algorithm: every permutation.
    let mut counters = [0; 5];
    let mut permutations = 1;
    let mut at = 1;
    while at < sent.len() {
        if counters[at] < at {
            sent.swap(if at % 2 == 0 { 0 } else { counters[at] }, at);
            assert_eq!(merge(&up, sent).await.unwrap(), expected, "{sent:?}");
            permutations += 1;
            counters[at] += 1;
            at = 1;
        } else {
            counters[at] = 0;
            at += 1;
        }
    }
    assert_eq!(permutations, 120);
}

#[tokio::test]
async fn g9_an_upstream_that_is_not_known_gets_nothing() {
    let server = RawUpstream::answering(OK).await;
    let known = Upstream::builder("known", server.url("/known"))
        .allow("x-a")
        .build()
        .unwrap();
    let other = Upstream::builder("other", server.url("/other"))
        .rule(Rule::new("x-b").on_conflict(OnConflict::Caller))
        .set("x-b", "service")
        .build()
        .unwrap();
    let inbound = capture(&[&known], [("x-a", "1"), ("x-b", "2")]).await;
    let error = identity().connect_for(&other, &inbound).await.unwrap_err();
    let not_captured = OutboundErrorKind::NotCaptured;
    assert_eq!(error.kind(), ConnectErrorKind::Outbound(not_captured));
    assert_eq!(error.upstream(), "other");
    let capture = CaptureLayer::for_upstreams([&known]).build().unwrap();
    let addr = serve(capture.layer(Relay::new(&other, http_client()))).await;
    let answer = raw(addr, post(addr, "x-b: 2\r\n")).await;
    assert_eq!(status(&answer), 500);
    assert!(!answer.contains("service"));
    assert!(server.requests().is_empty());
}

/// Follows everywhere, a few times, with every header and a copy of the body.
#[derive(Clone, Default)]
struct Everywhere {
    followed: usize,
}

impl Policy<Full<Bytes>, BoxError> for Everywhere {
    fn redirect(&mut self, _: &Attempt<'_>) -> Result<Action, BoxError> {
        self.followed += 1;
        Ok(if self.followed < 4 {
            Action::Follow
        } else {
            Action::Stop
        })
    }

    fn clone_body(&self, body: &Full<Bytes>) -> Option<Full<Bytes>> {
        Some(body.clone())
    }
}

/// A client for which every host is this machine.
fn client()
-> impl Service<Request<Full<Bytes>>, Response = Response<Incoming>, Error: Into<BoxError>> + Clone
{
    let here = service_fn(|_| async {
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok::<_, io::Error>(iter::once(here))
    });
    let connector = HttpConnector::new_with_resolver(here);
    Client::builder(TokioExecutor::new()).build(connector)
}

fn redirect(status: u16, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into()
}

const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];
const SECRETS: [&str; 4] = ["authorization", "x-api-key", "private-token", "job-token"];

/// Calls `http://<host>:…/mcp`, which redirects to `location` (its own port, another server's), by
/// a follower above `ForwardLayer`: the upstream gets one request with everything, nobody else any.
async fn nothing_leaves(host: &str, location: impl Fn(u16, u16) -> String) {
    for status in STATUSES {
        let elsewhere = RawUpstream::answering(OK).await;
        let other = elsewhere.addr.port();
        let target = Arc::new(Mutex::new(String::new()));
        let answer = Arc::clone(&target);
        let server =
            RawUpstream::new(move |_: &Recorded| redirect(status, &answer.lock().unwrap())).await;
        let own = server.addr.port();
        *target.lock().unwrap() = location(own, other);
        let url = format!("http://{host}:{own}/mcp");
        let rules = SECRETS.iter().map(|name| Rule::credential(*name));
        let up = rules
            .fold(Upstream::builder("up", &url), UpstreamBuilder::rule)
            .allow_cleartext()
            .build()
            .unwrap();
        let alice = capture(&[&up], SECRETS.map(|name| (name, "s3cret"))).await;
        let client = ServiceBuilder::new()
            .layer(FollowRedirectLayer::with_policy(Everywhere::default()))
            .layer(ForwardLayer::new(&up))
            .service(client());
        let mut request = Request::post(&url).body(Full::from("s3cret")).unwrap();
        // Both ways in which it could come along: in the request, and in the task.
        alice.clone().attach(request.extensions_mut());
        let response = client.oneshot(request).with_inbound(alice).await.unwrap();
        assert_eq!(response.status(), status);
        let seen = server.only_request();
        for name in SECRETS {
            assert_eq!(seen.all(name), ["s3cret"], "{name}");
        }
        assert!(elsewhere.requests().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn h1_a_redirect_to_another_host() {
    nothing_leaves("up.example", |_, other| {
        format!("http://evil.example:{other}/mcp")
    })
    .await;
    nothing_leaves("up.example", |own, _| {
        format!("http://evil.example:{own}/mcp")
    })
    .await;
}

#[tokio::test]
async fn h2_a_redirect_to_another_port() {
    nothing_leaves("up.example", |_, other| {
        format!("http://up.example:{other}/mcp")
    })
    .await;
}

/// The headers that reach `uri` below a `ForwardLayer` for `url`, and the location that a redirect
/// of `uri` to `location` keeps.
async fn below(url: &str, uri: &str, location: &str) -> (HeaderMap, bool) {
    let up = Upstream::builder("up", url)
        .allow_credential("authorization")
        .allow_cleartext()
        .build()
        .unwrap();
    let alice = capture(&[&up], [("authorization", "Bearer s3cret")]).await;
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let into = Arc::clone(&seen);
    let location = location.to_owned();
    let service = ForwardLayer::new(&up).layer(service_fn(move |request: Request<()>| {
        *into.lock().unwrap() = request.headers().clone();
        let response = Response::builder()
            .status(307)
            .header("location", &location);
        async move { Ok::<_, Infallible>(response.body(()).unwrap()) }
    }));
    let request = Request::builder().uri(uri).body(()).unwrap();
    let response = service.oneshot(request).with_inbound(alice).await.unwrap();
    let kept = response.headers().contains_key("location");
    let seen = seen.lock().unwrap().clone();
    (seen, kept)
}

#[tokio::test]
async fn h3_from_https_to_http() {
    let up = "https://up.example:8443/mcp";
    let (seen, kept) = below(up, up, "http://up.example:8443/mcp").await;
    assert!(seen.contains_key("authorization") && !kept);
    let (seen, kept) = below(up, up, "https://up.example:8443/mcp").await;
    assert!(seen.contains_key("authorization") && kept);
    // Were it followed all the same, nothing would be injected.
    let (seen, _) = below(up, "http://up.example:8443/mcp", up).await;
    assert!(seen.is_empty());
}

#[tokio::test]
async fn h4_from_http_to_https() {
    nothing_leaves("up.example", |own, _| {
        format!("https://up.example:{own}/mcp")
    })
    .await;
    let (seen, _) = below(
        "http://up.example/mcp",
        "https://up.example/mcp",
        "https://up.example/mcp",
    )
    .await;
    assert!(seen.is_empty());
}

#[tokio::test]
async fn h5_a_subdomain_is_another_host() {
    for (from, to) in [
        ("example.com", "sub.example.com"),
        ("sub.example.com", "example.com"),
        ("sub.example.com", "sub.example.com."),
    ] {
        nothing_leaves(from, |own, _| format!("http://{to}:{own}/mcp")).await;
    }
}

#[tokio::test]
async fn h6_there_is_no_way_back_in() {
    // The first step out is never made, so neither A->B->B nor A->B->A is.
    for back in [false, true] {
        let a = Arc::new(Mutex::new(String::new()));
        let b = {
            let a = Arc::clone(&a);
            RawUpstream::new(move |request: &Recorded| {
                let own = format!("http://{}/again", request.all("host")[0]);
                let to = if back { a.lock().unwrap().clone() } else { own };
                redirect(307, &to)
            })
            .await
        };
        let to_b = b.url("/mcp");
        let server = RawUpstream::new(move |_: &Recorded| redirect(307, &to_b)).await;
        *a.lock().unwrap() = server.url("/mcp");
        let up = Upstream::builder("up", server.url("/mcp"))
            .allow("x-api-key")
            .build()
            .unwrap();
        let alice = capture(&[&up], [("x-api-key", "s3cret")]).await;
        let client = ServiceBuilder::new()
            .layer(FollowRedirectLayer::with_policy(Everywhere::default()))
            .layer(ForwardLayer::new(&up))
            .service(client());
        let request = Request::post(server.url("/mcp"))
            .body(Full::default())
            .unwrap();
        let response = client.oneshot(request).with_inbound(alice).await.unwrap();
        assert_eq!(response.status(), 307);
        assert_eq!(server.only_request().all("x-api-key"), ["s3cret"]);
        assert!(b.requests().is_empty());
    }
}

#[tokio::test]
async fn h9_a_follower_outside_carries_nothing_to_another_upstream() {
    // Inside, nothing on our side can help: DESIGN 4.3 says so, and so does the layer's page.
    let b = RawUpstream::answering(OK).await;
    let to_b = b.url("/b");
    let a = RawUpstream::new(move |_: &Recorded| redirect(307, &to_b)).await;
    let build = |name: &str, server: &RawUpstream| {
        Upstream::builder(name, server.url(&format!("/{name}")))
            .rule(Rule::new("x-api-key").to(format!("x-{name}")))
            .build()
            .unwrap()
    };
    let (up_a, up_b) = (build("a", &a), build("b", &b));
    let alice = capture(&[&up_a, &up_b], [("x-api-key", "s3cret")]).await;
    for order in [false, true] {
        let (first, second) = if order {
            (&up_a, &up_b)
        } else {
            (&up_b, &up_a)
        };
        let client = ServiceBuilder::new()
            .layer(FollowRedirectLayer::with_policy(Everywhere::default()))
            .layer(ForwardLayer::new(first))
            .layer(ForwardLayer::new(second))
            .service(client());
        let mut request = Request::post(a.url("/a")).body(Full::default()).unwrap();
        alice.clone().attach(request.extensions_mut());
        assert_eq!(client.oneshot(request).await.unwrap().status(), 307);
        let last = a.requests().pop().unwrap();
        assert_eq!(last.all("x-a"), ["s3cret"]);
        assert!(last.all("x-b").is_empty());
    }
    assert!(b.requests().is_empty());
}

#[tokio::test]
async fn h10_custom_names_are_as_secret_as_authorization() {
    // `nothing_leaves` sends all of these; through the relay they do not leave either.
    assert!(SECRETS.contains(&"private-token") && SECRETS.contains(&"job-token"));
    nothing_leaves("up.example", |_, other| {
        format!("//evil.example:{other}/mcp")
    })
    .await;
    let elsewhere = RawUpstream::answering(OK).await;
    let to = elsewhere.url("/mcp");
    let server = RawUpstream::new(move |_: &Recorded| redirect(307, &to)).await;
    let addr = proxy(&server, |up| {
        SECRETS
            .iter()
            .fold(up, |up, name| up.rule(Rule::credential(*name)))
    })
    .await;
    let lines: String = SECRETS.map(|name| format!("{name}: s3cret\r\n")).concat();
    let answer = raw(addr, post(addr, &lines)).await;
    assert_eq!(status(&answer), 502);
    for name in SECRETS {
        assert_eq!(server.only_request().all(name), ["s3cret"]);
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn h11_a_retry_gets_one_line_and_nothing_here_retries() {
    let server = RawUpstream::answering(OK).await;
    let other = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-api-key")
        .build()
        .unwrap();
    let alice = capture(&[&up], [("x-api-key", "s3cret")]).await;
    let client = ForwardLayer::new(&up).layer(http_client::<Full<Bytes>>());
    // A retry layer above: the same request again, and one that went astray.
    let mut request = Request::post(server.url("/mcp"))
        .body(Full::<Bytes>::default())
        .unwrap();
    request
        .headers_mut()
        .insert("x-api-key", "stale".parse().unwrap());
    for _ in 0..2 {
        let attempt = client.clone().oneshot(request.clone());
        attempt.with_inbound(alice.clone()).await.unwrap();
    }
    for seen in server.requests() {
        assert_eq!(seen.all("x-api-key"), ["s3cret"]);
    }
    assert_eq!(server.requests().len(), 2);
    let astray = Request::post(other.url("/mcp"))
        .body(Full::default())
        .unwrap();
    client.oneshot(astray).with_inbound(alice).await.unwrap();
    assert!(other.only_request().all("x-api-key").is_empty());
    // An upstream that hangs up is asked once.
    let silent = RawUpstream::answering("").await;
    let addr = proxy(&silent, |up| up.allow("x-api-key")).await;
    let answer = raw(addr, post(addr, "x-api-key: s3cret\r\n")).await;
    assert_eq!(status(&answer), 502);
    silent.only_request();
}

#[tokio::test]
async fn h12_an_endpoint_event_of_another_origin_gets_no_credential() {
    let elsewhere = RawUpstream::answering(OK).await;
    let to = Arc::new(Mutex::new(String::new()));
    let endpoint = Arc::clone(&to);
    let server = RawUpstream::new(move |request: &Recorded| {
        if request.line.starts_with("POST") {
            return OK.into();
        }
        let event = format!("event: endpoint\ndata: {}\n\n", endpoint.lock().unwrap());
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
        format!("{head}content-length: {}\r\n\r\n{event}", event.len()).into()
    })
    .await;
    let up = Upstream::builder("up", server.url("/sse"))
        .allow("x-api-key")
        .build()
        .unwrap();
    let alice = capture(&[&up], [("x-api-key", "s3cret")]).await;
    let client = ForwardLayer::new(&up)
        .whole_origin()
        .layer(http_client::<Full<Bytes>>());
    for endpoint in [
        elsewhere.url("/messages"),
        server.url("/messages?session=1"),
    ] {
        *to.lock().unwrap() = endpoint;
        let legacy = async {
            let stream = Request::get(server.url("/sse")).body(Full::default());
            let stream = client.clone().oneshot(stream.unwrap()).await.unwrap();
            let event = stream.into_body().collect().await.unwrap().to_bytes();
            let event = std::str::from_utf8(&event).unwrap();
            let uri = event.split_once("data: ").unwrap().1.trim();
            let message = Request::post(uri).body(Full::from("{}")).unwrap();
            client.clone().oneshot(message).await.unwrap()
        };
        legacy.with_inbound(alice.clone()).await;
    }
    assert!(elsewhere.only_request().all("x-api-key").is_empty());
    let last = server.requests().pop().unwrap();
    assert!(last.line.starts_with("POST /messages"), "{}", last.line);
    assert_eq!(last.all("x-api-key"), ["s3cret"]);
}

#[tokio::test]
async fn h13_metadata_is_fetched_without_a_credential() {
    let server = RawUpstream::answering(OK).await;
    let elsewhere = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow_credential("authorization")
        .allow("x-api-key")
        .build()
        .unwrap();
    let sent = [("authorization", "Bearer s3cret"), ("x-api-key", "s3cret")];
    let alice = capture(&[&up], sent).await;
    let client = ForwardLayer::new(&up).layer(http_client::<Full<Bytes>>());
    let path = "/.well-known/oauth-protected-resource";
    for server in [&elsewhere, &server] {
        let request = Request::get(server.url(path)).body(Full::default());
        let fetch = client.clone().oneshot(request.unwrap());
        fetch.with_inbound(alice.clone()).await.unwrap();
        assert_eq!(server.only_request().names(), ["host"]);
    }
}

#[tokio::test]
async fn h15_no_referer_tells_the_urls_query() {
    let server = RawUpstream::new(|request: &Recorded| {
        if request.line.contains("/next") {
            OK.into()
        } else {
            redirect(307, "/mcp/next")
        }
    })
    .await;
    let up = Upstream::builder("up", server.url("/mcp?key=s3cret"))
        .allow("x-api-key")
        .build()
        .unwrap();
    let alice = capture(&[&up], [("x-api-key", "k")]).await;
    let client = ServiceBuilder::new()
        .layer(FollowRedirectLayer::with_policy(Everywhere::default()))
        .layer(ForwardLayer::new(&up))
        .service(client());
    let request = Request::post(up.url().clone()).body(Full::default());
    let response = client.oneshot(request.unwrap()).with_inbound(alice).await;
    assert_eq!(response.unwrap().status(), 200);
    let last = server.requests().pop().unwrap();
    assert_eq!(last.all("x-api-key"), ["k"]);
    assert!(!format!("{last:?}").contains("s3cret"), "{last:?}");
    // The caller's own stays here.
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    let referer = "referer: http://localhost/?token=s3cret\r\n";
    assert_eq!(status(&raw(addr, post(addr, referer)).await), 200);
    assert!(server.only_request().all("referer").is_empty());
}
