//! What upstreams have answered to probes: one question at a time for each caller, and for a while
//! the answer.
//!
//! It may not know how they are asked. The key is the exact `Outbound`: two callers never share an
//! answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{carry::Refusal, outbound::Outbound, rules::Upstream};

/// How long it is known that a credential was accepted.
const PASSED_FOR: Duration = Duration::from_secs(30);

/// How long an upstream that did not answer is left alone; and one that did not take these headers,
/// with these headers.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// How many questions may be on their way to one upstream.
const MAX_ASKED: usize = 16;

/// How many answers are kept.
const MAX_KEPT: usize = 1024;

/// For how many there is room at any time.
const MIN_ROOM: usize = 64;

/// What a probe has shown.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The upstream takes the credential.
    Passed,
    Refused(Refusal),
    /// It said neither, to these headers: the real call will show.
    Failed,
    /// It did not answer, which is nobody's headers.
    Silent,
    /// Too many were asked already.
    Unasked,
}

impl Answer {
    /// For the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused(_) => "refused",
            Self::Failed => "failed",
            Self::Silent => "silent",
            Self::Unasked => "not asked",
        }
    }
}

/// A question on its way, or its answer, and until when that one is worth something.
type Flight = OnceCell<(Answer, Instant)>;

#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    flights: HashMap<Outbound, Arc<Flight>>,
    targets: HashMap<Upstream, Target>,
}

#[derive(Debug)]
struct Target {
    room: Arc<Semaphore>,
    silent_until: Option<Instant>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MAX_ASKED)),
            silent_until: None,
        }
    }
}

impl Answers {
    /// Whether the credential was accepted a moment ago.
    pub(super) fn has_passed(&self, outbound: &Outbound) -> bool {
        let table = self.table();
        let known = table.flights.get(outbound).and_then(|flight| flight.get());
        known.is_some_and(|(answer, until)| {
            matches!(answer, Answer::Passed) && *until > Instant::now()
        })
    }

    /// The answer to `outbound`: the known one, that of a question which is on its way, or that of
    /// `ask`.
    ///
    /// Where whoever asks goes away, the next one who waits asks again.
    pub(super) async fn get<F>(
        &self,
        outbound: &Outbound,
        ask: impl FnOnce(OwnedSemaphorePermit) -> F,
    ) -> Answer
    where
        F: Future<Output = Answer>,
    {
        let upstream = outbound.upstream();
        let Some((flight, room)) = self.table().flight(outbound) else {
            return Answer::Silent;
        };
        let asked = flight.get_or_init(|| async {
            let answer = match room.try_acquire_owned() {
                Ok(permit) => ask(permit).await,
                Err(_) => Answer::Unasked,
            };
            let now = Instant::now();
            if matches!(answer, Answer::Silent) {
                let mut table = self.table();
                let target = table.targets.entry(upstream.clone()).or_default();
                target.silent_until = Some(now + FAILED_FOR);
            }
            let until = match answer {
                Answer::Passed => now + PASSED_FOR,
                // Whoever sends what no server takes does not speak for the others.
                Answer::Failed => now + FAILED_FOR,
                // Only for those who wait for it already.
                Answer::Refused(_) | Answer::Silent | Answer::Unasked => now,
            };
            (answer, until)
        });
        asked.await.0.clone()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The flight for `outbound`, and the room at its upstream; `None` where that one is left alone.
    fn flight(&mut self, outbound: &Outbound) -> Option<(Arc<Flight>, Arc<Semaphore>)> {
        let now = Instant::now();
        let is_worth = |flight: &Arc<Flight>| match flight.get() {
            Some((_, until)) => *until > now,
            None => Arc::strong_count(flight) > 1,
        };
        let flight = match self.flights.get(outbound) {
            Some(flight) if is_worth(flight) => Arc::clone(flight),
            _ => {
                self.flights.retain(|_, flight| is_worth(flight));
                self.targets.retain(|_, target| target.is_worth(now));
                self.give_back();
                self.keep(outbound)
            }
        };
        let target = self.targets.entry(outbound.upstream().clone()).or_default();
        let is_left_alone = target.silent_until.is_some_and(|until| until > now);
        (!is_left_alone).then(|| (flight, Arc::clone(&target.room)))
    }

    /// After a burst, the room of what is worth nothing any more.
    fn give_back(&mut self) {
        let room = MIN_ROOM.max(2 * self.flights.len());
        if self.flights.capacity() > 2 * room {
            self.flights.shrink_to(room);
        }
    }

    /// A new flight, in place of the answer that is worth least where there is no room.
    fn keep(&mut self, outbound: &Outbound) -> Arc<Flight> {
        if self.flights.len() >= MAX_KEPT {
            let flights = self.flights.iter();
            let answered = flights.filter_map(|(of, flight)| Some((of, flight.get()?.1)));
            let first = answered.min_by_key(|(_, until)| *until);
            if let Some(first) = first.map(|(of, _)| of.clone()) {
                self.flights.remove(&first);
            }
        }
        let flight = Arc::<Flight>::default();
        if self.flights.len() < MAX_KEPT {
            self.flights.insert(outbound.clone(), Arc::clone(&flight));
        }
        flight
    }
}

impl Target {
    fn is_worth(&self, now: Instant) -> bool {
        // Whoever holds the room may not have its place in it yet; who does, keeps it for the permit.
        self.silent_until.is_some_and(|until| until > now) || Arc::strong_count(&self.room) > 1
    }
}
