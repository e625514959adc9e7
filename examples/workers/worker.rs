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
    owners::{Owner, Owners},
};

pub(crate) const SESSION: &str = "mcp-session-id";

/// The only token that is good.
pub(crate) const TOKEN: &str = "Bearer example";

/// Which worker answered, and whether it took the caller for a worker: for the example to show.
pub(crate) const ANSWERED_BY: &str = "x-answered-by";
pub(crate) const BELIEVED: &str = "x-mark-believed";

/// What a worker is told at its start.
pub(crate) struct Told {
    pub(crate) number: usize,
    /// Where this worker listens.
    pub(crate) addr: SocketAddr,
    /// Where all do that are there by then.
    pub(crate) workers: Vec<SocketAddr>,
    /// Where owners are written down, if they are.
    pub(crate) store: String,
}

struct Worker<O> {
    told: Told,
    forward: InternalForward,
    gateway: Gateway,
    owners: O,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Tells where it listens, is told the rest, and serves until its stdin is closed.
pub(crate) async fn run<O: Owners>(
    owners: impl AsyncFnOnce(&Told) -> Result<O, BoxError>,
) -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    println!("{addr}");
    let mut stdin = BufReader::new(tokio::io::stdin()).lines();
    let line = stdin.next_line().await?.ok_or("nothing was told")?;
    let line: Value = serde_json::from_str(&line)?;
    let key: Vec<u8> = serde_json::from_value(line["key"].clone())?;
    let forward = InternalForward::new([("example", key)])?;
    let told = Told {
        number: serde_json::from_value(line["number"].clone())?,
        addr,
        workers: serde_json::from_value(line["workers"].clone())?,
        store: serde_json::from_value(line["store"].clone())?,
    };
    let worker = Arc::new(Worker {
        owners: owners(&told).await?,
        told,
        forward: forward.clone(),
        gateway: gateway(),
        client: Client::builder(TokioExecutor::new()).build_http(),
    });
    let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    let app = Router::new()
        .route("/servers/{server_id}/mcp", any(serve::<O>))
        .route("/mcp", any(serve::<O>))
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

async fn serve<O: Owners>(State(worker): State<Arc<Worker<O>>>, request: Request) -> Response {
    let is_forwarded = request.extensions().get::<ForwardedInternally>().is_some();
    let served = worker.serve(request, is_forwarded).await;
    served.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
}

impl<O: Owners> Worker<O> {
    async fn serve(&self, request: Request, is_forwarded: bool) -> Result<Response, BoxError> {
        let session = request.headers().get(SESSION);
        let session = session.and_then(|session| session.to_str().ok());
        let owner = match session {
            Some(session) => self.owners.owner(session).await?,
            None => None,
        };
        match owner {
            Some(Owner { worker, .. }) if worker != self.told.addr && !is_forwarded => {
                self.pass_on(worker, request).await
            }
            owner => {
                let session = owner.map(|owner| owner.session);
                self.answer(session, request, is_forwarded).await
            }
        }
    }

    /// Sends a request to the worker that has its session: to the same path, with a proof, and with
    /// the caller's own token.
    async fn pass_on(&self, peer: SocketAddr, request: Request) -> Result<Response, BoxError> {
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
        match self.client.request(request.map(Full::new)).await {
            Ok(response) => Ok(response.map(Body::new)),
            // It is gone, and its sessions with it: the caller begins a new one.
            Err(error) if error.is_connect() => {
                let answered_by = [(ANSWERED_BY, self.told.number.to_string())];
                Ok((StatusCode::NOT_FOUND, answered_by).into_response())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The gateway's own answer; `session` is what it calls the session.
    async fn answer(
        &self,
        session: Option<String>,
        mut request: Request,
        is_forwarded: bool,
    ) -> Result<Response, BoxError> {
        if let Some(session) = session.and_then(|session| session.try_into().ok()) {
            request.headers_mut().insert(SESSION, session);
        }
        let Ok(response) = self.gateway.clone().oneshot(request).await;
        let mut response = response.map(Body::new);
        let headers = response.headers_mut();
        let session = headers
            .get(SESSION)
            .and_then(|session| session.to_str().ok());
        if let Some(session) = session {
            let published = self.owners.publish(session).await?;
            headers.insert(SESSION, published.try_into()?);
        }
        headers.insert(ANSWERED_BY, HeaderValue::from(self.told.number));
        if is_forwarded {
            headers.insert(BELIEVED, HeaderValue::from_static("yes"));
        }
        Ok(response)
    }
}
