//! `Relay` on real sockets: what reaches the upstream, what comes back, and what it says itself.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, Inbound, Relay, Rule, Upstream, UpstreamBuilder};
use support::{
    OK, RawUpstream, closed, http_client, http2_client, own_error, post, raw, serve, status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, ServiceExt, service_fn};

/// A relay, with its capture layer, in front of `upstream`.
async fn relay(upstream: &Upstream) -> SocketAddr {
    let capture = CaptureLayer::for_upstreams([upstream]).build().unwrap();
    serve(capture.layer(Relay::new(upstream, http_client()))).await
}

async fn relay_to(
    server: &RawUpstream,
    rules: impl Fn(UpstreamBuilder) -> UpstreamBuilder,
) -> SocketAddr {
    let builder = Upstream::builder("up", server.url("/mcp?tenant=1"));
    relay(&rules(builder).build().unwrap()).await
}

#[tokio::test]
async fn goal3_nothing_but_the_transport_and_the_merged_headers_goes_on() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| {
        up.allow_credential("authorization")
            .rule(Rule::new("x-github-token").to("x-token").bearer())
            .set("x-proxy", "edge-1")
    })
    .await;
    let sent = "accept: application/json\r\naccept: text/event-stream\r\ncontent-type: application/json\r\n\
        content-encoding: identity\r\nuser-agent: test\r\nmcp-session-id: s1\r\nmcp-protocol-version: 2025-11-25\r\n\
        mcp-method: tools/call\r\nmcp-name: t\r\nmcp-param-region: eu\r\nlast-event-id: 7\r\n\
        authorization: Bearer alice\r\nx-github-token: ghp\r\nx-proxy: evil\r\n\
        cookie: a=1\r\nx-other: o\r\norigin: http://localhost\r\nreferer: http://localhost/\r\n\
        x-forwarded-for: 1.2.3.4\r\nforwarded: for=1\r\nvia: 1.1 x\r\nte: trailers\r\nkeep-alive: 5\r\n\
        proxy-connection: keep-alive\r\nproxy-authorization: Basic x\r\nexpect: 100-continue\r\nhttp2-settings: x\r\n\
        traceparent: 00-1-1-01\r\nbaggage: user=alice\r\nx-http-method-override: DELETE\r\nmcp_session_id: evil\r\n\
        mcp-future: x\r\ndpop: x\r\naccept-encoding: gzip\r\nrange: bytes=0-1\r\n";
    let answer = raw(
        addr,
        post(addr, sent).replace("/mcp ", "/other/path?access_token=s3cret "),
    )
    .await;
    assert!(answer.contains("200 OK"), "{answer}");
    let seen = server.only_request();
    assert_eq!(seen.line, "POST /mcp?tenant=1 HTTP/1.1");
    assert_eq!(seen.body, b"{}");
    let mut expected = vec![
        ("accept", "application/json"),
        ("accept", "text/event-stream"),
        ("authorization", "Bearer alice"),
        ("content-encoding", "identity"),
        ("content-length", "2"),
        ("content-type", "application/json"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "t"),
        ("mcp-param-region", "eu"),
        ("mcp-protocol-version", "2025-11-25"),
        ("mcp-session-id", "s1"),
        ("user-agent", "test"),
        ("x-proxy", "edge-1"),
        ("x-token", "Bearer ghp"),
    ];
    let host = server.addr.to_string();
    expected.push(("host", &host));
    expected.sort_unstable();
    let mut headers: Vec<_> = seen
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    headers.sort_unstable();
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn get_and_delete_pass_and_only_get_resumes() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| up).await;
    for (method, resumes) in [("GET", true), ("DELETE", false)] {
        let request = format!(
            "{method} /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\nlast-event-id: 7\r\nmcp-session-id: s\r\n\r\n"
        );
        assert_eq!(status(&raw(addr, request).await), 200);
        let seen = server.requests().pop().unwrap();
        assert!(seen.line.starts_with(method));
        assert_eq!(
            seen.all("last-event-id").len(),
            usize::from(resumes),
            "{method}"
        );
        assert_eq!(seen.all("mcp-session-id"), ["s"]);
        assert!(seen.all("content-length").is_empty() && seen.all("transfer-encoding").is_empty());
    }
}

