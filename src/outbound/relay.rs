//! `Relay`: a streaming MCP reverse proxy for one upstream, as one tower service.
//!
//! It builds a new exchange on each side and copies into it what is named here. It may not read a
//! body, nor know who the caller is.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, ALLOW, AUTHORIZATION, CONNECTION, LOCATION, WWW_AUTHENTICATE},
};
use pin_project_lite::pin_project;
use tokio::time::Timeout;
use tower::{BoxError, Service, util::Oneshot};

use super::{Body, Merged, merge_into, missing};
use crate::{
    carry::{Inbound, Refusal, Refused, Relayed},
    error::{OutboundError, OutboundErrorKind},
    events,
    inbound::origin::OriginGuardLayer,
    reply::{self, Rejection},
    rules::Upstream,
};

/// How long the upstream may take until the head of its answer, unless set otherwise.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);

/// What the MCP transport sends and the relay copies; a list may have several lines.
static TRANSPORT_LISTS: [HeaderName; 2] = [header::ACCEPT, header::CONTENT_ENCODING];
static TRANSPORT: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::USER_AGENT,
    HeaderName::from_static("mcp-session-id"),
    HeaderName::from_static("mcp-protocol-version"),
    HeaderName::from_static("mcp-method"),
    HeaderName::from_static("mcp-name"),
];
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const MCP_PARAM: &str = "mcp-param-";

/// How much of a name that the caller made up is shown, in bytes.
const MAX_SHOWN: usize = 64;

/// What the caller never sees of the upstream's answer: what is about the upstream's connection,
/// and what would act on the proxy's own origin in a browser, or on a web server in front of the proxy.
static RESPONSE_ONLY_UPSTREAM: [HeaderName; 23] = [
    header::CONNECTION,
    HeaderName::from_static("close"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    header::ALT_SVC,
    HeaderName::from_static("clear-site-data"),
    header::STRICT_TRANSPORT_SECURITY,
    header::REFRESH,
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("service-worker-allowed"),
    // It would send a file, or ask a server, of its own instead.
    HeaderName::from_static("x-accel-redirect"),
    HeaderName::from_static("x-litespeed-location"),
    HeaderName::from_static("x-lighttpd-send-file"),
    HeaderName::from_static("x-reproxy-url"),
    HeaderName::from_static("x-sendfile"),
];
static RESPONSE_ONLY_UPSTREAM_PREFIXES: &[&str] = &["access-control-", "proxy-", "x-envoy-"];

/// A streaming reverse proxy for one upstream, over any tower HTTP client.
///
/// It sends the upstream's URL, the headers of the MCP transport, and the merged ones; nothing
/// else of the request. Bodies stream both ways, nothing is buffered, trailers are dropped, and
/// nothing is ever repeated. Put [`CaptureLayer`](crate::CaptureLayer) around it, with no worker in
/// between that serves many callers. It needs a tokio runtime with its timer enabled.
///
/// ```
/// use axum::Router;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use mcp_forward::{CaptureLayer, Relay, Upstream};
///
/// let search = Upstream::builder("search", "http://localhost:9000/mcp")
///     .allow("x-user-id")
///     .build()?;
/// let client = Client::builder(TokioExecutor::new()).build_http();
/// let app: Router = Router::new()
///     .route_service("/mcp", Relay::new(&search, client))
///     .layer(CaptureLayer::for_upstreams([&search]).build()?);
/// # let _ = app;
/// # Ok::<_, mcp_forward::BuildError>(())
/// ```
///
/// # Answers of its own
///
/// Each with a JSON-RPC error body:
///
/// | status | when |
/// |---|---|
/// | 400 | a header that has one value came on two lines; a forwarded value cannot be used |
/// | 400, 401 | a required header is missing; 401 with a challenge where it is `authorization`, or a credential and [`RefusalLayer`](crate::RefusalLayer) stands outside |
/// | 400, 403 | the guard refused: [`OriginGuardLayer`] |
/// | 405 | the method is none of POST, GET and DELETE |
/// | 500 | no inbound is known, or not for this upstream: a `CaptureLayer` outside is wrong or missing |
/// | 502 | the upstream cannot be reached, or answered 1xx, 3xx or 407 |
/// | 504 | no head of an answer came in time |
///
/// Put [`RefusalLayer`](crate::RefusalLayer) between it and `CaptureLayer`: an upstream's 401 or 403
/// then reaches the caller with a challenge of this proxy's. Without it they pass as they are, with the
/// upstream's challenge: its `resource_metadata` names the upstream, and a client that follows it asks
/// for a token for the upstream, not for this proxy.
#[derive(Clone)]
pub struct Relay<C> {
    upstream: Upstream,
    client: C,
    guard: OriginGuardLayer,
    head_timeout: Duration,
}

impl<C> Relay<C> {
    /// Relays to `upstream` through `client`, which must not follow redirects. hyper-util's
    /// `build_http()` reaches `http` only; for `https` give it a connector such as hyper-rustls'. Give it a
    /// `pool_idle_timeout` below what the upstream keeps, which is often 5 s: a request that meets the
    /// close of its socket is 502.
    ///
    /// Its request body is [`outbound::Body`](crate::outbound::Body) of the caller's: build one for
    /// relays, and leave the type of its body to inference. hyper's client wants it `Unpin`, which the
    /// body of a body time-out is not: box that one.
    #[must_use]
    pub fn new(upstream: &Upstream, client: C) -> Self {
        Self {
            upstream: upstream.clone(),
            client,
            guard: OriginGuardLayer::loopback(),
            head_timeout: HEAD_TIMEOUT,
        }
    }

    /// Serves the hosts and pages that `guard` allows, in place of those of loopback:
    /// [`OriginGuardLayer::builder`].
    #[must_use]
    pub fn origin_guard(self, guard: OriginGuardLayer) -> Self {
        Self { guard, ..self }
    }

    /// How long the upstream may take until the head of its answer; 300 s by default. A body may
    /// take as long as it likes.
    #[must_use]
    pub fn head_timeout(self, head_timeout: Duration) -> Self {
        Self {
            head_timeout,
            ..self
        }
    }

    /// The request to the upstream; or why there is none.
    fn outbound<B>(&self, request: Request<B>) -> Result<(Request<Body<B>>, Merged), Unsent> {
        self.guard.check(&request)?;
        let (inbound, body) = request.into_parts();
        if ![Method::POST, Method::GET, Method::DELETE].contains(&inbound.method) {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            let rejection = Rejection::fixed(status, "use POST, GET or DELETE");
            let allowed = HeaderValue::from_static("POST, GET, DELETE");
            return Err(rejection.with(ALLOW, allowed).into());
        }
        let mut headers = transport(&inbound.method, &inbound.headers)?;
        let caller = Inbound::attached(&inbound.extensions).or_else(Inbound::current);
        let merged = merge_into(&self.upstream, caller.as_ref(), &mut headers);
        let merged = merged.map_err(|error| Unsent {
            rejection: reject(&error),
            refusal: missing(&self.upstream, &error),
        })?;

        let mut outbound = Request::new(Body::new(body));
        *outbound.method_mut() = inbound.method;
        *outbound.uri_mut() = self.upstream.url().clone();
        *outbound.headers_mut() = headers;
        Ok((outbound, merged))
    }
}

impl<C> fmt::Debug for Relay<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("upstream", &self.upstream)
            .field("guard", &self.guard)
            .field("head_timeout", &self.head_timeout)
            .finish_non_exhaustive()
    }
}

