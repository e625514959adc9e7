//! Capture: DESIGN 4.1, in process where the layer is enough and on raw sockets where bytes matter.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use mcp_forward::{
    CaptureLayer, ClientFactory, ConnectErrorKind, Inbound, OnConflict, OutboundErrorKind, Rule,
    Upstream,
};
use support::{capture, headers, identity, lines, own_error, post, raw, serve, status};
use tower::{Layer, Service, ServiceExt, service_fn};

fn upstream(sources: &[&str]) -> Upstream {
    let builder = Upstream::builder("up", "https://up.example/mcp");
    let rules = sources.iter().map(Rule::credential);
    rules
        .fold(builder, mcp_forward::UpstreamBuilder::rule)
        .build()
        .unwrap()
}

fn names(inbound: &Inbound) -> Vec<&str> {
    inbound.iter().map(|(name, _)| name.as_str()).collect()
}

/// What the service behind the layer saw, and what the layer answered.
async fn through(sources: &[&str], sent: HeaderMap) -> (Option<Seen>, u16, Vec<u8>) {
    let layer = CaptureLayer::for_upstreams([&upstream(sources)]);
    through_layer(layer.build().unwrap(), sent).await
}

async fn through_layer(layer: CaptureLayer, sent: HeaderMap) -> (Option<Seen>, u16, Vec<u8>) {
    let seen = Arc::new(Mutex::new(None));
    let into = Arc::clone(&seen);
    let service = layer.layer(service_fn(move |request: Request<Full<Bytes>>| {
        *into.lock().unwrap() = Some(Seen {
            current: Inbound::current(),
            attached: Inbound::of(request.extensions()),
            extensions: request.extensions().len(),
            headers: request.headers().clone(),
        });
        async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("inner")))) }
    }));
    let mut request = Request::new(Full::default());
    *request.headers_mut() = sent;
    let response = service.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = support::body_of(response).await;
    (seen.lock().unwrap().take(), status, body)
}

struct Seen {
    current: Option<Inbound>,
    attached: Inbound,
    extensions: usize,
    headers: HeaderMap,
}

#[tokio::test]
async fn a_match_is_current_attached_and_sensitive() {
    let sent = headers([("x-a", "1"), ("x-b", "2"), ("x-c", "3")]);
    let (seen, status, body) = through(&["x-a", "x-b", "x-missing"], sent).await;
    let seen = seen.unwrap();
    assert_eq!((status, body.as_slice()), (200, b"inner".as_slice()));
    let current = seen.current.unwrap();
    for inbound in [&current, &seen.attached] {
        assert_eq!(names(inbound), ["x-a", "x-b"]);
        assert!(inbound.iter().all(|(_, value)| value.is_sensitive()));
    }
    assert_eq!(current.get(&"x-b".parse().unwrap()).unwrap(), "2");
    assert!(current.get(&"x-c".parse().unwrap()).is_none());
    assert!(seen.headers["x-a"].is_sensitive() && seen.headers["x-b"].is_sensitive());
    assert!(!seen.headers["x-c"].is_sensitive());
}

#[tokio::test]
async fn g1_no_match_runs_in_an_empty_scope_and_leaves_the_extensions() {
    for sources in [&["x-a"][..], &[]] {
        let (seen, ..) = through(sources, headers([("x-other", "o")])).await;
        let seen = seen.unwrap();
        assert!(seen.current.unwrap().is_empty());
        assert!(seen.attached.is_empty());
        assert_eq!(seen.extensions, 0);
    }
}

/// On the other side of a spawn, one who sent nothing is still told from one whom nobody asked.
#[tokio::test]
async fn g4_where_a_static_header_is_the_fallback_nothing_is_attached_as_well() {
    let up = Upstream::builder("up", "https://up.example/mcp")
        .rule(Rule::new("x-a").on_conflict(OnConflict::Caller))
        .set("x-a", "service")
        .build()
        .unwrap();
    let not_captured = ConnectErrorKind::Outbound(OutboundErrorKind::NotCaptured);
    for (builder, expected) in [
        (CaptureLayer::for_upstreams([&up]), Ok(())),
        (CaptureLayer::for_names(["x-a"]), Ok(())),
        (
            CaptureLayer::for_upstreams([&upstream(&["x-a"])]),
            Err(not_captured),
        ),
    ] {
        let (seen, ..) = through_layer(builder.build().unwrap(), HeaderMap::new()).await;
        let merged = identity().connect_for(&up, &seen.unwrap().attached).await;
        let merged = merged.map(|outbound| assert_eq!(lines(&outbound), ["x-a: service"]));
        assert_eq!(merged.map_err(|error| error.kind()), expected);
    }
}

