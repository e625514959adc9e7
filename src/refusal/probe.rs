//! `ProbeLayer`: asks the upstream first, before the service sees the request.
//!
//! What is asked is `ask.rs`, what is known already `answers.rs`. It may not choose an upstream.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response, StatusCode, Uri, request::Parts};
use pin_project_lite::pin_project;
use tokio::task::JoinSet;
use tower::{BoxError, Layer, Service};

use super::{
    answers::{Answer, Answers},
    ask::{First, PROTOCOL_VERSION, Question, ask},
    challenge::Challenge,
    hold::no_capture,
};
use crate::{
    carry::Inbound,
    events,
    outbound::{self, Outbound},
    reply::{self, Rejection},
    rules::Upstream,
};

/// Asks upstreams whether they take the caller's credential, before the service is called.
///
/// For a service that swallows its upstreams' refusals; [`RefusalLayer`](crate::RefusalLayer), which
/// costs no request, needs a report. Before a POST it sends the upstream an `initialize`, or a
/// `server/discover` where the caller speaks MCP 2026-07-28, with the headers of the real call,
/// and reads the head of the answer. It stands inside [`CaptureLayer`](crate::CaptureLayer), else it
/// answers 500, and outside `RefusalLayer`. It needs a tokio runtime with its timer enabled.
///
/// ```
/// use axum::{Router, body::Body};
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use mcp_forward::{CaptureLayer, ProbeLayer, Rule, Upstream, outbound};
///
/// let search = Upstream::builder("search", "http://localhost:9000/mcp")
///     .rule(Rule::new("x-search-token").to("authorization").bearer())
///     .build()?;
/// let client = Client::builder(TokioExecutor::new()).build_http::<outbound::Body<Body>>();
/// let target = search.clone();
/// let app: Router = Router::new()
///     .layer(ProbeLayer::new(client, move |_| [target.clone()]))
///     .layer(CaptureLayer::for_upstreams([&search]).build()?);
/// # let _ = app;
/// # Ok::<_, mcp_forward::BuildError>(())
/// ```
///
/// # What the caller gets
///
/// | the upstream | the caller gets |
/// |---|---|
/// | says 401 or 403 | the same with a [`Challenge`]; of several upstreams, what the first one selected says |
/// | says 2xx | the service's answer; for 30 s the same headers are not asked again |
/// | says something else, cannot be reached, or says nothing within 5 s | the service's answer, or 502 with [`fail_closed`](Self::fail_closed); for 5 s the same headers are not asked again |
///
/// Not asked: for GET and DELETE, an upstream whose rules have no credential of the caller's, one for
/// which none came, and one at which 16 questions are on their way. At most 1,024 answers are kept,
/// each for exactly the same headers and the same request, and those go first that expire first; a refusal never is. A session that the question began is ended.
///
/// The client must not follow redirects, and has no [`ForwardLayer`](crate::ForwardLayer) in it.
#[derive(Clone)]
#[must_use = "a layer works once it is put around a service"]
pub struct ProbeLayer<C> {
    client: C,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Shared {
    select: Select,
    challenge: Challenge,
    fail_closed: bool,
    answers: Arc<Answers>,
}

type Select = Arc<dyn Fn(&Parts) -> Vec<Upstream> + Send + Sync>;

impl<C> ProbeLayer<C> {
    /// Asks those upstreams that `select` gives for a request, through `client`.
    ///
    /// `select` decides after your own authorization, so put that layer outside: it gives the
    /// upstreams that this caller may use and this request is for. Never make one of a name or URL in
    /// the request. The client can be that of a [`Relay`](crate::Relay), with the same pool.
    pub fn new<F, U>(client: C, select: F) -> Self
    where
        F: Fn(&Parts) -> U + Send + Sync + 'static,
        U: IntoIterator<Item = Upstream>,
    {
        Self {
            client,
            shared: Arc::new(Shared {
                select: Arc::new(move |parts| select(parts).into_iter().collect()),
                challenge: Challenge::omit(),
                fail_closed: false,
                answers: Arc::default(),
            }),
        }
    }

    /// What a refused caller is told; [`Challenge::omit`] by default.
    pub fn challenge(mut self, challenge: Challenge) -> Self {
        Arc::make_mut(&mut self.shared).challenge = challenge;
        self
    }

    /// Answers 502 where an upstream says neither yes nor no, instead of calling the service.
    ///
    /// This is no authorization: an upstream that is not asked decides for itself, also while 16 questions
    /// are on their way to one that is silent.
    pub fn fail_closed(mut self) -> Self {
        Arc::make_mut(&mut self.shared).fail_closed = true;
        self
    }
}

impl<C> fmt::Debug for ProbeLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeLayer")
            .field("challenge", &self.shared.challenge)
            .field("fail_closed", &self.shared.fail_closed)
            .finish_non_exhaustive()
    }
}