/// Why nothing was sent.
struct Unsent {
    rejection: Rejection,
    /// What the upstream would have said, as far as that is known.
    refusal: Option<Refusal>,
}

impl From<Rejection> for Unsent {
    fn from(rejection: Rejection) -> Self {
        Self {
            rejection,
            refusal: None,
        }
    }
}

/// The headers of the MCP transport.
fn transport(method: &Method, inbound: &HeaderMap) -> Result<HeaderMap, Rejection> {
    let is_single = |name: &HeaderName| {
        TRANSPORT.contains(name)
            || name.as_str().starts_with(MCP_PARAM)
            || (method == Method::GET && name == LAST_EVENT_ID)
    };
    let mut headers = HeaderMap::new();
    for (name, value) in inbound {
        let copied = is_single(name);
        if copied && headers.contains_key(name) {
            let shown = name.as_str().get(..MAX_SHOWN).unwrap_or(name.as_str());
            let message = format!("`{shown}` came on several lines; send it once");
            return Err(Rejection::new(StatusCode::BAD_REQUEST, message));
        }
        if copied || TRANSPORT_LISTS.contains(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok(headers)
}

/// What the caller is told when the headers cannot be merged.
fn reject(error: &OutboundError) -> Rejection {
    let status = match error.kind() {
        OutboundErrorKind::Missing if error.header() == Some(&AUTHORIZATION) => {
            StatusCode::UNAUTHORIZED
        }
        OutboundErrorKind::Missing
        | OutboundErrorKind::Invalid
        | OutboundErrorKind::TooManyHeaders => StatusCode::BAD_REQUEST,
        OutboundErrorKind::NoInbound
        | OutboundErrorKind::NotCaptured
        | OutboundErrorKind::NotAbsolute => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let rejection = Rejection::new(status, error.to_string());
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        rejection.with(WWW_AUTHENTICATE, challenge)
    } else {
        rejection
    }
}

impl<C, B, R> Service<Request<B>> for Relay<C>
where
    C: Service<Request<Body<B>>, Response = Response<R>> + Clone,
    C::Error: Into<BoxError>,
{
    type Response = Response<reply::Body<Body<R>>>;
    type Error = std::convert::Infallible;
    type Future = RelayFuture<C, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The client's readiness is awaited by each call, so that its errors become answers.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        RelayFuture {
            state: match self.outbound(request) {
                Ok((request, merged)) => {
                    let exchange = Oneshot::new(self.client.clone(), request);
                    State::Sent {
                        exchange: tokio::time::timeout(self.head_timeout, exchange),
                        upstream: self.upstream.clone(),
                        merged,
                    }
                }
                Err(unsent) => {
                    events::rejected("relay", &unsent.rejection);
                    State::Unsent { unsent }
                }
            },
        }
    }
}

