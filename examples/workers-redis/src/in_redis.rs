//! Redis says who has a session, so that workers may come and go.

use redis::{AsyncCommands, Client, aio::MultiplexedConnection};
use tower::BoxError;

use crate::{
    owners::{Owner, Owners},
    worker::Told,
};

/// How long an owner is kept after the last use, in seconds.
const KEPT: u64 = 24 * 60 * 60;

/// Under `mcp-session:<id>`, where the worker listens.
///
/// Who can write there, can send a session's requests elsewhere, with the callers' tokens: give it to
/// the workers alone.
pub(crate) struct InRedis {
    me: String,
    connection: MultiplexedConnection,
}

impl InRedis {
    pub(crate) async fn new(told: &Told) -> Result<Self, BoxError> {
        let client = Client::open(&*told.store)?;
        Ok(Self {
            me: told.addr.to_string(),
            connection: client.get_multiplexed_async_connection().await?,
        })
    }
}

fn key(session: &str) -> String {
    format!("mcp-session:{session}")
}

impl Owners for InRedis {
    async fn publish(&self, session: &str) -> Result<String, BoxError> {
        let mut connection = self.connection.clone();
        let () = connection.set_ex(key(session), &self.me, KEPT).await?;
        Ok(session.to_owned())
    }

    async fn owner(&self, published: &str) -> Result<Option<Owner>, BoxError> {
        let mut connection = self.connection.clone();
        let kept = redis::Expiry::EX(KEPT);
        let worker: Option<String> = connection.get_ex(key(published), kept).await?;
        let Some(worker) = worker else {
            return Ok(None);
        };
        Ok(Some(Owner {
            worker: worker.parse()?,
            session: published.to_owned(),
        }))
    }
}
