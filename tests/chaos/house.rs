//! The two services under attack, each with every layer on, in the order of the crate's documentation.
//!
//! It may not know what goes wrong.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use http::{StatusCode, request::Parts};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use mcp_forward::{
    CaptureLayer, Challenge, InternalForward, InternalForwardLayer, OriginGuardLayer, ProbeLayer,
    RefusalLayer, Relay, Rule, ServerIdLayer, SessionLayer, Upstream, outbound,
    rmcp::{Factory, Proxy},
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::net::TcpListener;

use crate::{
    plan::{Place, Way},
    values::{MARK, subject},
};

/// How long an upstream may be silent before its caller is told so; beyond what a busy machine takes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// Beyond it a refusal comes too late, which a busy machine must not decide.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// After which time nothing is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(2);

/// Where this proxy's own metadata would be.
pub const METADATA: &str = "http://proxy.example/.well-known/oauth-protected-resource";

/// Names the upstream that is asked first. (A real selector would not take it from the request.)
pub const PROBE: &str = "x-probe";

/// Whom the authentication found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Principal(u64);

pub type Sessions = SessionLayer<Principal>;

/// A service that listens.
pub struct House {
    pub addr: SocketAddr,
    pub sessions: Sessions,
}

/// What the workers of the proxy share.
pub fn workers() -> InternalForward {
    InternalForward::new([("chaos", [7; 32])]).unwrap()
}

fn upstream(place: Place, addr: SocketAddr) -> Upstream {
    let upstream = Upstream::builder(place.name(), format!("http://{addr}/mcp"));
    let upstream = match place {
        Place::Alpha => upstream
            .rule(Rule::credential("authorization"))
            .allow("x-alpha-call"),
        Place::Beta => upstream
            .rule(
                Rule::new("x-beta-token")
                    .to("authorization")
                    .bearer()
                    .required(),
            )
            .rule(Rule::new("x-beta-call").to("x-call"))
            .set("x-proxy", "edge"),
        Place::Gamma => upstream.rule(Rule::new("x-gamma-token").to("authorization").bearer()),
        Place::Delta => upstream
            .set("authorization", "Bearer operator")
            .allow("x-delta-call")
            .allow("x-subject"),
    };
    upstream.build().unwrap()
}

impl House {
    /// Serves on this runtime.
    pub async fn start(way: Way, sites: &[(Place, SocketAddr)]) -> Self {
        let sites = sites.iter();
        let upstreams: Vec<_> = sites.map(|(place, addr)| upstream(*place, *addr)).collect();
        let client = client();
        let app = match way {
            Way::Relay => relays(&upstreams, &client),
            Way::Gateway => gateway(&upstreams),
        };
        let sessions = Sessions::bind_extension().require_principal();
        let app = layered(app, upstreams, client, sessions.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { addr, sessions }
    }
}

impl House {
    /// The tasks that live for as long as the house, and begin with its first calls; at most.
    pub fn own_tasks(&self, way: Way) -> usize {
        match way {
            // Whatever ends old sessions.
            Way::Relay => 1,
            // And what closes the factory's idle connections, for each upstream that is called.
            Way::Gateway => 5,
        }
    }
}

type HttpClient = Client<HttpConnector, outbound::Body<Body>>;

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector)
}

fn relays(upstreams: &[Upstream], client: &HttpClient) -> Router {
    upstreams.iter().fold(Router::new(), |app, upstream| {
        let relay = Relay::new(upstream, client.clone()).head_timeout(HEAD_TIMEOUT);
        app.route_service(&format!("/servers/{upstream}/mcp"), relay)
    })
}

fn gateway(upstreams: &[Upstream]) -> Router {
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .pool_idle_timeout(IDLE);
    let factory = Factory::builder().http(http).idle_time(IDLE);
    let proxy = Proxy::new(upstreams, factory.build().unwrap()).unwrap();
    let service = StreamableHttpService::new(
        move || Ok(proxy.clone()),
        Arc::<LocalSessionManager>::default(),
        // Its clock is another than that of all others, which `main.rs` sets forward.
        StreamableHttpServerConfig::default().with_sse_keep_alive(None),
    );
    Router::new()
        .route_service("/mcp", service.clone())
        .route_service("/servers/{server_id}/mcp", service)
}

/// axum's lines read inside out: the last one is the outermost.
fn layered(
    app: Router,
    upstreams: Vec<Upstream>,
    client: HttpClient,
    sessions: Sessions,
) -> Router {
    let challenge = Challenge::rewrite(METADATA).unwrap();
    let capture = CaptureLayer::for_upstreams(&upstreams)
        .attest("x-subject", |parts| {
            let principal = parts.extensions.get::<Principal>();
            principal.map(|principal| subject(principal.0).into())
        })
        .build()
        .unwrap();
    let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    let probed = move |parts: &Parts| {
        let name = parts.headers.get(PROBE);
        let mut upstreams = upstreams.iter();
        let found = name.and_then(|name| upstreams.find(|it| it.name() == name));
        found.cloned()
    };
    let refusal = RefusalLayer::new().hold_limit(HOLD_LIMIT);
    app.layer(refusal.challenge(challenge.clone()))
        .layer(ProbeLayer::new(client, probed).challenge(challenge))
        .layer(sessions)
        .layer(capture)
        .layer(server_id.build().unwrap())
        .layer(from_fn(authenticate))
        .layer(InternalForwardLayer::for_keys(&workers()))
        .layer(OriginGuardLayer::loopback())
}

/// The embedder's authentication: a key says whose it is.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let key = request.headers().get("x-proxy-key");
    let key = key.and_then(|key| {
        key.to_str()
            .ok()?
            .strip_prefix(MARK)?
            .strip_prefix("proxy.key.")
    });
    let principal = key.and_then(|key| key.split('.').next()?.parse().ok());
    let Some(principal) = principal else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    request.extensions_mut().insert(Principal(principal));
    next.run(request).await
}
