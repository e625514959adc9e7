//! `RefusalLayer`: holds the head of a response back until the upstream has spoken.
//!
//! What counts as speaking, in an event stream, is `sse.rs`; what the caller is told is
//! `challenge.rs`. It may not know upstreams, nor who reports.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    response::Parts,
};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

use super::{
    challenge::Challenge,
    held::{Held, HeldBody, Verdict},
};
use crate::{
    carry::{Inbound, Refusal, Relayed, Slot, WithInbound},
    events,
    reply::{self, Rejection},
};

/// How long a response is held, unless set otherwise.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// How many responses one layer holds.
const MAX_HELD: usize = 4096;

/// Tells the caller of an upstream's 401 or 403, although the service has begun to answer.
///
/// An MCP server sends `200 text/event-stream` before its handler knows what the upstream says; its
/// callers then see an empty list or an odd error where they should renew a token. This layer
/// waits with the head of the response to a POST until the upstream has spoken. It costs no request.
///
/// ```
/// use mcp_forward::{CaptureLayer, Challenge, RefusalLayer, Rule, Upstream};
/// use tower::ServiceBuilder;
///
/// let search = Upstream::builder("search", "https://search.example/mcp")
///     .rule(Rule::new("x-search-token").to("authorization").bearer())
///     .build()?;
/// let metadata = "https://proxy.example/.well-known/oauth-protected-resource";
/// let layers = ServiceBuilder::new()
///     .layer(CaptureLayer::for_upstreams([&search]).build()?)
///     .layer(RefusalLayer::new().challenge(Challenge::rewrite(metadata)?));
/// # let _ = layers;
/// # Ok::<_, mcp_forward::BuildError>(())
/// ```
///
/// [`ForwardLayer`](crate::ForwardLayer), [`Relay`](crate::Relay) and
/// [`connect`](crate::ClientFactory::connect) report by themselves, as the caller of the request: carry
/// the inbound to where they are used. Other code reports by [`Inbound::report`]. Put retries and calls
/// of many upstreams in [`collect`](crate::refusal::collect()). The layer stands inside [`CaptureLayer`](crate::CaptureLayer), else
/// it answers 500. It needs a tokio runtime with its timer enabled.
///
/// # What the caller gets
///
/// | event, while the head is held | the caller gets |
/// |---|---|
/// | a refusal is reported | 401 or 403 with a [`Challenge`]; **502** where the credential was the operator's, which the caller cannot renew ([`Refusal::is_callers`]). Of several the first of the caller's counts. The service's response is read to its end first, for at most 1 s, so that a repeated request gets no old result |
/// | the first `data` line with a value, in `text/event-stream`; the first byte of anything else | the response |
/// | the body ends; 8 KiB have come; 10 s have passed ([`hold_limit`](Self::hold_limit)); 4,096 responses are held already | the response |
/// | the body fails | 502 |
///
/// Never held: GET and DELETE, a response with `content-encoding`, and what [`Relay`](crate::Relay)
/// answers, since its head is the upstream's own: there a 401 or 403 is answered at once. A service that takes
/// long until its own head is not cut; where it fails, its error is passed on unless a refusal was
/// reported. A report after the head is ignored.
#[derive(Clone, Debug)]
#[must_use = "a layer works once it is put around a service"]
pub struct RefusalLayer {
    challenge: Challenge,
    hold_limit: Duration,
    room: Arc<Semaphore>,
}

impl RefusalLayer {
    /// With [`Challenge::omit`] and a limit of 10 s.
    pub fn new() -> Self {
        Self {
            challenge: Challenge::omit(),
            hold_limit: HOLD_LIMIT,
            room: Arc::new(Semaphore::new(MAX_HELD)),
        }
    }

    /// What a refused caller is told.
    pub fn challenge(self, challenge: Challenge) -> Self {
        Self { challenge, ..self }
    }

    /// How long a response may be held; 10 s by default.
    pub fn hold_limit(self, hold_limit: Duration) -> Self {
        Self { hold_limit, ..self }
    }
}

impl Default for RefusalLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RefusalLayer {
    type Service = Hold<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Hold {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of a [`RefusalLayer`].
#[derive(Clone, Debug)]
pub struct Hold<S> {
    inner: S,
    layer: RefusalLayer,
}

impl<S, B, R> Service<Request<B>> for Hold<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    type Response = Response<reply::Body<HeldBody<R>>>;
    type Error = S::Error;
    type Future = HoldFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let known = Inbound::attached(request.extensions()).or_else(Inbound::current);
        let Some(mut inbound) = known else {
            let rejection = no_capture("`RefusalLayer`");
            events::rejected("refusal", &rejection);
            let state = State::Rejected { rejection };
            return HoldFuture { state };
        };
        let mut call = Call {
            layer: self.layer.clone(),
            uri: request.uri().clone(),
            slot: None,
        };
        if request.method() == Method::POST {
            let slot = Slot::default();
            call.slot = Some(slot.clone());
            inbound = inbound.answered_in(slot);
            inbound.clone().attach(request.extensions_mut());
        }
        HoldFuture {
            state: State::Inner {
                future: WithInbound::of(inbound, || self.inner.call(request)),
                call: Some(call),
            },
        }
    }
}

