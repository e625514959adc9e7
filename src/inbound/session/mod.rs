//! `SessionLayer`: a session belongs to the principal that began it.
//!
//! Who owns what is `table.rs`, what a request may and a response means is `visit.rs`. It may not know
//! what the caller's headers say, nor read a body.

mod table;
mod visit;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderName, Request, Response, StatusCode, request::Parts};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

pub use table::Principal;
use table::{Limits, Table};
use visit::Visit;

use crate::{
    carry::{Inbound, WithInbound},
    error::BuildError,
    reply::{self, Rejection},
    rules::names,
};

/// How long a session may be unused, unless set otherwise.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// The longest time that can be set; to a clock, for ever is too long.
const MAX_IDLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How many sessions one principal may have, and all together, unless set otherwise.
const PER_PRINCIPAL: usize = 256;
const SESSIONS: usize = 65_536;

/// Lets only those use a session who began it.
///
/// MCP's Streamable HTTP names a session by `mcp-session-id`, and an SDK's server serves whoever sends it,
/// or ends the session for them. MCP (*Security Best Practices*, "Session Hijacking") asks servers to
/// bind it to the user. The [principal](Principal) comes from your authentication, which stands
/// outside: either what it left in the request's extensions, or a header that it sets.
///
/// **Whoever has no principal is *anonymous*, and all anonymous callers are one user**, who share their
/// sessions; nobody else gets into them, nor do they into another's. Where your authentication stands inside
/// this layer, or the closure finds nothing, that is everybody: the first anonymous session of a
/// layer is told at WARN (feature `tracing`), and [`require_principal`](Self::require_principal)
/// allows none.
///
/// Put the layer directly inside [`CaptureLayer`](crate::CaptureLayer):
///
/// ```
/// # use axum::Router;
/// # use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use mcp_forward::{CaptureLayer, Relay, Rule, SessionLayer, Upstream};
///
/// /// What your authentication puts into the request's extensions.
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct User {
///     issuer: String,
///     subject: String,
/// }
///
/// let search = Upstream::builder("search", "https://search.example/mcp")
///     .rule(Rule::new("x-search-token").to("authorization").bearer())
///     .build()?;
/// # let client = Client::builder(TokioExecutor::new()).build_http();
/// let sessions = SessionLayer::bind(|parts| parts.extensions.get::<User>().cloned());
/// let app: Router = Router::new()
///     .route_service("/mcp", Relay::new(&search, client))
///     .layer(sessions.clone()) // a clone has the same sessions and limits, to count and to remove
///     .layer(CaptureLayer::for_upstreams([&search]).build()?);
/// assert_eq!(sessions.live(), 0);
/// # let _ = app;
/// # Ok::<_, mcp_forward::BuildError>(())
/// ```
///
/// Each request still carries the headers of its own caller, so that a renewed token is used at once;
/// [`pin`](Self::pin) freezes those of `initialize`. In protocol 2026-07-28 and later there are no
/// sessions: there `mcp-session-id` is checked, and then removed together with `last-event-id`, and the
/// request is one without a session. Spellings of these headers with `_` for `-` are removed from
/// every request, since some services take them for the same.
///
/// What makes a session is a 2xx response to a POST without `mcp-session-id` that has one. It ends when
/// it has not been used for 30 minutes ([`idle`](Self::idle); an open stream is no use), when the
/// owner's DELETE was answered with 2xx, when the service answers 404 to any request of the owner's in it,
/// as MCP has it for a session that is over, and by [`remove`](Self::remove). Calls that are under
/// way then go on. Clones of a layer share its sessions and its limits, also a limit that is set later.
/// The sessions are in this process only: after a restart, or on another machine,
/// clients get a 404 and initialize again. Code that hands a request to the worker that has its session
/// therefore stands outside this layer.
///
/// # Rejected requests
///
/// With a JSON-RPC error body:
///
/// | status | when |
/// |---|---|
/// | 400 | `mcp-session-id` is on two lines, longer than 256 bytes, or not visible ASCII |
/// | 401 | [`require_principal`](Self::require_principal), and there is none |
/// | 404 | the session is unknown, expired, somebody else's, or of another [`ServerId`](crate::ServerId) (`ServerIdLayer` outside): byte for byte the same; `last-event-id` came without a session |
/// | 500 | [`pin`](Self::pin), and no `CaptureLayer` is around this layer |
/// | 502 | the service answered with somebody else's session id, with another one than the request's, or with one that nobody could send |
/// | 503 | the principal has 256 sessions, or there are 65,536; none is ended for it |
///
/// An `initialize` that is under way counts as a session; so does every other POST without one until its
/// response begins, unless it names protocol 2026-07-28 or later and, in `mcp-method`, another method.
#[must_use = "a layer works once it is put around a service"]
pub struct SessionLayer<P> {
    principal: Identify<P>,
    policy: Policy,
    table: Arc<Table<P>>,
}

/// Who is behind a request; or why that cannot be said.
type Identify<P> = Arc<dyn Fn(&Parts) -> Result<Option<P>, Rejection> + Send + Sync>;

#[derive(Clone, Copy, Debug, Default)]
struct Policy {
    pin: bool,
    pass_unknown: bool,
    require_principal: bool,
}

impl<P: Principal> SessionLayer<P> {
    /// Binds each session to the `principal` of the request that begins it; `None` is anonymous.
    pub fn bind<F>(principal: F) -> Self
    where
        F: Fn(&Parts) -> Option<P> + Send + Sync + 'static,
    {
        Self::new(Arc::new(move |parts| Ok(principal(parts))))
    }

    /// Binds to what your authentication put into the request's extensions, as a `P`; without one the
    /// caller is anonymous, unless you [require](Self::require_principal) a principal.
    ///
    /// ```
    /// # use mcp_forward::SessionLayer;
    /// #[derive(Clone, PartialEq, Eq, Hash)]
    /// struct User(String);
    ///
    /// let sessions = SessionLayer::<User>::bind_extension().require_principal();
    /// # let _ = sessions;
    /// ```
    pub fn bind_extension() -> Self {
        Self::bind(|parts| parts.extensions.get::<P>().cloned())
    }

    fn new(principal: Identify<P>) -> Self {
        Self {
            principal,
            policy: Policy::default(),
            table: Arc::new(Table::new(Limits {
                idle: IDLE,
                per_principal: PER_PRINCIPAL,
                sessions: SESSIONS,
            })),
        }
    }

    /// Freezes the caller's captured headers for the session, as they came with `initialize`.
    ///
    /// Later requests of the session go on with those, whatever they carry themselves: a renewed
    /// token is *not* used, and whoever begins the session with more rights keeps them for all of the
    /// principal's requests in it. Where an upstream answers 401 to a frozen credential of the
    /// caller's, the session ends, so that the client initializes anew. For upstreams that hold a
    /// session to the token that began it.
    ///
    /// The frozen values are kept as long as the session. They take at most the number of sessions times
    /// [what may be captured](crate::inbound::CaptureBuilder::max_total): unless set otherwise, 256 times
    /// 64 KiB for one principal, which is 16 MiB, and 65,536 times 64 KiB for all, which is 4 GiB.
    pub fn pin(mut self) -> Self {
        self.policy.pin = true;
        self
    }

    /// Lets requests with an unknown session id through, for a service that binds sessions itself.
    ///
    /// This ends the guarantee: after a restart, or once a session has expired here, whoever knows its id
    /// can use it, as far as this layer is concerned.
    pub fn pass_unknown(mut self) -> Self {
        self.policy.pass_unknown = true;
        self
    }

    /// Answers a POST without a session and without a principal with 401, so that there are no
    /// anonymous sessions.
    ///
    /// That 401 names no metadata. Let your authentication, which stands outside, answer it where callers
    /// are to learn from it where to get a token.
    pub fn require_principal(mut self) -> Self {
        self.policy.require_principal = true;
        self
    }

    /// How long a session lives without a request; 30 minutes by default, a year at most.
    ///
    /// Longer than the service's own limit is of no use: it would answer 404 itself.
    pub fn idle(self, idle: Duration) -> Self {
        let idle = idle.min(MAX_IDLE);
        self.table.limit(|limits| limits.idle = idle);
        self
    }

    /// How many sessions one principal may have; 256 by default. Anonymous counts as one.
    pub fn max_per_principal(self, per_principal: usize) -> Self {
        self.table
            .limit(|limits| limits.per_principal = per_principal);
        self
    }

    /// How many sessions there may be; 65,536 by default.
    ///
    /// One takes at most 1 KiB; a pinned one as much more as its captured headers are long.
    ///
    /// At a limit a request that may begin a session gets 503, and the service does not see it. One that says it is
    /// of MCP 2026-07-28 and no `initialize` begins none, so it is not held back: behind a service that begins one
    /// all the same the caller gets 503, and that session stays until the service ends it.
    pub fn max_sessions(self, sessions: usize) -> Self {
        self.table.limit(|limits| limits.sessions = sessions);
        self
    }

    /// How many sessions there are.
    #[must_use]
    pub fn live(&self) -> usize {
        self.table.counts().0
    }

    /// How many principals have a session, or begin one; anonymous is one of them.
    #[must_use]
    pub fn principals(&self) -> usize {
        self.table.counts().1
    }

    /// Ends the session `id`, such as after a log-out; whether there was one.
    ///
    /// The service behind is not told.
    pub fn remove(&self, id: impl AsRef<[u8]>) -> bool {
        self.table.end(id.as_ref(), None, "removed")
    }
}

impl SessionLayer<Arc<[u8]>> {
    /// Binds to the value of the header `name`, which a front proxy sets for the user it has verified, and
    /// which it removes from what callers send.
    ///
    /// On two lines, one of them may be the caller's: 400. No value is anonymous. Never take a header
    /// with a token: a renewed one would be somebody else.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where `name` is no header name.
    pub fn bind_header(name: impl AsRef<str>) -> Result<Self, BuildError> {
        let name = names::parse(name.as_ref())
            .map_err(|mistake| BuildError::new("the session layer", vec![mistake]))?;
        Ok(Self::new(Arc::new(move |parts| from_header(&name, parts))))
    }
}

fn from_header(name: &HeaderName, parts: &Parts) -> Result<Option<Arc<[u8]>>, Rejection> {
    let mut lines = parts.headers.get_all(name).iter();
    let first = lines.next().filter(|line| !line.is_empty());
    if lines.next().is_some() {
        let message = format!("`{name}` came on several lines; send it once");
        return Err(Rejection::new(StatusCode::BAD_REQUEST, message));
    }
    // A copy: the value itself holds on to the read buffer of its connection.
    Ok(first.map(|line| line.as_bytes().into()))
}

impl<P> Clone for SessionLayer<P> {
    fn clone(&self) -> Self {
        Self {
            principal: Arc::clone(&self.principal),
            policy: self.policy,
            table: Arc::clone(&self.table),
        }
    }
}

impl<P> fmt::Debug for SessionLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<S, P> Layer<S> for SessionLayer<P> {
    type Service = Session<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Session {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of a [`SessionLayer`].
#[derive(Debug)]
pub struct Session<S, P> {
    inner: S,
    layer: SessionLayer<P>,
}

impl<S: Clone, P> Clone for Session<S, P> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S, P, B, R> Service<Request<B>> for Session<S, P>
where
    S: Service<Request<B>, Response = Response<R>>,
    P: Principal,
{
    type Response = Response<reply::Body<WithInbound<R>>>;
    type Error = S::Error;
    type Future = SessionFuture<S::Future, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let visit = match self.layer.admit(&mut parts) {
            Ok(visit) => visit,
            Err(rejection) => {
                return SessionFuture {
                    state: State::Rejected { rejection },
                };
            }
        };
        let inbound = match visit.pinned() {
            Some(pinned) => {
                let pinned = pinned.clone().in_place_of_known(&parts.extensions);
                pinned.clone().attach(&mut parts.extensions);
                Some(pinned)
            }
            None => Inbound::current(),
        };
        let request = Request::from_parts(parts, body);
        let future = match inbound {
            Some(inbound) => WithInbound::of(inbound, || self.inner.call(request)),
            None => WithInbound::scoped(self.inner.call(request), None),
        };
        SessionFuture {
            state: State::Inner {
                future,
                visit: Some(visit),
                layer: self.layer.clone(),
            },
        }
    }
}

pin_project! {
    /// The future of [`Session`].
    pub struct SessionFuture<F, P: Principal> {
        #[pin]
        state: State<F, P>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, P: Principal> {
        Inner { #[pin] future: WithInbound<F>, visit: Option<Visit<P>>, layer: SessionLayer<P> },
        Rejected { rejection: Rejection },
    }
}

impl<F, P: Principal> fmt::Debug for SessionFuture<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionFuture").finish_non_exhaustive()
    }
}

impl<F, P, R, E> Future for SessionFuture<F, P>
where
    F: Future<Output = Result<Response<R>, E>>,
    P: Principal,
{
    type Output = Result<Response<reply::Body<WithInbound<R>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Inner {
                mut future,
                visit,
                layer,
            } => {
                let response = ready!(future.as_mut().poll(cx));
                let visit = visit.take();
                // Where it is rejected, its body is still dropped as its caller.
                let mut response = response?.map(|body| future.succeed(body));
                let settled = visit.map(|visit| layer.settle(visit, &mut response));
                Poll::Ready(Ok(match settled {
                    Some(Err(rejection)) => rejection.response(),
                    _ => response.map(reply::Body::inner),
                }))
            }
            StateProj::Rejected { rejection } => Poll::Ready(Ok(rejection.response())),
        }
    }
}
