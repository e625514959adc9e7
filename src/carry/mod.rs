//! What travels, and how it survives: the one slot of the running task, and what moves into it.
//!
//! An [`Inbound`] is *current* while a wrapped future, stream or body is polled or dropped, and
//! during [`Inbound::sync_scope`]. This file is the only one that touches the thread-local; it may
//! not know who captures or who sends.

mod refusal;
mod snapshot;
pub mod task;

use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pub use refusal::Refusal;
pub(crate) use refusal::{Fault, Refused, Relayed, Slot};
pub use snapshot::Inbound;
pub(crate) use snapshot::{Entry, SessionKey, compact};

thread_local! {
    static CURRENT: Cell<Scope> = const { Cell::new(None) };
}

/// What the running task knows: `None` is no caller at all.
type Scope = Option<Inbound>;

/// Runs `f` with `scope` swapped into the task's slot, and swaps it back, also when `f` panics.
///
/// Moved and not cloned, so a poll touches no reference count. While a thread exits the slot may
/// be gone; then `f` sees no inbound.
fn enter<R>(scope: &mut Scope, f: impl FnOnce() -> R) -> R {
    struct Entered<'a>(&'a mut Scope);

    impl Drop for Entered<'_> {
        fn drop(&mut self) {
            swap(self.0);
        }
    }

    #[inline]
    fn swap(scope: &mut Scope) {
        let _ = CURRENT.try_with(|current| *scope = current.replace(scope.take()));
    }

    swap(scope);
    let _entered = Entered(scope);
    f()
}

impl Inbound {
    /// The inbound of the running task.
    ///
    /// `None` outside every scope: nothing was carried here. `Some` of an empty inbound: the
    /// caller sent nothing that the rules read.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT
            .try_with(|current| {
                let scope = current.take();
                let found = scope.clone();
                current.set(scope);
                found
            })
            .ok()
            .flatten()
    }

    /// Runs `f` with this inbound as the current one.
    ///
    /// Tasks that are *polled* inside see it too, whoever spawned them: never drive a runtime, a
    /// `LocalSet` or a `FuturesUnordered` of several callers in it.
    pub fn sync_scope<R>(self, f: impl FnOnce() -> R) -> R {
        enter(&mut Some(self), f)
    }
}

/// Carries an inbound along with a future, a stream or a body.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use mcp_forward::{Inbound, InboundExt};
///
/// let work = async { Inbound::current().is_some() };
/// assert!(tokio::spawn(work.with_inbound(Inbound::empty())).await.unwrap());
/// # }
/// ```
pub trait InboundExt: Sized {
    /// Runs `self` as `inbound`, whatever the task around it is.
    fn with_inbound(self, inbound: Inbound) -> WithInbound<Self> {
        WithInbound::scoped(self, Some(inbound))
    }

    /// Runs `self` as the inbound that is current *now*: the word to add in front of a spawn.
    ///
    /// Outside every scope there is none, and `self` will run with none.
    fn with_current_inbound(self) -> WithInbound<Self> {
        WithInbound::scoped(self, Inbound::current())
    }

    /// Runs `self` with no inbound: for pools, caches and actors that one caller's request happens
    /// to start, and that must not keep its caller.
    ///
    /// A plain `tokio::spawn` does the same for a task; this is for what is polled inside the request,
    /// or given to a spawn that carries. What a function does before it returns its future is not
    /// covered: `async { start().await }.detached()`.
    fn detached(self) -> WithInbound<Self> {
        WithInbound::scoped(self, None)
    }
}

impl<T> InboundExt for T {}

pin_project! {
    /// A future, stream or body that runs as one inbound: in every poll, and when it is dropped.
    ///
    /// Made by [`InboundExt`].
    #[must_use = "it does nothing unless it is polled"]
    pub struct WithInbound<T> {
        // `None` once it has ended or is dropped: it has to go while the scope is still entered.
        #[pin]
        inner: Option<T>,
        scope: Scope,
        compact: bool,
    }

    impl<T> PinnedDrop for WithInbound<T> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if std::mem::needs_drop::<T>() && this.inner.is_some() {
                enter(this.scope, || this.inner.set(None));
            }
        }
    }
}

impl<T> WithInbound<T> {
    pub(crate) fn scoped(inner: T, scope: Option<Inbound>) -> Self {
        Self {
            inner: Some(inner),
            scope,
            compact: false,
        }
    }

    /// What `make` makes, which runs as `inbound` already.
    pub(crate) fn of(inbound: Inbound, make: impl FnOnce() -> T) -> Self {
        let mut scope = Some(inbound);
        let inner = enter(&mut scope, make);
        Self::scoped(inner, scope)
    }

    /// `next`, which runs as the inbound for which `self`, which has ended, has no more use.
    pub(crate) fn succeed<U>(self: Pin<&mut Self>, next: U) -> WithInbound<U> {
        WithInbound::scoped(next, self.project().scope.take())
    }
}

impl<T: Default> Default for WithInbound<T> {
    /// The default of the inner type, which runs with no inbound.
    fn default() -> Self {
        Self::scoped(T::default(), None)
    }
}

impl<T: fmt::Debug> fmt::Debug for WithInbound<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithInbound")
            .field("inner", &self.inner)
            .field("inbound", &self.scope)
            .finish()
    }
}

impl<T: Future> Future for WithInbound<T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        enter(this.scope, || {
            let inner = this.inner.as_mut().as_pin_mut();
            let output = inner.map_or(Poll::Pending, |inner| inner.poll(cx));
            if output.is_ready() {
                this.inner.set(None);
            }
            output
        })
    }
}

impl<T: Stream> Stream for WithInbound<T> {
    type Item = T::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        match this.inner.as_pin_mut() {
            Some(inner) => enter(this.scope, || inner.poll_next(cx)),
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.as_ref().map_or((0, Some(0)), Stream::size_hint)
    }
}

impl<T: Body> Body for WithInbound<T> {
    type Data = T::Data;
    type Error = T::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        match this.inner.as_pin_mut() {
            Some(inner) => {
                let frame = enter(this.scope, || inner.poll_frame(cx));
                // An event stream can wait for hours, and its caller's values with it.
                if frame.is_pending() && !*this.compact {
                    *this.scope = this.scope.as_ref().map(Inbound::copied);
                    *this.compact = true;
                }
                frame
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
