//! `Pool`: which connection to one upstream a call uses, and how long it is kept.
//!
//! It may not know what is sent over it.

use std::{
    future::ready,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use moka::{future::Cache, ops::compute::Op, policy::EvictionPolicy};
use rmcp::{
    model::{ClientCapabilities, ProtocolVersion},
    service::ClientLifecycleMode,
};

use super::{
    bridge::answerable,
    connection::Connection,
    error::{Error, ErrorKind},
};
use crate::{carry::SessionKey, outbound::Outbound};

/// How often a place in the pool is looked for, where an upstream or other callers change it meanwhile.
const MAX_TURNS: usize = 3;

/// How often idle connections are looked for, at most.
const MIN_SWEEP: Duration = Duration::from_secs(1);

/// The connections to one upstream.
pub(super) struct Pool {
    http: reqwest::Client,
    connect_timeout: Duration,
    /// What the upstream spoke last.
    spoken: AtomicU8,
    /// `None`: each call has its own.
    kept: Option<Cache<Key, Arc<Connection>>>,
}

/// Whom a connection belongs to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// To a front session, whatever its caller's headers become.
    Session(SessionKey),
    /// To whoever sends exactly this.
    Exact(Outbound),
}

/// The two families of protocol versions.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Spoken {
    Unknown,
    Sessions,
    Sessionless,
}

/// A connection that was found or made, and its place in the pool.
pub(super) struct Lease {
    pub(super) connection: Arc<Connection>,
    place: Option<(Arc<Pool>, Key)>,
}

impl Lease {
    /// Takes the connection out of the pool, where it still is in it. Calls that are under way end as they
    /// would have.
    pub(super) async fn evict(&self) {
        if let Some((pool, key)) = &self.place {
            pool.remove(key, &self.connection).await;
        }
    }
}

impl Pool {
    pub(super) fn new(
        http: reqwest::Client,
        connect_timeout: Duration,
        kept: Option<(u64, Duration)>,
    ) -> Arc<Self> {
        let cache = |(capacity, idle)| {
            Cache::builder()
                .max_capacity(capacity)
                .time_to_idle(idle)
                // The newest connection is always admitted.
                .eviction_policy(EvictionPolicy::lru())
                .build()
        };
        let pool = Arc::new(Self {
            http,
            connect_timeout,
            spoken: AtomicU8::new(Spoken::Unknown as u8),
            kept: kept.map(cache),
        });
        if let Some((_, idle)) = kept {
            tokio::spawn(sweep(Arc::downgrade(&pool), idle.max(MIN_SWEEP)));
        }
        pool
    }

    /// The connection for `outbound`; concurrent callers of one that does not exist yet wait for one
    /// attempt, and all learn how it ended.
    pub(super) async fn lease(self: &Arc<Self>, outbound: &Outbound) -> Result<Lease, Error> {
        let Some(kept) = &self.kept else {
            let connection = self.connect_apart(outbound).await?;
            return Ok(Lease {
                connection,
                place: None,
            });
        };
        for _ in 0..MAX_TURNS {
            let key = match outbound.session() {
                Some(session) if !self.is_sessionless() => Key::Session(session.clone()),
                _ => Key::Exact(outbound.clone()),
            };
            if let Some(found) = kept.get(&key).await
                && !found.is_open()
            {
                self.remove(&key, &found).await;
            }
            let connecting = async {
                let connected = self.connect_apart(outbound).await;
                connected.map_err(|error| (error, outbound.clone()))
            };
            let connection = match kept.try_get_with_by_ref(&key, connecting).await {
                Ok(connection) => connection,
                Err(failed) => {
                    let (error, sent) = &*failed;
                    // Of the same session, but with a token that has been renewed since.
                    if error.refusal().is_some() && sent != outbound {
                        continue;
                    }
                    return Err(error.clone());
                }
            };
            if matches!(key, Key::Session(_)) && connection.is_sessionless() {
                // The upstream turned out to know no sessions: the next turn finds it by its caller.
                self.remove(&key, &connection).await;
                if connection.is_of(outbound) {
                    kept.insert(Key::Exact(outbound.clone()), connection).await;
                }
                continue;
            }
            kept.run_pending_tasks().await;
            connection.renew(outbound);
            let place = Some((Arc::clone(self), key));
            return Ok(Lease { connection, place });
        }
        Err(Error::unusable(outbound.upstream()))
    }

