//! Token exchange by the embedder's authentication, in front of the capture layer, which attests its
//! result (DESIGN 5): what an upstream gets where it fails, and whose token it is.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, net::SocketAddr};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::IntoResponse,
};
use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full};
use mcp_forward::{CaptureLayer, ClientFactory, Inbound, Outbound, Relay, Rule, Upstream};
use support::{HttpClient, OK, RawUpstream, body_of, check_error, http_client, identity, serve};
use tower::{Layer, ServiceExt, service_fn};

/// The tokens of one caller, one for each audience.
#[derive(Clone, Default)]
struct Tokens {
    search: Option<String>,
    mail: Option<String>,
}

/// Gives `<audience>-<token>`; refuses some tokens, and does not answer others.
async fn token_endpoint() -> RawUpstream {
    RawUpstream::new(|request| {
        let body = String::from_utf8_lossy(&request.body);
        let (audience, token) = body.split_once(' ').unwrap();
        match token {
            "refused" => "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".into(),
            "broken" => String::new(),
            "no-mail" if audience == "mail" => String::new(),
            _ => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{audience}-{token}"),
        }
        .into()
    })
    .await
}

async fn exchange(endpoint: &RawUpstream, audience: &str, token: &str) -> Option<String> {
    let request = http::Request::post(endpoint.url("/token"))
        .body(Full::<Bytes>::from(format!("{audience} {token}")))
        .unwrap();
    let answer = http_client().request(request).await.ok()?;
    let answer = Some(answer).filter(|answer| answer.status() == 200)?;
    let token = answer.into_body().collect().await.ok()?.to_bytes();
    String::from_utf8(token.into()).ok()
}

/// The authentication.
#[derive(Clone)]
struct Authentication {
    endpoint: RawUpstream,
    /// Whether a request goes on without what could not be exchanged; else its answer is 502.
    is_lenient: bool,
}

