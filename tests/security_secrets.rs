//! The adversarial catalogue, group L, and what of N and O concerns the relay: nothing printed,
//! logged or answered holds a value; one function per case.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, fmt::Debug, io, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use mcp_forward::{
    BoxClientFactory, CaptureLayer, ClientFactory, ForwardLayer, Inbound, InboundExt,
    OriginGuardLayer, Outbound, Relay, Rule, Upstream, UpstreamBuilder, outbound::RemovedLocation,
};
use support::{
    OK, RawUpstream, body_of, capture, closed, headers, http_client, http2_client, identity,
    logged, merge, own_error, post, raw, serve, status,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::trace::{DefaultMakeSpan, DefaultOnRequest, DefaultOnResponse, TraceLayer};
use tracing::Level;

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
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
async fn l1_no_public_type_prints_a_value() {
    let up = builder()
        .allow("x-a")
        .set("x-b", "s3cret")
        .rule(Rule::new("x-c").required());
    let url = Upstream::builder("up", "https://up.example/mcp?key=s3cret").set("x", "s3cret");
    let built = up.clone().build().unwrap();
    let sent = [("x-a", "s3cret"), ("x-c", "s3cret")];
    let inbound = capture(&[&built], sent).await;
    let outbound = identity().connect_for(&built, &inbound).await.unwrap();
    let builder = CaptureLayer::for_upstreams([&built]).allow_fan_out("x: s3cret");
    let capture = CaptureLayer::for_upstreams([&built]).build().unwrap();
    let inner = || {
        service_fn(|_: Request<()>| async {
            let response = Response::builder().status(307);
            let response = response.header("location", "https://s3cret.example/s3cret");
            Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
        })
    };
    let request = || {
        let mut request = Request::new(());
        *request.headers_mut() = headers(sent);
        *request.uri_mut() = "https://up.example/mcp".parse().unwrap();
        inbound.clone().attach(request.extensions_mut());
        request
    };
    let forward = ForwardLayer::new(&built).layer(inner());
    let forwarded = forward.clone().oneshot(request()).await.unwrap();
    let removed = forwarded.extensions().get::<RemovedLocation>().unwrap();
    let relay = Relay::new(&built, "client");
    let missing = identity().connect_for(&built, &Inbound::empty()).await;
    let failing = |_: Outbound| async { Err::<(), _>(io::Error::other("s3cret")) };
    let failed = failing.connect_for(&built, &inbound).await.unwrap_err();
    let boxed = BoxClientFactory::new(failing);
    let guard = OriginGuardLayer::builder().allow_host("user:s3cret@host");
    let wrong = self::builder()
        .allow("x: s3cret")
        .set("x-d", "s3cret\n")
        .build();
    let own = capture.clone().layer(inner()).oneshot({
        let mut twice = request();
        twice
            .headers_mut()
            .append("x-a", HeaderValue::from_static("s3cret"));
        twice
    });
    let own = own.await.unwrap();
    assert_eq!(own.status(), 400);
    let mut shown = String::new();
    let values: [&dyn Debug; 26] = [
        &up,
        &url,
        &url.clone().build().unwrap(),
        &built,
        &Rule::new("x: s3cret"),
        &builder,
        &builder.clone().build().unwrap_err(),
        &capture,
        &capture.clone().layer("inner"),
        &inbound,
        &inbound.compact(),
        &"inner".with_inbound(inbound.clone()),
        &outbound,
        &outbound.to_header_map(),
        &ForwardLayer::new(&built),
        &ForwardLayer::new(&built).layer("inner"),
        &forward.clone().call_once(request()),
        &removed,
        &relay,
        &missing,
        &failed,
        &boxed,
        &guard,
        &guard.clone().build().unwrap_err(),
        &wrong,
        &own,
    ];
    for value in values {
        shown += &format!("{value:?}\n{value:#?}\n");
    }
    for text in [
        failed.to_string(),
        missing.unwrap_err().to_string(),
        wrong.unwrap_err().to_string(),
        builder.build().unwrap_err().to_string(),
        guard.build().unwrap_err().to_string(),
        String::from_utf8(body_of(own).await).unwrap(),
    ] {
        shown += &text;
    }
    assert!(!shown.contains("s3cret"), "{shown}");
    // It does print something.
    assert!(shown.contains("x-a") && shown.contains("x-b"));
}

/// `call` as a method that needs no `&mut`, for printing a future.
trait CallOnce<R>: tower::Service<R> + Sized {
    fn call_once(mut self, request: R) -> Self::Future {
        self.call(request)
    }
}

impl<S: tower::Service<R>, R> CallOnce<R> for S {}

#[tokio::test]
async fn l2_a_captured_request_prints_sensitive() {
    let up = builder()
        .allow_credential("authorization")
        .rule(Rule::new("x-tag").multi())
        .build()
        .unwrap();
    let layer = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let service = layer.layer(service_fn(|request: Request<()>| async {
        let (parts, ()) = request.into_parts();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("{parts:?}"))))
    }));
    let mut request = Request::new(());
    *request.headers_mut() = headers([
        ("authorization", "Bearer s3cret"),
        ("x-tag", "s3cret1"),
        ("x-tag", "s3cret2"),
    ]);
    let shown = body_of(service.oneshot(request).await.unwrap()).await;
    let shown = String::from_utf8(shown).unwrap();
    assert!(!shown.contains("s3cret"), "{shown}");
    assert_eq!(shown.matches("Sensitive").count(), 3, "{shown}");
}

