//! `CaptureLayer`: reads what the rules name from each request, and runs the service as that caller.
//!
//! It may not know where the headers go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, COOKIE, Entry as MapEntry},
};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    carry::{Entry, Inbound, WithInbound},
    error::{BuildError, Mistake, MistakeKind},
    reply::{self, Rejection},
    rules::{CompiledRule, Upstream, admission_forwarded, names},
};

/// How many header names `Connection` may list, `close`, `keep-alive` and `upgrade` aside.
const MAX_NOMINATED: usize = 9;

/// Captures the caller's headers, of those that the rules read, and makes them current.
///
/// They are in the slot of the running task, during the synchronous part of `call`, in the response
/// future and in the response body; and in the request's extensions ([`Inbound::of`]), for code
/// that gets the request across a spawn. A layer replaces what an outer one captured.
///
/// The captured values are [sensitive](HeaderValue::set_sensitive), also in the request that goes
/// on. Put the layer inside the authentication, and outside whatever sends.
///
/// # Rejected requests
///
/// Answered with a JSON-RPC error body and **400**: a captured name on two lines (an ambiguous
/// identity; `cookie`, which HTTP/2 splits by RFC 9113 section 8.2.3, is joined) or with white space
/// at an edge, and a `Connection` header that lists a captured name (RFC 9110 section 7.6.1 lets a caller remove
/// headers so), that is not readable, or that lists ten names and more.
#[derive(Clone, Debug)]
#[must_use = "a layer works once it is put around a service"]
pub struct CaptureLayer {
    names: Arc<[HeaderName]>,
}

impl CaptureLayer {
    /// Captures exactly the union of what the rules of `upstreams` read.
    ///
    /// ```
    /// use mcp_forward::{CaptureLayer, Upstream};
    ///
    /// let search = Upstream::builder("search", "https://search.example/mcp")
    ///     .allow("x-user-id")
    ///     .build()?;
    /// let layer = CaptureLayer::for_upstreams([&search]).build()?;
    /// # let _ = layer;
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    pub fn for_upstreams<'a>(upstreams: impl IntoIterator<Item = &'a Upstream>) -> CaptureBuilder {
        CaptureBuilder {
            upstreams: upstreams.into_iter().cloned().collect(),
            fan_out: Vec::new(),
        }
    }

    /// The names that it captures: what tower-http's `SetSensitiveRequestHeadersLayer`, which
    /// stands outside, should know.
    #[must_use]
    pub fn names(&self) -> &[HeaderName] {
        &self.names
    }
}

/// Collects what a [`CaptureLayer`] reads.
#[derive(Clone)]
#[must_use = "nothing is checked before `build`"]
pub struct CaptureBuilder {
    upstreams: Vec<Upstream>,
    fan_out: Vec<String>,
}

impl fmt::Debug for CaptureBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the texts, which nobody has checked: one may hold a value.
        f.debug_struct("CaptureBuilder")
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

impl CaptureBuilder {
    /// Lets upstreams of different origins read the same `authorization`, `cookie` or
    /// `proxy-authorization`.
    ///
    /// Each of them can then replay the credential at the others.
    pub fn allow_fan_out(mut self, name: impl AsRef<str>) -> Self {
        self.fan_out.push(name.as_ref().to_owned());
        self
    }

    /// Checks the upstreams against each other.
    ///
    /// # Errors
    ///
    /// [`BuildError`] lists every mistake: two upstreams of one name, sources that differ only by
    /// `_` and `-`, a header that admits callers to the proxy and is forwarded, and a guarded
    /// header that upstreams of different origins read, unless that is
    /// [allowed](Self::allow_fan_out).
    pub fn build(self) -> Result<CaptureLayer, BuildError> {
        let mut mistakes = Vec::new();
        self.check_upstreams(&mut mistakes);
        let names = self.check_names(&mut mistakes);
        self.check_fan_out(&mut mistakes);
        if mistakes.is_empty() {
            Ok(CaptureLayer { names })
        } else {
            Err(BuildError::new("the capture layer", mistakes))
        }
    }

    fn rules(&self) -> impl Iterator<Item = (&Upstream, &CompiledRule)> {
        let upstreams = self.upstreams.iter();
        upstreams.flat_map(|upstream| upstream.rules().iter().map(move |rule| (upstream, rule)))
    }

    fn check_upstreams(&self, mistakes: &mut Vec<Mistake>) {
        let mut seen = BTreeSet::new();
        for name in self.upstreams.iter().map(Upstream::name) {
            if !seen.insert(name) {
                mistakes.push(Mistake::new(
                    MistakeKind::DuplicateUpstream,
                    format!("two upstreams have the name `{name}`; rename one"),
                ));
            }
        }
    }

    /// Every name that the rules read.
    fn check_names(&self, mistakes: &mut Vec<Mistake>) -> Arc<[HeaderName]> {
        let admissions: BTreeSet<_> = self
            .rules()
            .filter_map(|(_, rule)| rule.only_with.as_ref())
            .map(HeaderName::as_str)
            .collect();
        let mut names = BTreeMap::new();
        for (_, rule) in self.rules() {
            if admissions.contains(rule.source.as_str()) {
                mistakes.push(admission_forwarded(&rule.source));
            }
            for name in rule.reads() {
                let earlier = names.insert(names::folded(name), name);
                if let Some(earlier) = earlier.filter(|earlier| *earlier != name) {
                    mistakes.push(Mistake::of(
                        MistakeKind::Ambiguous,
                        name,
                        format!("and `{earlier}` are one header to many servers; read one of them"),
                    ));
                }
            }
        }
        names.into_values().cloned().collect()
    }

