//! `OriginGuardLayer`: which hosts and which browser pages may reach the service (DNS rebinding).
//!
//! It may not know rules or credentials.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{HOST, ORIGIN},
    uri::Authority,
};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    error::{BuildError, Mistake, MistakeKind},
    events,
    reply::{self, Rejection},
    rules::place::{Origin, host_and_port, is_loopback},
};

/// Refuses requests to another host, and from pages of another origin.
///
/// A page whose DNS name was pointed at this machine can send requests to it, but not with another
/// `Host`; so MCP asks servers to validate `Origin` (*Transports*, "Security Warning"). A relay
/// rewrites `Host` and drops `Origin`, which disarms the guard of the server behind it:
/// [`Relay`](crate::Relay) therefore has this one built in.
///
/// # Rejected requests
///
/// **403** where `Host` (in HTTP/2 `:authority`) is not allowed, or `Origin` came and is not; **400**
/// where the host is missing, unreadable or on two lines (RFC 9112 section 3.2).
#[derive(Clone, Debug, Default)]
#[must_use = "a layer works once it is put around a service"]
pub struct OriginGuardLayer {
    allowed: Arc<Allowed>,
}

#[derive(Debug, Default)]
struct Allowed {
    /// Empty: loopback.
    hosts: Vec<Host>,
    /// Empty: `http` and `https` pages of the allowed hosts.
    origins: Vec<Origin>,
}

/// A host, and its port if only that one is meant.
#[derive(Debug)]
struct Host {
    name: String,
    port: Option<u16>,
}

impl OriginGuardLayer {
    /// Allows `localhost`, 127.0.0.0/8 and `[::1]` with any port, and pages of the same hosts.
    pub fn loopback() -> Self {
        Self::default()
    }

    /// Starts a guard for other hosts or origins.
    ///
    /// Where workers pass requests on to each other, these come under a worker's own address: allow that
    /// as well.
    ///
    /// ```
    /// use mcp_forward::OriginGuardLayer;
    ///
    /// let guard = OriginGuardLayer::builder()
    ///     .allow_host("mcp.example.com")
    ///     .allow_origin("https://app.example.com")
    ///     .build()?;
    /// # let _ = guard;
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    pub fn builder() -> OriginGuardBuilder {
        OriginGuardBuilder {
            hosts: Vec::new(),
            origins: Vec::new(),
        }
    }

    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), Rejection> {
        self.allowed.check_host(request.uri(), request.headers())?;
        self.allowed.check_origin(request.headers())
    }
}

impl Allowed {
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Rejection> {
        const UNREADABLE: Rejection =
            Rejection::fixed(StatusCode::BAD_REQUEST, "send one readable `host`");
        let mut lines = headers.get_all(HOST).iter();
        let header = lines
            .next()
            .map(HeaderValue::to_str)
            .transpose()
            .map_err(|_| UNREADABLE)?;
        if lines.next().is_some() {
            return Err(UNREADABLE);
        }
        let authority = uri.authority().map(Authority::as_str);
        if header.or(authority).is_none() {
            return Err(UNREADABLE);
        }
        // An absolute-form target and `Host` can differ; whoever reads either has to be safe.
        for text in header.into_iter().chain(authority) {
            let (host, port) = host_and_port(text).ok_or(UNREADABLE)?;
            if !self.is_host(host, port) {
                let message = "this host is not served here; the operator allows hosts";
                return Err(Rejection::fixed(StatusCode::FORBIDDEN, message));
            }
        }
        Ok(())
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        const FORBIDDEN: Rejection = Rejection::fixed(
            StatusCode::FORBIDDEN,
            "pages of this origin may not call here; the operator allows origins",
        );
        let mut lines = headers.get_all(ORIGIN).iter();
        let Some(line) = lines.next() else {
            return Ok(());
        };
        let origin = line.to_str().ok().and_then(parse_origin);
        let allowed = |origin: &Origin| {
            if self.origins.is_empty() {
                origin.is_http() && self.is_host(origin.host(), origin.port())
            } else {
                self.origins.contains(origin)
            }
        };
        match origin {
            Some(origin) if allowed(&origin) && lines.next().is_none() => Ok(()),
            _ => Err(FORBIDDEN),
        }
    }

