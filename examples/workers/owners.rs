//! Which worker has a session.

use std::net::SocketAddr;

use tower::BoxError;

/// Says which worker has a session.
pub(crate) trait Owners: Send + Sync + 'static {
    /// The id that callers are given for a session that this worker has made.
    fn publish(&self, session: &str) -> impl Future<Output = Result<String, BoxError>> + Send;

    /// Who has a session; `None` where nobody does.
    fn owner(
        &self,
        published: &str,
    ) -> impl Future<Output = Result<Option<Owner>, BoxError>> + Send;
}

/// The worker that has a session, and what it calls the session itself.
pub(crate) struct Owner {
    pub(crate) worker: SocketAddr,
    pub(crate) session: String,
}
