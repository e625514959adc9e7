//! `ForwardLayer`: injects the merged headers into any tower HTTP client.
//!
//! It may not know what captured them. Whatever may lie outside the upstream gets nothing.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, Uri, header::LOCATION};
use pin_project_lite::pin_project;
use tower::{BoxError, Layer, Service};

use super::{Merged, merge_into};
use crate::{
    carry::Inbound,
    error::{OutboundError, OutboundErrorKind},
    events,
    rules::{Upstream, place},
};

/// Injects the caller's and the static headers of one upstream into requests to that upstream.
///
/// A request is for the upstream where scheme, host and port are its own, and the path is its path
/// or lies below it; others pass untouched. Upstreams of one client should not lie below each
/// other. Every header that the upstream's configuration reads or writes is removed first, in any
/// spelling of `-`, so a copy of the caller's headers cannot stand in for the merged ones.
///
/// Take the URI from [`Upstream::url`]: `localhost` is not `127.0.0.1`, and a request that misses the
/// upstream goes without the headers, required or not.
///
/// ```
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use mcp_forward::{ForwardLayer, Upstream};
/// use tower::Layer;
///
/// let search = Upstream::builder("search", "https://search.example/mcp")
///     .allow("x-user-id")
///     .build()?;
/// let client = Client::builder(TokioExecutor::new()).build_http::<String>();
/// let http = ForwardLayer::new(&search).layer(client);
/// // In a handler: `http.clone().oneshot(request)`, with `tower::ServiceExt`.
/// # let _ = http;
/// # Ok::<_, mcp_forward::BuildError>(())
/// ```
///
/// The caller is the inbound [attached](Inbound::attach) to the request, else the
/// [current](Inbound::current) one. A worker that sends requests of many callers is nobody's: start
/// it by a plain spawn, and send each with `.with_inbound(Inbound::of(…))` its message.
///
/// An answer of 401 or 403 is [reported](Inbound::report) to whoever answers the caller, see
/// [`RefusalLayer`](crate::RefusalLayer), and so is a required credential that did not come.
///
/// # Redirects
///
/// Put it **below** any redirect or retry layer, nearest to the wire. It takes `location` out of a
/// 3xx that leaves the upstream (a [`RemovedLocation`] in the
/// response's extensions has it), so that no follower above carries headers or the body away. Over
/// a follower, and over reqwest's default client, custom names leak and nothing on our side can
/// stop it: build that client with `redirect::Policy::none()`. Keep such a client to its upstreams:
/// another server that it is sent to can redirect *into* the upstream.
///
/// # Errors
///
/// The service fails with [`OutboundError`], boxed, and sends nothing: where the URI has no scheme
/// or host, where no inbound is known and the upstream's rules read the caller, where a required
/// header is missing, and where a value must not be sent on. All other errors are the inner
/// service's. `error.downcast_ref::<OutboundError>()` tells them apart: `Missing` and `Invalid` are
/// the caller's doing (400 or 401; of a POST, [`RefusalLayer`](crate::RefusalLayer) makes a missing
/// credential 401 by itself), the others the operator's (500).
#[derive(Clone, Debug)]
#[must_use = "a layer works once it is put around a service"]
pub struct ForwardLayer {
    scope: Scope,
}

/// A request to the upstream, until its answer.
struct Sent {
    scope: Scope,
    uri: Uri,
    merged: Merged,
}

impl Sent {
    fn answered<R>(&self, response: &mut Response<R>) {
        let upstream = &self.scope.upstream;
        self.merged
            .report(upstream, response.status(), response.headers());
        self.scope.remove_location(response, &self.uri);
    }
}

/// Which requests are for the upstream.
#[derive(Clone, Debug)]
struct Scope {
    upstream: Upstream,
    whole_origin: bool,
}

impl ForwardLayer {
    /// Injects into requests to `upstream`.
    pub fn new(upstream: &Upstream) -> Self {
        Self {
            scope: Scope {
                upstream: upstream.clone(),
                whole_origin: false,
            },
        }
    }

    /// Injects into requests to any path of the upstream's origin.
    ///
    /// For the transport of MCP 2024-11-05, whose second endpoint can have any path.
    pub fn whole_origin(mut self) -> Self {
        self.scope.whole_origin = true;
        self
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Forward {
            inner,
            scope: self.scope.clone(),
        }
    }
}

