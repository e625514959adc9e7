//! `InternalForwardLayer`: whether a request was passed on by another worker, or only says so.
//!
//! What a proof is, is `proof.rs`. It may not know a message.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Extensions, HeaderName, HeaderValue, Request, Response, StatusCode, request::Parts};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{ServerId, Unscoped};
#[cfg(feature = "hmac")]
use super::{claim::Claim, proof::InternalForward};
use crate::{
    events,
    reply::{self, Rejection},
};

/// The mark of a request that a worker passed on.
pub(super) const MARK: HeaderName = HeaderName::from_static("x-forwarded-internally");

/// What servers that take `_` for `-` read as the mark.
static LIKE_MARK: [HeaderName; 3] = [
    HeaderName::from_static("x_forwarded_internally"),
    HeaderName::from_static("x_forwarded-internally"),
    HeaderName::from_static("x-forwarded_internally"),
];

const WRONG_ORDER: Rejection = Rejection::fixed(
    StatusCode::INTERNAL_SERVER_ERROR,
    "put `InternalForwardLayer` outside `ServerIdLayer`",
);

/// In a request's extensions: another worker of this gateway passed it on, so do not pass it on again.
///
/// It says nothing more. The caller is authenticated and the message scoped as if it came from
/// outside.
#[derive(Clone, Copy, Debug)]
pub struct ForwardedInternally(());

/// Says whether the sender of a request is another worker, where something else than a header proves
/// it: mutual TLS, or a Unix socket. A closure is one.
pub trait VerifyPeer: Send + Sync {
    /// What the server knows of the connection is in the extensions. An address is no proof, and
    /// `X-Forwarded-For` even less.
    fn is_peer(&self, parts: &Parts) -> bool;
}

impl<F: Fn(&Parts) -> bool + Send + Sync> VerifyPeer for F {
    fn is_peer(&self, parts: &Parts) -> bool {
        self(parts)
    }
}

/// Believes the header `x-forwarded-internally` only where the sender proves to be another worker.
///
/// Believed, the request has [`ForwardedInternally`] in its extensions. The header itself goes no
/// further, whoever sent it, nor does one that has `_` for a `-`, which is never believed; on two lines
/// it is not believed.
///
/// Put it outside your authentication and outside [`ServerIdLayer`](crate::ServerIdLayer), which
/// compares the body with the proof before the mark counts. The other way round, a request with the
/// header is answered with **500**.
///
/// Put it around the whole router, not around what axum's `nest` serves: there the URI is only the rest of
/// the path, for which no proof was made, so none is believed and requests are passed on in circles.
/// [`InternalForward::sign`](crate::InternalForward::sign) shows both sides.
///
/// Code that hands a request to another worker stands between `ServerIdLayer` and [`CaptureLayer`](crate::CaptureLayer), and
/// outside `SessionLayer`, which knows the sessions of its own process only and would answer 404. Where
/// [`OriginGuardLayer`](crate::OriginGuardLayer) stands outside, it has to allow the hosts under which
/// workers reach each other.
///
/// A proof that a worker made, but at another time by this worker's clock, or while
/// [too many](crate::InternalForward) are remembered, is answered with **503**: as if from outside,
/// the request could be passed on in circles.
#[derive(Clone)]
#[must_use = "a layer works once it is put around a service"]
pub struct InternalForwardLayer {
    verifier: Verifier,
}

#[derive(Clone)]
enum Verifier {
    #[cfg(feature = "hmac")]
    Proof(InternalForward),
    Peer(Arc<dyn VerifyPeer>),
}

/// Why a mark is not believed.
pub(super) enum Doubt {
    /// Anybody could have sent it.
    Outside(&'static str),
    /// A worker sent it. As if from outside, the request could be passed on in circles.
    #[cfg(feature = "hmac")]
    Worker(Rejection),
}

impl From<&'static str> for Doubt {
    fn from(reason: &'static str) -> Self {
        Self::Outside(reason)
    }
}

impl InternalForwardLayer {
    /// Believes what was signed with one of the keys of `forward`.
    #[cfg(feature = "hmac")]
    #[cfg_attr(docsrs, doc(cfg(feature = "hmac")))]
    pub fn for_keys(forward: &InternalForward) -> Self {
        Self {
            verifier: Verifier::Proof(forward.clone()),
        }
    }

