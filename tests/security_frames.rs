//! The adversarial catalogue, group F and A13: framing, Host and protocol, one function per case.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. HTTP/2 is spoken here frame by frame
//! where a library would not say what has to be said.
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
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, ForwardLayer, Relay, Rule, Upstream, UpstreamBuilder};
use support::{
    OK, RawUpstream, headers, http_client, http2_client, own_error, post, raw, serve, status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, ServiceExt, service_fn};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [
        length[1], length[2], length[3], kind, flags, 0, 0, 0, stream,
    ];
    [&head, payload].concat()
}

/// RFC 7541 section 6.2.2: literals without indexing, without Huffman codes.
fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Reads frames until one of `kinds`: its kind and its payload.
async fn next_frame(stream: &mut TcpStream, kinds: &[u8]) -> (u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        if kinds.contains(&head[3]) {
            return (head[3], payload);
        }
    }
}

/// The kind of the frame with which `addr` answers an HTTP/2 request with `lines`.
async fn http2_raw(addr: SocketAddr, lines: &[(&str, &str)]) -> u8 {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let authority = addr.to_string();
    let pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", &authority),
    ];
    let end = 0x5;
    let sent = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, end, 1, &block(&[&pseudo, lines].concat())),
    ];
    stream.write_all(&sent.concat()).await.unwrap();
    next_frame(&mut stream, &[HEADERS, RST_STREAM, GOAWAY])
        .await
        .0
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

/// A gateway that answers each request by one of its own, with the body `{}`, through a
/// `ForwardLayer`.
async fn gateway(server: &RawUpstream) -> SocketAddr {
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-api-key")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let client = ForwardLayer::new(&up).layer(http_client::<Full<Bytes>>());
    let url = server.url("/mcp");
    serve(capture.layer(service_fn(move |_: Request<Incoming>| {
        let request = Request::post(&url).body(Full::from("{}")).unwrap();
        client.clone().oneshot(request)
    })))
    .await
}

#[tokio::test]
async fn a13_http2_names_in_upper_case_and_connection_are_refused() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-api-key")).await;
    for lines in [
        [("X-Api-Key", "k")],
        [("connection", "x-api-key")],
        [("connection", "close")],
        [("keep-alive", "1")],
        [("transfer-encoding", "chunked")],
        [("x-api-key", "a\nb")],
        [("x-api-key", "a\0b")],
    ] {
        let kind = http2_raw(addr, &lines).await;
        assert!([RST_STREAM, GOAWAY].contains(&kind), "{lines:?}: {kind}");
    }
    assert!(server.requests().is_empty());
    assert_eq!(http2_raw(addr, &[("x-api-key", "k")]).await, HEADERS);
    assert_eq!(server.only_request().all("x-api-key"), ["k"]);
}

#[tokio::test]
async fn f1_the_length_is_the_outbound_bodys() {
    let server = RawUpstream::answering(OK).await;
    let addr = gateway(&server).await;
    for length in ["5", "9999"] {
        let request = format!(
            "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n12345"
        );
        assert_eq!(status(&raw(addr, request).await), 200);
        let last = server.requests().pop().unwrap();
        assert_eq!(last.all("content-length"), ["2"]);
        assert_eq!(last.body, b"{}");
    }
    let addr = proxy(&server, |up| up).await;
    let request = post(addr, "").replace("length: 2\r\n\r\n{}", "length: 5\r\n\r\n12345");
    assert_eq!(status(&raw(addr, request).await), 200);
    let last = server.requests().pop().unwrap();
    assert_eq!(last.all("content-length"), ["5"]);
    assert_eq!(last.body, b"12345");
    // No configuration could bring it back.
    for name in ["content-length", "Content_Length"] {
        let builder = || Upstream::builder("up", "https://up.example/mcp");
        assert!(builder().allow(name).build().is_err());
        assert!(builder().set(name, "5").build().is_err());
    }
}