/// The service of a [`ForwardLayer`].
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    scope: Scope,
}

impl<S, B, R> Service<Request<B>> for Forward<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = ForwardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let uri = request.uri().clone();
        let state = match self.scope.inject(&mut request) {
            Err(error) => State::NotMerged { error: Some(error) },
            Ok(merged) => State::Inner {
                future: self.inner.call(request),
                sent: merged.map(|merged| Sent {
                    scope: self.scope.clone(),
                    uri,
                    merged,
                }),
            },
        };
        ForwardFuture { state }
    }
}

impl Scope {
    /// Puts the merged headers into the request, if it is one for the upstream.
    fn inject<B>(&self, request: &mut Request<B>) -> Result<Option<Merged>, OutboundError> {
        if request.uri().scheme().is_none() || request.uri().authority().is_none() {
            let kind = OutboundErrorKind::NotAbsolute;
            return Err(OutboundError::new(kind, self.upstream.name(), None));
        }
        if !self.holds(request.uri()) {
            return Ok(None);
        }
        let inbound = Inbound::attached(request.extensions()).or_else(Inbound::current);
        merge_into(&self.upstream, inbound.as_ref(), request.headers_mut()).map(Some)
    }

    fn holds(&self, uri: &Uri) -> bool {
        self.upstream.origin().holds(uri) && self.holds_path(uri.path())
    }

    fn holds_path(&self, path: &str) -> bool {
        self.whole_origin || place::is_below(self.upstream.url().path(), path)
    }

    /// Whether a follower of `location`, however it reads it, would stay at the upstream.
    fn keeps(&self, location: &HeaderValue, from: &Uri) -> bool {
        let Ok(location) = location.to_str() else {
            return false;
        };
        // Readers differ on these: white space is dropped, a backslash is a slash.
        if location.contains([' ', '\t', '\\']) {
            return false;
        }
        let end = location.find(['?', '#']).unwrap_or(location.len());
        let path = &location[..end];
        if path.is_empty() {
            return true;
        }
        let first = path.split('/').next().unwrap_or_default();
        if first.contains(':') || path.starts_with("//") {
            return location.parse().is_ok_and(|uri| self.holds(&uri));
        }
        if path.starts_with('/') {
            return self.holds_path(path);
        }
        let base = from.path();
        let folder = &base[..base.rfind('/').map_or(0, |slash| slash + 1)];
        place::is_plain(path) && self.holds_path(&format!("{folder}{path}"))
    }

    fn remove_location<R>(&self, response: &mut Response<R>, from: &Uri) {
        if !response.status().is_redirection() {
            return;
        }
        let mut locations = response.headers().get_all(LOCATION).iter();
        if locations.any(|location| !self.keeps(location, from))
            && let Some(mut location) = response.headers_mut().remove(LOCATION)
        {
            location.set_sensitive(true);
            events::location_removed(&self.upstream, response.status(), &location);
            response.extensions_mut().insert(RemovedLocation(location));
        }
    }
}

/// Where a redirect out of the upstream would have led: in the extensions of a response whose
/// `location` [`ForwardLayer`] took out.
#[derive(Clone, Debug)]
pub struct RemovedLocation(HeaderValue);

impl RemovedLocation {
    /// The value of the header, sensitive: its query may hold a secret.
    #[must_use]
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }
}

pin_project! {
    /// The future of [`Forward`].
    pub struct ForwardFuture<F> {
        #[pin]
        state: State<F>,
    }
}

impl<F> fmt::Debug for ForwardFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardFuture").finish_non_exhaustive()
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Inner { #[pin] future: F, sent: Option<Sent> },
        NotMerged { error: Option<OutboundError> },
    }
}

impl<F, R, E> Future for ForwardFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Inner { future, sent } => {
                let mut response = ready!(future.poll(cx)).map_err(Into::into)?;
                if let Some(sent) = sent {
                    sent.answered(&mut response);
                }
                Poll::Ready(Ok(response))
            }
            StateProj::NotMerged { error } => match error.take() {
                Some(error) => Poll::Ready(Err(error.into())),
                None => Poll::Pending,
            },
        }
    }
}
