//! `CaptureLayer`: runs the service as the caller of each request, with what the rules read.
//!
//! What is read, and when a request is rejected, is `read.rs`. It may not know where the headers go.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderName, Request, Response, request::Parts};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::read::{Attest, Reader, Source};
use crate::{
    carry::{Inbound, WithInbound},
    error::{BuildError, Mistake, MistakeKind},
    events,
    reply::{self, Rejection},
    rules::{CompiledRule, OnConflict, Upstream, admission_forwarded, names},
};

/// How long one captured value may be, unless set otherwise, in bytes.
const MAX_VALUE: usize = 16 * 1024;

/// How long all captured values together may be, unless set otherwise, in bytes.
const MAX_TOTAL: usize = 64 * 1024;

/// Captures the caller's headers, of those that the rules read, and makes them current.
///
/// They are in the slot of the running task, during the synchronous part of `call`, in the response
/// future and in the response body; and in the request's extensions ([`Inbound::of`]), for code
/// that gets the request across a spawn. A layer replaces what an outer one captured, and a
/// [`RefusalLayer`](crate::RefusalLayer) outside still hears of refusals.
///
/// The captured values are [sensitive](http::HeaderValue::set_sensitive), also in the request that goes
/// on. A line with an empty value is as if it had not come. Put the layer inside the authentication,
/// and outside whatever sends.
///
/// # Rejected requests
///
/// With a JSON-RPC error body:
///
/// | status | when |
/// |---|---|
/// | 400 | a captured name came on two lines: an ambiguous identity, unless every rule that reads it is [`multi`](crate::Rule::multi); `cookie`, which HTTP/2 splits, is joined (RFC 9113 section 8.2.3) |
/// | 400 | a captured value has white space at an edge |
/// | 400 | `Connection` lists a captured name (RFC 9110 section 7.6.1 lets a caller remove headers so), is not readable, or lists ten names and more |
/// | 431 | a captured value is longer than 16 KiB, all together than 64 KiB, or they have more than 256 lines; nothing is truncated |
/// | 500 | an [attested](CaptureBuilder::attest) value is no header value, or too long |
#[derive(Clone, Debug)]
#[must_use = "a layer works once it is put around a service"]
pub struct CaptureLayer {
    reader: Arc<Reader>,
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
            ..CaptureBuilder::new()
        }
    }

    /// Captures `names`, for upstreams that are not known when the layer is built.
    ///
    /// What may be forwarded is still said by each upstream's rules, but what
    /// [`for_upstreams`](Self::for_upstreams) checks between upstreams cannot be checked, and every
    /// name is single-valued.
    pub fn for_names(names: impl IntoIterator<Item = impl AsRef<str>>) -> CaptureBuilder {
        CaptureBuilder {
            names: names
                .into_iter()
                .map(|name| name.as_ref().to_owned())
                .collect(),
            ..CaptureBuilder::new()
        }
    }

    /// The names that it captures: what tower-http's `SetSensitiveRequestHeadersLayer`, which
    /// stands outside, should know.
    #[must_use]
    pub fn names(&self) -> &[HeaderName] {
        self.reader.names()
    }
}

/// Collects what a [`CaptureLayer`] reads.
#[derive(Clone)]
#[must_use = "nothing is checked before `build`"]
pub struct CaptureBuilder {
    upstreams: Vec<Upstream>,
    names: Vec<String>,
    fan_out: Vec<String>,
    attested: Vec<(String, Attest)>,
    max_value: usize,
    max_total: usize,
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
    fn new() -> Self {
        Self {
            upstreams: Vec::new(),
            names: Vec::new(),
            fan_out: Vec::new(),
            attested: Vec::new(),
            max_value: MAX_VALUE,
            max_total: MAX_TOTAL,
        }
    }

    /// Lets upstreams of different origins read the same `authorization`, `cookie` or
    /// `proxy-authorization`.
    ///
    /// Each of them can then replay the credential at the others.
    pub fn allow_fan_out(mut self, name: impl AsRef<str>) -> Self {
        self.fan_out.push(name.as_ref().to_owned());
        self
    }

    /// Takes the header `name` from `value` instead of from the caller.
    ///
    /// For what your authentication has verified: it stands outside this layer and leaves its result
    /// in the request's extensions. The caller's own lines of that name are removed from the request
    /// and replaced, in any spelling of `-`. Where `value` gives nothing, the header is absent, and the
    /// call goes on without it unless the rule is [`required`](crate::Rule::required); that is also
    /// what an authentication *inside* this layer looks like. A value with control bytes, with white
    /// space at an edge or too long is answered with 500; one that is not ASCII goes as its UTF-8
    /// bytes, which many servers do not read.
    ///
    /// ```
    /// use mcp_forward::{CaptureLayer, Rule, Upstream};
    ///
    /// #[derive(Clone)]
    /// struct Subject(String);
    ///
    /// let search = Upstream::builder("search", "https://search.example/mcp")
    ///     .rule(Rule::new("x-mcp-subject").required())
    ///     .build()?;
    /// let layer = CaptureLayer::for_upstreams([&search])
    ///     .attest("x-mcp-subject", |parts| {
    ///         let subject = parts.extensions.get::<Subject>()?;
    ///         Some(subject.0.as_str().into())
    ///     })
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    pub fn attest<F>(mut self, name: impl AsRef<str>, value: F) -> Self
    where
        F: for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    {
        self.attested
            .push((name.as_ref().to_owned(), Arc::new(value)));
        self
    }

