//! The adversarial catalogue, groups C to E: sizes, duplicates, `Connection`, one function per case.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. C6, C8, D5 and E11 have their function
//! beside the merge, the rules and the capture.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use mcp_forward::{CaptureLayer, ClientFactory, Outbound, Relay, Rule, Upstream, UpstreamBuilder};
use support::{
    OK, RawUpstream, capture, headers, http_client, http2_client, merge, own_error, post, raw,
    serve, status,
};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

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

/// The status with which a capture layer for `up` answers `sent`.
async fn captured(up: &Upstream, sent: HeaderMap) -> u16 {
    let layer = CaptureLayer::for_upstreams([up]).build().unwrap();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let mut request = Request::new(());
    *request.headers_mut() = sent;
    service.oneshot(request).await.unwrap().status().as_u16()
}

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
}

#[tokio::test]
async fn c1_100_headers_pass_and_101_are_431() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    // `post` sends three itself.
    for (more, expected) in [(96, 200), (97, 431)] {
        let more: String = (0..more).map(|i| format!("x-{i}: v\r\n")).collect();
        let answer = raw(addr, post(addr, &format!("{more}x-a: last\r\n"))).await;
        assert_eq!(status(&answer), expected);
    }
    assert_eq!(server.only_request().all("x-a"), ["last"]);
}

#[tokio::test]
async fn c2_a_long_value_is_whole_or_431() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
    let mut sent = 0;
    for (kib, extra, expected) in [
        (8, 0, 200),
        (16, 0, 200),
        (16, 1, 431),
        (64, 0, 431),
        (400, 0, 431),
    ] {
        let token = "t".repeat(kib * 1024 + extra);
        let answer = raw(addr, post(addr, &format!("authorization: {token}\r\n"))).await;
        assert_eq!(status(&answer), expected, "{kib} KiB and {extra}");
        if expected == 200 {
            sent += 1;
            let last = server.requests().pop().unwrap();
            assert_eq!(last.all("authorization"), [token]);
        } else if kib < 400 {
            own_error(&answer, -32600);
        }
    }
    assert_eq!(server.requests().len(), sent);
}

#[tokio::test]
async fn c3_all_values_together_have_a_limit() {
    let server = RawUpstream::answering(OK).await;
    let names: Vec<_> = (0..5).map(|i| format!("x-{i}")).collect();
    let addr = proxy(&server, |up| names.iter().fold(up, UpstreamBuilder::allow)).await;
    let value = "v".repeat(16 * 1024);
    for (count, more, expected) in [(4, "", 200), (4, "x-4: v\r\n", 431), (5, "", 431)] {
        let lines: String = names[..count]
            .iter()
            .map(|name| format!("{name}: {value}\r\n"))
            .collect();
        let answer = raw(addr, post(addr, &format!("{lines}{more}"))).await;
        assert_eq!(status(&answer), expected, "{count} {more}");
    }
    server.only_request();
}

#[tokio::test]
async fn c4_an_http2_upstream_that_takes_less_gets_one_attempt() {
    let upstream = serve(service_fn(|_: Request<hyper::body::Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }))
    .await;
    let up = Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow("x-a")
        .allow("x-b")
        .build()
        .unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let client = ServiceBuilder::new()
        .map_request(move |request| {
            count.fetch_add(1, Ordering::Relaxed);
            request
        })
        .service(http2_client());
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let addr = serve(capture.layer(Relay::new(&up, client))).await;
    // hyper's servers take a header list of 16 KiB.
    let value = "v".repeat(16 * 1024);
    for (length, fits) in [(100, true), (value.len(), false)] {
        let before = calls.load(Ordering::Relaxed);
        let line = format!("x-a: {0}\r\nx-b: {0}\r\n", &value[..length]);
        let answer = raw(addr, post(addr, &line)).await;
        let code = status(&answer);
        assert_eq!(code == 200, fits, "{code}");
        assert!(fits || [431, 502].contains(&code), "{code}");
        assert_eq!(calls.load(Ordering::Relaxed), before + 1);
    }
}