#[tokio::test]
async fn other_methods_are_405() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| up).await;
    for method in ["PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"] {
        let answer = raw(addr, post(addr, "").replacen("POST", method, 1)).await;
        assert_eq!(status(&answer), 405, "{method}");
        assert!(answer.contains("allow: POST, GET, DELETE\r\n"), "{answer}");
        own_error(&answer, -32600);
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_transport_header_on_two_lines_is_400() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| up).await;
    for name in [
        "content-type",
        "user-agent",
        "mcp-session-id",
        "mcp-protocol-version",
        "mcp-method",
        "mcp-name",
        "mcp-param-x",
    ] {
        let answer = raw(
            addr,
            post(addr, &format!("{name}: a\r\nx: y\r\n{name}: a\r\n")),
        )
        .await;
        assert_eq!(status(&answer), 400, "{name}");
        assert!(own_error(&answer, -32600).contains(name));
    }
    let get = format!(
        "GET / HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\nlast-event-id: 1\r\nlast-event-id: 2\r\n\r\n"
    );
    assert_eq!(status(&raw(addr, get).await), 400);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn missing_invalid_and_no_inbound() {
    let server = RawUpstream::answering(OK).await;
    let missing = |rule: Rule| relay_to(&server, move |up| up.rule(rule.clone()));

    let addr = missing(Rule::credential("authorization").required()).await;
    let answer = raw(addr, post(addr, "")).await;
    assert_eq!(status(&answer), 401);
    assert!(
        answer.contains("www-authenticate: Bearer error=\"invalid_token\"\r\n"),
        "{answer}"
    );
    assert!(own_error(&answer, -32000).contains("`authorization`"));

    let addr = missing(Rule::new("x-token").to("authorization").required()).await;
    let answer = raw(addr, post(addr, "")).await;
    assert_eq!(status(&answer), 400);
    assert!(own_error(&answer, -32600).contains("`x-token`"));

    let addr = missing(Rule::credential("authorization")).await;
    let answer = raw(addr, post(addr, "authorization: Negotiate s3cret\r\n")).await;
    assert_eq!(status(&answer), 400);
    assert!(own_error(&answer, -32600).contains("`authorization`"));
    assert!(!answer.contains("s3cret"));

    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-a")
        .build()
        .unwrap();
    let addr = serve(Relay::new(&up, http_client())).await;
    let answer = raw(addr, post(addr, "x-a: 1\r\n")).await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("CaptureLayer"));

    assert!(server.requests().is_empty());

    // Nothing is read, so nobody is needed.
    let up = Upstream::builder("up", server.url("/mcp"))
        .set("x-a", "s")
        .build()
        .unwrap();
    let addr = serve(Relay::new(&up, http_client())).await;
    assert_eq!(status(&raw(addr, post(addr, "x-a: 1\r\n")).await), 200);
    assert_eq!(server.only_request().all("x-a"), ["s"]);
}

#[tokio::test]
async fn it_uses_what_was_attached() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-user")
        .build()
        .unwrap();
    let alice = support::capture(&[&up], [("x-user", "alice")]).await;
    let relay = Relay::new(&up, http_client());
    let addr = serve(service_fn(move |mut request: Request<Incoming>| {
        alice.clone().attach(request.extensions_mut());
        relay.clone().oneshot(request)
    }))
    .await;
    assert_eq!(
        status(&raw(addr, post(addr, "x-user: mallory\r\n")).await),
        200
    );
    assert_eq!(server.only_request().all("x-user"), ["alice"]);
}