pin_project! {
    /// The future of [`Relay`].
    pub struct RelayFuture<C, B>
    where
        C: Service<Request<Body<B>>>,
    {
        #[pin]
        state: State<C, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<C, B>
    where
        C: Service<Request<Body<B>>>,
    {
        Sent {
            #[pin]
            exchange: Timeout<Oneshot<C, Request<Body<B>>>>,
            upstream: Upstream,
            merged: Merged,
        },
        Unsent { unsent: Unsent },
    }
}

impl<C, B> fmt::Debug for RelayFuture<C, B>
where
    C: Service<Request<Body<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayFuture").finish_non_exhaustive()
    }
}

impl<C, B, R> Future for RelayFuture<C, B>
where
    C: Service<Request<Body<B>>, Response = Response<R>>,
    C::Error: Into<BoxError>,
{
    type Output = Result<Response<reply::Body<Body<R>>>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sent {
                exchange,
                upstream,
                merged,
            } => {
                let outcome = ready!(exchange.poll(cx));
                Poll::Ready(Ok(match outcome {
                    Ok(Ok(response)) => answer(upstream, merged, response),
                    Ok(Err(error)) => {
                        events::unreachable(upstream, &*error.into());
                        failed(StatusCode::BAD_GATEWAY, upstream, "cannot be reached")
                    }
                    Err(_) => {
                        events::late(upstream);
                        failed(
                            StatusCode::GATEWAY_TIMEOUT,
                            upstream,
                            "did not answer in time",
                        )
                    }
                }))
            }
            StateProj::Unsent { unsent } => {
                let mut response = unsent.rejection.response();
                if let Some(refusal) = unsent.refusal.take() {
                    mark(&mut response, Some(refusal));
                }
                Poll::Ready(Ok(response))
            }
        }
    }
}

/// Tells the layers outside whose head this is.
fn mark<R>(response: &mut Response<R>, refusal: Option<Refusal>) {
    if let Some(refusal) = &refusal {
        Refused::mark(refusal, response.extensions_mut());
    }
    response.extensions_mut().insert(Relayed { refusal });
}

/// Why there is no answer of the upstream's.
fn failed<R>(status: StatusCode, upstream: &Upstream, what: &str) -> Response<reply::Body<R>> {
    Rejection::new(status, format!("upstream `{upstream}` {what}")).response()
}

/// The upstream's answer, without what is not for the caller.
fn answer<R>(
    upstream: &Upstream,
    merged: &Merged,
    response: Response<R>,
) -> Response<reply::Body<Body<R>>> {
    let (mut head, body) = response.into_parts();
    if head.status.is_informational()
        || head.status.is_redirection()
        || head.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
    {
        // The upstream's URL is wrong, and the caller cannot help it.
        events::astray(upstream, head.status, head.headers.get(LOCATION));
        let what = format!("answered {}", head.status.as_u16());
        return failed(StatusCode::BAD_GATEWAY, upstream, &what);
    }
    events::relayed(upstream, head.status);
    let refusal = merged.report(upstream, head.status, &head.headers);
    remove_hop(&mut head.headers);
    let mut response = Response::new(reply::Body::inner(Body::new(body)));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    // Also where this relay lost its caller, and cannot know whether a hold waits outside.
    mark(&mut response, refusal);
    response
}

/// Removes what is about the upstream's connection or origin, and what `Connection` lists
/// (RFC 9110 section 7.6.1).
fn remove_hop(headers: &mut HeaderMap) {
    let nominated = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok());
    let own = headers.keys().filter(|name| is_only_upstream(name));
    let removed: Vec<HeaderName> = own.cloned().chain(nominated).collect();
    for name in removed {
        headers.remove(name);
    }
}

fn is_only_upstream(name: &HeaderName) -> bool {
    let mut prefixes = RESPONSE_ONLY_UPSTREAM_PREFIXES.iter();
    RESPONSE_ONLY_UPSTREAM.contains(name)
        || prefixes.any(|prefix| name.as_str().starts_with(prefix))
}