    /// Connects in a task of its own: a caller who goes away meanwhile leaves no half of a session at the
    /// upstream, and others who wait get it. It is nobody's task, as the connection's are.
    async fn connect_apart(
        self: &Arc<Self>,
        outbound: &Outbound,
    ) -> Result<Arc<Connection>, Error> {
        let (pool, own) = (Arc::clone(self), outbound.clone());
        let connecting = tokio::spawn(async move { pool.connect(&own).await });
        let lost = |_| Err(Error::lost(outbound.upstream()));
        connecting.await.unwrap_or_else(lost)
    }

    /// Chooses the protocol as rmcp's `Auto` does, and remembers it.
    async fn connect(&self, outbound: &Outbound) -> Result<Arc<Connection>, Error> {
        let nothing = ClientCapabilities::default();
        let answerable = answerable(outbound.session());
        if self.spoken.load(Ordering::Relaxed) != Spoken::Sessions as u8 {
            let auto = ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
            };
            // The first message declares what can be asked, and only its answer tells whether
            // anything can.
            match self.open(outbound, nothing.clone(), auto).await {
                Ok(connection) if connection.is_sessionless() => {
                    self.remember(Spoken::Sessionless);
                    return Ok(connection);
                }
                Ok(connection) => {
                    self.remember(Spoken::Sessions);
                    if answerable == nothing {
                        return Ok(connection);
                    }
                }
                // A server that knows how to discover, and only versions from before that.
                Err(error) if error.kind() == ErrorKind::NoCommonVersion => {}
                Err(error) => return Err(error),
            }
        }
        let initialize = ClientLifecycleMode::Initialize;
        let outcome = self.open(outbound, answerable, initialize).await;
        self.remember(match &outcome {
            Ok(connection) if connection.is_sessionless() => Spoken::Sessionless,
            Ok(_) => Spoken::Sessions,
            // It may speak something else by now.
            Err(_) => Spoken::Unknown,
        });
        outcome
    }

    async fn open(
        &self,
        outbound: &Outbound,
        answerable: ClientCapabilities,
        lifecycle: ClientLifecycleMode,
    ) -> Result<Arc<Connection>, Error> {
        let connecting = Connection::open(self.http.clone(), outbound, answerable, lifecycle);
        let connection = tokio::time::timeout(self.connect_timeout, connecting).await;
        let connection = connection.map_err(|_| Error::late(outbound.upstream()))?;
        connection.map(Arc::new)
    }

    fn is_sessionless(&self) -> bool {
        self.spoken.load(Ordering::Relaxed) == Spoken::Sessionless as u8
    }

    fn remember(&self, spoken: Spoken) {
        self.spoken.store(spoken as u8, Ordering::Relaxed);
    }

    /// Removes `connection`, and not one that has taken its place since.
    async fn remove(&self, key: &Key, connection: &Arc<Connection>) {
        let Some(kept) = &self.kept else { return };
        let entry = kept.entry_by_ref(key);
        let same = |entry: Option<moka::Entry<Key, Arc<Connection>>>| {
            let is_same = entry.is_some_and(|entry| Arc::ptr_eq(entry.value(), connection));
            ready(if is_same { Op::Remove } else { Op::Nop })
        };
        entry.and_compute_with(same).await;
        // moka keeps what it has removed until then.
        kept.run_pending_tasks().await;
    }
}

/// Closes idle connections where nobody calls: moka looks for them only when it is used.
async fn sweep(pool: Weak<Pool>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(pool) = pool.upgrade() else { return };
        if let Some(kept) = &pool.kept {
            kept.run_pending_tasks().await;
        }
    }
}