#[tokio::test]
async fn the_answer_loses_what_is_about_the_upstream() {
    let server = RawUpstream::answering(
        "HTTP/1.1 401 Unauthorized\r\ncontent-type: text/plain\r\ncontent-length: 2\r\nmcp-session-id: s1\r\n\
         www-authenticate: Bearer realm=\"up\"\r\nx-kept: 1\r\nx-kept: 2\r\n\
         connection: close, X-Hop\r\nconnection: x-hop2 , x_y\r\nx-hop: s3cret\r\nx-hop2: s3cret\r\nx-hop2: s3cret\r\n\
         keep-alive: timeout=5\r\nproxy-authenticate: Basic\r\nproxy-authentication-info: x\r\nproxy-x: y\r\ntrailer: x\r\n\
         upgrade: h2c\r\nset-cookie: a=s3cret\r\nset-cookie: b=s3cret\r\nset-cookie2: c=s3cret\r\n\
         access-control-allow-origin: *\r\naccess-control-future: x\r\nalt-svc: h2=\":443\"\r\nclear-site-data: \"*\"\r\n\
         strict-transport-security: max-age=1\r\nrefresh: 0;url=http://evil.example\r\n\
         nel: x\r\nreport-to: x\r\nreporting-endpoints: x\r\nservice-worker-allowed: /\r\n\
         x-accel-redirect: /etc/passwd\r\nx-sendfile: /etc/passwd\r\nx-litespeed-location: /x\r\n\
         x-lighttpd-send-file: /etc/passwd\r\nx-reproxy-url: http://evil.example\r\n\
         x-envoy-immediate-health-check-fail: 1\r\n\r\nno",
    )
    .await;
    let addr = relay_to(&server, |up| up).await;
    let answer = raw(addr, post(addr, "")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    assert_eq!(body, "no");
    let mut names: Vec<_> = head
        .lines()
        .skip(1)
        .map(|line| line.split(':').next().unwrap())
        .collect();
    names.sort_unstable();
    // `date` and `connection` are those of this proxy's own server.
    assert_eq!(
        names,
        [
            "connection",
            "content-length",
            "content-type",
            "date",
            "mcp-session-id",
            "www-authenticate",
            "x-kept",
            "x-kept"
        ]
    );
    assert!(!answer.contains("s3cret"));
}

#[tokio::test]
async fn h1_o4_a_redirect_or_a_proxys_challenge_is_502() {
    for status_line in [
        "300 x", "301 x", "302 x", "303 x", "304 x", "307 x", "308 x", "399 x", "407 x", "101 x",
    ] {
        let elsewhere = RawUpstream::answering(OK).await;
        let location = elsewhere.url("/s3cret");
        let server = RawUpstream::answering(format!(
            "HTTP/1.1 {status_line}\r\nlocation: {location}\r\nproxy-authenticate: Basic\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ))
        .await;
        let addr = relay_to(&server, |up| up.allow_credential("authorization")).await;
        let answer = raw(
            addr,
            post(
                addr,
                "authorization: Bearer t\r\nproxy-authorization: Basic x\r\n",
            ),
        )
        .await;
        assert_eq!(status(&answer), 502, "{status_line}");
        assert!(own_error(&answer, -32603).contains("`up`"));
        assert!(!answer.contains("s3cret") && !answer.contains("proxy-authenticate"));
        server.only_request();
        assert!(elsewhere.requests().is_empty(), "{status_line}");
    }
}

#[tokio::test]
async fn unreachable_is_502_and_its_text_stays_here() {
    let (addr, _socket) = closed();
    let up = Upstream::builder("up", format!("http://{addr}/mcp?key=s3cret"))
        .build()
        .unwrap();
    let proxy = relay(&up).await;
    let answer = raw(proxy, post(proxy, "")).await;
    assert_eq!(status(&answer), 502);
    own_error(&answer, -32603);
    assert!(
        !answer.contains("s3cret") && !answer.contains(&addr.port().to_string()),
        "{answer}"
    );

    // It answers nothing, or no HTTP.
    for bytes in ["", "nonsense\r\n\r\n"] {
        let server = RawUpstream::answering(bytes).await;
        let proxy = relay_to(&server, |up| up).await;
        assert_eq!(status(&raw(proxy, post(proxy, "")).await), 502);
        server.only_request();
    }
}

#[tokio::test(start_paused = true)]
async fn no_head_in_time_is_504() {
    for (limit, expected) in [(None, 300), (Some(Duration::from_secs(7)), 7)] {
        let up = Upstream::builder("up", "http://127.0.0.1:1/mcp")
            .build()
            .unwrap();
        let silent =
            service_fn(|_| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
        let mut relay = Relay::new(&up, silent);
        if let Some(limit) = limit {
            relay = relay.head_timeout(limit);
        }
        let request = Request::post("/mcp")
            .header("host", "localhost")
            .body(Full::<Bytes>::default())
            .unwrap();
        let start = tokio::time::Instant::now();
        let response = relay.oneshot(request).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), expected);
        assert_eq!(response.status(), 504);
        support::check_error(&support::body_of(response).await, -32603);
    }
}

#[tokio::test]
async fn k8_a_client_that_fails_to_be_ready_is_502_and_its_error_stays_here() {
    let up = Upstream::builder("up", "http://127.0.0.1:1/mcp")
        .build()
        .unwrap();
    let (client, mut handle) = tower_test::mock::pair::<Request<_>, Response<Full<Bytes>>>();
    handle.send_error("s3cret");
    let request = || {
        Request::post("/mcp")
            .header("host", "localhost")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let response = Relay::new(&up, client).oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 502);
    let body = support::body_of(response).await;
    assert!(!String::from_utf8(body).unwrap().contains("s3cret"));
}

/// A hyper server that answers each request with what `frames` yields, and tells what it received.
async fn streaming_upstream(
    frames: impl Fn() -> UnboundedReceiverStream<&'static str> + Clone + Send + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (seen, received) = mpsc::unbounded_channel();
    let addr = serve(service_fn(move |request: Request<Incoming>| {
        let (frames, seen) = (frames(), seen.clone());
        async move {
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let text = match frame.into_data() {
                        Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                        Err(_) => "trailers".to_owned(),
                    };
                    // HTTP/2 may end a stream with an empty frame.
                    if !text.is_empty() {
                        let _ = seen.send(text);
                    }
                }
                let _ = seen.send("end".to_owned());
            });
            let frames = frames.map(|data| {
                Ok::<_, Infallible>(match data {
                    "trailers" => Frame::trailers(support::headers([("x-trailer", "s3cret")])),
                    data => Frame::data(Bytes::from(data)),
                })
            });
            let response = Response::builder()
                .header("content-type", "text/event-stream")
                .header("trailer", "x-trailer");
            Ok::<_, Infallible>(response.body(StreamBody::new(frames)).unwrap())
        }
    }))
    .await;
    (addr, received)
}

