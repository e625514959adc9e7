//! Who owns which session, for how long, and how many there are.
//!
//! It may not know HTTP, nor what a session's headers are for. Ids and principals are secrets: nothing
//! here prints one.

use std::{
    collections::HashMap,
    hash::{Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hashlink::LinkedHashMap;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{carry::Inbound, events, server_id::ServerId};

/// How many expired sessions the sweeper ends before it lets others at the table.
const SLICE: usize = 256;

/// Who is behind a request, as your authentication has verified it: what identifies a user and does not
/// change when they renew their token.
///
/// Two are the same where `Eq` says so. Take all that identifies the user, such as client, issuer and
/// subject: a subject alone can exist at two issuers.
pub trait Principal: Hash + Eq + Clone + Send + Sync + 'static {}

impl<T: Hash + Eq + Clone + Send + Sync + 'static> Principal for T {}

/// Whose a session is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Owner<P> {
    /// `None`: anonymous.
    pub(super) principal: Option<P>,
    pub(super) server: Option<ServerId>,
}

#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) idle: Duration,
    pub(super) per_principal: usize,
    pub(super) sessions: usize,
}

pub(super) struct Table<P> {
    state: Mutex<State<P>>,
    /// Tells the sweeper that the limits have changed.
    changed: Arc<Notify>,
}

struct State<P> {
    limits: Limits,
    /// In the order of their last use, so that the next to expire is the first.
    sessions: LinkedHashMap<Box<[u8]>, Session<P>, RandomState>,
    /// How many sessions and permits each principal has.
    held: HashMap<Option<P>, usize>,
    /// How many of them there are.
    total: usize,
    /// Of the session that was made last.
    serial: u64,
    /// Whether there has been one of nobody.
    was_anonymous: bool,
    sweeper: Option<JoinHandle<()>>,
}

struct Session<P> {
    owner: Owner<P>,
    pinned: Option<Inbound>,
    used: Instant,
    /// Tells it from another that gets the same id later.
    serial: u64,
}

/// A session, as its owner finds it.
pub(super) struct Found {
    pub(super) serial: u64,
    pub(super) pinned: Option<Inbound>,
}

/// Why a session is not found. The caller must not learn which of them it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NotFound {
    Unknown,
    Foreign,
}

