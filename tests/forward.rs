//! `ForwardLayer`: what it injects, where, and what passes untouched.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::Full;
use mcp_forward::{
    ForwardLayer, Inbound, InboundExt, OutboundError, OutboundErrorKind, Rule, Upstream,
};
use support::{OK, RawUpstream, capture, headers, http_client};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};

fn upstream(url: &str) -> Upstream {
    Upstream::builder("up", url)
        .allow("x-user")
        .set("x-static", "s")
        .allow_cleartext()
        .build()
        .unwrap()
}

/// The headers of a request to `uri` below `layer`, sent as `inbound`.
async fn through(
    layer: &ForwardLayer,
    uri: &str,
    sent: HeaderMap,
    inbound: &Inbound,
) -> Result<HeaderMap, BoxError> {
    let service = layer.layer(service_fn(|request: Request<Full<Bytes>>| async move {
        let mut response = Response::new(());
        *response.headers_mut() = request.headers().clone();
        Ok::<_, Infallible>(response)
    }));
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri.parse::<Uri>().unwrap();
    *request.headers_mut() = sent;
    let response = service
        .oneshot(request)
        .with_inbound(inbound.clone())
        .await?;
    Ok(response.headers().clone())
}

#[tokio::test]
async fn only_the_upstreams_origin_and_path_get_headers() {
    let up = upstream("https://Up.example/mcp");
    let alice = capture(&[&up], [("x-user", "alice")]).await;
    let layer = ForwardLayer::new(&up);
    for uri in [
        "https://up.example/mcp",
        "https://UP.EXAMPLE:443/mcp?q=1",
        "HTTPS://up.example/mcp/",
        "https://up.example/mcp/a/b",
        "https://up.example/mcp/.well-known/a..b/%20%41",
        "https://up.example:/mcp",
    ] {
        let got = through(&layer, uri, HeaderMap::new(), &alice)
            .await
            .unwrap();
        assert_eq!(
            got,
            headers([("x-user", "alice"), ("x-static", "s")]),
            "{uri}"
        );
        assert!(got.values().all(http::HeaderValue::is_sensitive));
    }
    for uri in [
        "http://up.example/mcp",
        "https://up.example:8443/mcp",
        "https://sub.up.example/mcp",
        "https://up.example./mcp",
        "https://example/mcp",
        "https://user@up.example/mcp",
        "https://up.example@evil.example/mcp",
        "https://up.example/",
        "https://up.example/mcp2",
        "https://up.example/MCP",
        "https://up.example/%6dcp",
        "https://up.example/other/mcp",
        "https://up.example/mcp/../other",
        "https://up.example/mcp/%2E%2e/other",
        "https://up.example/mcp/.%2e/other",
        "https://up.example/mcp/..;/other",
        "https://up.example/mcp/..%2fother",
        "https://up.example/mcp/..%5Cother",
        "https://up.example/mcp/.",
        "https://up.example/mcp/.;a/other",
        "https://up.example/mcp/..%3b/other",
        "https://up.example/mcp/..%00/other",
        "https://up.example/mcp/..%20/other",
        "https://up.example/mcp/.%0a./other",
        "https://up.example/mcp/%1f../other",
        "https://up.example/mcp/%252e%252e/other",
        "https://up.example/mcp/%c0%ae%C0%ae/other",
        "https://up.example/mcp/%c1%1c../other",
    ] {
        // Untouched: whatever somebody else put there stays.
        let sent = headers([
            ("x-user", "other"),
            ("x-user", "line"),
            ("x-static", "theirs"),
        ]);
        let got = through(&layer, uri, sent.clone(), &alice).await.unwrap();
        assert_eq!(got, sent, "{uri}");
    }
}

#[tokio::test]
async fn whole_origin_is_the_origin_only() {
    let up = upstream("https://up.example/sse");
    let alice = capture(&[&up], [("x-user", "alice")]).await;
    let layer = ForwardLayer::new(&up).whole_origin();
    for (uri, expected) in [
        ("https://up.example/messages?session=1", true),
        ("https://up.example/", true),
        ("https://up.example:8443/sse", false),
        ("https://evil.example/sse", false),
    ] {
        let got = through(&layer, uri, HeaderMap::new(), &alice)
            .await
            .unwrap();
        assert_eq!(got.contains_key("x-user"), expected, "{uri}");
    }
}

#[tokio::test]
async fn governed_names_have_the_merged_value_or_none() {
    let up = upstream("https://up.example/mcp");
    let layer = ForwardLayer::new(&up);
    let stale = || {
        headers([
            ("x-user", "stale"),
            ("x-user", "stale2"),
            ("x-static", "a"),
            ("x-static", "b"),
            ("x-own", "o"),
        ])
    };
    let alice = capture(&[&up], [("x-user", "alice")]).await;
    let got = through(&layer, "https://up.example/mcp", stale(), &alice)
        .await
        .unwrap();
    assert_eq!(
        got,
        headers([("x-user", "alice"), ("x-static", "s"), ("x-own", "o")])
    );
    // A caller who sent nothing does not act with what the embedder's client happened to hold.
    let got = through(&layer, "https://up.example/mcp", stale(), &Inbound::empty())
        .await
        .unwrap();
    assert_eq!(got, headers([("x-static", "s"), ("x-own", "o")]));
}