#[tokio::test]
async fn c5_100_000_lines_of_one_name_are_refused() {
    let mut sent = HeaderMap::new();
    for _ in 0..100_000 {
        sent.append("x-a", HeaderValue::from_static("v"));
    }
    let one = builder().allow("x-a").build().unwrap();
    assert_eq!(captured(&one, sent.clone()).await, 400);
    let several = builder().rule(Rule::new("x-a").multi()).build().unwrap();
    assert_eq!(captured(&several, sent.clone()).await, 431);
    let cookie = builder().allow_credential("cookie").build().unwrap();
    let mut cookies = HeaderMap::new();
    for value in sent.get_all("x-a") {
        cookies.append("cookie", value.clone());
    }
    assert_eq!(captured(&cookie, cookies).await, 431);
}

#[tokio::test]
async fn c9_what_is_captured_does_not_grow_with_the_upstreams() {
    let upstreams: Vec<_> = (0..100_000)
        .map(|i| {
            Upstream::builder(format!("up-{i}"), "https://up.example/mcp")
                .allow("x-a")
                .allow_credential("authorization")
                .build()
                .unwrap()
        })
        .collect();
    let layer = CaptureLayer::for_upstreams(&upstreams).build().unwrap();
    assert_eq!(layer.names(), ["authorization", "x-a"]);
    let inbound = capture(&[&upstreams[0], &upstreams[99_999]], [("x-a", "v")]).await;
    assert_eq!(inbound.iter().count(), 1);
}

/// Two `lines` for a proxy that reads `authorization` and `x-api-key` are refused here.
async fn ambiguous(lines: &str) {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.allow_credential("authorization").allow("x-api-key")
    })
    .await;
    let answer = raw(addr, post(addr, lines)).await;
    assert_eq!(status(&answer), 400, "{lines:?}");
    let message = own_error(&answer, -32600);
    assert!(message.contains("several lines"), "{message}");
    assert!(!answer.contains("s3cret"));
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn d1_two_different_authorizations() {
    ambiguous("authorization: Bearer s3cret\r\nAuthorization: Bearer s3cret2\r\n").await;
    ambiguous("authorization: Bearer s3cret\r\nx-other: o\r\nauthorization:\r\n").await;
}

#[tokio::test]
async fn d2_two_identical_authorizations() {
    ambiguous("authorization: Bearer s3cret\r\nauthorization: Bearer s3cret\r\n").await;
}

#[tokio::test]
async fn d3_two_api_keys() {
    ambiguous("x-api-key: s3cret\r\nX-API-Key: s3cret2\r\n").await;
    // DESIGN 4.1: the one other choice is `multi`, which keeps all of them, in order.
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.rule(Rule::new("x-api-key").multi())).await;
    let answer = raw(addr, post(addr, "x-api-key: b\r\nx-api-key: a\r\n")).await;
    assert_eq!(status(&answer), 200);
    assert_eq!(server.only_request().all("x-api-key"), ["b", "a"]);
}

#[tokio::test]
async fn d4_a_list_keeps_its_lines_and_their_order() {
    // DESIGN 4.1: `multi` keeps lines, nothing is joined with commas.
    let rule = || Rule::new("x-tag").to("x-tags").multi();
    let up = builder().rule(rule()).build().unwrap();
    let sent = [("x-tag", "b, c"), ("x", "y"), ("x-tag", "a"), ("x-tag", "")];
    let outbound = merge(&up, sent).await.unwrap();
    let values: Vec<_> = outbound.iter().map(|(_, value)| value).collect();
    assert_eq!(values, ["b, c", "a"]);
    assert!(values.iter().all(|value| value.is_sensitive()));
    // One rule that takes a single value makes it one for all.
    let strict = Upstream::builder("strict", "https://up.example/mcp")
        .allow("x-tag")
        .build()
        .unwrap();
    let layer = CaptureLayer::for_upstreams([&up, &strict]).build().unwrap();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let mut request = Request::new(());
    *request.headers_mut() = headers(sent);
    assert_eq!(service.oneshot(request).await.unwrap().status(), 400);
}

#[tokio::test]
async fn d7_a_clients_default_header_is_replaced() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-api-key")
        .build()
        .unwrap();
    let factory = |outbound: Outbound| async move {
        let client = reqwest::Client::builder()
            .default_headers(headers([("x-api-key", "service")]))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let mut request = client.post(outbound.upstream().url().to_string()).build()?;
        outbound.apply(request.headers_mut()).unwrap();
        client.execute(request).await
    };
    let alice = capture(&[&up], [("x-api-key", "alice")]).await;
    factory.connect_for(&up, &alice).await.unwrap();
    assert_eq!(server.only_request().all("x-api-key"), ["alice"]);
}

