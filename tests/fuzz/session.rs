//! Any sequence of requests: who began a session uses it, nobody else does, and there are never too many.

use std::{cell::RefCell, convert::Infallible, future::ready, sync::LazyLock, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use mcp_forward::{
    CaptureLayer, Inbound, Refusal, RefusalLayer, ServerIdLayer, SessionLayer, server_id::Body,
};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

use super::{
    capture, paused, refusal,
    visit::{Came, IDLE, Model, PER_PRINCIPAL, Policy, SESSIONS, User, Visit},
};

const TOKEN: HeaderName = HeaderName::from_static("x-token");

static CAPTURE: LazyLock<CaptureLayer> =
    LazyLock::new(|| CaptureLayer::for_names([TOKEN]).build().unwrap());

static SERVERS: LazyLock<ServerIdLayer> = LazyLock::new(|| {
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp");
    layer.unscoped_paths(["/mcp"]).build().unwrap()
});

static REFUSAL: LazyLock<Refusal> = LazyLock::new(|| refusal(401, &HeaderMap::new()));

const UNKNOWN: &str = r#"{"error":{"code":-32600,"message":"there is no such session; initialize a new one"},"jsonrpc":"2.0"}"#;

/// Visits line by line, `wait 10` for ten seconds, and `end id` for what the embedder ends; on the first line
/// perhaps what the layer is told to do. Whether any visit went on in a session.
pub fn check(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).into_owned();
    paused(async move {
        let policy = Policy::read(&text);
        let layer = layer(policy);
        let (mut model, mut any) = (Model::new(policy), false);
        for line in text.lines() {
            let wait = line.strip_prefix("wait ").map(str::parse::<u8>);
            if let Some(Ok(seconds)) = wait {
                advance(Duration::from_secs(seconds.into())).await;
            } else if let Some(id) = line.strip_prefix("end ") {
                model.expire();
                // What has expired may still be in the table.
                assert_eq!(layer.live(), model.counts().0, "{line}");
                assert_eq!(layer.remove(id), model.end(id), "{line}");
            } else if let Some(visit) = Visit::read(line) {
                let expected = model.visit(&visit);
                let came = send(&layer, &visit).await;
                assert_eq!(came, expected, "{line}");
                any |= came.reached && visit.id.is_some();
            }
            model.expire();
            assert_eq!((layer.live(), layer.principals()), model.counts(), "{line}");
            assert!(layer.live() <= SESSIONS);
        }
        any
    })
}

fn layer(policy: Policy) -> SessionLayer<User> {
    let mut layer = SessionLayer::<User>::bind_extension()
        .idle(IDLE)
        .max_per_principal(PER_PRINCIPAL)
        .max_sessions(SESSIONS);
    if policy.pins {
        layer = layer.pin();
    }
    if policy.requires {
        layer = layer.require_principal();
    }
    if policy.passes {
        layer = layer.pass_unknown();
    }
    layer
}

async fn send(layer: &SessionLayer<User>, visit: &Visit<'_>) -> Came {
    let seen = RefCell::new(None);
    let service = service_fn(|request: Request<Body<Full<Bytes>>>| {
        let id = request.headers().get("mcp-session-id");
        let id = id.map(|id| id.to_str().unwrap().to_owned());
        assert!(!request.headers().contains_key("mcp_session_id"));
        let inbound = Inbound::current().expect("no scope");
        let token = inbound.get(&TOKEN).cloned();
        assert_eq!(
            token,
            Inbound::of(request.extensions()).get(&TOKEN).cloned()
        );
        let token = token.map(|it| it.to_str().unwrap().to_owned());
        seen.replace(Some((id, token)));
        if visit.has("refused") {
            inbound.report(REFUSAL.clone());
        }
        let mut response = Response::builder().status(visit.status);
        if let Some(id) = visit.answered {
            response = response.header("mcp-session-id", id);
        }
        ready(Ok::<_, Infallible>(
            response.body(Empty::<Bytes>::new()).unwrap(),
        ))
    });
    let service = SERVERS.layer(layer.layer(RefusalLayer::new().layer(service)));
    let (head, body) = service.oneshot(request(visit)).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let seen = seen.into_inner();
    // Byte for byte the same, whether a session is unknown or somebody else's.
    if seen.is_none() && head.status == 404 {
        assert_eq!(head.headers.len(), 1);
        assert_eq!(body, UNKNOWN);
    }
    let reached = seen.is_some();
    let (id, token) = seen.unwrap_or_default();
    Came {
        status: head.status.as_u16(),
        reached,
        id,
        token,
    }
}

fn request(visit: &Visit<'_>) -> Request<Full<Bytes>> {
    let path = visit.server.map(|id| format!("/servers/{id}/mcp"));
    let path = path.unwrap_or_else(|| "/mcp".to_owned());
    let mut request = Request::builder().method(visit.method).uri(path);
    let again = visit.id.filter(|_| visit.has("twice"));
    for id in visit.id.into_iter().chain(again) {
        request = request.header("mcp-session-id", id);
    }
    let more = [
        ("event", "last-event-id", "1"),
        ("spelled", "mcp_session_id", "s1"),
        ("modern", "mcp-protocol-version", "2026-07-28"),
        ("list", "mcp-method", "tools/list"),
    ];
    for (_, name, value) in more.into_iter().filter(|(word, ..)| visit.has(word)) {
        request = request.header(name, value);
    }
    let body = match visit.method {
        "POST" => Full::from(r#"{"method":"m"}"#),
        _ => Full::default(),
    };
    let mut request = request.body(body).unwrap();
    let token = visit.token.map(|token| (TOKEN, token.parse().unwrap()));
    let (inbound, _) = capture(&CAPTURE, token.into_iter().collect()).unwrap();
    inbound.attach(request.extensions_mut());
    if let Some(user) = &visit.user {
        request.extensions_mut().insert(user.clone());
    }
    request
}
