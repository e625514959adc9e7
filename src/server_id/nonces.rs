//! Which nonces were used lately. It may not know what for.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::proof::MAX_SKEW;

/// One use of a key.
pub(super) type Nonce = [u8; 16];

/// How long a nonce is kept: from a clock that is ahead until it is behind, in whole seconds.
const KEPT: Duration = Duration::from_secs(2 * MAX_SKEW + 2);

/// How many are kept; each was authentic, so only a worker can fill it.
const LIMIT: usize = 1 << 18;

/// For how many there is room at any time.
const MIN_ROOM: usize = 128;

/// Why a nonce cannot be used.
pub(super) enum Unfit {
    Seen,
    Full,
}

#[derive(Default)]
pub(super) struct Nonces(Mutex<Used>);

#[derive(Default)]
struct Used {
    all: HashSet<Nonce>,
    /// The oldest first.
    ages: VecDeque<(Instant, Nonce)>,
}

impl Nonces {
    pub(super) fn insert(&self, nonce: Nonce) -> Result<(), Unfit> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while let Some((since, oldest)) = used.ages.front().copied()
            && now.duration_since(since) > KEPT
        {
            used.ages.pop_front();
            used.all.remove(&oldest);
        }
        used.give_back();
        if used.all.contains(&nonce) {
            return Err(Unfit::Seen);
        }
        if used.all.len() >= LIMIT {
            return Err(Unfit::Full);
        }
        used.all.insert(nonce);
        used.ages.push_back((now, nonce));
        Ok(())
    }
}

impl Used {
    /// After a burst, the room of what is forgotten.
    fn give_back(&mut self) {
        let room = MIN_ROOM.max(2 * self.all.len());
        if self.all.capacity() > 2 * room {
            self.all.shrink_to(room);
            self.ages.shrink_to(room);
        }
    }
}