#[tokio::test]
async fn l3_a_value_made_anew_is_sensitive_again() {
    let up = builder()
        .rule(Rule::new("x-token").to("authorization").bearer())
        .allow_credential("cookie")
        .rule(Rule::new("x-tag").multi())
        .set("x-static", "s")
        .build()
        .unwrap();
    let sent = [
        ("x-token", "t"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-tag", "1"),
        ("x-tag", "2"),
    ];
    let inbound = capture(&[&up], sent).await;
    let all = |inbound: &Inbound| inbound.iter().all(|(_, value)| value.is_sensitive());
    assert!(all(&inbound) && all(&inbound.compact()));
    assert_eq!(inbound.compact().iter().count(), 4);
    let outbound = merge(&up, sent).await.unwrap();
    assert_eq!(outbound.iter().count(), 5);
    let mut map = HeaderMap::new();
    outbound.apply(&mut map).unwrap();
    for map in [map, outbound.to_header_map()] {
        assert_eq!(map.len(), 5);
        assert!(map.values().all(HeaderValue::is_sensitive), "{map:?}");
    }
    // Straight into a request, and attested.
    let layer = CaptureLayer::for_upstreams([&up])
        .attest("x-token", |_| Some("attested".into()))
        .build()
        .unwrap();
    let sending = ForwardLayer::new(&up).layer(service_fn(|request: Request<()>| async move {
        let values = || request.headers().values();
        assert_eq!(request.headers()["authorization"], "Bearer attested");
        assert!(values().all(HeaderValue::is_sensitive));
        let count = values().count().to_string();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(count)))
    }));
    let service = layer.layer(service_fn(move |request: Request<()>| {
        assert!(request.headers()["x-token"].is_sensitive());
        let outbound = Request::builder().uri("https://up.example/mcp");
        sending.clone().oneshot(outbound.body(()).unwrap())
    }));
    let mut request = Request::new(());
    *request.headers_mut() = headers(sent);
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(body_of(response).await, b"5");
}

#[tokio::test]
async fn l4_a_token_that_the_upstream_echoes_is_in_no_text_of_ours() {
    for (code, passes) in [(400, true), (500, true), (302, false), (407, false)] {
        let server = RawUpstream::answering(format!(
            "HTTP/1.1 {code} s3cret\r\nx-echo: s3cret\r\nlocation: /s3cret\r\nconnection: close\r\n\
             content-length: 6\r\n\r\ns3cret"
        ))
        .await;
        let (answer, log) = logged(async {
            let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
            raw(addr, post(addr, "authorization: Bearer s3cret\r\n")).await
        })
        .await;
        if passes {
            // The body is the upstream's answer to the caller, whose token it is.
            assert_eq!(status(&answer), code);
            assert!(answer.ends_with("s3cret"));
        } else {
            assert_eq!(status(&answer), 502);
            assert!(own_error(&answer, -32603).len() < 100);
            assert!(!answer.contains("s3cret"), "{answer}");
        }
        assert!(!log.contains("s3cret"), "{log}");
    }
}