#[tokio::test]
async fn f2_a_transfer_coding_is_of_one_hop() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    let chunked = |coding: &str| {
        format!(
            "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ntransfer-encoding: {coding}\r\n\r\n\
             2\r\n{{}}\r\n0\r\n\r\n"
        )
    };
    let answer = raw(addr, chunked("gzip, chunked")).await;
    assert_eq!(status(&answer), 200);
    assert_eq!(server.only_request().all("transfer-encoding"), ["chunked"]);
    assert_eq!(status(&raw(addr, chunked("gzip")).await), 400);
    server.only_request();
    let addr = gateway(&server).await;
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    );
    assert_eq!(status(&raw(addr, request).await), 200);
    let last = server.requests().pop().unwrap();
    assert_eq!(last.names(), ["content-length", "host"]);
}

#[tokio::test]
async fn f3_the_host_is_the_upstreams() {
    let server = RawUpstream::answering(OK).await;
    for addr in [proxy(&server, |up| up).await, gateway(&server).await] {
        let lines = "x-forwarded-host: evil.example\r\nmcp-init-host: evil.example\r\n\
                     x-original-host: evil.example\r\nforwarded: host=evil.example\r\n";
        assert_eq!(status(&raw(addr, post(addr, lines)).await), 200);
        let last = server.requests().pop().unwrap();
        assert_eq!(last.all("host"), [server.addr.to_string()]);
        assert_eq!(last.names(), ["content-length", "host"]);
    }
    // DESIGN 4.3: the relay drops the caller's host, so it guards it itself.
    let addr = proxy(&server, |up| up).await;
    let evil = post(addr, "").replace(&format!("host: {addr}"), "host: evil.example");
    assert_eq!(status(&raw(addr, evil).await), 403);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn f4_the_representation_is_the_outbound_clients() {
    let lines = "content-type: text/plain\r\ncontent-encoding: gzip\r\naccept: text/html\r\n\
                 content-language: de\r\naccept-encoding: gzip\r\n";
    let server = RawUpstream::answering(OK).await;
    let addr = gateway(&server).await;
    assert_eq!(status(&raw(addr, post(addr, lines)).await), 200);
    assert_eq!(server.only_request().names(), ["content-length", "host"]);
    // DESIGN 4.3: the relay streams the same body, so these three go with it.
    let addr = proxy(&server, |up| up).await;
    assert_eq!(status(&raw(addr, post(addr, lines)).await), 200);
    let last = server.requests().pop().unwrap();
    let names = [
        "accept",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
    ];
    assert_eq!(last.names(), names);
    assert_eq!(last.all("accept"), ["text/html"]);
}

#[tokio::test]
async fn f5_expect_and_upgrade_stay_here() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    for lines in [
        "expect: 100-continue\r\n",
        "upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nconnection: upgrade, http2-settings\r\n",
    ] {
        let answer = raw(addr, post(addr, lines)).await;
        assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{answer}");
        let last = server.requests().pop().unwrap();
        assert_eq!(last.names(), ["content-length", "host"]);
        assert_eq!(last.body, b"{}");
    }
}

#[tokio::test]
async fn f6_two_framings_become_one() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: 3\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
    );
    assert_eq!(status(&raw(addr, request).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("transfer-encoding"), ["chunked"]);
    assert!(seen.all("content-length").is_empty());
    assert_eq!(seen.body, b"2\r\n{}\r\n0\r\n\r\n");
}

