//! What upstreams and callers share, in the thread of neither: who waits for what, what was wrong, and
//! the figures.
//!
//! It may not know how anything is done.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, oneshot};

use crate::{
    plan::{Call, Chaos, Fault, Place, Plan},
    support::Recorded,
    table::Outcome,
    values::{call_of, expected, seen},
};

/// How many mismatches are kept.
const SHOWN: usize = 20;

/// How often each fault was planned for calls, and for lists, and what it came to.
pub type Tally = BTreeMap<(bool, Fault), BTreeMap<Outcome, u64>>;

pub struct World {
    pub chaos: Chaos,
    /// Which calls the upstreams have accepted.
    accepted: Mutex<HashSet<Call>>,
    /// Who waits until the upstream has a call.
    awaited: Mutex<HashMap<Call, oneshot::Sender<()>>>,
    busy: AtomicUsize,
    idle: Notify,
    wrong: Mutex<(usize, Vec<String>)>,
    tally: Mutex<Tally>,
    /// How often each fault was really done.
    done: Mutex<BTreeMap<Fault, u64>>,
}

impl World {
    pub fn new(chaos: Chaos) -> Self {
        Self {
            chaos,
            accepted: Mutex::default(),
            awaited: Mutex::default(),
            busy: AtomicUsize::default(),
            idle: Notify::default(),
            wrong: Mutex::default(),
            tally: Mutex::default(),
            done: Mutex::default(),
        }
    }

    pub fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap();
        wrong.0 += 1;
        if wrong.1.len() < SHOWN {
            wrong.1.push(what);
        }
    }

    /// How many mismatches there are, and the first of them.
    pub fn mismatches(&self) -> (usize, Vec<String>) {
        self.wrong.lock().unwrap().clone()
    }

    pub fn count(&self, plan: &Plan, outcome: Outcome) {
        let mut tally = self.tally.lock().unwrap();
        *tally
            .entry((plan.list, plan.fault))
            .or_default()
            .entry(outcome)
            .or_default() += 1;
    }

    /// The fault has been done to a call, or by its caller.
    pub fn done(&self, fault: Fault) {
        *self.done.lock().unwrap().entry(fault).or_default() += 1;
    }

    pub fn all_done(&self) -> BTreeMap<Fault, u64> {
        self.done.lock().unwrap().clone()
    }

    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    /// Resolves once the upstream has the call.
    pub fn arrival(&self, call: Call) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        self.awaited.lock().unwrap().insert(call, tell);
        told
    }

    pub fn tell(&self, call: Call) {
        if let Some(tell) = self.awaited.lock().unwrap().remove(&call) {
            tell.send(()).unwrap_or(());
        }
    }

    /// A call reaches an upstream: that it should, once, and with its own values.
    pub fn judge_call(&self, place: Place, owner: Option<u64>, call: Call, request: &Recorded) {
        let plan = self.chaos.plan(call);
        if plan.place != place || plan.list || plan.early {
            self.wrong(format!("{call} came to {}: {plan:?}", place.name()));
        }
        if !self.accepted.lock().unwrap().insert(call) {
            self.wrong(format!("{call} came to {} twice", place.name()));
        }
        self.judge_lines(place, owner, call, request);
    }

    /// Any other message reaches an upstream: all its values are those of one call of one principal,
    /// who is the session's. Gives that call.
    pub fn judge_message(
        &self,
        place: Place,
        owner: Option<u64>,
        request: &Recorded,
    ) -> Option<Call> {
        let Some(call) = call_of(place, request) else {
            self.wrong(format!("nobody's came to {}: {request:?}", place.name()));
            return None;
        };
        self.judge_lines(place, owner, call, request);
        Some(call)
    }

    fn judge_lines(&self, place: Place, owner: Option<u64>, call: Call, request: &Recorded) {
        if owner.is_some_and(|owner| owner != call.principal) {
            self.wrong(format!("{call} in the session of {owner:?}: {request:?}"));
        }
        let expected = expected(place, call);
        let expected = expected.iter().map(|(name, value)| (*name, value.as_str()));
        let seen = seen(request);
        if !expected.eq(seen.iter().copied()) {
            self.wrong(format!("{call} came to {} with {seen:?}", place.name()));
        }
    }

    /// An upstream waits for the proxy.
    pub fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self)
    }

    /// Until no upstream waits any more.
    pub async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.busy.load(Ordering::Relaxed) == 0 {
                return;
            }
            idle.await;
        }
    }
}

pub struct Busy<'a>(&'a World);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
