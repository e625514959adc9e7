//! The service of a `ServerIdLayer`: the one way of every message, whoever sent it.
//!
//! What is edited is `splice.rs`; what an id may be is `path.rs`. It may not know who believes whom.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRAILER, UPGRADE},
    request::Parts,
};
use http_body::Body as HttpBody;
use pin_project_lite::pin_project;
use smallvec::smallvec;
use tower::Service;

use super::{
    ServerId, Unscoped,
    body::{Body, Buffer},
    internal,
    layer::Scope,
    splice::{Edit, splice},
};
use crate::{
    events,
    reply::{self, Rejection},
};

const ELSEWHERE: Rejection = Rejection::fixed(
    StatusCode::NOT_FOUND,
    "no server has this path; check its server id",
);
const TUNNEL: Rejection = Rejection::fixed(
    StatusCode::BAD_REQUEST,
    "what comes after an upgrade is for no server; send messages without `upgrade` and CONNECT",
);
#[cfg(feature = "axum")]
const NESTED: Rejection = Rejection::fixed(
    StatusCode::INTERNAL_SERVER_ERROR,
    "this path is the rest of another; build `ServerIdLayer` with `.original_uri()`",
);
const ENCODED: Rejection = Rejection::fixed(
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    "the body is encoded; send it without `content-encoding`",
);
const NOT_UTF8: Rejection = Rejection::fixed(
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    "`content-type` names another charset than `utf-8`, or is there twice; send `application/json`",
);

/// Headers that hold a digest of the body as it came: RFC 9530, RFC 3230, RFC 1864, and those of
/// clouds' signatures.
static DIGESTS: [HeaderName; 7] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("x-content-sha256"),
    HeaderName::from_static("x-amz-content-sha256"),
    HeaderName::from_static("x-ms-content-sha256"),
];

/// The service of a [`ServerIdLayer`](crate::ServerIdLayer).
#[derive(Clone)]
pub struct Scoped<S> {
    inner: S,
    scope: Arc<Scope>,
}

impl<S> Scoped<S> {
    pub(super) fn new(inner: S, scope: Arc<Scope>) -> Self {
        Self { inner, scope }
    }
}

impl<S: fmt::Debug> fmt::Debug for Scoped<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// What is known before the body: the body's buffer, where there may be a body.
fn admit(
    scope: &Scope,
    parts: &mut Parts,
    body: &impl HttpBody,
) -> Result<Option<Buffer>, Rejection> {
    let path = scope.path(parts);
    let server = if scope.unscoped.contains(path) {
        #[cfg(feature = "axum")]
        if scope.misses_path(parts) {
            return Err(NESTED);
        }
        None
    } else {
        let id = scope.template.id(path).ok_or(ELSEWHERE)?;
        Some(ServerId(id.into()))
    };
    match server {
        Some(server) => {
            parts.extensions.insert(server);
        }
        None => {
            parts.extensions.remove::<ServerId>();
            parts.extensions.insert(Unscoped);
        }
    }
    if parts.method == Method::CONNECT || is_upgraded(&parts.headers) {
        return Err(TUNNEL);
    }
    if parts.method != Method::POST && body.is_end_stream() {
        internal::settle(&mut parts.extensions, b"");
        return Ok(None);
    }
    if parts.headers.contains_key(CONTENT_ENCODING) {
        return Err(ENCODED);
    }
    if !is_utf8(&parts.headers) {
        return Err(NOT_UTF8);
    }
    Buffer::new(scope.max_body, &body.size_hint()).map(Some)
}

