//! `Pool`: which connection to one upstream a call uses, and how long it is kept.
//!
//! It may not know what is sent over it.

use std::{
    future::ready,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use moka::{future::Cache, notification::RemovalCause, ops::compute::Op, policy::EvictionPolicy};
use rmcp::{
    model::{ClientCapabilities, ProtocolVersion},
    service::ClientLifecycleMode,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use super::{
    bridge::answerable,
    connection::Connection,
    context::is_over,
    error::{Error, ErrorKind},
};
use crate::{carry::SessionKey, events, outbound::Outbound, rules::Upstream};

/// How often a place in the pool is looked for, where an upstream or other callers change it meanwhile.
const MAX_TURNS: usize = 3;

/// How often idle connections are looked for, at most.
const MIN_SWEEP: Duration = Duration::from_secs(1);

/// The connections to one upstream.
pub(super) struct Pool {
    http: reqwest::Client,
    connect_timeout: Duration,
    max_connections: u64,
    /// `None`: each call has its own.
    kept: Option<Cache<Key, Arc<Connection>>>,
    /// Room for handshakes that go on though their callers have left.
    left_alone: Arc<Semaphore>,
}

/// Whom a connection belongs to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// To a front session, whatever its caller's headers become.
    Session(SessionKey),
    /// To whoever sends exactly this.
    Exact(Outbound),
}

impl Key {
    /// Whether nobody can have this key any more.
    fn is_over(&self) -> bool {
        matches!(self, Self::Session(session) if is_over(session))
    }
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
        upstream: &Upstream,
        connect_timeout: Duration,
        max_connections: u64,
        idle: Option<Duration>,
    ) -> Arc<Self> {
        let cache = |idle| {
            let upstream = upstream.clone();
            Cache::builder()
                .max_capacity(max_connections)
                .time_to_idle(idle)
                // The newest connection is always admitted.
                .eviction_policy(EvictionPolicy::lru())
                .eviction_listener(move |key: Arc<Key>, _, cause| {
                    let loses_state = matches!(*key, Key::Session(_)) && !key.is_over();
                    if cause == RemovalCause::Size && loses_state {
                        events::crowded_out(&upstream, max_connections);
                    }
                })
                .build()
        };
        let room = usize::try_from(max_connections).unwrap_or(usize::MAX);
        let pool = Arc::new(Self {
            http,
            connect_timeout,
            max_connections,
            kept: idle.map(cache),
            left_alone: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
        });
        if let Some(idle) = idle {
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
        let mut key = match outbound.session() {
            Some(session) => Key::Session(session.clone()),
            None => Key::Exact(outbound.clone()),
        };
        for _ in 0..MAX_TURNS {
            if let Some(found) = kept.get(&key).await
                && !found.is_open()
            {
                self.remove(&key, &found).await;
            }
            let connecting = async {
                let connected = self.connect_apart(outbound).await;
                let connected = connected.map_err(|error| (error, outbound.clone()))?;
                self.make_room(kept).await;
                Ok(connected)
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
            if connection.is_sessionless() && !connection.is_of(outbound) {
                // No upstream session keeps it together: a renewed token has a connection of its own.
                key = Key::Exact(outbound.clone());
                continue;
            }
            kept.run_pending_tasks().await;
            connection.renew(outbound);
            let place = Some((Arc::clone(self), key));
            return Ok(Lease { connection, place });
        }
        Err(Error::unusable(outbound.upstream()))
    }

    /// Takes out what nobody can ask for any more, so that no connection in use has to give way to it:
    /// a caller can begin sessions faster than they become idle.
    ///
    /// From half full on, since several may be connecting at once; below it is not worth the walk.
    async fn make_room(&self, kept: &Cache<Key, Arc<Connection>>) {
        if kept.entry_count() < self.max_connections / 2 {
            return;
        }
        for (key, connection) in kept {
            if key.is_over() {
                self.remove(&key, &connection).await;
            }
        }
    }

    /// Connects in a task of its own: a caller who goes away meanwhile leaves no half of a session at the
    /// upstream. It is nobody's task, as the connection's are.
    async fn connect_apart(
        self: &Arc<Self>,
        outbound: &Outbound,
    ) -> Result<Arc<Connection>, Error> {
        let (pool, own) = (Arc::clone(self), outbound.clone());
        let permit = Arc::new(OnceLock::new());
        let holder = Arc::clone(&permit);
        let task = tokio::spawn(async move {
            let connected = pool.connect(&own).await;
            drop(holder);
            connected
        });
        let mut attempt = Attempt {
            task,
            permit,
            left_alone: Arc::clone(&self.left_alone),
        };
        let connected = (&mut attempt.task).await;
        connected.unwrap_or_else(|_| Err(Error::cut_short(outbound.upstream())))
    }

    async fn connect(&self, outbound: &Outbound) -> Result<Arc<Connection>, Error> {
        let connecting = async {
            match outbound.session() {
                Some(_) => self.connect_in_session(outbound).await,
                None => self.connect_alone(outbound).await,
            }
        };
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        connected.unwrap_or_else(|_| Err(Error::late(outbound.upstream())))
    }

    /// Begins a session, as the caller did: there is no way in 2026-07-28 for what the caller may say and
    /// be asked in it. What comes of it tells nothing about the next caller's.
    async fn connect_in_session(&self, outbound: &Outbound) -> Result<Arc<Connection>, Error> {
        match self.open(outbound, ClientLifecycleMode::Initialize).await {
            Err(error) if error.knows_no_initialize() => {
                let discover = ClientLifecycleMode::Discover {
                    preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                };
                let discovered = self.open(outbound, discover).await;
                discovered.map_err(|later| if later.is_answer() { error } else { later })
            }
            outcome => outcome,
        }
    }

    /// Chooses the protocol as rmcp's `Auto` does, each time: what one caller is told says nothing of what
    /// another is.
    async fn connect_alone(&self, outbound: &Outbound) -> Result<Arc<Connection>, Error> {
        let auto = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        match self.open(outbound, auto).await {
            // A server that knows how to discover, and only versions from before that.
            Err(error) if error.kind() == ErrorKind::NoCommonVersion => {
                self.open(outbound, ClientLifecycleMode::Initialize).await
            }
            outcome => outcome,
        }
    }

    async fn open(
        &self,
        outbound: &Outbound,
        lifecycle: ClientLifecycleMode,
    ) -> Result<Arc<Connection>, Error> {
        let in_session = lifecycle == ClientLifecycleMode::Initialize;
        // In 2026-07-28 a question is a result, which nobody in a session can be given.
        let answerable = match in_session {
            true => answerable(outbound.session()),
            false => ClientCapabilities::default(),
        };
        let connecting = Connection::open(self.http.clone(), outbound, answerable, lifecycle);
        let connection = connecting.await?;
        if in_session && connection.is_sessionless() {
            // No answer to `initialize`, which that version does not have.
            return Err(Error::unknown(outbound.upstream()));
        }
        Ok(Arc::new(connection))
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

/// A handshake that somebody waits for. Left alone it goes on where there is room for it, and ends where
/// too many do already: callers can leave faster than an upstream answers.
struct Attempt {
    task: JoinHandle<Result<Arc<Connection>, Error>>,
    /// The task's as well: what is put here is given back at its end.
    permit: Arc<OnceLock<OwnedSemaphorePermit>>,
    left_alone: Arc<Semaphore>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.task.is_finished() {
            return;
        }
        match Arc::clone(&self.left_alone).try_acquire_owned() {
            Ok(permit) => drop(self.permit.set(permit)),
            Err(_) => self.task.abort(),
        }
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