#[tokio::test]
async fn bodies_stream_both_ways_without_trailers_http1_and_http2() {
    for http2 in [false, true] {
        let (send, receive) = mpsc::unbounded_channel();
        let receive = std::sync::Arc::new(std::sync::Mutex::new(Some(receive)));
        let (server, mut received) = streaming_upstream(move || {
            UnboundedReceiverStream::new(receive.lock().unwrap().take().unwrap())
        })
        .await;
        let up = Upstream::builder("up", format!("http://{server}/mcp"))
            .build()
            .unwrap();
        let (addr, client) = if http2 {
            (serve(Relay::new(&up, http2_client())).await, http2_client())
        } else {
            (relay(&up).await, http_client())
        };
        let (upload, uploaded) = mpsc::unbounded_channel::<&str>();
        let body = StreamBody::new(UnboundedReceiverStream::new(uploaded).map(|data| {
            Ok::<_, Infallible>(match data {
                "trailers" => Frame::trailers(support::headers([("x-trailer", "s3cret")])),
                data => Frame::data(Bytes::from(data)),
            })
        }));
        let request = Request::post(format!("http://{addr}/mcp"))
            .header("trailer", "x-trailer")
            .body(body)
            .unwrap();
        let response = tokio::spawn(client.request(request));
        // The first half of the upload is there before the second is sent, and so is the answer.
        upload.send("one").unwrap();
        assert_eq!(received.recv().await.unwrap(), "one");
        let response = response.await.unwrap().unwrap();
        assert!(!response.headers().contains_key("trailer"));
        let mut body = response.into_body();
        for part in ["data: 1\n\n", "data: 2\n\n"] {
            send.send(part).unwrap();
            assert_eq!(
                body.frame().await.unwrap().unwrap().into_data().unwrap(),
                part
            );
        }
        upload.send("two").unwrap();
        assert_eq!(received.recv().await.unwrap(), "two");
        upload.send("trailers").unwrap();
        drop(upload);
        assert_eq!(received.recv().await.unwrap(), "end");
        send.send("trailers").unwrap();
        drop(send);
        let rest = body.collect().await.unwrap();
        assert!(rest.trailers().is_none(), "http2: {http2}");
        assert!(rest.to_bytes().is_empty());
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_ends_the_upstreams_answer() {
    let (send, receive) = mpsc::unbounded_channel();
    let receive = std::sync::Arc::new(std::sync::Mutex::new(Some(receive)));
    let (server, _received) = streaming_upstream(move || {
        UnboundedReceiverStream::new(receive.lock().unwrap().take().unwrap())
    })
    .await;
    let up = Upstream::builder("up", format!("http://{server}/mcp"))
        .build()
        .unwrap();
    let addr = relay(&up).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(post(addr, "").as_bytes()).await.unwrap();
    send.send("data: 1\n\n").unwrap();
    let mut buffer = [0; 1024];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    drop(stream);
    // The upstream's body is dropped, so its channel closes.
    tokio::time::timeout(Duration::from_secs(10), send.closed())
        .await
        .unwrap();
}

#[tokio::test]
async fn n10_an_upload_that_stops_midway_is_never_complete_upstream() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| up.allow_credential("authorization")).await;
    for request in [
        format!("POST /mcp HTTP/1.1\r\nhost: {addr}\r\ncontent-length: 10\r\n\r\n{{}}"),
        format!(
            "POST /mcp HTTP/1.1\r\nhost: {addr}\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{{}}"
        ),
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert!(server.requests().iter().all(|request| !request.complete));
}

#[tokio::test]
async fn f1_to_f8_framing_is_the_proxys_own() {
    let server = RawUpstream::answering(OK).await;
    // Even a static header cannot be about framing, so only the caller could try.
    let addr = relay_to(&server, |up| up.allow("x-a")).await;
    let chunked = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ntransfer-encoding: chunked\r\nx-a: 1\r\n\r\n\
         2\r\n{{}}\r\n0\r\nx-trailer: s3cret\r\n\r\n"
    );
    assert_eq!(status(&raw(addr, chunked).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("transfer-encoding"), ["chunked"]);
    assert!(seen.all("content-length").is_empty());
    assert_eq!(seen.body, b"2\r\n{}\r\n0\r\n\r\n");
    assert_eq!(seen.all("x-a"), ["1"]);
}

#[tokio::test]
async fn http2_in_and_http1_out_with_split_cookies() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| up.allow_credential("cookie").allow("x-user")).await;
    let mut request = Request::post(format!("http://{addr}/mcp"))
        .body(Full::<Bytes>::from("{}"))
        .unwrap();
    *request.headers_mut() =
        support::headers([("cookie", "a=1"), ("cookie", "b=2"), ("x-user", "alice")]);
    assert_eq!(http2_client().request(request).await.unwrap().status(), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("cookie"), ["a=1; b=2"]);
    assert_eq!(seen.all("x-user"), ["alice"]);
    assert_eq!(seen.all("content-length"), ["2"]);
}

