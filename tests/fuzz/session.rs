//! Any sequence of requests: who began a session uses it, nobody else does, and there are never too many.

use std::{convert::Infallible, future::ready, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use mcp_forward::SessionLayer;
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

use super::{
    paused,
    visit::{Came, IDLE, Model, PER_PRINCIPAL, SESSIONS, User, Visit},
};

const UNKNOWN: &str = r#"{"error":{"code":-32600,"message":"there is no such session; initialize a new one"},"jsonrpc":"2.0"}"#;

/// Visits line by line, and `wait 10` for ten seconds; whether any went on in a session.
pub fn check(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).into_owned();
    paused(async move {
        let layer = SessionLayer::<User>::bind_extension()
            .idle(IDLE)
            .max_per_principal(PER_PRINCIPAL)
            .max_sessions(SESSIONS);
        let (mut model, mut any) = (Model::default(), false);
        for line in text.lines() {
            if let Some(seconds) = line
                .strip_prefix("wait ")
                .and_then(|it| it.parse::<u8>().ok())
            {
                advance(Duration::from_secs(seconds.into())).await;
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

async fn send(layer: &SessionLayer<User>, visit: &Visit<'_>) -> Came {
    let mut seen = None;
    let service = layer.layer(service_fn(|request: Request<()>| {
        let id = request.headers().get("mcp-session-id");
        seen = Some(id.map(|id| id.to_str().unwrap().to_owned()));
        assert!(!request.headers().contains_key("mcp_session_id"));
        let mut response = Response::builder().status(visit.status);
        if let Some(id) = visit.answered {
            response = response.header("mcp-session-id", id);
        }
        ready(Ok::<_, Infallible>(
            response.body(Empty::<bytes::Bytes>::new()).unwrap(),
        ))
    }));
    let mut request = Request::builder().method(visit.method);
    for id in visit
        .id
        .iter()
        .chain(visit.id.iter().filter(|_| visit.has("twice")))
    {
        request = request.header("mcp-session-id", *id);
    }
    if visit.has("event") {
        request = request.header("last-event-id", "1");
    }
    if visit.has("spelled") {
        request = request.header("mcp_session_id", "s1");
    }
    if visit.has("modern") {
        request = request.header("mcp-protocol-version", "2026-07-28");
    }
    let mut request = request.body(()).unwrap();
    if let Some(user) = &visit.user {
        request.extensions_mut().insert(user.clone());
    }
    let (head, body) = service.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // Byte for byte the same, whether a session is unknown or somebody else's.
    if seen.is_none() && head.status == 404 {
        assert_eq!(head.headers.len(), 1);
        assert_eq!(body, UNKNOWN);
    }
    Came {
        status: head.status.as_u16(),
        reached: seen.is_some(),
        id: seen.flatten(),
    }
}
