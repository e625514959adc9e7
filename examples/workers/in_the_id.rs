//! The id of a session itself says who has it, where the workers are always the same ones.

use std::net::SocketAddr;

use tower::BoxError;

use crate::{
    owners::{Owner, Owners},
    worker::Told,
};

/// `0.1f3c…` is a session of worker 0.
///
/// That is no secret and no proof: a session of another worker is asked for at that worker, which
/// knows its own.
pub(crate) struct InTheId {
    number: usize,
    workers: Vec<SocketAddr>,
}

impl InTheId {
    pub(crate) fn new(told: &Told) -> Self {
        Self {
            number: told.number,
            workers: told.workers.clone(),
        }
    }
}

impl Owners for InTheId {
    async fn publish(&self, session: &str) -> Result<String, BoxError> {
        Ok(format!("{}.{session}", self.number))
    }

    async fn owner(&self, published: &str) -> Result<Option<Owner>, BoxError> {
        let owner = published.split_once('.').and_then(|(worker, session)| {
            let worker = *self.workers.get(worker.parse::<usize>().ok()?)?;
            let session = session.to_owned();
            Some(Owner { worker, session })
        });
        Ok(owner)
    }
}
