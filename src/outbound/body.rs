//! `Body`: what a request to an upstream sends, and what its response brings.
//!
//! It may not know whose it is.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A body without its trailers, which belong to one hop (RFC 9110 section 6.5.1); or the body of a
    /// request of this crate's own.
    #[derive(Debug)]
    pub struct Body<B> {
        #[pin]
        kind: BodyKind<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = BodyKindProj]
    enum BodyKind<B> {
        Inner { #[pin] body: B },
        Own { bytes: Option<Bytes> },
    }
}

impl<B> Body<B> {
    pub(super) fn new(body: B) -> Self {
        Self {
            kind: BodyKind::Inner { body },
        }
    }

    pub(crate) fn own(bytes: Bytes) -> Self {
        Self {
            kind: BodyKind::Own {
                bytes: Some(bytes).filter(|bytes| !bytes.is_empty()),
            },
        }
    }
}

impl<B: Default> Default for Body<B> {
    fn default() -> Self {
        Self::new(B::default())
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
            BodyKindProj::Inner { mut body } => loop {
                match ready!(body.as_mut().poll_frame(cx)) {
                    Some(Ok(frame)) if !frame.is_data() => {}
                    other => return Poll::Ready(other),
                }
            },
            BodyKindProj::Own { bytes } => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Inner { body } => body.is_end_stream(),
            BodyKind::Own { bytes } => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Inner { body } => body.size_hint(),
            BodyKind::Own { bytes } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