#[tokio::test]
async fn l6_a_urls_secret_is_in_no_error() {
    let (closed, _socket) = closed();
    let up = Upstream::builder("up", format!("http://{closed}/mcp?token=s3cret"))
        .build()
        .unwrap();
    let (answer, log) = logged(async {
        let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
        let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
        raw(addr, post(addr, "")).await
    })
    .await;
    assert_eq!(status(&answer), 502);
    own_error(&answer, -32603);
    assert!(
        !answer.contains("s3cret") && !log.contains("s3cret"),
        "{log}"
    );
    let error = Upstream::builder("up", "https://user:s3cret@up.example/mcp?token=s3cret")
        .build()
        .unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(
        !shown.contains("s3cret") && shown.contains("userinfo"),
        "{shown}"
    );
}

#[tokio::test]
async fn l7_no_crate_below_the_capture_layer_logs_a_value() {
    for http2 in [false, true] {
        let ((code, seen), log) = logged(async {
            let server = RawUpstream::answering(OK).await;
            let up = Upstream::builder("up", server.url("/mcp"))
                .allow_credential("authorization")
                .rule(Rule::new("x-token").to("x-up").bearer())
                .set("x-static", "s3cret")
                .build()
                .unwrap();
            let span = DefaultMakeSpan::new()
                .level(Level::TRACE)
                .include_headers(true);
            let trace = TraceLayer::new_for_http()
                .make_span_with(span)
                .on_request(DefaultOnRequest::new().level(Level::TRACE))
                .on_response(DefaultOnResponse::new().level(Level::TRACE));
            let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
            // The order that the crate's page gives puts trace outside, with
            // `SetSensitiveRequestHeaders` before it: here the capture layer alone has to do.
            let addr = serve(capture.layer(trace.layer(Relay::new(&up, http_client())))).await;
            let client = if http2 { http2_client() } else { http_client() };
            let request = Request::post(format!("http://{addr}/mcp"))
                .header("authorization", "Bearer s3cret")
                .header("x-token", "s3cret")
                .body(Full::<Bytes>::from("{}"))
                .unwrap();
            let response = client.request(request).await.unwrap();
            (response.status(), server.only_request())
        })
        .await;
        assert_eq!(code, 200);
        assert_eq!(seen.all("x-up"), ["Bearer s3cret"]);
        assert!(log.contains("\"authorization\": Sensitive"), "{log}");
        assert!(!log.contains("s3cret"), "{log}");
    }
}

#[test]
fn l10_a_bad_static_value_is_named_and_not_shown() {
    for value in ["s3cret\n", " s3cret", "s3cret\0", "s3cret "] {
        let error = builder().set("x-key", value).build().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("`x-key`") && shown.contains("`up`"),
            "{shown}"
        );
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}

#[tokio::test]
async fn l12_a_panics_message_holds_no_value() {
    let up = builder()
        .rule(Rule::new("x-token").to("authorization").bearer())
        .build()
        .unwrap();
    let bad = capture(&[&up], [("x-token", "s3cret s3cret")]).await;
    let good = capture(&[&up], [("x-token", "s3cret")]).await;
    let failed = identity().connect_for(&up, &bad).await;
    let outbound = identity().connect_for(&up, &good).await.unwrap();
    let message = |panic: Box<dyn FnOnce() + Send>| {
        let panic = std::panic::AssertUnwindSafe(panic);
        let caught = std::panic::catch_unwind(|| { panic }.0()).unwrap_err();
        caught.downcast_ref::<String>().unwrap().clone()
    };
    let headers = outbound.to_header_map();
    for text in [
        message(Box::new(move || drop(failed.unwrap()))),
        message(Box::new(move || {
            panic!("{good:?} {outbound:?} {headers:?}")
        })),
    ] {
        assert!(
            text.contains("x-token") || text.contains("Invalid"),
            "{text}"
        );
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn n15_a_trace_in_the_body_and_in_the_header_are_two() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    let body = r#"{"params":{"_meta":{"traceparent":"00-2-2-01"}}}"#;
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ntraceparent: 00-1-1-01\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(status(&raw(addr, request).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.body, body.as_bytes());
    assert!(seen.all("traceparent").is_empty());
}

#[tokio::test]
async fn n16_nothing_of_a_body_becomes_a_header() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.allow_credential("authorization").allow("x-api-key")
    })
    .await;
    let body = r#"{"params":{"_meta":{"authorization":"Bearer b"},"arguments":{"x-api-key":"b"}}}"#;
    let request = post(addr, "").replace(
        "content-length: 2\r\n\r\n{}",
        &format!("content-length: {}\r\n\r\n{body}", body.len()),
    );
    assert_eq!(status(&raw(addr, request).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.names(), ["content-length", "host"]);
    assert_eq!(seen.body, body.as_bytes());
}