#[tokio::test]
async fn f7_a_length_that_is_none() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    for framing in [
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2, 3",
        "content-length: +2",
        "content-length: 0x2",
        "content-length: -2",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
    ] {
        let request = post(addr, "").replace("content-length: 2", framing);
        assert_eq!(status(&raw(addr, request).await), 400, "{framing}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn f8_each_protocol_to_each_gives_the_same() {
    let seen = Arc::new(Mutex::new(Vec::<HeaderMap>::new()));
    let into = Arc::clone(&seen);
    let upstream = serve(service_fn(move |request: Request<Incoming>| {
        into.lock().unwrap().push(request.headers().clone());
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok"))) }
    }))
    .await;
    let up = Upstream::builder("up", format!("http://{upstream}/mcp"))
        .allow_credential("authorization")
        .allow_credential("cookie")
        .rule(Rule::new("x-tag").multi())
        .set("x-static", "s")
        .build()
        .unwrap();
    let capture = || CaptureLayer::for_upstreams([&up]).build().unwrap();
    let proxies = [
        serve(capture().layer(Relay::new(&up, http_client()))).await,
        serve(capture().layer(Relay::new(&up, http2_client()))).await,
    ];
    let sent = headers([
        ("authorization", "Bearer t"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-tag", "1"),
        ("x-tag", "2"),
        ("te", "trailers"),
        ("x-other", "o"),
        ("x-static", "evil"),
        ("x-forwarded-host", "evil.example"),
        ("accept", "application/json"),
    ]);
    let expected = headers([
        ("authorization", "Bearer t"),
        ("cookie", "a=1; b=2"),
        ("x-tag", "1"),
        ("x-tag", "2"),
        ("x-static", "s"),
        ("accept", "application/json"),
        ("content-length", "2"),
    ]);
    for addr in proxies {
        for client in [http_client(), http2_client()] {
            let mut request = Request::post(format!("http://{addr}/mcp"))
                .body(Full::<Bytes>::from("{}"))
                .unwrap();
            *request.headers_mut() = sent.clone();
            let response = client.request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "ok");
            let mut got = seen.lock().unwrap().pop().unwrap();
            // HTTP/1 has the host as a header.
            got.remove("host");
            assert_eq!(got, expected);
        }
    }
}

#[tokio::test]
async fn f9_http_1_0_without_a_host() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up).await;
    let answer = raw(addr, "POST /mcp HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}").await;
    assert_eq!(status(&answer), 400);
    own_error(&answer, -32600);
    assert!(server.requests().is_empty());
    let request = format!("POST /mcp HTTP/1.0\r\nhost: {addr}\r\ncontent-length: 2\r\n\r\n{{}}");
    assert_eq!(status(&raw(addr, request).await), 200);
    server.only_request();
}

/// How each line of a header block is written: RFC 7541 section 6, by its first byte.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Indexed,
    Literal,
    NeverIndexed,
}

fn written(mut block: &[u8]) -> Vec<Written> {
    /// RFC 7541 section 5.1.
    fn integer(block: &mut &[u8], bits: u32) -> usize {
        let mask = (1usize << bits) - 1;
        let mut value = usize::from(block[0]) & mask;
        *block = &block[1..];
        let mut shift = 0;
        if value == mask {
            loop {
                let byte = block[0];
                *block = &block[1..];
                value += usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        value
    }
    fn skip_text(block: &mut &[u8]) {
        let length = integer(block, 7);
        *block = &block[length..];
    }
    let mut lines = Vec::new();
    while let Some(first) = block.first() {
        let (bits, kind) = match first {
            first if first & 0x80 != 0 => (7, Some(Written::Indexed)),
            first if first & 0x40 != 0 => (6, Some(Written::Literal)),
            first if first & 0x20 != 0 => (5, None),
            first if first & 0x10 != 0 => (4, Some(Written::NeverIndexed)),
            _ => (4, Some(Written::Literal)),
        };
        let index = integer(&mut block, bits);
        if matches!(kind, Some(Written::Literal | Written::NeverIndexed)) {
            if index == 0 {
                skip_text(&mut block);
            }
            skip_text(&mut block);
        }
        lines.extend(kind);
    }
    lines
}

#[tokio::test]
async fn f10_http2_never_indexes_a_credential() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let upstream = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await.unwrap();
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])];
        stream.write_all(&settings.concat()).await.unwrap();
        let (_, block) = next_frame(&mut stream, &[HEADERS]).await;
        // `:status: 200`, and the end.
        let answer = frame(HEADERS, 0x5, 1, &[0x88]);
        stream.write_all(&answer).await.unwrap();
        block
    });
    let up = Upstream::builder("up", format!("http://{addr}/mcp"))
        .allow_credential("authorization")
        .rule(Rule::new("x-token").to("x-up-token").bearer())
        .allow("x-api-key")
        .set("x-static", "s")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let proxy = serve(capture.layer(Relay::new(&up, http2_client()))).await;
    let lines = "authorization: Bearer t\r\nx-api-key: k\r\nx-token: t\r\n\
                 mcp-session-id: s\r\naccept: application/json\r\n";
    assert_eq!(status(&raw(proxy, post(proxy, lines)).await), 200);
    let written = written(&upstream.await.unwrap());
    let never = |written: &&Written| **written == Written::NeverIndexed;
    // Four values of ours; four pseudo-headers and three headers of the transport.
    assert_eq!(written.iter().filter(never).count(), 4, "{written:?}");
    assert_eq!(written.len(), 11, "{written:?}");
}