impl<P: Principal> Table<P> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                limits,
                sessions: LinkedHashMap::with_hasher(RandomState::new()),
                held: HashMap::new(),
                total: 0,
                serial: 0,
                was_anonymous: false,
                sweeper: None,
            }),
            changed: Arc::default(),
        }
    }

    /// Changes the limits for all that share the table. No session is ended for a smaller number.
    pub(super) fn limit(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.state().limits);
        self.changed.notify_one();
    }

    /// The session `id` of `owner`, which is in use from now on.
    pub(super) fn find(&self, id: &[u8], owner: &Owner<P>) -> Result<Found, NotFound> {
        let mut state = self.state();
        let (now, idle) = (Instant::now(), state.limits.idle);
        let session = state.sessions.get_mut(id).ok_or(NotFound::Unknown)?;
        if session.is_expired(now, idle) {
            // The sweeper is about to end it.
            return Err(NotFound::Unknown);
        }
        if session.owner != *owner {
            return Err(NotFound::Foreign);
        }
        session.used = now;
        let found = Found {
            serial: session.serial,
            pinned: session.pinned.clone(),
        };
        state.sessions.to_back(id);
        Ok(found)
    }

    /// Whether `id` is a session of somebody else than `owner`.
    pub(super) fn is_foreign(&self, id: &[u8], owner: &Owner<P>) -> bool {
        let state = self.state();
        state.is_foreign(id, owner, Instant::now())
    }

    /// Room for one session more of `principal`; `None` at a limit.
    pub(super) fn reserve(self: &Arc<Self>, principal: &Option<P>) -> Option<Permit<P>> {
        let mut state = self.state();
        let mut expired = 0;
        if state.is_full(principal) {
            expired = state.expire(usize::MAX);
        }
        let full = state.is_full(principal);
        if !full {
            state.hold(principal);
        }
        drop(state);
        events::sessions_expired(expired);
        (!full).then(|| Permit {
            table: Arc::clone(self),
            principal: principal.clone(),
            is_used: false,
        })
    }

    /// Ends the session `id`, if it is still the one with `serial`.
    pub(super) fn end(&self, id: &[u8], serial: Option<u64>, reason: &'static str) -> bool {
        let mut state = self.state();
        let session = state.sessions.get(id);
        let is_it = session.is_some_and(|it| serial.is_none_or(|serial| serial == it.serial));
        if is_it {
            state.remove(id);
        }
        drop(state);
        if is_it {
            events::session_ended(reason);
        }
        is_it
    }

    /// How many sessions there are, and how many principals have one or a permit.
    pub(super) fn counts(&self) -> (usize, usize) {
        let mut state = self.state();
        let expired = state.expire(usize::MAX);
        let counts = (state.sessions.len(), state.held.len());
        drop(state);
        events::sessions_expired(expired);
        counts
    }

    /// Ends what has expired, and says when the next will; `None` where there is none.
    fn sweep(&self) -> Option<Instant> {
        let mut state = self.state();
        let expired = state.expire(SLICE);
        if state.sessions.len() < state.sessions.capacity() / 4 {
            state.sessions.shrink_to_fit();
            state.held.shrink_to_fit();
        }
        let next = state.sessions.front();
        let next = next.map(|(_, session)| session.used + state.limits.idle);
        if next.is_none() {
            state.sweeper = None;
        }
        drop(state);
        events::sessions_expired(expired);
        next
    }

    /// Sees to it that sessions expire also where nobody asks for any.
    ///
    /// Outside a tokio runtime they expire when the table is full, and when they are asked for.
    fn watch(self: &Arc<Self>, state: &mut State<P>) {
        let sweeper = state.sweeper.as_ref();
        if sweeper.is_some_and(|sweeper| !sweeper.is_finished()) {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let sweeper = sweep(Arc::downgrade(self), Arc::clone(&self.changed));
            state.sweeper = Some(runtime.spawn(sweeper));
        }
    }

    fn state(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep<P: Principal>(table: Weak<Table<P>>, changed: Arc<Notify>) {
    while let Some(next) = table.upgrade().and_then(|table| table.sweep()) {
        // Both mean to look again.
        let _ = timeout_at(next, changed.notified()).await;
    }
}

impl<P> Session<P> {
    fn is_expired(&self, now: Instant, idle: Duration) -> bool {
        now.duration_since(self.used) >= idle
    }
}

impl<P: Principal> State<P> {
    fn is_full(&self, principal: &Option<P>) -> bool {
        let held = self.held.get(principal).copied().unwrap_or_default();
        held >= self.limits.per_principal || self.total >= self.limits.sessions
    }

    fn is_foreign(&self, id: &[u8], owner: &Owner<P>, now: Instant) -> bool {
        let session = self.sessions.get(id);
        session.is_some_and(|it| !it.is_expired(now, self.limits.idle) && it.owner != *owner)
    }

    /// Ends at most so many of the expired sessions, and says how many.
    fn expire(&mut self, at_most: usize) -> usize {
        let now = Instant::now();
        let mut expired = 0;
        while expired < at_most
            && let Some((_, session)) = self.sessions.front()
            && session.is_expired(now, self.limits.idle)
        {
            if let Some((_, session)) = self.sessions.pop_front() {
                self.release(&session.owner.principal);
            }
            expired += 1;
        }
        expired
    }

    fn hold(&mut self, principal: &Option<P>) {
        match self.held.get_mut(principal) {
            Some(held) => *held += 1,
            None => {
                self.held.insert(principal.clone(), 1);
            }
        }
        self.total += 1;
    }

    fn release(&mut self, principal: &Option<P>) {
        if let Some(held) = self.held.get_mut(principal) {
            *held -= 1;
            self.total -= 1;
            if *held == 0 {
                self.held.remove(principal);
            }
        }
    }

    fn remove(&mut self, id: &[u8]) {
        if let Some(session) = self.sessions.remove(id) {
            self.release(&session.owner.principal);
        }
    }
}

/// Room for one session, until it is bound or dropped.
pub(super) struct Permit<P: Principal> {
    table: Arc<Table<P>>,
    principal: Option<P>,
    is_used: bool,
}

impl<P: Principal> Permit<P> {
    /// Makes `id` a session of `owner`, to whom the permit was given; not where somebody else has it.
    ///
    /// Where `owner` has it already, the server has made the same session anew: this one replaces it.
    pub(super) fn bind(mut self, id: &[u8], owner: Owner<P>, pinned: Option<Inbound>) -> bool {
        let table = Arc::clone(&self.table);
        let mut state = table.state();
        let now = Instant::now();
        let is_foreign = state.is_foreign(id, &owner, now);
        let mut is_first_anonymous = false;
        if !is_foreign {
            is_first_anonymous = owner.principal.is_none() && !state.was_anonymous;
            state.was_anonymous |= is_first_anonymous;
            state.remove(id);
            state.serial += 1;
            let session = Session {
                owner,
                pinned,
                used: now,
                serial: state.serial,
            };
            state.sessions.insert(id.into(), session);
            table.watch(&mut state);
            self.is_used = true;
        }
        // Before the permit, whose end wants the table as well.
        drop(state);
        if is_first_anonymous {
            events::anonymous_session();
        }
        !is_foreign
    }
}

impl<P: Principal> Drop for Permit<P> {
    fn drop(&mut self) {
        if !self.is_used {
            self.table.state().release(&self.principal);
        }
    }
}
