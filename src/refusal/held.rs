//! A response that is held: its body is polled until it, its slot or the clock says what comes next.
//!
//! It may not know what the caller is told.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};

use super::sse::LookAhead;
use crate::carry::{Slot, WithInbound};

/// How much of a body is kept while it says nothing, in bytes.
const MAX_KEPT: usize = 8 * 1024;

/// How long a refused response may take to its end.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How many frames are read before other tasks get their turn.
const DRAIN_BURST: usize = 64;

/// What becomes of a response that was held.
pub(super) enum Verdict {
    /// It is the answer; `last` is the frame that spoke.
    Released {
        last: Option<Frame<Bytes>>,
        is_over: bool,
    },
    /// A refusal is in the slot, and the response is at its end.
    Refused,
    /// Its body has failed, and no refusal says why.
    Failed,
}

/// The body of a response whose head is held.
pub(super) struct Held<R> {
    body: Pin<Box<WithInbound<R>>>,
    slot: Slot,
    /// `None`: any byte speaks.
    look: Option<LookAhead>,
    kept: BytesMut,
    came: usize,
    is_drained: bool,
    limit: Duration,
    /// Set once there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<R: Body<Data = Bytes>> Held<R> {
    pub(super) fn new(
        body: WithInbound<R>,
        slot: Slot,
        is_events: bool,
        limit: Duration,
        room: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            body: Box::pin(body),
            slot,
            look: is_events.then(LookAhead::new),
            kept: BytesMut::new(),
            came: 0,
            is_drained: false,
            limit,
            timer: None,
            _room: room,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        while !self.is_drained {
            let polled = self.body.as_mut().poll_frame(cx);
            // Whatever the poll gave: a body may call the upstream while it is polled.
            let is_reported = match polled {
                Poll::Pending => self.slot.poll_reported(cx),
                Poll::Ready(_) => self.slot.is_reported(),
            };
            let verdict = match polled {
                Poll::Ready(None) => Verdict::Released {
                    last: None,
                    is_over: true,
                },
                Poll::Ready(Some(Err(_))) => Verdict::Failed,
                _ if is_reported => {
                    self.drain();
                    break;
                }
                Poll::Ready(Some(Ok(frame))) => match self.keep(frame) {
                    None => continue,
                    last => Verdict::Released {
                        last,
                        is_over: false,
                    },
                },
                Poll::Pending => {
                    ready!(self.poll_timer(cx));
                    Verdict::Released {
                        last: None,
                        is_over: false,
                    }
                }
            };
            let is_at_end = !matches!(verdict, Verdict::Released { is_over: false, .. });
            if self.slot.close_if_silent() {
                return Poll::Ready(verdict);
            } else if is_at_end {
                return Poll::Ready(Verdict::Refused);
            }
            self.drain();
        }
        self.poll_drained(cx).map(|()| Verdict::Refused)
    }

    /// Keeps a frame that says nothing; gives one back that speaks, or that there is no room for.
    fn keep(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(trailers) => return Some(trailers),
        };
        let speaks = match &mut self.look {
            Some(look) => look.sees(&bytes),
            None => !bytes.is_empty(),
        };
        // An empty frame counts as well, so that endless ones have an end.
        self.came += bytes.len().max(1);
        if speaks || self.came >= MAX_KEPT {
            return Some(Frame::data(bytes));
        }
        self.kept.extend_from_slice(&bytes);
        None
    }

    fn drain(&mut self) {
        self.is_drained = true;
        self.limit = DRAIN_LIMIT;
        self.timer = None;
        self.kept = BytesMut::new();
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..DRAIN_BURST {
            match self.body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.poll_timer(cx),
            }
        }
        let timer = self.poll_timer(cx);
        if timer.is_pending() {
            cx.waker().wake_by_ref();
        }
        timer
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(self.limit)));
        timer.as_mut().poll(cx)
    }

    /// The body, from its beginning.
    pub(super) fn release(self, last: Option<Frame<Bytes>>, is_over: bool) -> HeldBody<R> {
        HeldBody {
            kind: Kind::Held {
                first: self.kept.freeze(),
                last,
                rest: Some(self.body).filter(|_| !is_over),
            },
        }
    }
}

pin_project! {
    /// The body of a response that may have been held: what was kept, and the rest as it comes.
    pub struct HeldBody<R> {
        #[pin]
        kind: Kind<R>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<R> {
        Unheld { #[pin] body: WithInbound<R> },
        Held {
            first: Bytes,
            last: Option<Frame<Bytes>>,
            rest: Option<Pin<Box<WithInbound<R>>>>,
        },
    }
}

impl<R> HeldBody<R> {
    pub(super) fn unheld(body: WithInbound<R>) -> Self {
        Self {
            kind: Kind::Unheld { body },
        }
    }
}

impl<R: Default> Default for HeldBody<R> {
    fn default() -> Self {
        Self::unheld(WithInbound::default())
    }
}

impl<R> fmt::Debug for HeldBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldBody").finish_non_exhaustive()
    }
}

impl<R: Body<Data = Bytes>> Body for HeldBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.project().kind.project() {
            KindProj::Unheld { body } => body.poll_frame(cx),
            KindProj::Held { first, last, rest } => {
                if !first.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(first)))));
                }
                if let Some(last) = last.take() {
                    return Poll::Ready(Some(Ok(last)));
                }
                match rest {
                    Some(rest) => rest.as_mut().poll_frame(cx),
                    None => Poll::Ready(None),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Unheld { body } => body.is_end_stream(),
            Kind::Held { first, last, rest } => {
                let is_over = rest.as_ref().is_none_or(|rest| rest.is_end_stream());
                first.is_empty() && last.is_none() && is_over
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Unheld { body } => body.size_hint(),
            Kind::Held { first, last, rest } => {
                let last = last.as_ref().and_then(Frame::data_ref);
                let kept = (first.len() + last.map_or(0, Bytes::len)) as u64;
                let rest = rest
                    .as_ref()
                    .map_or_else(|| SizeHint::with_exact(0), |rest| rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(kept));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(kept));
                }
                hint
            }
        }
    }
}
