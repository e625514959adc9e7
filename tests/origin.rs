//! The origin guard: hosts and pages, alone and built into `Relay`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use mcp_forward::{OriginGuardLayer, Relay, Upstream};
use support::{OK, RawUpstream, headers, http_client, http2_client, own_error, raw, serve, status};
use tower::{Layer, ServiceExt, service_fn};

async fn check<const N: usize>(
    guard: &OriginGuardLayer,
    uri: &str,
    sent: [(&str, &str); N],
) -> u16 {
    let service = guard.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let mut request = Request::new(());
    *request.uri_mut() = uri.parse::<Uri>().unwrap();
    *request.headers_mut() = headers(sent);
    service.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn loopback_is_the_default() {
    let guard = OriginGuardLayer::loopback();
    for host in [
        "localhost",
        "LOCALHOST:8808",
        "127.0.0.1",
        "127.1.2.3:1",
        "[::1]",
        "[::1]:80",
        "localhost:",
    ] {
        assert_eq!(check(&guard, "/mcp", [("host", host)]).await, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:8808",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
        "127.1",
    ] {
        assert_eq!(check(&guard, "/mcp", [("host", host)]).await, 403, "{host}");
    }
    for host in [
        "",
        "a@localhost",
        "localhost:x",
        "localhost:99999",
        "caf\u{e9}",
        "[::1",
        "[::1]x",
    ] {
        assert_eq!(check(&guard, "/mcp", [("host", host)]).await, 400, "{host}");
    }
    assert_eq!(check(&guard, "/mcp", []).await, 400);
}

#[tokio::test]
async fn d8_two_hosts_and_a_target_that_differs() {
    let guard = OriginGuardLayer::loopback();
    assert_eq!(
        check(
            &guard,
            "/mcp",
            [("host", "localhost"), ("host", "localhost")]
        )
        .await,
        400
    );
    assert_eq!(check(&guard, "http://localhost/mcp", []).await, 200);
    assert_eq!(check(&guard, "http://evil.example/mcp", []).await, 403);
    assert_eq!(
        check(&guard, "http://evil.example/mcp", [("host", "localhost")]).await,
        403
    );
    assert_eq!(
        check(&guard, "http://localhost/mcp", [("host", "evil.example")]).await,
        403
    );
}

#[tokio::test]
async fn origins_are_those_of_the_hosts_unless_set() {
    let loopback = OriginGuardLayer::loopback();
    let own = OriginGuardLayer::builder()
        .allow_host("mcp.example")
        .allow_host("b.example:8443")
        .build()
        .unwrap();
    let set = OriginGuardLayer::builder()
        .allow_host("mcp.example")
        .allow_origin("https://app.example")
        .build()
        .unwrap();
    for (guard, host, origin, expected) in [
        (&loopback, "localhost", "http://localhost:3000", 200),
        (&loopback, "localhost", "https://127.0.0.1", 200),
        (&loopback, "localhost", "http://evil.example", 403),
        (&loopback, "localhost", "null", 403),
        (&loopback, "localhost", "", 403),
        (&loopback, "localhost", "localhost", 403),
        (&loopback, "localhost", "http://localhost/", 403),
        (&loopback, "localhost", "ftp://localhost", 403),
        (&loopback, "localhost", "http://localhost@evil.example", 403),
        (&own, "mcp.example:8808", "https://mcp.example", 200),
        (&own, "B.example:8443", "https://b.example:8443", 200),
        (&own, "b.example:8443", "https://b.example", 403),
        (&own, "b.example", "https://mcp.example", 403),
        (&own, "localhost", "https://mcp.example", 403),
        (&own, "mcp.example", "http://localhost", 403),
        (&set, "mcp.example", "https://app.example", 200),
        (&set, "mcp.example", "https://APP.example:443", 200),
        (&set, "mcp.example", "http://app.example", 403),
        (&set, "mcp.example", "https://mcp.example", 403),
        (&set, "mcp.example", "https://app.example:8443", 403),
    ] {
        let sent = [("host", host), ("origin", origin)];
        assert_eq!(
            check(guard, "/mcp", sent).await,
            expected,
            "{host} {origin}"
        );
    }
    let two = [
        ("host", "localhost"),
        ("origin", "http://localhost"),
        ("origin", "http://localhost"),
    ];
    assert_eq!(check(&loopback, "/mcp", two).await, 403);
    // A page says `https` for the port that `Host` leaves out.
    let port = OriginGuardLayer::builder()
        .allow_host("mcp.example:443")
        .build()
        .unwrap();
    let sent = [("host", "mcp.example"), ("origin", "https://mcp.example")];
    assert_eq!(check(&port, "/mcp", sent).await, 200);
    let sent = [("host", "mcp.example"), ("origin", "http://mcp.example")];
    assert_eq!(check(&port, "/mcp", sent).await, 403);
}

#[tokio::test]
async fn it_is_built_into_the_relay_and_on() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp")).build().unwrap();
    let addr = serve(Relay::new(&up, http_client())).await;
    for lines in [
        "host: evil.example\r\n",
        "host: localhost\r\norigin: http://evil.example\r\n",
    ] {
        let request =
            format!("POST /mcp HTTP/1.1\r\n{lines}connection: close\r\ncontent-length: 0\r\n\r\n");
        let answer = raw(addr, request).await;
        assert_eq!(status(&answer), 403);
        own_error(&answer, -32000);
        assert!(!answer.contains("evil"));
    }
    assert!(server.requests().is_empty());

    let guard = OriginGuardLayer::builder()
        .allow_host("proxy.example")
        .build()
        .unwrap();
    let addr = serve(Relay::new(&up, http_client()).origin_guard(guard)).await;
    let request = "POST /mcp HTTP/1.1\r\nhost: proxy.example\r\norigin: https://proxy.example\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(status(&raw(addr, request).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("host"), [server.addr.to_string()]);
    assert!(seen.all("origin").is_empty());
}

#[tokio::test]
async fn http2_says_its_host_as_authority() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp")).build().unwrap();
    let addr = serve(Relay::new(&up, http_client())).await;
    for (authority, expected) in [
        (addr.to_string(), 200),
        (format!("localhost:{}", addr.port()), 200),
    ] {
        let request = Request::post(format!("http://{authority}/mcp"))
            .body(Full::<Bytes>::default())
            .unwrap();
        let response = http2_client().request(request).await.unwrap();
        assert_eq!(response.status(), expected, "{authority}");
    }
    let guard = OriginGuardLayer::builder()
        .allow_host("proxy.example")
        .build()
        .unwrap();
    let addr = serve(Relay::new(&up, http_client()).origin_guard(guard)).await;
    let request = Request::post(format!("http://{addr}/mcp"))
        .body(Full::<Bytes>::default())
        .unwrap();
    assert_eq!(http2_client().request(request).await.unwrap().status(), 403);
}

#[tokio::test]
async fn readiness_is_the_inner_services() {
    let guard = OriginGuardLayer::loopback();
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request<()>, Response<Full<Bytes>>, _>(guard);
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.send_error("gone");
    assert!(matches!(
        service.poll_ready(),
        std::task::Poll::Ready(Err(_))
    ));
}