#[tokio::test]
async fn d8_two_hosts() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    for second in ["localhost", "evil.example", ""] {
        let answer = raw(addr, post(addr, &format!("host: {second}\r\n"))).await;
        assert_eq!(status(&answer), 400, "{second}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn d9_cookies_that_http2_split_are_joined_once() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow_credential("cookie")).await;
    let mut request = Request::post(format!("http://{addr}/mcp"))
        .body(Full::<Bytes>::default())
        .unwrap();
    *request.headers_mut() =
        headers([("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")]);
    let response = http2_client().request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(server.only_request().all("cookie"), ["a=1; b=2; c=3; d=4"]);
}

#[tokio::test]
async fn d10_a_credential_counts_in_the_header_only() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
    let body = r#"{"params":{"_meta":{"authorization":"Bearer body"}}}"#;
    let request = format!(
        "POST /mcp?access_token=query HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\
         authorization: Bearer header\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(status(&raw(addr, request).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("authorization"), ["Bearer header"]);
    assert_eq!(seen.line, "POST /mcp HTTP/1.1");
    // DESIGN 4.3: a body streams as it is.
    assert_eq!(seen.body, body.as_bytes());
}

#[tokio::test]
async fn d11_apply_is_no_other_way_of_writing_a_map() {
    let up = builder()
        .rule(Rule::new("x-tag").multi())
        .allow("x-user")
        .build()
        .unwrap();
    let sent = [("x-tag", "1"), ("x-tag", "2"), ("x-user", "alice")];
    let outbound = merge(&up, sent).await.unwrap();
    let stale = || {
        headers([
            ("x-user", "stale"),
            ("x-user", "staler"),
            ("x_user", "spelled"),
            ("x-own", "o"),
        ])
    };
    let expected = headers([
        ("x-tag", "1"),
        ("x-tag", "2"),
        ("x-user", "alice"),
        ("x-own", "o"),
    ]);
    let mut applied = stale();
    outbound.apply(&mut applied).unwrap();
    assert_eq!(applied, expected);
    // Each of the usual ways gives something else, so that this test would see it.
    let lines = || outbound.iter().map(|(n, v)| (n.clone(), v.clone()));
    let mut extended = stale();
    extended.extend(outbound.to_header_map());
    let mut inserted = stale();
    lines().for_each(|(name, value)| drop(inserted.insert(name, value)));
    let mut appended = stale();
    lines().for_each(|(name, value)| {
        appended.append(name, value);
    });
    let mut first = stale();
    for (name, value) in lines() {
        if !first.contains_key(&name) {
            first.insert(name, value);
        }
    }
    for wrong in [extended, inserted, appended, first] {
        assert_ne!(wrong, expected);
    }
}

/// The answer to a request with `lines`, and whether it reached the upstream, which then has
/// `x-api-key` if it came.
async fn nominating(lines: &str) -> (u16, bool) {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.allow("x-api-key")
            .allow_credential("authorization")
            .set("x-static", "s")
    })
    .await;
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\n{lines}x-api-key: k\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    // Some of these lines keep the connection open, and one ends it: this one does not.
    let answer = raw_half(addr, &request).await;
    let code = status(&answer);
    let requests = server.requests();
    if code == 400 {
        own_error(&answer, -32600);
    }
    for request in &requests {
        assert_eq!(request.all("x-api-key"), ["k"]);
        assert_eq!(request.all("x-static"), ["s"]);
    }
    (code, !requests.is_empty())
}

/// Sends raw bytes and reads one answer with a `content-length`.
async fn raw_half(addr: SocketAddr, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lengths = head.lines().filter_map(|line| {
                let value = line.strip_prefix("content-length: ")?;
                value.parse::<usize>().ok()
            });
            if body.len() >= lengths.next().unwrap() {
                return text;
            }
        }
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{text}");
    }
}

const REFUSED: (u16, bool) = (400, false);
const PASSED: (u16, bool) = (200, true);

#[tokio::test]
async fn e1_a_nominated_header_that_is_read() {
    assert_eq!(nominating("connection: x-api-key\r\n").await, REFUSED);
    // Whether it comes or not: `authorization` does not.
    assert_eq!(nominating("connection: authorization\r\n").await, REFUSED);
    assert_eq!(nominating("").await, PASSED);
}

#[tokio::test]
async fn e2_a_nominated_static_header_is_still_sent() {
    assert_eq!(nominating("connection: x-static\r\n").await, PASSED);
}

