//! Redirects: tower-http's follower above `ForwardLayer` carries nothing out of the upstream.
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
use mcp_forward::{ForwardLayer, InboundExt, Upstream, outbound::RemovedLocation};
use support::{RawUpstream, Recorded, capture, http_client};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::follow_redirect::{
    FollowRedirectLayer,
    policy::{Action, Attempt, Policy, Standard},
};

const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// Follows everywhere, with every header and a copy of the body.
#[derive(Clone)]
struct CloneBodies;

impl Policy<Full<Bytes>, BoxError> for CloneBodies {
    fn redirect(&mut self, _: &Attempt<'_>) -> Result<Action, BoxError> {
        Ok(Action::Follow)
    }

    fn clone_body(&self, body: &Full<Bytes>) -> Option<Full<Bytes>> {
        Some(body.clone())
    }
}

fn redirect(status: u16, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into()
}

fn upstream(server: &RawUpstream) -> Upstream {
    Upstream::builder("up", server.url("/mcp"))
        .allow_credential("authorization")
        .allow("x-api-key")
        .set("x-static", "s3cret")
        .build()
        .unwrap()
}

async fn send<P>(server: &RawUpstream, policy: P) -> Response<hyper::body::Incoming>
where
    P: Policy<Full<Bytes>, BoxError> + Clone,
{
    let up = upstream(server);
    let sent = [("authorization", "Bearer s3cret"), ("x-api-key", "s3cret")];
    let alice = capture(&[&up], sent).await;
    let client = ServiceBuilder::new()
        .layer(FollowRedirectLayer::with_policy(policy))
        .layer(ForwardLayer::new(&up))
        .service(http_client());
    let request = Request::post(server.url("/mcp"))
        .body(Full::from("s3cret body"))
        .unwrap();
    client.oneshot(request).with_inbound(alice).await.unwrap()
}