    /// Believes the header, whatever its value, on requests of which `verifier` says that a worker
    /// sent them.
    ///
    /// ```
    /// use mcp_forward::InternalForwardLayer;
    ///
    /// /// What the server found in the peer's certificate.
    /// #[derive(Clone)]
    /// struct Worker;
    ///
    /// let layer = InternalForwardLayer::for_peers(|parts: &http::request::Parts| {
    ///     parts.extensions.get::<Worker>().is_some()
    /// });
    /// # let _ = layer;
    /// ```
    pub fn for_peers(verifier: impl VerifyPeer + 'static) -> Self {
        Self {
            verifier: Verifier::Peer(Arc::new(verifier)),
        }
    }

    #[cfg_attr(
        not(feature = "hmac"),
        expect(unused_variables, reason = "no value proves anything")
    )]
    fn verify(&self, parts: &mut Parts, mark: &HeaderValue) -> Result<(), Doubt> {
        match &self.verifier {
            #[cfg(feature = "hmac")]
            Verifier::Proof(forward) => {
                let claim = forward.verify(parts, mark)?;
                parts.extensions.insert(claim);
            }
            Verifier::Peer(verifier) if verifier.is_peer(parts) => believe(&mut parts.extensions),
            Verifier::Peer(_) => return Err("the sender is no worker".into()),
        }
        Ok(())
    }
}

impl fmt::Debug for InternalForwardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InternalForwardLayer")
            .finish_non_exhaustive()
    }
}

fn believe(extensions: &mut Extensions) {
    extensions.insert(ForwardedInternally(()));
    events::internal_forward(Ok(()));
}

/// Believes a proof whose body is here, if it is of this body.
#[cfg_attr(
    not(feature = "hmac"),
    expect(unused_variables, reason = "there are no proofs")
)]
pub(super) fn settle(extensions: &mut Extensions, body: &[u8]) {
    #[cfg(feature = "hmac")]
    if let Some(claim) = extensions.remove::<Claim>() {
        if claim.is_of(body) {
            believe(extensions);
        } else {
            events::internal_forward(Err("it is of another body"));
        }
    }
}

impl<S> Layer<S> for InternalForwardLayer {
    type Service = InternalForwarding<S>;

    fn layer(&self, inner: S) -> Self::Service {
        InternalForwarding {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of an [`InternalForwardLayer`].
#[derive(Clone, Debug)]
pub struct InternalForwarding<S> {
    inner: S,
    layer: InternalForwardLayer,
}

impl<S, B, R> Service<Request<B>> for InternalForwarding<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<reply::Body<R>>;
    type Error = S::Error;
    type Future = InternalForwardingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().remove::<ForwardedInternally>();
        for name in &LIKE_MARK {
            request.headers_mut().remove(name);
        }
        if request.headers().contains_key(MARK) {
            let extensions = request.extensions();
            if extensions.get::<ServerId>().is_some() || extensions.get::<Unscoped>().is_some() {
                return rejected(WRONG_ORDER);
            }
            let (mut parts, body) = request.into_parts();
            let mut marks = parts.headers.get_all(MARK).iter().cloned();
            let only = marks.next().filter(|_| marks.next().is_none());
            parts.headers.remove(MARK);
            let verified = only
                .ok_or("it is on several lines".into())
                .and_then(|mark| self.layer.verify(&mut parts, &mark));
            match verified {
                Ok(()) => {}
                Err(Doubt::Outside(reason)) => events::internal_forward(Err(reason)),
                #[cfg(feature = "hmac")]
                Err(Doubt::Worker(rejection)) => return rejected(rejection),
            }
            request = Request::from_parts(parts, body);
        }
        InternalForwardingFuture {
            state: State::Inner {
                future: self.inner.call(request),
            },
        }
    }
}

pin_project! {
    /// The future of [`InternalForwarding`].
    #[derive(Debug)]
    pub struct InternalForwardingFuture<F> {
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

fn rejected<F>(rejection: Rejection) -> InternalForwardingFuture<F> {
    events::rejected("internal forward", &rejection);
    InternalForwardingFuture {
        state: State::Rejected { rejection },
    }
}

impl<F, R, E> Future for InternalForwardingFuture<F>
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