    /// How long one captured value may be, in bytes; 16 KiB by default.
    pub fn max_value(self, bytes: usize) -> Self {
        Self {
            max_value: bytes,
            ..self
        }
    }

    /// How long all captured values together may be, in bytes; 64 KiB by default.
    pub fn max_total(self, bytes: usize) -> Self {
        Self {
            max_total: bytes,
            ..self
        }
    }

    /// Checks the upstreams against each other.
    ///
    /// # Errors
    ///
    /// [`BuildError`] lists every mistake: two upstreams of one name, sources that differ only by
    /// `_` and `-`, a header that admits callers to the proxy and is forwarded, a guarded header that
    /// upstreams of different origins read, unless that is [allowed](Self::allow_fan_out), and an
    /// attested header that is restricted, or that no rule reads.
    pub fn build(self) -> Result<CaptureLayer, BuildError> {
        let mut mistakes = Vec::new();
        self.check_upstreams(&mut mistakes);
        let mut sources = self.check_sources(&mut mistakes);
        self.check_fan_out(&mut mistakes);
        self.check_attested(&mut sources, &mut mistakes);
        if mistakes.is_empty() {
            // Where nothing attached could mean the operator's own identity, it has to mean something
            // else than "no layer".
            let falls_back =
                |(_, rule): (_, &CompiledRule)| rule.on_conflict == Some(OnConflict::Caller);
            let attaches = !self.names.is_empty() || self.rules().any(falls_back);
            let reader = Reader::new(sources, self.max_value, self.max_total, attaches);
            Ok(CaptureLayer {
                reader: Arc::new(reader),
            })
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

    /// Everything that is read, by its folded name.
    fn check_sources(&self, mistakes: &mut Vec<Mistake>) -> BTreeMap<String, (HeaderName, Source)> {
        let mut admissions = BTreeSet::new();
        let mut read = Vec::new();
        for text in &self.names {
            match names::forwardable(text) {
                Ok(name) => read.push((name, false)),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        for (_, rule) in self.rules() {
            read.push((rule.source.clone(), rule.multi));
            if let Some(admission) = &rule.only_with {
                read.push((admission.clone(), false));
                admissions.insert(admission.as_str());
            }
        }
        for (_, rule) in self.rules() {
            if admissions.contains(rule.source.as_str()) {
                mistakes.push(admission_forwarded(&rule.source));
            }
        }
        let mut sources = BTreeMap::<_, (HeaderName, Source)>::new();
        for (name, multi) in read {
            let source = if multi {
                Source::Lines
            } else {
                Source::of(&name)
            };
            match sources.get_mut(&names::folded(&name)) {
                Some((earlier, _)) if *earlier != name => mistakes.push(Mistake::of(
                    MistakeKind::Ambiguous,
                    &name,
                    format!("and `{earlier}` are one header to many servers; read one of them"),
                )),
                Some((_, earlier)) if !multi => *earlier = source,
                Some(_) => {}
                None => {
                    sources.insert(names::folded(&name), (name, source));
                }
            }
        }
        sources
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

    /// An attested header replaces the caller's, so somebody has to read it, and one has to give it.
    fn check_attested(
        &self,
        sources: &mut BTreeMap<String, (HeaderName, Source)>,
        mistakes: &mut Vec<Mistake>,
    ) {
        for (text, attest) in &self.attested {
            let name = match names::forwardable(text) {
                Ok(name) => name,
                Err(mistake) => {
                    mistakes.push(mistake);
                    continue;
                }
            };
            let wrong = match sources.get_mut(&names::folded(&name)) {
                Some((read, Source::Attested(_))) if *read == name => "is attested twice; keep one",
                Some((read, source)) if *read == name => {
                    *source = Source::Attested(Arc::clone(attest));
                    continue;
                }
                _ => "is attested, and no rule reads it; remove one or add the other",
            };
            mistakes.push(Mistake::of(MistakeKind::Attested, &name, wrong));
        }
    }
}

impl<S> Layer<S> for CaptureLayer {
    type Service = Capture<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Capture {
            inner,
            reader: Arc::clone(&self.reader),
        }
    }
}

/// The service of a [`CaptureLayer`].
#[derive(Clone, Debug)]
pub struct Capture<S> {
    inner: S,
    reader: Arc<Reader>,
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
        if self.reader.attests() {
            request = match self.reader.attest(request) {
                Ok(attested) => attested,
                Err(rejection) => return CaptureFuture::rejected(rejection),
            };
        }
        let inbound = match self.reader.read(request.headers_mut()) {
            Ok(inbound) => inbound,
            Err(rejection) => return CaptureFuture::rejected(rejection),
        };
        events::captured(&inbound);
        let inbound = inbound.in_place_of_known(request.extensions());
        if inbound.is_trivial() && !self.reader.always_attaches() {
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

impl<F> CaptureFuture<F> {
    fn rejected(rejection: Rejection) -> Self {
        events::rejected("capture", &rejection);
        Self {
            state: State::Rejected { rejection },
        }
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
                    response.map(|body| reply::Body::inner(future.succeed(body)))
                ))
            }
            StateProj::Rejected { rejection } => Poll::Ready(Ok(rejection.response())),
        }
    }
}