#[tokio::test]
async fn h1_to_h11_nothing_leaves_the_upstream() {
    for status in STATUSES {
        let elsewhere = RawUpstream::answering(support::OK).await;
        let other_port = elsewhere.addr.port();
        for case in [
            "host",
            "same port, other host",
            "port",
            "path",
            "scheme",
            "protocol-relative",
            "A->B->A",
        ] {
            let server = RawUpstream::new(move |request: &Recorded| {
                let own = request.all("host")[0].to_owned();
                let port = own.rsplit(':').next().unwrap().to_owned();
                redirect(
                    status,
                    &match case {
                        "host" => format!("http://localhost:{other_port}/mcp"),
                        "same port, other host" => format!("http://localhost:{port}/mcp"),
                        "port" | "A->B->A" => format!("http://127.0.0.1:{other_port}/mcp"),
                        "path" => format!("http://{own}/other"),
                        "scheme" => format!("https://{own}/mcp"),
                        _ => format!("//127.0.0.1:{other_port}/mcp"),
                    },
                )
            })
            .await;
            for cloning in [false, true] {
                let before = server.requests().len();
                let response = if cloning {
                    send(&server, CloneBodies).await
                } else {
                    send(&server, Standard::default()).await
                };
                assert_eq!(response.status(), status, "{case}");
                assert!(!response.headers().contains_key("location"), "{case}");
                let kept = response.extensions().get::<RemovedLocation>().unwrap();
                assert!(kept.value().to_str().unwrap().contains("/"), "{case}");
                assert!(!format!("{kept:?}").contains("127"), "{kept:?}");
                assert_eq!(server.requests().len(), before + 1, "{case}");
            }
        }
        assert!(elsewhere.requests().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_redirect_that_stays_is_followed_with_the_headers() {
    for status in STATUSES {
        for location in [
            "/mcp/next",
            "next",
            "mcp/next",
            "?page=2",
            "http://HOST/mcp/next",
        ] {
            let server = RawUpstream::new(move |request: &Recorded| {
                if request.line.contains(" /mcp ") {
                    let host = request.all("host")[0];
                    redirect(status, &location.replace("HOST", host))
                } else {
                    support::OK.into()
                }
            })
            .await;
            let response = send(&server, CloneBodies).await;
            // `next` lies beside `/mcp`, so it leaves the upstream.
            if location == "next" {
                assert_eq!(response.status(), status);
                assert_eq!(server.requests().len(), 1);
                continue;
            }
            assert_eq!(response.status(), 200, "{status} {location}");
            let seen = server.requests();
            assert_eq!(seen.len(), 2);
            for request in seen {
                assert_eq!(
                    request.all("authorization"),
                    ["Bearer s3cret"],
                    "{location}"
                );
                assert_eq!(request.all("x-static"), ["s3cret"]);
            }
        }
    }
}

/// Whether `location` survives in a 307 that answers a request to `http://up.example/a/mcp`.
async fn survives(location: &[u8]) -> bool {
    let up = Upstream::builder("up", "http://up.example/a/mcp")
        .build()
        .unwrap();
    let location = http::HeaderValue::from_bytes(location).unwrap();
    let expected = location.clone();
    let mut service = ForwardLayer::new(&up).layer(service_fn(move |_: Request<()>| {
        let response = Response::builder()
            .status(307)
            .header("location", &location)
            .body(());
        async move { Ok::<_, Infallible>(response.unwrap()) }
    }));
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_static("http://up.example/a/mcp");
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    let removed = response.extensions().get::<RemovedLocation>();
    match response.headers().get("location") {
        Some(location) => {
            assert!(removed.is_none() && location == expected);
            true
        }
        None => {
            assert_eq!(removed.unwrap().value(), expected);
            false
        }
    }
}

#[tokio::test]
async fn h7_a_location_that_readers_may_read_differently_is_taken_out() {
    for location in [
        "/a/mcp",
        "/a/mcp/",
        "/a/mcp/x?y#z",
        "mcp",
        "mcp/x",
        "",
        "?x",
        "#x",
        "http://up.example/a/mcp",
        "HTTP://UP.EXAMPLE:80/a/mcp/x",
        "http://up.example:/a/mcp",
        "/a/mcp/b:c",
    ] {
        assert!(survives(location.as_bytes()).await, "{location}");
    }
    for location in [
        "/",
        "/a",
        "/a/mcpx",
        "/a/mcp/../..",
        "/a/mcp/%2e%2e/b",
        "x",
        "../a/mcp",
        "./mcp",
        "mcp/../../b",
        "//evil.example/a/mcp",
        "///evil.example/a/mcp",
        "\\\\evil.example/a/mcp",
        "/\\evil.example/a/mcp",
        "/a/mcp\\..\\..",
        "http:\\\\evil.example/a/mcp",
        "http:/evil.example/a/mcp",
        "http:evil.example/a/mcp",
        "http:///evil.example/a/mcp",
        "http://evil.example/a/mcp",
        "http://up.example@evil.example/a/mcp",
        "http://user:pw@up.example/a/mcp",
        "http://up.example.evil.example/a/mcp",
        "http://up.example./a/mcp",
        "http://up.example:81/a/mcp",
        "http://up.example:080x/a/mcp",
        "https://up.example/a/mcp",
        "ftp://up.example/a/mcp",
        "javascript:alert(1)",
        "data:,x",
        " http://evil.example/",
        "/a/mcp /x",
        "/a/mcp\t",
        "http://\u{fc}p.example/a/mcp",
        "http://up.example\u{3002}/a/mcp",
    ] {
        assert!(!survives(location.as_bytes()).await, "{location}");
    }
    assert!(!survives(b"/a/mcp/\xff").await);
}

#[tokio::test]
async fn several_locations_and_other_statuses() {
    let up = Upstream::builder("up", "http://up.example/mcp")
        .build()
        .unwrap();
    for (status, locations, expected) in [
        (307, vec!["/mcp", "http://evil.example/"], 0),
        (307, vec!["http://evil.example/", "/mcp"], 0),
        (300, vec!["http://evil.example/"], 0),
        (201, vec!["http://evil.example/"], 1),
    ] {
        let service = ForwardLayer::new(&up).layer(service_fn(move |_: Request<()>| {
            let response = Response::builder().status(status);
            let response = locations
                .iter()
                .fold(response, |response, l| response.header("location", *l));
            async move { Ok::<_, Infallible>(response.body(()).unwrap()) }
        }));
        let request = Request::builder()
            .uri("http://up.example/mcp")
            .body(())
            .unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(
            response.headers().get_all("location").iter().count(),
            expected
        );
    }
    // A request that is not for the upstream is none of our concern.
    let service = ForwardLayer::new(&up).layer(service_fn(|_: Request<()>| async {
        let response = Response::builder()
            .status(307)
            .header("location", "http://b.example/");
        Ok::<_, Infallible>(response.body(()).unwrap())
    }));
    let request = Request::builder()
        .uri("http://b.example/mcp")
        .body(())
        .unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert!(response.headers().contains_key("location"));
}