async fn authenticate(
    State(authentication): State<Authentication>,
    mut request: Request,
    next: Next,
) -> axum::response::Response {
    let endpoint = &authentication.endpoint;
    let line = request.headers().get("authorization");
    let line = line.and_then(|line| line.to_str().ok());
    if let Some(token) = line.and_then(|line| line.strip_prefix("Bearer ")) {
        let token = token.to_owned();
        let tokens = Tokens {
            search: exchange(endpoint, "search", &token).await,
            mail: exchange(endpoint, "mail", &token).await,
        };
        let is_whole = tokens.search.is_some() && tokens.mail.is_some();
        if !is_whole && !authentication.is_lenient {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        request.extensions_mut().insert(tokens);
    }
    next.run(request).await
}

fn tokens(parts: &Parts) -> Option<&Tokens> {
    parts.extensions.get()
}

/// The status, and the body, of a POST with `lines`.
async fn send(
    client: &HttpClient<Full<Bytes>>,
    addr: SocketAddr,
    path: &str,
    lines: &[(&str, &str)],
) -> (u16, bool, Vec<u8>) {
    let mut request = http::Request::post(format!("http://{addr}{path}"));
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let answer = client.request(request.body(Full::default()).unwrap()).await;
    let answer = answer.unwrap();
    let challenged = answer.headers().contains_key("www-authenticate");
    (answer.status().as_u16(), challenged, body_of(answer).await)
}

/// A service with the paths of two upstreams, whose rules require the token or do not; both are `server`.
async fn guarded(server: &RawUpstream, is_lenient: bool) -> SocketAddr {
    let endpoint = token_endpoint().await;
    let authentication = Authentication {
        endpoint,
        is_lenient,
    };
    let upstream = |name: &str, rule: Rule| {
        Upstream::builder(name, server.url(&format!("/{name}")))
            .rule(rule)
            .set("x-api-key", "operator")
            .build()
            .unwrap()
    };
    let required = upstream("required", Rule::credential("authorization").required());
    let optional = upstream("optional", Rule::credential("authorization"));
    let capture = CaptureLayer::for_upstreams([&required, &optional])
        .attest("authorization", |parts| {
            let token = tokens(parts)?.search.as_deref()?;
            Some(format!("Bearer {token}").into())
        })
        .build()
        .unwrap();
    let app = Router::new()
        .route_service("/required", Relay::new(&required, http_client()))
        .route_service("/optional", Relay::new(&optional, http_client()))
        .layer(capture)
        .layer(from_fn_with_state(authentication, authenticate));
    serve(app).await
}

#[tokio::test]
async fn g10_a_failed_exchange_is_502_without_fallback_and_not_remembered() {
    let server = RawUpstream::answering(OK).await;
    let addr = guarded(&server, false).await;
    // One connection, so that something could be remembered.
    let client = http_client();
    let mut came = 0;
    for token in [
        "alice", "refused", "broken", "no-mail", "bob", "refused", "alice",
    ] {
        let own = format!("Bearer {token}");
        let exchanged = ["alice", "bob"].contains(&token);
        for path in ["/required", "/optional"] {
            let answer = send(&client, addr, path, &[("authorization", &own)]).await;
            assert_eq!(answer.0, if exchanged { 200 } else { 502 }, "{token}");
            came += usize::from(exchanged);
            let requests = server.requests();
            assert_eq!(requests.len(), came, "{token}");
            if exchanged {
                let expected = format!("Bearer search-{token}");
                assert_eq!(requests[came - 1].all("authorization"), [expected]);
            }
        }
    }
}

#[tokio::test]
async fn where_a_request_goes_on_without_its_token_nothing_stands_in_for_it() {
    let server = RawUpstream::answering(OK).await;
    let addr = guarded(&server, true).await;
    let client = http_client();
    let mut came = 0;
    for token in [
        Some("alice"),
        Some("refused"),
        None,
        Some("broken"),
        Some("bob"),
        Some("refused"),
        Some("alice"),
    ] {
        let own = token.map(|token| format!("Bearer {token}"));
        let lines: Vec<_> = own.iter().map(|own| ("authorization", &**own)).collect();
        let exchanged = token.filter(|token| !["refused", "broken"].contains(token));
        let exchanged = exchanged.map(|token| format!("Bearer search-{token}"));

        let (status, challenged, body) = send(&client, addr, "/required", &lines).await;
        match &exchanged {
            Some(_) => came += 1,
            None => {
                check_error(&body, -32000);
            }
        }
        let expected = if exchanged.is_some() { 200 } else { 401 };
        assert_eq!((status, challenged), (expected, exchanged.is_none()));
        assert_eq!(server.requests().len(), came, "{token:?}");

        // Without the token, with the operator's static header, but never with the caller's own token.
        assert_eq!(send(&client, addr, "/optional", &lines).await.0, 200);
        came += 1;
        let seen = server.requests().pop().unwrap();
        let expected: Vec<_> = exchanged.iter().map(String::as_str).collect();
        assert_eq!(seen.all("authorization"), expected, "{token:?}");
        assert_eq!(seen.all("x-api-key"), ["operator"]);
    }
}

#[tokio::test]
async fn g11_an_exchanged_token_goes_to_its_audience_alone() {
    let authentication = Authentication {
        endpoint: token_endpoint().await,
        is_lenient: true,
    };
    let servers = [(); 2].map(|()| RawUpstream::answering(OK));
    let [search_server, mail_server] = servers;
    let (search_server, mail_server) = (search_server.await, mail_server.await);
    let upstream = |name: &str, server: &RawUpstream| {
        let rule = Rule::new(format!("x-{name}-token")).to("authorization");
        Upstream::builder(name, server.url("/mcp"))
            .rule(rule.bearer().required())
            .build()
            .unwrap()
    };
    let search = upstream("search", &search_server);
    let mail = upstream("mail", &mail_server);
    let capture = CaptureLayer::for_upstreams([&search, &mail])
        .attest("x-search-token", |parts| {
            tokens(parts)?.search.as_deref().map(Into::into)
        })
        .attest("x-mail-token", |parts| {
            tokens(parts)?.mail.as_deref().map(Into::into)
        })
        .build()
        .unwrap();
    let app = Router::new()
        .route_service("/search", Relay::new(&search, http_client()))
        .route_service("/mail", Relay::new(&mail, http_client()))
        .layer(capture)
        .layer(from_fn_with_state(authentication, authenticate));
    let addr = serve(app).await;
    let client = http_client();
    for (token, has_mail) in [("alice", true), ("no-mail", false), ("bob", true)] {
        let own = format!("Bearer {token}");
        let lines = [("authorization", &*own), ("x-mail-token", "forged")];
        assert_eq!(send(&client, addr, "/search", &lines).await.0, 200);
        let seen = search_server.requests().pop().unwrap();
        let expected = format!("Bearer search-{token}");
        assert_eq!(seen.all("authorization"), [expected.as_str()]);

        let before = mail_server.requests().len();
        let status = send(&client, addr, "/mail", &lines).await.0;
        let requests = mail_server.requests();
        if has_mail {
            let expected = format!("Bearer mail-{token}");
            assert_eq!(status, 200);
            assert_eq!(requests[before].all("authorization"), [expected.as_str()]);
        } else {
            assert_eq!((status, requests.len()), (400, before));
        }
    }
}

fn kept(name: &str, has_subject: bool) -> Upstream {
    let rule = Rule::new("x-token").to("authorization").bearer();
    let builder = Upstream::builder(name, "https://up.example/mcp").rule(rule);
    let builder = if has_subject {
        builder.allow("x-subject")
    } else {
        builder
    };
    builder.build().unwrap()
}

/// What goes out to `upstream` for a caller of whom the authentication says this.
async fn outbound(upstream: &Upstream, subject: &'static str, token: &'static str) -> Outbound {
    let capture = CaptureLayer::for_upstreams([upstream, &kept("all", true)])
        .attest("x-token", move |_| Some(token.into()))
        .attest("x-subject", move |_| Some(subject.into()))
        .build()
        .unwrap();
    let (seen, mut got) = tokio::sync::mpsc::unbounded_channel();
    let service = capture.layer(service_fn(move |_: http::Request<()>| {
        seen.send(Inbound::current().unwrap()).unwrap();
        async { Ok::<_, Infallible>(Response::new(())) }
    }));
    let _ = service.oneshot(http::Request::new(())).await.unwrap();
    let inbound = got.recv().await.unwrap();
    identity().connect_for(upstream, &inbound).await.unwrap()
}

/// The half "other principal, same token string" is superseded, row 5: equality is on the values. Who
/// calls is one of them only where a rule sends it.
#[tokio::test]
async fn g11_a_client_that_is_kept_is_for_one_audience_and_exactly_what_goes_out() {
    let (search, mail) = (kept("search", false), kept("mail", false));
    let alice = outbound(&search, "alice", "same").await;
    assert_eq!(alice, outbound(&search, "alice", "same").await);
    assert_ne!(alice, outbound(&search, "alice", "renewed").await);
    assert_ne!(alice, outbound(&mail, "alice", "same").await);
    // The upstream could not tell these two apart either.
    assert_eq!(alice, outbound(&search, "bob", "same").await);

    let search = kept("search", true);
    let alice = outbound(&search, "alice", "same").await;
    assert_eq!(alice, outbound(&search, "alice", "same").await);
    assert_ne!(alice, outbound(&search, "bob", "same").await);
}
