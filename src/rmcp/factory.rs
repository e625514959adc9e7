//! `Factory`: the `ClientFactory` of this wing, and its builder.

use std::{fmt, sync::Arc, time::Duration};

use moka::{future::Cache, policy::EvictionPolicy};
use reqwest::redirect;

use super::{client::Client, error::Error, pool::Pool, status::watched};
use crate::{
    carry::Inbound,
    error::{BuildError, Mistake, MistakeKind},
    outbound::{Outbound, client::ClientFactory},
    rules::Upstream,
};

/// The longest time that can be set; to a clock, for ever is too long.
const MAX_IDLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a socket without a request is kept. Many servers close theirs after 5 s (Node, uvicorn), and
/// what is sent at that moment is lost: it may have been carried out, so nobody sends it again.
const SOCKET_IDLE: Duration = Duration::from_secs(4);

/// How many upstreams have a pool, far more than a proxy has.
const MAX_UPSTREAMS: u64 = 1024;

/// Makes rmcp clients that act as the caller, over connections that are kept.
///
/// A cheap handle. [The module](super) says which connection a call uses. It needs a tokio runtime with
/// I/O and timer enabled.
///
/// The HTTP client below is one pool for all callers. It never follows a redirect and never repeats a
/// request; each request has the headers of its own caller.
#[derive(Clone)]
pub struct Factory {
    http: reqwest::Client,
    connect_timeout: Duration,
    max_connections: u64,
    /// For how long; `None`: not at all.
    kept: Option<Duration>,
    pools: Cache<Upstream, Arc<Pool>>,
}

impl Factory {
    /// Starts a factory.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_forward::BuildError> {
    /// let factory = mcp_forward::rmcp::Factory::builder()
    ///     .max_connections(1_000)
    ///     .build()?;
    /// # let _ = factory;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> FactoryBuilder {
        FactoryBuilder {
            http: reqwest::Client::builder()
                .no_proxy()
                .pool_idle_timeout(SOCKET_IDLE),
            connect_timeout: Duration::from_secs(30),
            max_connections: 100,
            idle_time: Duration::from_secs(300),
            fresh: false,
        }
    }
}

impl ClientFactory for Factory {
    type Client = Client;
    type Error = Error;

    async fn create(&self, outbound: Outbound) -> Result<Client, Error> {
        let inbound = Inbound::current().unwrap_or_default();
        let upstream = outbound.upstream();
        let make = async {
            Pool::new(
                self.http.clone(),
                upstream,
                self.connect_timeout,
                self.max_connections,
                self.kept,
            )
        };
        let pool = self.pools.get_with_by_ref(upstream, make).await;
        let lease = pool.lease(&outbound).await?;
        Ok(Client::new(lease, outbound, &inbound))
    }
}

impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            http: _,
            connect_timeout,
            max_connections,
            kept,
            pools: _,
        } = self;
        f.debug_struct("Factory")
            .field("connect_timeout", connect_timeout)
            .field("max_connections", max_connections)
            .field("kept", kept)
            .finish_non_exhaustive()
    }
}

/// Collects how a [`Factory`] connects and what it keeps.
#[must_use = "nothing is checked before `build`"]
pub struct FactoryBuilder {
    http: reqwest::ClientBuilder,
    connect_timeout: Duration,
    max_connections: u64,
    idle_time: Duration,
    fresh: bool,
}

impl FactoryBuilder {
    /// Connects through what `http` says: certificates, proxies, time-outs, a TLS backend. Whatever it
    /// says of redirects and retries is replaced: none. It must not have headers
    /// or a cookie store of its own: all callers would share them.
    ///
    /// reqwest's builder takes an HTTP proxy from the environment, also for an upstream on loopback; the
    /// factory's own one uses none. And it keeps a socket that nobody uses for 90 s, where the factory's own
    /// one keeps it for 4 s: a call on a socket that the upstream closes at that moment fails with
    /// [`Unreachable`](super::ErrorKind::Unreachable). Set `pool_idle_timeout` below what your upstreams keep.
    pub fn http(self, http: reqwest::ClientBuilder) -> Self {
        Self { http, ..self }
    }

    /// How long an upstream may take for the connection and the handshake, in whichever versions it is tried;
    /// 30 s by default.
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            ..self
        }
    }

    /// How many connections to one upstream are kept; 100 by default. Beyond, the one that was not used for
    /// longest is closed; calls that are under way on it end as they would have.
    ///
    /// Set it above the number of front sessions that may live at once (with a session layer, its
    /// `max_sessions`) and of the different sets of headers that callers without one send within
    /// [`idle_time`](Self::idle_time): all callers share it, so beyond it one who begins many sessions, or sends many
    /// different headers, closes others' connections, whose upstream sessions end, with their subscriptions, while
    /// the front sessions go on. The log tells of each front session that loses one, at WARN (feature `tracing`).
    /// Connections of front sessions that have ended give way first.
    ///
    /// As many handshakes go on whose callers have left; further ones are cut short.
    pub fn max_connections(self, max_connections: u64) -> Self {
        Self {
            max_connections,
            ..self
        }
    }

    /// How long a connection is kept that nobody uses; 5 minutes by default, a year at most.
    pub fn idle_time(self, idle_time: Duration) -> Self {
        let idle_time = idle_time.min(MAX_IDLE);
        Self { idle_time, ..self }
    }

    /// Keeps nothing: each client has a connection of its own, which ends with it.
    pub fn fresh(self) -> Self {
        Self {
            fresh: true,
            ..self
        }
    }

    /// Makes the HTTP client.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where [`http`](Self::http) cannot be built, or where no connection may be kept: say
    /// [`fresh`](Self::fresh) for that.
    pub fn build(self) -> Result<Factory, BuildError> {
        let mut mistakes = Vec::new();
        if self.max_connections == 0 {
            let message = "`max_connections` is 0; use `fresh` to keep none".to_owned();
            mistakes.push(Mistake::new(MistakeKind::Limit, message));
        }
        let http = self.http.redirect(redirect::Policy::none());
        let http = watched(http).referer(false).build();
        if http.is_err() {
            let message = "the HTTP client cannot be built; check its certificates".to_owned();
            mistakes.push(Mistake::new(MistakeKind::HttpClient, message));
        }
        match http {
            Ok(http) if mistakes.is_empty() => Ok(Factory {
                http,
                connect_timeout: self.connect_timeout,
                max_connections: self.max_connections,
                kept: (!self.fresh).then_some(self.idle_time),
                pools: Cache::builder()
                    .max_capacity(MAX_UPSTREAMS)
                    .time_to_idle(self.idle_time.max(Duration::from_secs(1)))
                    .eviction_policy(EvictionPolicy::lru())
                    .build(),
            }),
            _ => Err(BuildError::new("the client factory", mistakes)),
        }
    }
}

impl fmt::Debug for FactoryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the HTTP client's settings, which may hold a proxy's password.
        f.debug_struct("FactoryBuilder").finish_non_exhaustive()
    }
}