/// The answer of a layer that found no inbound.
pub(super) fn no_capture(layer: &str) -> Rejection {
    let message = format!(
        "no inbound here: put `CaptureLayer` outside {layer} (in axum, its `.layer` comes after)"
    );
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

type Answer<R> = Response<reply::Body<HeldBody<R>>>;

/// A request, until it is answered.
struct Call {
    layer: RefusalLayer,
    uri: Uri,
    /// `None` where the response is not held.
    slot: Option<Slot>,
}

impl Call {
    fn begin<R>(self, mut response: Response<WithInbound<R>>) -> Begun<R>
    where
        R: Body<Data = Bytes>,
    {
        if let Some(relayed) = response.extensions_mut().remove::<Relayed>() {
            // Whatever was reported before it, this is the upstream's last word.
            self.reported();
            return Begun::Answer(match relayed.refusal {
                Some(refusal) => self.refuse(&refusal, "at once"),
                None => unheld(response),
            });
        }
        let Some(slot) = self.slot.clone() else {
            return Begun::Answer(unheld(response));
        };
        let headers = response.headers();
        let is_unheld = headers.contains_key(CONTENT_ENCODING) || response.body().is_end_stream();
        let room = Arc::clone(&self.layer.room).try_acquire_owned().ok();
        if (is_unheld || room.is_none()) && slot.close_if_silent() {
            return Begun::Answer(unheld(response));
        }
        let is_events = is_events(headers);
        let (head, body) = response.into_parts();
        let held = Held::new(body, slot, is_events, self.layer.hold_limit, room);
        Begun::Held(Holding {
            call: self,
            head,
            held,
        })
    }

    /// The refusal that the caller is told, if any; what is reported from now on is ignored.
    fn reported(&self) -> Option<Refusal> {
        let reports = self.slot.as_ref()?.close();
        let of_caller = reports.iter().find(|refusal| refusal.is_callers());
        of_caller.or(reports.first()).cloned()
    }

    fn refuse<R>(&self, refusal: &Refusal, how: &'static str) -> Answer<R> {
        self.layer.challenge.answer(&self.uri, refusal, how)
    }
}

impl Drop for Call {
    /// Whoever holds the inbound longer reports to nobody, also where the request was given up.
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            slot.close();
        }
    }
}

/// What becomes of a response when it begins.
enum Begun<R> {
    Answer(Answer<R>),
    Held(Holding<R>),
}

/// A response that is held.
struct Holding<R> {
    call: Call,
    head: Parts,
    held: Held<R>,
}

impl<R: Body<Data = Bytes>> Holding<R> {
    fn end(self, verdict: Verdict) -> Answer<R> {
        match verdict {
            Verdict::Released { last, is_over } => {
                let body = self.held.release(last, is_over);
                Response::from_parts(self.head, reply::Body::inner(body))
            }
            // Whoever says `Refused` has seen one.
            Verdict::Refused => match self.call.reported() {
                Some(refusal) => self.call.refuse(&refusal, "held"),
                None => failed(),
            },
            Verdict::Failed => failed(),
        }
    }
}

fn unheld<R>(response: Response<WithInbound<R>>) -> Answer<R> {
    response.map(|body| reply::Body::inner(HeldBody::unheld(body)))
}

/// The response to a request whose head nobody has seen has failed.
fn failed<R>() -> Answer<R> {
    let message = "the service failed before it had said anything; try again";
    let rejection = Rejection::fixed(StatusCode::BAD_GATEWAY, message);
    events::rejected("refusal", &rejection);
    rejection.response()
}

fn is_events(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let media_type = headers
        .get(CONTENT_TYPE)
        .map_or(&[][..], HeaderValue::as_bytes);
    let essence = media_type
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(EVENTS)
}

pin_project! {
    /// The future of [`Hold`].
    pub struct HoldFuture<F, R> {
        #[pin]
        state: State<F, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R> {
        Inner { #[pin] future: WithInbound<F>, call: Option<Call> },
        Held { holding: Option<Holding<R>> },
        Rejected { rejection: Rejection },
    }
}

impl<F, R> fmt::Debug for HoldFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldFuture").finish_non_exhaustive()
    }
}

impl<F, R, E> Future for HoldFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body<Data = Bytes>,
{
    type Output = Result<Answer<R>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.as_mut().project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Inner { mut future, call } => {
                    let outcome = ready!(future.as_mut().poll(cx));
                    let Some(call) = call.take() else {
                        return Poll::Pending;
                    };
                    let response = match outcome {
                        Ok(response) => response.map(|body| future.succeed(body)),
                        Err(error) => {
                            return Poll::Ready(match call.reported() {
                                Some(refusal) => Ok(call.refuse(&refusal, "at once")),
                                None => Err(error),
                            });
                        }
                    };
                    match call.begin(response) {
                        Begun::Answer(answer) => return Poll::Ready(Ok(answer)),
                        Begun::Held(holding) => state.set(State::Held {
                            holding: Some(holding),
                        }),
                    }
                }
                StateProj::Held { holding } => {
                    let Some(waiting) = holding else {
                        return Poll::Pending;
                    };
                    let verdict = ready!(waiting.held.poll(cx));
                    let holding = holding.take();
                    return holding.map_or(Poll::Pending, |it| Poll::Ready(Ok(it.end(verdict))));
                }
                StateProj::Rejected { rejection } => return Poll::Ready(Ok(rejection.response())),
            }
        }
    }
}
