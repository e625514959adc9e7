//! What upstreams have answered to probes: one question at a time for each caller, and for a while
//! the answer.
//!
//! It may not know how they are asked. The key is the exact question: two callers never share an
//! answer, and what one caller's headers did is never held against another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::ask::Question;
use crate::{carry::Refusal, rules::Upstream};

/// How long it is known that a credential was accepted.
const PASSED_FOR: Duration = Duration::from_secs(30);

/// For how long the same headers are not tried again at an upstream that said neither, or nothing.
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
    /// It said neither: the real call will show.
    Failed,
    /// It did not answer: the same, but for the log.
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
    flights: HashMap<Question, Arc<Flight>>,
    /// For questions on their way.
    rooms: HashMap<Upstream, Arc<Semaphore>>,
}

impl Answers {
    /// Whether the credential was accepted a moment ago.
    pub(super) fn has_passed(&self, question: &Question) -> bool {
        let table = self.table();
        let known = table.flights.get(question).and_then(|flight| flight.get());
        known.is_some_and(|(answer, until)| {
            matches!(answer, Answer::Passed) && *until > Instant::now()
        })
    }

    /// The answer to `question`: the known one, that of a question which is on its way, or that of
    /// `ask`.
    ///
    /// Where whoever asks goes away, the next one who waits asks again.
    pub(super) async fn get<F>(
        &self,
        question: &Question,
        ask: impl FnOnce(OwnedSemaphorePermit) -> F,
    ) -> Answer
    where
        F: Future<Output = Answer>,
    {
        let (flight, room) = self.table().flight(question);
        let asked = flight.get_or_init(|| async {
            let answer = match room.try_acquire_owned() {
                Ok(permit) => ask(permit).await,
                Err(_) => Answer::Unasked,
            };
            let now = Instant::now();
            let until = match answer {
                Answer::Passed => now + PASSED_FOR,
                // Also of an upstream that is down: who can say that it was not these headers?
                Answer::Failed | Answer::Silent => now + FAILED_FOR,
                // Only for those who wait for it already.
                Answer::Refused(_) | Answer::Unasked => now,
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
    /// The flight for `question`, and the room at its upstream.
    fn flight(&mut self, question: &Question) -> (Arc<Flight>, Arc<Semaphore>) {
        let now = Instant::now();
        let is_worth = |flight: &Arc<Flight>| match flight.get() {
            Some((_, until)) => *until > now,
            None => Arc::strong_count(flight) > 1,
        };
        let flight = match self.flights.get(question) {
            Some(flight) if is_worth(flight) => Arc::clone(flight),
            _ => {
                self.flights.retain(|_, flight| is_worth(flight));
                // Whoever holds it keeps it for the permit.
                self.rooms.retain(|_, room| Arc::strong_count(room) > 1);
                self.give_back();
                self.keep(question)
            }
        };
        let room = self.rooms.entry(question.outbound.upstream().clone());
        let room = room.or_insert_with(|| Arc::new(Semaphore::new(MAX_ASKED)));
        (flight, Arc::clone(room))
    }

    /// After a burst, the room of what is worth nothing any more.
    fn give_back(&mut self) {
        let room = MIN_ROOM.max(2 * self.flights.len());
        if self.flights.capacity() > 2 * room {
            self.flights.shrink_to(room);
        }
    }

    /// A new flight, in place of the answer that is worth least where there is no room.
    fn keep(&mut self, question: &Question) -> Arc<Flight> {
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
            self.flights.insert(question.clone(), Arc::clone(&flight));
        }
        flight
    }
}