#[tokio::test]
async fn an_inner_layer_replaces_what_an_outer_one_captured() {
    for sent in [
        headers([("x-a", "1"), ("x-b", "2")]),
        headers([("x-a", "1")]),
    ] {
        let outer = CaptureLayer::for_upstreams([&upstream(&["x-a"])])
            .build()
            .unwrap();
        let inner = CaptureLayer::for_upstreams([&upstream(&["x-b"])])
            .build()
            .unwrap();
        let service = service_fn(|request: Request<Full<Bytes>>| async move {
            let attached = names(&Inbound::of(request.extensions())).join(",");
            let current = names(&Inbound::current().unwrap()).join(",");
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(
                attached + "|" + &current,
            ))))
        });
        let expected = if sent.contains_key("x-b") {
            "x-b|x-b"
        } else {
            "|"
        };
        let mut request = Request::new(Full::default());
        *request.headers_mut() = sent;
        let response = outer
            .layer(inner.layer(service))
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(support::body_of(response).await, expected.as_bytes());
    }
}

#[tokio::test]
async fn d1_d2_d3_a_captured_name_on_two_lines_is_ambiguous() {
    for sent in [
        headers([("authorization", "Bearer a"), ("authorization", "Bearer b")]),
        headers([("authorization", "Bearer a"), ("authorization", "Bearer a")]),
        headers([("authorization", ""), ("Authorization", "Bearer a")]),
        headers([("x-api-key", "a"), ("x-other", "o"), ("x-api-key", "b")]),
    ] {
        let (seen, status, body) = through(&["authorization", "x-api-key"], sent).await;
        assert!(seen.is_none() && status == 400);
        let message = support::check_error(&body, -32600);
        assert!(
            message.contains("authorization") || message.contains("x-api-key"),
            "{message}"
        );
        assert!(!message.contains("Bearer"));
    }
    // Not captured, so none of our concern.
    let sent = headers([("x-other", "a"), ("x-other", "b"), ("x-api-key", "k")]);
    assert_eq!(through(&["x-api-key"], sent).await.1, 200);
}