/// Whether another protocol is to follow, in which no message would be scoped.
///
/// `h2c` does not count: clients offer HTTP/2 so with an ordinary message, which is scoped.
fn is_upgraded(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(UPGRADE).iter();
    let mut protocols = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    protocols.any(|protocol| !protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

/// Whether every reader takes the body for UTF-8, as JSON is (RFC 8259 section 8.1).
///
/// Some decode it by the `charset` of its type, and they differ in where they look for that: wherever
/// one is named, it has to be this one.
fn is_utf8(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let only = lines.next().map_or(&[][..], HeaderValue::as_bytes);
    let only = String::from_utf8_lossy(only).to_ascii_lowercase();
    let mut named = only.split("charset").skip(1);
    lines.next().is_none()
        && named.all(|rest| {
            let charset = rest.split(';').next().unwrap_or_default().trim();
            let charset = charset.strip_prefix('=').map(str::trim_start);
            matches!(charset, Some("utf-8" | "\"utf-8\""))
        })
}

/// The body that goes on in place of `body`, of which the headers are made true.
fn edit<B>(scope: &Scope, parts: &mut Parts, body: Bytes) -> Result<Body<B>, Rejection> {
    internal::settle(&mut parts.extensions, &body);
    // They are not passed on.
    parts.headers.remove(TRAILER);
    if body.is_empty() && parts.method != Method::POST {
        return Ok(Body::pieces(smallvec![]));
    }
    let server = parts.extensions.get::<ServerId>();
    let edit = Edit {
        param: &scope.param,
        value: server.map(|server| serde_json::Value::from(server.as_str()).to_string()),
        accept_batches: scope.accept_batches,
    };
    let Some(pieces) = splice(&body, &edit)? else {
        return Ok(Body::pieces(smallvec![body]));
    };
    describe(&mut parts.headers, pieces.iter().map(Bytes::len).sum());
    Ok(Body::pieces(pieces))
}

/// Makes the headers those of an edited body of `length` bytes.
fn describe(headers: &mut HeaderMap, length: usize) {
    if headers.contains_key(CONTENT_LENGTH) {
        // One line in place of all: HTTP/2 lets equal ones through.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    for name in &DIGESTS {
        headers.remove(name);
    }
}

impl<S, B, R> Service<Request<B>> for Scoped<S>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone,
    B: HttpBody<Data = Bytes>,
{
    type Response = Response<reply::Body<R>>;
    type Error = S::Error;
    type Future = ScopedFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        ScopedFuture {
            state: match admit(&self.scope, &mut parts, &body) {
                Ok(None) => {
                    let request = Request::from_parts(parts, Body::inner(body));
                    State::Inner {
                        future: self.inner.call(request),
                    }
                }
                Ok(Some(buffer)) => {
                    // The one that is ready is called once the body is here.
                    let next = self.inner.clone();
                    State::Reading {
                        body,
                        buffer,
                        held: Some(Held {
                            parts,
                            inner: mem::replace(&mut self.inner, next),
                            scope: Arc::clone(&self.scope),
                        }),
                    }
                }
                Err(rejection) => rejected(rejection),
            },
        }
    }
}

/// What waits for the body.
struct Held<S> {
    parts: Parts,
    inner: S,
    scope: Arc<Scope>,
}

pin_project! {
    /// The future of [`Scoped`].
    pub struct ScopedFuture<S, B>
    where
        S: Service<Request<Body<B>>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<Body<B>>>,
    {
        Reading { #[pin] body: B, buffer: Buffer, held: Option<Held<S>> },
        Inner { #[pin] future: S::Future },
        Rejected { rejection: Rejection },
    }
}

fn rejected<S, B>(rejection: Rejection) -> State<S, B>
where
    S: Service<Request<Body<B>>>,
{
    events::rejected("server id", &rejection);
    State::Rejected { rejection }
}

impl<S, B> fmt::Debug for ScopedFuture<S, B>
where
    S: Service<Request<Body<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> Future for ScopedFuture<S, B>
where
    S: Service<Request<Body<B>>, Response = Response<R>>,
    B: HttpBody<Data = Bytes>,
{
    type Output = Result<Response<reply::Body<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Reading { body, buffer, held } => {
                    let body = ready!(buffer.poll(body, cx));
                    // It is taken once: the state is another one then.
                    let Some(mut held) = held.take() else {
                        return Poll::Pending;
                    };
                    match body.and_then(|body| edit(&held.scope, &mut held.parts, body)) {
                        Ok(body) => {
                            let request = Request::from_parts(held.parts, body);
                            State::Inner {
                                future: held.inner.call(request),
                            }
                        }
                        Err(rejection) => rejected(rejection),
                    }
                }
                StateProj::Inner { future } => {
                    let response = ready!(future.poll(cx))?;
                    return Poll::Ready(Ok(response.map(reply::Body::inner)));
                }
                StateProj::Rejected { rejection } => return Poll::Ready(Ok(rejection.response())),
            };
            state.set(next);
        }
    }
}
