//! The layers around what is served, and the server itself.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, time::Duration};

use axum::{Router, body::Body, serve::ListenerExt};
use bytes::Bytes;
use futures_util::poll;
use http::{HeaderName, Request, Response, uri::Scheme};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connect, HttpConnector},
    },
    rt::{TokioExecutor, TokioTimer},
};
use mcp_forward::{CaptureLayer, ProbeLayer, RefusalLayer, Upstream, outbound};
use tokio::{net::TcpListener, signal::ctrl_c, sync::oneshot};
use tower::{BoxError, Service, ServiceBuilder};
use tower_http::{sensitive_headers::SetSensitiveRequestHeadersLayer, trace::TraceLayer};
use tracing_subscriber::filter::EnvFilter;

use super::{GUARDED, front::Front};

/// Less than the 5 s after which many servers close a socket that nobody uses: a request that meets the
/// close is lost.
const SOCKET_IDLE: Duration = Duration::from_secs(4);

/// One client, one pool, for whoever needs one.
pub(crate) type HttpClient<C> = Client<C, outbound::Body<Body>>;

pub(crate) fn http_client<C: Connect + Clone>(connector: C) -> HttpClient<C> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(SOCKET_IDLE)
        .build(connector)
}

/// Whether one of them needs TLS, and with it this machine's certificates.
pub(crate) fn any_https(upstreams: &[Upstream]) -> bool {
    let mut schemes = upstreams.iter().map(|it| it.url().scheme());
    schemes.any(|it| it == Some(&Scheme::HTTPS))
}

/// Connects as the URL says.
pub(crate) fn https() -> io::Result<HttpsConnector<HttpConnector>> {
    let connector = HttpsConnectorBuilder::new().with_native_roots()?;
    Ok(connector.https_or_http().enable_all_versions().build())
}

/// By default without what rmcp tells of sessions and answers.
pub(crate) fn log_to_stderr() {
    let chosen = std::env::var("RUST_LOG").unwrap_or_else(|_| "info,rmcp=error".to_owned());
    let logs = tracing_subscriber::fmt().with_env_filter(EnvFilter::builder().parse_lossy(chosen));
    logs.with_writer(io::stderr).init();
}

/// `service` at `/mcp`, with those layers around it that know the caller.
pub(crate) fn app<S, R, C>(
    front: &Front,
    upstreams: &[Upstream],
    capture: CaptureLayer,
    client: HttpClient<C>,
    service: S,
) -> Router
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    C: Connect + Clone + Send + Sync + 'static,
{
    // Without --probe it has nobody to ask.
    let targets = if front.probe { upstreams } else { &[] }.to_vec();
    let probe = ProbeLayer::new(client, move |_| targets.clone());
    let mut probe = probe.challenge(front.challenge.clone());
    if front.fail_closed {
        probe = probe.fail_closed();
    }
    // Outermost first.
    let service = ServiceBuilder::new()
        .layer(probe)
        .layer(RefusalLayer::new().challenge(front.challenge.clone()))
        .service(service);
    let mut app = Router::new().route_service("/mcp", service);
    if let Some(sessions) = &front.sessions {
        app = app.route_layer(sessions.clone());
    }
    app.route_layer(capture)
}

/// Serves `app` until Ctrl-C; no log has a value of `names`.
pub(crate) async fn serve(
    listen: SocketAddr,
    app: Router,
    names: &[HeaderName],
) -> Result<(), BoxError> {
    let guarded = GUARDED.map(HeaderName::from_static);
    let sensitive = names.iter().cloned().chain(guarded);
    // The query may hold a token, so the span has the path only.
    let trace = TraceLayer::new_for_http().make_span_with(|request: &Request<Body>| {
        tracing::debug_span!("request", method = %request.method(), path = request.uri().path())
    });
    // Outermost first.
    let app = app.route_layer(
        ServiceBuilder::new()
            .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
            .layer(trace),
    );
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    println!("listening on http://{}/mcp", listener.local_addr()?);
    // An event must not wait for the acknowledgement of the one before it.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });

    let (end, told) = oneshot::channel();
    let interrupts = async {
        ctrl_c().await?;
        // It listens before the log says that it does.
        let mut again = pin!(ctrl_c());
        let at_once = poll!(&mut again).is_ready();
        tracing::info!("ends after the open requests; Ctrl-C again ends at once");
        let _ = end.send(());
        if at_once { Ok(()) } else { again.await }
    };
    let interrupt = async {
        if told.await.is_err() {
            std::future::pending().await
        }
    };
    let served = axum::serve(listener, app).with_graceful_shutdown(interrupt);
    tokio::select! {
        ended = served.into_future() => Ok(ended?),
        Ok(()) = interrupts => std::process::exit(130),
    }
}
