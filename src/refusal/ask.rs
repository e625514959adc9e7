//! One question to one upstream: would it take this caller's headers?
//!
//! It may not know who asks, nor keep an answer. Only the head of what comes back is read.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, USER_AGENT},
};
use serde_json::json;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tower::{BoxError, Service, ServiceExt};

use super::answers::Answer;
use crate::{
    carry::Refusal,
    outbound::{Body, Outbound},
};

/// How long one exchange may take, in all.
const LIMIT: Duration = Duration::from_secs(5);

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const MCP_METHOD: HeaderName = HeaderName::from_static("mcp-method");
pub(super) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// The last version that begins with `initialize`.
const WITH_INITIALIZE: &str = "2025-11-25";

/// The first version without it. Versions are dates, so they compare as texts.
const WITHOUT_INITIALIZE: &str = "2026-07-28";

/// Which first request the caller's version of MCP has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum First {
    Initialize,
    Discover,
}

impl First {
    pub(super) fn of(version: Option<&HeaderValue>) -> Self {
        match version {
            Some(version) if version >= WITHOUT_INITIALIZE => Self::Discover,
            _ => Self::Initialize,
        }
    }
}

/// What is asked: which request with which headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) outbound: Outbound,
    pub(super) first: First,
}

/// Asks, and ends the session that the question may have begun, also where nobody waits any more.
pub(super) async fn ask<C, B, R>(
    client: C,
    question: &Question,
    permit: OwnedSemaphorePermit,
) -> Answer
where
    C: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    B: Send + 'static,
    R: Send + 'static,
{
    let Some(request) = request(question) else {
        return Answer::Failed;
    };
    let exchange = exchange(client, question.outbound.clone(), request, permit);
    let asked = tokio::spawn(exchange).await;
    asked.unwrap_or(Answer::Failed)
}

async fn exchange<C, B, R>(
    client: C,
    outbound: Outbound,
    request: Request<Body<B>>,
    permit: OwnedSemaphorePermit,
) -> Answer
where
    C: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    B: Send + 'static,
{
    let response = match timeout(LIMIT, client.clone().oneshot(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            let error = error.into();
            let refusal = Refusal::behind(&*error).cloned();
            return refusal.map_or(Answer::Silent, Answer::Refused);
        }
        Err(_) => return Answer::Silent,
    };
    if let Some(refusal) = outbound.refusal(response.status(), response.headers()) {
        return Answer::Refused(refusal);
    }
    if !response.status().is_success() {
        return Answer::Failed;
    }
    if let Some(session) = response.headers().get(SESSION_ID)
        && let Some(request) = goodbye(&outbound, session)
    {
        // The caller does not have to wait for it.
        tokio::spawn(async move {
            let _ = timeout(LIMIT, client.oneshot(request)).await;
            drop(permit);
        });
    }
    Answer::Passed
}

/// `None` where the headers do not fit into a request.
fn request<B>(question: &Question) -> Option<Request<Body<B>>> {
    let client = json!({ "name": "mcp-forward", "version": env!("CARGO_PKG_VERSION") });
    let (method, params) = match question.first {
        First::Initialize => (
            "initialize",
            json!({
                "protocolVersion": WITH_INITIALIZE,
                "capabilities": {},
                "clientInfo": client,
            }),
        ),
        First::Discover => (
            "server/discover",
            json!({ "_meta": {
                "io.modelcontextprotocol/protocolVersion": WITHOUT_INITIALIZE,
                "io.modelcontextprotocol/clientInfo": client,
                "io.modelcontextprotocol/clientCapabilities": {},
            }}),
        ),
    };
    let message = json!({
        "jsonrpc": "2.0",
        "id": "mcp-forward-probe",
        "method": method,
        "params": params,
    });
    let mut request = Request::new(Body::own(Bytes::from(message.to_string())));
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let accepted = HeaderValue::from_static("application/json, text/event-stream");
    headers.insert(ACCEPT, accepted);
    if question.first == First::Discover {
        let version = HeaderValue::from_static(WITHOUT_INITIALIZE);
        headers.insert(PROTOCOL_VERSION, version);
        headers.insert(MCP_METHOD, HeaderValue::from_static(method));
    }
    addressed(request, Method::POST, &question.outbound)
}

fn goodbye<B>(outbound: &Outbound, session: &HeaderValue) -> Option<Request<Body<B>>> {
    let mut request = Request::new(Body::own(Bytes::new()));
    request.headers_mut().insert(SESSION_ID, session.clone());
    addressed(request, Method::DELETE, outbound)
}

fn addressed<B>(
    mut request: Request<Body<B>>,
    method: Method,
    outbound: &Outbound,
) -> Option<Request<Body<B>>> {
    const AGENT: &str = concat!("mcp-forward/", env!("CARGO_PKG_VERSION"));
    *request.method_mut() = method;
    *request.uri_mut() = outbound.upstream().url().clone();
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    outbound.apply(headers).ok()?;
    Some(request)
}