#[tokio::test]
async fn a_capture_layer_outside_a_spawn_reaches_the_relay_by_the_request() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-user")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let relay = Relay::new(&up, http_client());
    let addr = serve(capture.layer(service_fn(move |request: Request<Incoming>| {
        let relay = relay.clone();
        async move {
            // A plain spawn, which loses the task's slot but keeps the request.
            let answer = tokio::spawn(async move {
                assert!(Inbound::current().is_none());
                relay.oneshot(request).await
            });
            answer.await.unwrap()
        }
    })))
    .await;
    assert_eq!(
        status(&raw(addr, post(addr, "x-user: alice\r\n")).await),
        200
    );
    assert_eq!(server.only_request().all("x-user"), ["alice"]);
}

#[test]
fn nothing_printed_holds_a_value() {
    let up = Upstream::builder("up", "http://127.0.0.1:1/mcp?key=s3cret")
        .set("x-a", "s3cret")
        .build()
        .unwrap();
    let relay = Relay::new(&up, "client");
    assert!(!format!("{relay:?} {relay:#?}").contains("s3cret"));
}

#[tokio::test]
async fn http2_white_space_is_no_value() {
    let server = RawUpstream::answering(OK).await;
    let addr = relay_to(&server, |up| up.rule(Rule::new("x-user").required())).await;
    for (value, expected) in [(" ", 400), ("", 400), (" alice", 400), ("alice", 200)] {
        let request = Request::post(format!("http://{addr}/mcp"))
            .header("x-user", value)
            .body(Full::<Bytes>::default())
            .unwrap();
        let response = http2_client().request(request).await.unwrap();
        assert_eq!(response.status(), expected, "{value:?}");
    }
    assert_eq!(server.only_request().all("x-user"), ["alice"]);
}

#[tokio::test]
async fn an_upstream_that_is_not_captured_is_500() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-user")
        .build()
        .unwrap();
    let other = Upstream::builder("other", server.url("/other"))
        .allow("x-other")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&other]).build().unwrap();
    let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
    let answer = raw(addr, post(addr, "x-user: alice\r\n")).await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("`x-user`"));
    assert!(server.requests().is_empty());
}
