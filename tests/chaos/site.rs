//! One upstream: an MCP server of bare sockets that judges what comes, and does to each call what its
//! plan says: `site/exchange.rs`.
//!
//! It may not know which proxy is in front of it, nor what a caller sees.

mod exchange;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, copy, sink},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    plan::{Call, Place},
    support::read_request,
    world::World,
};

/// How long a proxy may take to let go of what is over.
const PATIENCE: Duration = Duration::from_secs(60);

/// One upstream.
pub struct Site {
    pub place: Place,
    pub addr: SocketAddr,
    world: Arc<World>,
    /// All of them, to redirect to.
    neighbours: OnceLock<Vec<SocketAddr>>,
    /// Whose session it is.
    sessions: Mutex<HashMap<String, u64>>,
    made: AtomicU64,
    /// What a call would have been told, had its event stream not broken off.
    untold: Mutex<HashMap<Call, String>>,
    /// The calls whose session has been lost for them.
    lost: Mutex<HashSet<Call>>,
    /// How often each principal has lost a session for a call of its own.
    losses: Mutex<HashMap<u64, u64>>,
    /// Odd while nothing listens.
    restarts: AtomicU64,
    restart: Notify,
}

impl Site {
    pub async fn start(place: Place, world: &Arc<World>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Arc::new(Self {
            place,
            addr: listener.local_addr().unwrap(),
            world: Arc::clone(world),
            neighbours: OnceLock::new(),
            sessions: Mutex::default(),
            made: AtomicU64::default(),
            untold: Mutex::default(),
            lost: Mutex::default(),
            losses: Mutex::default(),
            restarts: AtomicU64::default(),
            restart: Notify::default(),
        });
        tokio::spawn(Arc::clone(&site).live(listener));
        site
    }

    pub fn meet(&self, neighbours: &[SocketAddr]) {
        self.neighbours.set(neighbours.to_vec()).unwrap();
    }

    /// Changes with every restart; odd during one.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::SeqCst)
    }

    /// Whether it restarts, or has since it was `before`.
    pub fn has_restarted(&self, before: u64) -> bool {
        before % 2 == 1 || self.restarts() != before
    }

    pub fn losses(&self, principal: u64) -> u64 {
        let losses = self.losses.lock().unwrap();
        losses.get(&principal).copied().unwrap_or_default()
    }

    pub fn knows(&self, session: &str) -> bool {
        self.sessions.lock().unwrap().contains_key(session)
    }

    fn owner(&self, session: Option<&str>) -> Option<u64> {
        let sessions = self.sessions.lock().unwrap();
        session.and_then(|id| sessions.get(id).copied())
    }

    fn forget(&self, session: Option<&str>) {
        let mut sessions = self.sessions.lock().unwrap();
        session.and_then(|id| sessions.remove(id));
    }

    async fn live(self: Arc<Self>, mut listener: TcpListener) {
        loop {
            let (mut connections, (end, ended)) = (JoinSet::new(), watch::channel(()));
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        connections.spawn(Arc::clone(&self).keep(stream, ended.clone()));
                        while connections.try_join_next().is_some() {}
                    }
                    () = self.restart.notified() => break,
                }
            }
            self.restarts.fetch_add(1, Ordering::SeqCst);
            drop((listener, end));
            connections.join_all().await;
            self.sessions.lock().unwrap().clear();
            sleep(Duration::from_millis(5)).await;
            listener = loop {
                match TcpListener::bind(self.addr).await {
                    Ok(listener) => break listener,
                    Err(_) => sleep(Duration::from_millis(1)).await,
                }
            };
            self.restarts.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Serves until a restart, which is not over before the proxy has closed the connection, too: no later
    /// call may meet one that is gone.
    async fn keep(self: Arc<Self>, mut stream: TcpStream, mut ended: watch::Receiver<()>) {
        stream.set_nodelay(true).unwrap();
        tokio::select! {
            () = self.serve(&mut stream) => return,
            _ = ended.changed() => {}
        }
        let closing = async {
            stream.shutdown().await?;
            copy(&mut stream, &mut sink()).await
        };
        if timeout(PATIENCE, closing).await.is_err() {
            let place = self.place.name();
            let kept = format!("a connection is kept that {place} has closed");
            self.world.wrong(kept);
        }
    }

    async fn serve(&self, stream: &mut TcpStream) {
        while let Some(request) = read_request(stream).await {
            if !request.complete || !self.answer(&request, stream).await.unwrap_or(false) {
                return;
            }
        }
    }
}
