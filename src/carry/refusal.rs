//! `Refusal`: an upstream's 401 or 403 as data, and the slot in which it comes back to whoever
//! answers the caller.
//!
//! It may not know who reports into the slot, nor who reads it.

use std::{
    error::Error,
    fmt, iter,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};

use http::{Extensions, HeaderMap, HeaderValue, StatusCode, header::WWW_AUTHENTICATE};

use super::compact;

/// How many challenges of one refusal are kept, and how long each may be, in bytes.
const MAX_CHALLENGES: usize = 4;
const MAX_CHALLENGE: usize = 4 * 1024;

/// How many refusals one slot holds; nobody needs to know more.
const MAX_REPORTS: usize = 64;

/// An upstream's 401 or 403: it wants another credential, or more scope.
///
/// Made by [`Outbound::refusal`](crate::Outbound::refusal). `Debug` and `Display` never show the
/// challenge.
#[derive(Clone, thiserror::Error)]
#[error("upstream `{upstream}` refused with {}", status.as_u16())]
pub struct Refusal {
    upstream: Arc<str>,
    status: StatusCode,
    fault: Fault,
    challenges: Arc<[HeaderValue]>,
}

/// Who can do something about a refusal; the upstream's rules say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The credential is the caller's, or would have been.
    Caller,
    /// The credential is the operator's: a caller who renewed their own would renew forever.
    Operator,
}

impl Refusal {
    /// What the upstream said; `None` where `status` is neither 401 nor 403.
    pub(crate) fn new(
        upstream: &str,
        fault: Fault,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<Self> {
        if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return None;
        }
        let lines = headers.get_all(WWW_AUTHENTICATE).iter();
        let lines = lines.filter(|line| line.len() <= MAX_CHALLENGE);
        Some(Self {
            upstream: upstream.into(),
            status,
            fault,
            challenges: lines.take(MAX_CHALLENGES).map(compact).collect(),
        })
    }

    /// A caller's credential that the upstream's rules require did not come: as a 401 of the
    /// upstream's without a challenge, to which nothing was sent.
    pub(crate) fn missing(upstream: &str) -> Self {
        Self {
            upstream: upstream.into(),
            status: StatusCode::UNAUTHORIZED,
            fault: Fault::Caller,
            challenges: Arc::default(),
        }
    }

    /// The refusal that `error` is, or that caused it.
    pub(crate) fn behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut chain = iter::successors(Some(error), |&error| error.source());
        chain.find_map(|error| error.downcast_ref())
    }

    /// The name of the upstream.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// 401 or 403.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The upstream's `WWW-Authenticate` lines: at most four, of at most 4 KiB each.
    ///
    /// They are about the upstream: its `resource_metadata` (RFC 9728 section 5.1) names the upstream
    /// and not this proxy.
    pub fn challenges(&self) -> impl Iterator<Item = &HeaderValue> {
        self.challenges.iter()
    }

    /// Whether the caller can do something about it: the upstream's rules give it a credential of the
    /// caller's. Otherwise the operator's credential was refused.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        self.fault == Fault::Caller
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            upstream,
            status,
            fault,
            challenges,
        } = self;
        f.debug_struct("Refusal")
            .field("upstream", upstream)
            .field("status", status)
            .field("fault", fault)
            .field("challenges", &challenges.len())
            .finish()
    }
}

/// Where to answer: what is reported here, whoever opened it reads.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    reports: Vec<Refusal>,
    reader: Option<Waker>,
    closed: bool,
}

impl Slot {
    /// Ignored once the slot is closed.
    pub(crate) fn report(&self, refusal: Refusal) {
        let mut state = self.state();
        if state.closed || state.reports.len() >= MAX_REPORTS {
            return;
        }
        state.reports.push(refusal);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Whether something was reported; else the task is woken when that happens.
    pub(crate) fn poll_reported(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state();
        match &mut state.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            reader => *reader = Some(cx.waker().clone()),
        }
        !state.reports.is_empty()
    }

    /// Whether something was reported.
    pub(crate) fn is_reported(&self) -> bool {
        !self.state().reports.is_empty()
    }

    /// Closes it, unless something was reported.
    pub(crate) fn close_if_silent(&self) -> bool {
        let mut state = self.state();
        state.closed = state.reports.is_empty();
        if state.closed {
            state.reader = None;
        }
        state.closed
    }

    /// What was reported, in its order; nothing is heard any more.
    pub(crate) fn close(&self) -> Vec<Refusal> {
        let mut state = self.state();
        state.closed = true;
        state.reader = None;
        std::mem::take(&mut state.reports)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a response's extensions: its head is an upstream's own, so that nobody has to wait for what the
/// upstream will say.
#[derive(Clone, Debug)]
pub(crate) struct Relayed {
    pub(crate) refusal: Option<Refusal>,
}

/// In a response's extensions: the caller has to renew their credential.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused;

impl Refused {
    /// Marks the answer to `refusal`. Not for a 403, nor where the operator is at fault: the same
    /// credential may do for the next request.
    pub(crate) fn mark(refusal: &Refusal, extensions: &mut Extensions) {
        if refusal.is_callers() && refusal.status() == StatusCode::UNAUTHORIZED {
            extensions.insert(Self);
        }
    }
}