impl<S, C: Clone> Layer<S> for ProbeLayer<C> {
    type Service = Probe<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Probe {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of a [`ProbeLayer`].
#[derive(Clone, Debug)]
pub struct Probe<S, C> {
    inner: S,
    layer: ProbeLayer<C>,
}

impl<S, C, B, R, P> Service<Request<B>> for Probe<S, C>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    C: Service<Request<outbound::Body<B>>, Response = Response<P>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    B: Send + 'static,
    P: Send + 'static,
{
    type Response = Response<reply::Body<R>>;
    type Error = S::Error;
    type Future = ProbeFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let known = Inbound::attached(request.extensions()).or_else(Inbound::current);
        let Some(inbound) = known else {
            let rejection = no_capture("`ProbeLayer`");
            events::rejected("probe", &rejection);
            let state = State::Rejected { rejection };
            return ProbeFuture { state };
        };
        let (request, targets) = self.layer.shared.targets(request, &inbound);
        let state = if targets.is_empty() {
            State::Inner {
                future: self.inner.call(request),
            }
        } else {
            let uri = request.uri().clone();
            // The one that is ready.
            let next = self.inner.clone();
            let inner = std::mem::replace(&mut self.inner, next);
            State::Asking {
                asked: self.layer.asked(targets, uri),
                held: Some((inner, request)),
            }
        };
        ProbeFuture { state }
    }
}

impl Shared {
    /// What has to be asked before `request` is served.
    fn targets<B>(&self, request: Request<B>, inbound: &Inbound) -> (Request<B>, Vec<Question>) {
        if request.method() != Method::POST {
            return (request, Vec::new());
        }
        let (parts, body) = request.into_parts();
        let upstreams = (self.select)(&parts);
        // What cannot be merged is told by the real call.
        let merged = upstreams
            .iter()
            .filter_map(|upstream| Outbound::try_merge(upstream, Some(inbound)).ok());
        let first = First::of(parts.headers.get(PROTOCOL_VERSION));
        let questions = merged
            .filter(Outbound::has_credential)
            .map(|outbound| Question { outbound, first });
        let unknown = questions.filter(|question| !self.answers.has_passed(question));
        let targets = unknown.collect();
        (Request::from_parts(parts, body), targets)
    }
}

impl<C> ProbeLayer<C> {
    /// Asks all at once.
    fn asked<B, P>(&self, targets: Vec<Question>, uri: Uri) -> Asked
    where
        C: Service<Request<outbound::Body<B>>, Response = Response<P>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: Send + 'static,
        P: Send + 'static,
    {
        let mut asked = Asked {
            shared: Arc::clone(&self.shared),
            uri,
            answers: vec![Answer::Failed; targets.len()],
            upstreams: Vec::new(),
            questions: JoinSet::new(),
        };
        for (at, question) in targets.into_iter().enumerate() {
            asked.upstreams.push(question.outbound.upstream().clone());
            let (client, answers) = (self.client.clone(), Arc::clone(&self.shared.answers));
            // On behalf of nobody: the answer is for everyone with the same headers.
            asked.questions.spawn(async move {
                let asking = |permit| ask(client, &question, permit);
                (at, answers.get(&question, asking).await)
            });
        }
        asked
    }
}

/// Questions on their way, for one request.
struct Asked {
    shared: Arc<Shared>,
    uri: Uri,
    upstreams: Vec<Upstream>,
    answers: Vec<Answer>,
    questions: JoinSet<(usize, Answer)>,
}

impl Asked {
    /// Our answer, if the service is not to be called.
    fn poll<R>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response<reply::Body<R>>>> {
        while let Some(joined) = ready!(self.questions.poll_join_next(cx)) {
            if let Ok((at, answer)) = joined
                && let Some(place) = self.answers.get_mut(at)
            {
                *place = answer;
            }
        }
        for (upstream, answer) in self.upstreams.iter().zip(&self.answers) {
            events::probed(upstream, answer.name());
        }
        let refused = self.answers.iter().find_map(|answer| match answer {
            Answer::Refused(refusal) => Some(refusal),
            _ => None,
        });
        if let Some(refusal) = refused {
            let challenge = &self.shared.challenge;
            return Poll::Ready(Some(challenge.answer(&self.uri, refusal, "probed")));
        }
        let mut answers = self.answers.iter();
        let failed = answers.position(|answer| matches!(answer, Answer::Failed | Answer::Silent));
        let upstream = failed.and_then(|at| self.upstreams.get(at));
        let upstream = upstream.filter(|_| self.shared.fail_closed);
        Poll::Ready(upstream.map(|upstream| {
            let message = format!("upstream `{upstream}` does not say whether it may be called");
            let rejection = Rejection::new(StatusCode::BAD_GATEWAY, message);
            events::rejected("probe", &rejection);
            rejection.response()
        }))
    }
}

pin_project! {
    /// The future of [`Probe`].
    pub struct ProbeFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        Asking { asked: Asked, held: Option<(S, Request<B>)> },
        Inner { #[pin] future: S::Future },
        Rejected { rejection: Rejection },
    }
}

impl<S, B> fmt::Debug for ProbeFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> Future for ProbeFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<reply::Body<R>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.as_mut().project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Asking { asked, held } => {
                    if let Some(response) = ready!(asked.poll(cx)) {
                        return Poll::Ready(Ok(response));
                    }
                    let Some((mut inner, request)) = held.take() else {
                        return Poll::Pending;
                    };
                    let future = inner.call(request);
                    state.set(State::Inner { future });
                }
                StateProj::Inner { future } => {
                    let response = ready!(future.poll(cx))?;
                    return Poll::Ready(Ok(response.map(reply::Body::inner)));
                }
                StateProj::Rejected { rejection } => return Poll::Ready(Ok(rejection.response())),
            }
        }
    }
}