    fn is_host(&self, name: &str, port: Option<u16>) -> bool {
        if self.hosts.is_empty() {
            return is_loopback(name);
        }
        self.hosts.iter().any(|host| {
            let port_fits = match (host.port, port) {
                (None, _) => true,
                // `Host` leaves out the default port, and does not say of which scheme.
                (Some(allowed), None) => matches!(allowed, 80 | 443),
                (Some(allowed), Some(port)) => allowed == port,
            };
            host.name.eq_ignore_ascii_case(name) && port_fits
        })
    }
}

/// `scheme://host[:port]` and nothing else (RFC 6454 section 6.2).
fn parse_origin(text: &str) -> Option<Origin> {
    let (_, authority) = text.split_once("://")?;
    if authority.contains(['/', '?', '#']) {
        return None;
    }
    Origin::of(&text.parse().ok()?)
}

/// Collects what an [`OriginGuardLayer`] allows.
#[derive(Clone)]
#[must_use = "nothing is checked before `build`"]
pub struct OriginGuardBuilder {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl fmt::Debug for OriginGuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the texts, which nobody has checked: one may hold a value.
        f.debug_struct("OriginGuardBuilder").finish_non_exhaustive()
    }
}

impl OriginGuardBuilder {
    /// Allows `host` with any port, or `host:port`. The first one replaces loopback, the default.
    pub fn allow_host(mut self, host: impl AsRef<str>) -> Self {
        self.hosts.push(host.as_ref().to_owned());
        self
    }

    /// Allows pages of `scheme://host[:port]`. The first one replaces the default, the `http` and
    /// `https` pages of the allowed hosts.
    pub fn allow_origin(mut self, origin: impl AsRef<str>) -> Self {
        self.origins.push(origin.as_ref().to_owned());
        self
    }

    /// Checks every host and origin.
    ///
    /// # Errors
    ///
    /// [`BuildError`] lists each that is not of the form given above.
    pub fn build(self) -> Result<OriginGuardLayer, BuildError> {
        let mut mistakes = Vec::new();
        let mut allowed = Allowed::default();
        for (index, text) in self.hosts.iter().enumerate() {
            let plain = text.parse::<Authority>().is_ok() && !text.contains('*');
            match host_and_port(text).filter(|_| plain) {
                Some((name, port)) => allowed.hosts.push(Host {
                    name: name.to_owned(),
                    port,
                }),
                None => mistakes.push(Mistake::new(
                    MistakeKind::InvalidHost,
                    format!(
                        "allowed host {} is not a host; write `host`, `host:port` or `[::1]`",
                        index + 1
                    ),
                )),
            }
        }
        for (index, text) in self.origins.iter().enumerate() {
            match parse_origin(text).filter(|_| !text.contains('*')) {
                Some(origin) => allowed.origins.push(origin),
                None => mistakes.push(Mistake::new(
                    MistakeKind::InvalidOrigin,
                    format!(
                        "allowed origin {} is not an origin; write `scheme://host` or `scheme://host:port`",
                        index + 1
                    ),
                )),
            }
        }
        if mistakes.is_empty() {
            Ok(OriginGuardLayer {
                allowed: Arc::new(allowed),
            })
        } else {
            Err(BuildError::new("the origin guard", mistakes))
        }
    }
}

impl<S> Layer<S> for OriginGuardLayer {
    type Service = OriginGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OriginGuard {
            inner,
            guard: self.clone(),
        }
    }
}

/// The service of an [`OriginGuardLayer`].
#[derive(Clone, Debug)]
pub struct OriginGuard<S> {
    inner: S,
    guard: OriginGuardLayer,
}

impl<S, B, R> Service<Request<B>> for OriginGuard<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<reply::Body<R>>;
    type Error = S::Error;
    type Future = OriginGuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        OriginGuardFuture {
            state: match self.guard.check(&request) {
                Ok(()) => State::Inner {
                    future: self.inner.call(request),
                },
                Err(rejection) => {
                    events::rejected("origin guard", &rejection);
                    State::Rejected { rejection }
                }
            },
        }
    }
}

pin_project! {
    /// The future of [`OriginGuard`].
    #[derive(Debug)]
    pub struct OriginGuardFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Inner { #[pin] future: F },
        Rejected { rejection: Rejection },
    }
}

impl<F, R, E> Future for OriginGuardFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<reply::Body<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Inner { future } => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(reply::Body::inner)))
            }
            StateProj::Rejected { rejection } => Poll::Ready(Ok(rejection.response())),
        }
    }
}
