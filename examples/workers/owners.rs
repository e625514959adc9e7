//! Which worker has a session.

/// Says which worker has a session.
pub(crate) trait Owners {
    /// The id that callers are given for a session that this worker has made.
    fn publish(&self, worker: usize, session: &str) -> String;

    /// The worker that has a session, and what it calls the session itself.
    fn owner<'a>(&self, published: &'a str) -> Option<(usize, &'a str)>;
}

/// The id itself says it: `0.1f3c…` is a session of worker 0.
///
/// That is no secret and no proof: a session of another worker is asked for at that worker, which
/// knows its own.
pub(crate) struct InTheId;

impl Owners for InTheId {
    fn publish(&self, worker: usize, session: &str) -> String {
        format!("{worker}.{session}")
    }

    fn owner<'a>(&self, published: &'a str) -> Option<(usize, &'a str)> {
        let (worker, session) = published.split_once('.')?;
        Some((worker.parse().ok()?, session))
    }
}