#[tokio::test]
async fn d9_split_cookies_are_joined() {
    let up = upstream(&["cookie"]);
    let cookie = "cookie".parse().unwrap();
    let inbound = capture(
        &[&up],
        [
            ("cookie", "a=1"),
            ("x", "y"),
            ("cookie", ""),
            ("cookie", "b=2; c=3"),
        ],
    )
    .await;
    let value = inbound.get(&cookie).unwrap();
    assert_eq!(value, "a=1; b=2; c=3");
    assert!(value.is_sensitive());
    assert!(
        capture(&[&up], [("cookie", ""), ("cookie", "")])
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn b5_an_empty_value_is_absent() {
    assert!(
        capture(&[&upstream(&["x-a"])], [("x-a", "")])
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn e1_to_e9_a_nominated_name_is_refused() {
    let many = (0..10)
        .map(|i| format!("x-{i}"))
        .collect::<Vec<_>>()
        .join(",");
    let up_to_nine = (0..9)
        .map(|i| format!("x-{i}"))
        .collect::<Vec<_>>()
        .join(",");
    for (lines, expected) in [
        (vec!["x-api-key"], 400),
        (vec!["close", "x-api-key"], 400),
        (vec!["", "x-api-key"], 400),
        (vec!["x-hOP, X-aPi-KeY"], 400),
        (vec![",, close ,\tX-Api-Key ,"], 400),
        (vec!["keep-alive, authorization"], 400),
        (vec!["caf\u{e9}"], 400),
        (vec!["close", "\u{ff}"], 400),
        (vec![&*many], 400),
        (vec![&many[..19], &many[20..]], 400),
        (vec![&*up_to_nine, "close, keep-alive, Upgrade"], 200),
        (vec!["connection"], 200),
        (vec!["host, :path, content-length, mcp-session-id"], 200),
        (vec!["x_api_key", "x-api-key-2", ",,"], 200),
    ] {
        // Whether it is present or not.
        for present in [true, false] {
            let mut sent = HeaderMap::new();
            if present {
                sent.insert("x-api-key", "k".parse().unwrap());
            }
            for line in &lines {
                sent.append(
                    "connection",
                    http::HeaderValue::from_bytes(line.as_bytes()).unwrap(),
                );
            }
            let (seen, status, body) = through(&["x-api-key", "authorization"], sent).await;
            assert_eq!(status, expected, "{lines:?} with the header: {present}");
            assert_eq!(seen.is_some(), expected == 200);
            if expected == 400 {
                support::check_error(&body, -32600);
            }
        }
    }
}

#[tokio::test]
async fn readiness_and_errors_are_the_inner_services() {
    let layer = CaptureLayer::for_upstreams([&upstream(&["x-a"])])
        .build()
        .unwrap();
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request<Full<Bytes>>, Response<Full<Bytes>>, _>(layer);
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let answer = tokio::spawn(service.call(Request::new(Full::default())));
    let (_, respond) = handle.next_request().await.unwrap();
    respond.send_error("inner failed");
    assert_eq!(
        answer.await.unwrap().unwrap_err().to_string(),
        "inner failed"
    );
    handle.send_error("gone");
    match service.poll_ready() {
        Poll::Ready(Err(error)) => assert!(error.to_string().contains("gone")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refused_request_never_reaches_the_inner_service() {
    let layer = CaptureLayer::for_upstreams([&upstream(&["x-a"])])
        .build()
        .unwrap();
    let mut service = layer.layer(service_fn(|_: Request<Full<Bytes>>| async {
        panic!("called") as Result<Response<Full<Bytes>>, Infallible>
    }));
    let mut request = Request::new(Full::default());
    *request.headers_mut() = headers([("x-a", "1"), ("x-a", "2")]);
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.status(), 400);
}

/// What a request over a real socket leads to: a 200 with what was captured, or a refusal.
async fn over_the_wire(lines: &str) -> String {
    let layer = CaptureLayer::for_upstreams([&upstream(&["x-api-key", "authorization"])])
        .build()
        .unwrap();
    let service = layer.layer(service_fn(
        |request: Request<hyper::body::Incoming>| async move {
            let inbound = Inbound::of(request.extensions());
            let captured = inbound.iter().map(|(name, value)| {
                format!("{name}={};", String::from_utf8_lossy(value.as_bytes()))
            });
            let captured = captured.collect::<String>();
            let body = request.into_body().collect().await;
            let trailers = body.ok().and_then(|body| body.trailers().cloned());
            let text = format!(
                "{captured} trailers={}",
                trailers.map_or(0, |trailers| trailers.len())
            );
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
        },
    ));
    let addr = serve(service).await;
    raw(addr, post(addr, lines)).await
}

#[tokio::test]
async fn what_comes_over_a_socket() {
    let answer = over_the_wire("X-API-KEY: \t k \r\nX_Api_Key: evil\r\n").await;
    assert!(answer.ends_with("x-api-key=k; trailers=0"), "{answer}");
    let answer = over_the_wire("x-api-key: a\r\nX-Api-Key: b\r\n").await;
    assert_eq!(status(&answer), 400);
    own_error(&answer, -32600);
    // Two `Connection` lines: `post` sends another one itself.
    let answer = over_the_wire("connection: x-api-key\r\nx-api-key: k\r\n").await;
    assert_eq!(status(&answer), 400);
    own_error(&answer, -32600);
    // Refused by hyper, before any layer.
    for lines in [
        "x-api-key : k\r\n",
        "x-api-key: a\r\n b\r\n",
        "x-api-key: a\0b\r\n",
        "x-api-key: a\rb\r\n",
    ] {
        assert_eq!(status(&over_the_wire(lines).await), 400, "{lines:?}");
    }
}

#[tokio::test]
async fn e11_trailers_are_never_captured() {
    let layer = CaptureLayer::for_upstreams([&upstream(&["authorization"])])
        .build()
        .unwrap();
    let service = layer.layer(service_fn(
        |request: Request<hyper::body::Incoming>| async move {
            let before = Inbound::current().unwrap().is_empty();
            let body = request.into_body().collect().await.unwrap();
            let trailers = body.trailers().map_or(0, HeaderMap::len);
            let after = Inbound::current().unwrap().is_empty();
            let text = format!("{before} {trailers} {after}");
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
        },
    ));
    let addr = serve(service).await;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
         trailer: authorization\r\n\r\n2\r\n{{}}\r\n0\r\nauthorization: Bearer t\r\n\r\n"
    );
    let answer = raw(addr, request).await;
    assert!(
        answer.ends_with("true 1 true") || answer.ends_with("true 0 true"),
        "{answer}"
    );
}

#[tokio::test]
async fn b6_white_space_at_an_edge_is_refused_as_http1_parsers_trim_it() {
    for value in [" ", "\t", " v", "v ", "v\t", " v "] {
        for sent in [
            headers([("x-a", value)]),
            headers([("cookie", "a=1"), ("cookie", value)]),
        ] {
            let (seen, status, body) = through(&["x-a", "cookie"], sent).await;
            assert!(seen.is_none() && status == 400, "{value:?}");
            support::check_error(&body, -32600);
        }
    }
    assert_eq!(through(&["x-a"], headers([("x-a", "a \t b")])).await.1, 200);
}

#[test]
fn a_layer_tells_its_names_and_no_unchecked_text() {
    let up = Upstream::builder("up", "https://up.example/mcp")
        .rule(Rule::credential("Authorization").only_with("x-key"))
        .allow("x-a")
        .build()
        .unwrap();
    let builder = CaptureLayer::for_upstreams([&up]).allow_fan_out("cookie: s3cret");
    assert!(!format!("{builder:?} {builder:#?}").contains("s3cret"));
    let error = builder.build().unwrap_err();
    assert!(!format!("{error:?} {error}").contains("s3cret"));
    let layer = CaptureLayer::for_upstreams([&up]).build().unwrap();
    assert_eq!(layer.names(), ["authorization", "x-a", "x-key"]);
    assert!(format!("{layer:?}").contains(r#"["authorization", "x-a", "x-key"]"#));
}