#[tokio::test]
async fn e3_two_connection_lines() {
    let lines = "connection: keep-alive\r\nconnection: x-api-key\r\n";
    assert_eq!(nominating(lines).await, REFUSED);
}

#[tokio::test]
async fn e4_an_empty_connection_line_first() {
    let lines = "connection:\r\nconnection: x-api-key\r\n";
    assert_eq!(nominating(lines).await, REFUSED);
    assert_eq!(nominating("connection:\r\n").await, PASSED);
}

#[tokio::test]
async fn e5_case_and_empty_tokens() {
    for (value, expected) in [
        ("x-hOP, ClOsE", PASSED),
        (",, x ,\tx", PASSED),
        (",,,", PASSED),
        ("x-hOP, X-aPi-KeY", REFUSED),
        (",, X-API-KEY ,\tx", REFUSED),
        ("x,\tx-api-key", REFUSED),
    ] {
        let lines = format!("connection: {value}\r\n");
        assert_eq!(nominating(&lines).await, expected, "{value:?}");
    }
}

#[tokio::test]
async fn e6_an_unreadable_connection_line() {
    for value in ["caf\u{e9}", "\u{ff}, x-other", "x-other, \u{80}"] {
        let lines = format!("connection: {value}\r\n");
        assert_eq!(nominating(&lines).await, REFUSED, "{value:?}");
        let lines = format!("connection: keep-alive\r\nconnection: {value}\r\n");
        assert_eq!(nominating(&lines).await, REFUSED, "{value:?}");
    }
}

#[tokio::test]
async fn e7_ten_nominated_names() {
    let list = |count: usize| {
        let names: Vec<_> = (0..count).map(|i| format!("x-{i}")).collect();
        names.join(",")
    };
    let usual = "keep-alive, close, Upgrade";
    for (lines, expected) in [
        (format!("connection: {}, {usual}\r\n", list(9)), PASSED),
        (format!("connection: {}\r\n", list(10)), REFUSED),
        (
            format!("connection: {}\r\nconnection: y\r\n", list(9)),
            REFUSED,
        ),
    ] {
        assert_eq!(nominating(&lines).await, expected, "{lines}");
    }
}

#[tokio::test]
async fn e8_nominated_names_of_http_and_mcp() {
    assert_eq!(nominating("connection: authorization\r\n").await, REFUSED);
    // DESIGN 4.1: what the rules do not read is ignored, and removes nothing of ours.
    for token in ["host", ":path", "content-length", "mcp-session-id"] {
        let lines = format!("connection: {token}\r\n");
        assert_eq!(nominating(&lines).await, PASSED, "{token}");
    }
}

#[tokio::test]
async fn e9_connection_nominates_itself() {
    assert_eq!(nominating("connection: connection\r\n").await, PASSED);
}

#[tokio::test]
async fn e10_an_upgrade_is_no_way_round() {
    let upgrade = "upgrade: websocket\r\nconnection: upgrade";
    assert_eq!(
        nominating(&format!("{upgrade}, x-api-key\r\n")).await,
        REFUSED
    );
    assert_eq!(nominating(&format!("{upgrade}\r\n")).await, PASSED);
}

#[tokio::test]
async fn e12_hop_by_hop_headers_change_nothing() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-api-key")).await;
    let own = "x-api-key: k\r\n";
    let hop = "keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: gzip, trailers\r\n\
               http2-settings: AAMAAABkAAQAAP__\r\n";
    for lines in [own.to_owned(), format!("{hop}{own}")] {
        assert_eq!(status(&raw(addr, post(addr, &lines)).await), 200);
    }
    let seen = server.requests();
    assert_eq!(seen[0].headers, seen[1].headers);
    assert_eq!(seen[0].names(), ["content-length", "host", "x-api-key"]);
}

#[tokio::test]
async fn e13_what_an_upstream_nominates_stays_there() {
    let server = RawUpstream::answering(
        "HTTP/1.1 200 OK\r\nconnection: close, X-Hop,\r\nconnection: x-HOP-2\r\nx-hop: s3cret\r\n\
         x-hop-2: s3cret\r\nkeep-alive: s3cret\r\nx-kept: k\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let addr = proxy(&server, |up| up).await;
    let answer = raw(addr, post(addr, "")).await;
    assert!(answer.contains("x-kept: k\r\n"), "{answer}");
    assert!(!answer.contains("s3cret"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("x-hop"), "{answer}");
}