#[tokio::test]
async fn n21_mcp_headers_decide_nothing_here() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    for line in [
        "",
        "mcp-method: TOOLS/CALL\r\n",
        "mcp-method: initialize\r\n",
        "mcp-param-x: =?base64?!!?=\r\n",
    ] {
        assert_eq!(status(&raw(addr, post(addr, line)).await), 200, "{line}");
        let last = server.requests().pop().unwrap();
        if let Some((name, value)) = line.trim_end().split_once(": ") {
            assert_eq!(last.all(name), [value]);
        }
    }
}

#[tokio::test]
async fn o4_a_proxys_challenge_is_never_answered() {
    let server = RawUpstream::answering(
        "HTTP/1.1 407 x\r\nproxy-authenticate: Basic realm=\"s3cret\"\r\nconnection: close\r\n\
         content-length: 0\r\n\r\n",
    )
    .await;
    let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
    let lines = "authorization: Bearer t\r\nproxy-authorization: Basic t\r\n";
    let answer = raw(addr, post(addr, lines)).await;
    assert_eq!(status(&answer), 502);
    assert!(!answer.contains("proxy-authenticate") && !answer.contains("s3cret"));
    assert!(server.only_request().all("proxy-authorization").is_empty());
}

#[tokio::test]
async fn o5_an_upstreams_cookie_is_kept_nowhere() {
    let server = RawUpstream::answering(
        "HTTP/1.1 200 OK\r\nset-cookie: session=s3cret\r\nset-cookie2: s3cret\r\nconnection: close\r\n\
         content-length: 2\r\n\r\nok",
    )
    .await;
    let addr = proxy(&server, |up| up.allow_credential("cookie")).await;
    for cookie in ["", "cookie: a=1\r\n", ""] {
        let answer = raw(addr, post(addr, cookie)).await;
        assert_eq!(status(&answer), 200);
        assert!(!answer.contains("s3cret"), "{answer}");
    }
    let cookies: Vec<_> = server
        .requests()
        .iter()
        .map(|r| r.all("cookie").join("|"))
        .collect();
    assert_eq!(cookies, ["", "a=1", ""]);
}

#[tokio::test]
async fn o6_baggage_is_not_sent() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    let lines = "baggage: user=alice\r\ntracestate: vendor=alice\r\ntraceparent: 00-1-1-01\r\n";
    assert_eq!(status(&raw(addr, post(addr, lines)).await), 200);
    assert_eq!(server.only_request().names(), ["content-length", "host"]);
}

#[tokio::test]
async fn o7_a_hostile_traceparent_is_nothing_but_bytes() {
    let long = "0".repeat(16 * 1024 + 1);
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    let line = |value: &str| format!("traceparent: {value}\r\n");
    assert_eq!(status(&raw(addr, post(addr, &line(&long))).await), 200);
    assert!(server.only_request().all("traceparent").is_empty());
    // Where the operator allows it, it has the limit of every value.
    let addr = proxy(&server, |up| up.allow("traceparent")).await;
    assert_eq!(status(&raw(addr, post(addr, &line(&long))).await), 431);
    assert_eq!(
        status(&raw(addr, post(addr, &line("00-x-x-ff"))).await),
        200
    );
    let last = server.requests().pop().unwrap();
    assert_eq!(last.all("traceparent"), ["00-x-x-ff"]);
    assert_eq!(server.requests().len(), 2);
}