    /// One upstream could replay a credential at another that takes the same.
    fn check_fan_out(&self, mistakes: &mut Vec<Mistake>) {
        let mut allowed = Vec::new();
        for text in &self.fan_out {
            match names::forwardable(text) {
                Ok(name) => allowed.push(name),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let mut readers = BTreeMap::new();
        for (upstream, rule) in self.rules() {
            let source = &rule.source;
            if !names::guarded(source) || allowed.contains(source) {
                continue;
            }
            let first = *readers.entry(source.as_str()).or_insert(upstream);
            if first.origin() != upstream.origin() {
                mistakes.push(Mistake::of(
                    MistakeKind::FanOut,
                    source,
                    format!(
                        "would reach `{first}` and `{upstream}`, and each could replay it at the \
                         other; give each its own header, or call `allow_fan_out`"
                    ),
                ));
            }
        }
    }
}

impl<S> Layer<S> for CaptureLayer {
    type Service = Capture<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Capture {
            inner,
            names: Arc::clone(&self.names),
        }
    }
}

/// The service of a [`CaptureLayer`].
#[derive(Clone, Debug)]
pub struct Capture<S> {
    inner: S,
    names: Arc<[HeaderName]>,
}

impl<S, B, R> Service<Request<B>> for Capture<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<reply::Body<WithInbound<R>>>;
    type Error = S::Error;
    type Future = CaptureFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let inbound = match capture(&self.names, request.headers_mut()) {
            Ok(inbound) => inbound,
            Err(message) => {
                let rejection = Rejection::new(StatusCode::BAD_REQUEST, message);
                return CaptureFuture {
                    state: State::Rejected { rejection },
                };
            }
        };
        if inbound.is_trivial() {
            Inbound::detach(request.extensions_mut());
        } else {
            inbound.clone().attach(request.extensions_mut());
        }
        CaptureFuture {
            state: State::Inner {
                future: WithInbound::of(inbound, || self.inner.call(request)),
            },
        }
    }
}

pin_project! {
    /// The future of [`Capture`].
    #[derive(Debug)]
    pub struct CaptureFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Inner { #[pin] future: WithInbound<F> },
        Rejected { rejection: Rejection },
    }
}

impl<F, R, E> Future for CaptureFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<reply::Body<WithInbound<R>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Inner { mut future } => {
                let response = ready!(future.as_mut().poll(cx))?;
                Poll::Ready(Ok(
                    response.map(|body| reply::Body::inner(future.as_ref().beside(body)))
                ))
            }
            StateProj::Rejected { rejection } => Poll::Ready(Ok(rejection.response())),
        }
    }
}

/// Takes a snapshot of `names`; or says why this request is rejected.
fn capture(names: &Arc<[HeaderName]>, headers: &mut HeaderMap) -> Result<Inbound, String> {
    if headers.contains_key(CONNECTION) {
        check_connection(names, headers)?;
    }
    let mut found = Vec::new();
    for name in names.iter() {
        if let Some(value) = read(name, headers)? {
            found.push(Entry {
                name: name.clone(),
                value,
            });
        }
    }
    Ok(Inbound::new(Arc::clone(names), found))
}

/// The one value of `name`, sensitive from here on; an empty one is absent.
fn read(name: &HeaderName, headers: &mut HeaderMap) -> Result<Option<HeaderValue>, String> {
    match headers.get_mut(name) {
        Some(value) => value.set_sensitive(true),
        None => return Ok(None),
    }
    let values = headers.get_all(name);
    // HTTP/1 parsers trim; in HTTP/2 it is malformed (RFC 9113 section 8.2.1), and servers differ.
    if values
        .iter()
        .any(|value| value.as_bytes() != value.as_bytes().trim_ascii())
    {
        return Err(format!(
            "`{name}` begins or ends with white space; remove it"
        ));
    }
    let lines = values.iter().count();
    if lines > 1 && name != COOKIE {
        return Err(format!("`{name}` came on {lines} lines; send it once"));
    }
    let value = if lines > 1 {
        join_cookies(headers)?
    } else {
        headers.get(name).cloned()
    };
    Ok(value.filter(|value| !value.is_empty()))
}

/// HTTP/2 splits `cookie` into lines: RFC 9113 section 8.2.3 says how to join them.
fn join_cookies(headers: &mut HeaderMap) -> Result<Option<HeaderValue>, String> {
    let mut joined = Vec::new();
    if let MapEntry::Occupied(mut lines) = headers.entry(COOKIE) {
        for value in lines.iter_mut() {
            value.set_sensitive(true);
            if !joined.is_empty() && !value.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(value.as_bytes());
        }
    }
    let mut value = HeaderValue::from_maybe_shared(joined)
        .map_err(|_| "the lines of `cookie` cannot be joined; send one".to_owned())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// RFC 9110 section 7.6.1 makes every header that `Connection` lists one of this hop only.
fn check_connection(names: &[HeaderName], headers: &HeaderMap) -> Result<(), String> {
    let mut nominated = 0;
    for line in headers.get_all(CONNECTION) {
        let Ok(line) = line.to_str() else {
            return Err("`connection` is not readable; send header names".to_owned());
        };
        let tokens = line
            .split(',')
            .map(str::trim)
            .filter(|token| !token.is_empty());
        for token in tokens {
            if let Some(name) = names
                .iter()
                .find(|name| token.eq_ignore_ascii_case(name.as_str()))
            {
                return Err(format!("`connection` lists `{name}`; remove it from there"));
            }
            let usual = ["close", "keep-alive", "upgrade"];
            if !usual.iter().any(|usual| token.eq_ignore_ascii_case(usual)) {
                nominated += 1;
            }
        }
    }
    if nominated > MAX_NOMINATED {
        return Err(format!(
            "`connection` lists {nominated} names; send at most {MAX_NOMINATED}"
        ));
    }
    Ok(())
}
