//! `Streams`: how long rmcp tries to take up an event stream that broke off.
//!
//! It may not know what is sent over one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rmcp::transport::common::client_side_sse::SseRetryPolicy;

/// How often in a row; rmcp on its own never gives up, and the call whose stream it is waits forever.
const MAX_ATTEMPTS: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The event streams of one connection. Where one is lost, so is whatever the upstream says next.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    lost: Arc<AtomicBool>,
}

impl Streams {
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    pub(super) fn are_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl SseRetryPolicy for Streams {
    fn retry(&self, failed: usize) -> Option<Duration> {
        if failed < MAX_ATTEMPTS {
            return Some(FIRST_PAUSE * 2_u32.pow(failed.try_into().ok()?));
        }
        self.lose();
        None
    }
}
