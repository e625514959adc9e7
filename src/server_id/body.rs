//! The body of a request: read whole within a limit, and passed on in pieces.
//!
//! It may not know what is in it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use smallvec::IntoIter;

use super::splice::Pieces;
use crate::reply::Rejection;

const TOO_LONG: Rejection = Rejection::fixed(
    StatusCode::PAYLOAD_TOO_LARGE,
    "the message is too long; send less at once",
);
const BROKEN: Rejection = Rejection::fixed(
    StatusCode::BAD_REQUEST,
    "the body did not come whole; send the request again",
);

/// How much room is made for what a body only claims, in bytes.
const MAX_AHEAD: usize = 64 * 1024;

/// What has come of a body.
///
/// A body of one frame is taken as it is; of more, it is copied together.
pub(super) struct Buffer {
    first: Bytes,
    all: BytesMut,
    limit: usize,
}

impl Buffer {
    /// Refuses what will be too long before any of it is read.
    pub(super) fn new(limit: usize, hint: &SizeHint) -> Result<Self, Rejection> {
        let fits = usize::try_from(hint.lower()).is_ok_and(|length| length <= limit);
        fits.then(|| Self {
            first: Bytes::new(),
            all: BytesMut::new(),
            limit,
        })
        .ok_or(TOO_LONG)
    }

    /// Reads to the end of `body`; trailers are dropped.
    pub(super) fn poll<B: HttpBody<Data = Bytes>>(
        &mut self,
        mut body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Rejection>> {
        loop {
            match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.push(data, &body.size_hint())?;
                    }
                }
                // Also where the caller went away midway: nothing of it goes on.
                Some(Err(_)) => return Poll::Ready(Err(BROKEN)),
                None => return Poll::Ready(Ok(self.take())),
            }
        }
    }

    /// `more` is what is still to come.
    fn push(&mut self, data: Bytes, more: &SizeHint) -> Result<(), Rejection> {
        let length = self.first.len() + self.all.len();
        if data.len() > self.limit - length {
            return Err(TOO_LONG);
        }
        if length == 0 {
            self.first = data;
            return Ok(());
        }
        if self.all.is_empty() {
            let more = usize::try_from(more.lower()).unwrap_or(usize::MAX);
            self.all.reserve(length + data.len() + more.min(MAX_AHEAD));
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
        Ok(())
    }

    fn take(&mut self) -> Bytes {
        if self.all.is_empty() {
            std::mem::take(&mut self.first)
        } else {
            std::mem::take(&mut self.all).freeze()
        }
    }
}

pin_project! {
    /// The request's body as it came, where it is none; or the message, of which only what was
    /// edited is new.
    pub struct Body<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Pieces { pieces: IntoIter<[Bytes; 3]> },
    }
}

impl<B> Body<B> {
    pub(super) fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner { body },
        }
    }

    pub(super) fn pieces(pieces: Pieces) -> Self {
        Self {
            kind: Kind::Pieces {
                pieces: pieces.into_iter(),
            },
        }
    }
}

impl<B> fmt::Debug for Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the message.
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl<B: Default> Default for Body<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx),
            KindProj::Pieces { pieces } => {
                Poll::Ready(pieces.next().map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Pieces { pieces } => pieces.as_slice().is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Pieces { pieces } => {
                let lengths = pieces.as_slice().iter().map(Bytes::len);
                SizeHint::with_exact(lengths.sum::<usize>() as u64)
            }
        }
    }
}
