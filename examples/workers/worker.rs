//! One worker: it serves the sessions that it has, and passes the others on.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mcp_forward::{ForwardedInternally, InternalForward, InternalForwardLayer, ServerIdLayer};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
};
use tower::{BoxError, ServiceExt};

use crate::{
    gateway::{Gateway, gateway},
    owners::{InTheId, Owners},
};

pub(crate) const SESSION: &str = "mcp-session-id";

/// The only token that is good.
pub(crate) const TOKEN: &str = "Bearer example";

/// Which worker answered, and whether it took the caller for a worker: for the example to show.
pub(crate) const ANSWERED_BY: &str = "x-answered-by";
pub(crate) const BELIEVED: &str = "x-mark-believed";

struct Worker {
    number: usize,
    workers: Vec<SocketAddr>,
    forward: InternalForward,
    gateway: Gateway,
    owners: InTheId,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Tells where it listens, is told its number, its key and all workers, and serves until its stdin
/// is closed.
pub(crate) async fn run() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let mut stdin = BufReader::new(tokio::io::stdin()).lines();
    let told = stdin.next_line().await?.ok_or("nothing was told")?;
    let told: Value = serde_json::from_str(&told)?;
    let key: Vec<u8> = serde_json::from_value(told["key"].clone())?;
    let forward = InternalForward::new([("example", key)])?;
    let worker = Arc::new(Worker {
        number: serde_json::from_value(told["number"].clone())?,
        workers: serde_json::from_value(told["workers"].clone())?,
        forward: forward.clone(),
        gateway: gateway(),
        owners: InTheId,
        client: Client::builder(TokioExecutor::new()).build_http(),
    });
    let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    let app = Router::new()
        .route("/servers/{server_id}/mcp", any(serve))
        .route("/mcp", any(serve))
        .with_state(worker)
        .layer(server_id.build()?)
        .layer(from_fn(authenticate))
        .layer(InternalForwardLayer::for_keys(&forward));
    tokio::select! {
        served = axum::serve(listener, app).into_future() => served?,
        _ = stdin.next_line() => {}
    }
    Ok(())
}

/// The same for callers and for workers: a mark replaces no token.
async fn authenticate(request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization");
    if token.is_none_or(|token| token != TOKEN) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    next.run(request).await
}

async fn serve(State(worker): State<Arc<Worker>>, request: Request) -> Response {
    let is_forwarded = request.extensions().get::<ForwardedInternally>().is_some();
    let session = request.headers().get(SESSION);
    let session = session.and_then(|session| session.to_str().ok());
    let owner = session.and_then(|session| worker.owners.owner(session));
    match owner.map(|(owner, session)| (owner, session.to_owned())) {
        Some((owner, _)) if owner != worker.number && !is_forwarded => {
            let passed_on = worker.pass_on(owner, request).await;
            passed_on.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
        }
        owner => {
            let session = owner.map(|(_, session)| session);
            worker.answer(session, request, is_forwarded).await
        }
    }
}

impl Worker {
    /// Sends a request to the worker that has its session: to the same path, with a proof, and with
    /// the caller's own token.
    async fn pass_on(&self, owner: usize, request: Request) -> Result<Response, BoxError> {
        let peer = self.workers.get(owner).ok_or("there is no such worker")?;
        let (mut parts, body) = request.into_parts();
        let target = parts
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        parts.uri = Uri::try_from(format!("http://{peer}{target}"))?;
        for name in ["host", "connection", "transfer-encoding", "content-length"] {
            parts.headers.remove(name);
        }
        // As long as `ServerIdLayer` lets it be.
        let body = body.collect().await?.to_bytes();
        let mut request = Request::from_parts(parts, body);
        self.forward.sign(&mut request)?;
        let response = self.client.request(request.map(Full::new)).await?;
        Ok(response.map(Body::new))
    }

    /// The gateway's own answer; `session` is what it calls the session.
    async fn answer(
        &self,
        session: Option<String>,
        mut request: Request,
        is_forwarded: bool,
    ) -> Response {
        if let Some(session) = session.and_then(|session| session.try_into().ok()) {
            request.headers_mut().insert(SESSION, session);
        }
        let Ok(response) = self.gateway.clone().oneshot(request).await;
        let mut response = response.map(Body::new);
        let headers = response.headers_mut();
        let session = headers
            .get(SESSION)
            .and_then(|session| session.to_str().ok());
        let published = session.map(|session| self.owners.publish(self.number, session));
        if let Some(published) = published.and_then(|published| published.try_into().ok()) {
            headers.insert(SESSION, published);
        }
        headers.insert(ANSWERED_BY, HeaderValue::from(self.number));
        if is_forwarded {
            headers.insert(BELIEVED, HeaderValue::from_static("yes"));
        }
        response
    }
}
