//! Our own error answers: a status and a JSON-RPC error without an `id`.
//!
//! The body has no `id` member because the request's is not known here, and MCP's schema refuses
//! `null`.

// This file knows no other part of the crate. No header value may enter a message.

use std::{
    borrow::Cow,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The inner service's body, or the body of an error answer of this crate.
    #[derive(Debug)]
    pub struct Body<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = KindProj]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Own { bytes: Option<Bytes> },
    }
}

impl<B> Body<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner { body },
        }
    }
}

impl<B: Default> Default for Body<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B> HttpBody for Body<B>
where
    B: HttpBody,
    B::Data: From<Bytes>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx),
            KindProj::Own { bytes } => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Own { bytes } => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Own { bytes } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

/// Why a request goes no further: an answer built from nothing.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    status: StatusCode,
    /// Another than that of the status.
    code: Option<i32>,
    message: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.as_u16(), self.message)
    }
}

impl Rejection {
    pub(crate) const fn fixed(status: StatusCode, message: &'static str) -> Self {
        Self {
            status,
            code: None,
            message: Cow::Borrowed(message),
            headers: Vec::new(),
        }
    }

    pub(crate) fn new(status: StatusCode, message: String) -> Self {
        Self {
            status,
            code: None,
            message: Cow::Owned(message),
            headers: Vec::new(),
        }
    }

    /// With another JSON-RPC code than that of the status.
    pub(crate) const fn code(mut self, code: i32) -> Self {
        self.code = Some(code);
        self
    }

    /// With one header line more.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn response<B>(&self) -> Response<Body<B>> {
        let body = serde_json::json!({
            "jsonrpc": "2.0",
            "error": { "code": self.code.unwrap_or_else(|| code(self.status)), "message": self.message },
        });
        let mut response = Response::new(Body {
            kind: Kind::Own {
                bytes: Some(body.to_string().into()),
            },
        });
        *response.status_mut() = self.status;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        for (name, value) in &self.headers {
            response.headers_mut().append(name.clone(), value.clone());
        }
        response
    }
}

/// JSON-RPC 2.0 section 5.1: -32600 invalid request, -32603 internal error, -32000 server defined.
fn code(status: StatusCode) -> i32 {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => -32000,
        status if status.is_client_error() => -32600,
        _ => -32603,
    }
}