#[tokio::test]
async fn errors_send_nothing_and_say_why() {
    let up = Upstream::builder("up", "https://up.example/mcp")
        .rule(Rule::new("x-user").required())
        .rule(Rule::new("x-token").to("authorization").bearer())
        .build()
        .unwrap();
    let layer = ForwardLayer::new(&up);
    let send = |uri: &str, inbound: Option<Inbound>| {
        let service = layer.layer(service_fn(|_: Request<Full<Bytes>>| async {
            panic!("sent") as Result<Response<()>, Infallible>
        }));
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uri.parse().unwrap();
        async move {
            let error = match inbound {
                Some(inbound) => service.oneshot(request).with_inbound(inbound).await,
                None => service.oneshot(request).await,
            }
            .unwrap_err();
            *error.downcast::<OutboundError>().unwrap()
        }
    };
    let bad = capture(&[&up], [("x-user", "alice"), ("x-token", "not a token")]).await;
    for (uri, inbound, kind) in [
        ("https://up.example/mcp", None, OutboundErrorKind::NoInbound),
        (
            "https://up.example/mcp",
            Some(Inbound::empty()),
            OutboundErrorKind::Missing,
        ),
        (
            "https://up.example/mcp",
            Some(bad.clone()),
            OutboundErrorKind::Invalid,
        ),
        ("/mcp", Some(bad.clone()), OutboundErrorKind::NotAbsolute),
        ("up.example:443", Some(bad), OutboundErrorKind::NotAbsolute),
    ] {
        let error = send(uri, inbound).await;
        assert_eq!(error.kind(), kind);
        assert_eq!(error.upstream(), "up");
        assert!(!format!("{error} {error:?}").contains("not a token"));
    }
}

#[tokio::test]
async fn what_was_attached_goes_before_the_task() {
    let up = upstream("https://up.example/mcp");
    let alice = capture(&[&up], [("x-user", "alice")]).await;
    let bob = capture(&[&up], [("x-user", "bob")]).await;
    let layer = ForwardLayer::new(&up);
    for (attached, expected) in [
        (Some(bob), Some("bob")),
        (Some(Inbound::empty()), None),
        (None, Some("alice")),
    ] {
        let service = layer.layer(service_fn(|request: Request<Full<Bytes>>| async move {
            let user = request.headers().get("x-user").cloned();
            Ok::<_, Infallible>(Response::new(user))
        }));
        let mut request = Request::new(Full::default());
        *request.uri_mut() = "https://up.example/mcp".parse().unwrap();
        if let Some(inbound) = attached {
            inbound.attach(request.extensions_mut());
        }
        let response = service
            .oneshot(request)
            .with_inbound(alice.clone())
            .await
            .unwrap();
        assert_eq!(
            response
                .into_body()
                .as_ref()
                .map(|user| user.to_str().unwrap()),
            expected
        );
    }
}

#[tokio::test]
async fn readiness_errors_and_drop_are_the_inner_services() {
    let up = Upstream::builder("up", "https://up.example/mcp")
        .build()
        .unwrap();
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request<()>, Response<()>, _>(ForwardLayer::new(&up));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(3);
    assert!(service.poll_ready().is_ready());
    let request = || {
        Request::builder()
            .uri("https://up.example/mcp")
            .body(())
            .unwrap()
    };
    let answer = tokio::spawn(service.call(request()));
    handle
        .next_request()
        .await
        .unwrap()
        .1
        .send_error("inner failed");
    assert_eq!(
        answer.await.unwrap().unwrap_err().to_string(),
        "inner failed"
    );
    assert!(service.poll_ready().is_ready());
    let abandoned = service.call(request());
    assert_eq!(format!("{abandoned:?}"), "ForwardFuture { .. }");
    let (_, respond) = handle.next_request().await.unwrap();
    drop(abandoned);
    respond.send_response(Response::new(()));
    handle.send_error("gone");
    assert!(matches!(
        service.poll_ready(),
        std::task::Poll::Ready(Err(_))
    ));
}

#[tokio::test]
async fn two_upstreams_on_one_origin_and_one_client() {
    let server = RawUpstream::answering(OK).await;
    let build = |name: &str| {
        Upstream::builder(name, server.url(&format!("/{name}")))
            .rule(Rule::new("x-user").to(format!("x-{name}-user")))
            .set("x-key", name)
            .build()
            .unwrap()
    };
    let (a, b) = (build("a"), build("b"));
    let alice = capture(&[&a, &b], [("x-user", "alice")]).await;
    let client = ServiceBuilder::new()
        .layer(ForwardLayer::new(&a))
        .layer(ForwardLayer::new(&b))
        .service(http_client::<Full<Bytes>>());
    for (path, names) in [
        ("/a", vec!["host", "x-a-user", "x-key"]),
        ("/b", vec!["host", "x-b-user", "x-key"]),
        ("/c", vec!["host"]),
    ] {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = server.url(path).parse().unwrap();
        client
            .clone()
            .oneshot(request)
            .with_inbound(alice.clone())
            .await
            .unwrap();
        let last = server.requests().pop().unwrap();
        assert_eq!(last.names(), names, "{path}");
        if let Some(name) = path.strip_prefix('/').filter(|name| *name != "c") {
            assert_eq!(last.all("x-key"), [name]);
        }
    }
}

#[tokio::test]
async fn one_line_on_the_wire() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow_credential("authorization")
        .set("x-key", "k")
        .build()
        .unwrap();
    let alice = capture(&[&up], [("authorization", "Bearer alice")]).await;
    let client = ForwardLayer::new(&up).layer(http_client::<Full<Bytes>>());
    let mut request = Request::post(server.url("/mcp"))
        .body(Full::from("{}"))
        .unwrap();
    *request.headers_mut() = headers([
        ("authorization", "Bearer service"),
        ("authorization", "x"),
        ("x-key", "1"),
    ]);
    client.oneshot(request).with_inbound(alice).await.unwrap();
    let seen = server.only_request();
    assert_eq!(seen.all("authorization"), ["Bearer alice"]);
    assert_eq!(seen.all("x-key"), ["k"]);
    assert_eq!(seen.all("content-length"), ["2"]);
    assert_eq!(seen.body, b"{}");
}
