//! The callers: each principal's calls, what comes of them, and whether the table has it.
//!
//! It may not know how a fault is done.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    answer::{Answer, Came},
    line::Line,
    message::Proxy,
    plan::{Call, Fault, PRINCIPALS, Place, Plan, Way},
    session::Sessions,
    site::Site,
    table::{Meantime, Outcome, allows},
    world::World,
};

/// How many calls of one principal are under way.
pub const LANES: u64 = 2;

/// What a call that hangs is ended after; far beyond what any takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn lane(call: Call) -> (u64, u64) {
    (call.principal, call.number % LANES)
}

/// Everybody who calls, and whom they call.
pub struct Callers {
    world: Arc<World>,
    sites: Vec<Arc<Site>>,
    proxy: Proxy,
    sessions: Sessions,
    /// What had befallen the upstreams when each lane's call began that is under way.
    begun: Mutex<HashMap<(u64, u64), Before>>,
}

/// How often the upstreams have restarted, and lost sessions of one principal: the earlier the less.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Before {
    restarts: Vec<u64>,
    losses: u64,
}

impl Callers {
    pub fn new(world: Arc<World>, sites: Vec<Arc<Site>>, proxy: Proxy) -> Self {
        Self {
            world,
            sites,
            sessions: Sessions::new(proxy.clone()),
            proxy,
            begun: Mutex::default(),
        }
    }

    fn now(&self, principal: u64) -> Before {
        let sites = self.sites.iter();
        Before {
            restarts: sites.clone().map(|site| site.restarts()).collect(),
            losses: sites.map(|site| site.losses(principal)).sum(),
        }
    }

    /// What had befallen the upstreams when the first call of this principal began that is still under way:
    /// what they have in common may be a connection, or its handshake. One whose caller has left may go on.
    fn begin(&self, call: Call, now: &Before) -> Before {
        let mut begun = self.begun.lock().unwrap();
        let lanes = (0..LANES).map(|lane| (call.principal, lane));
        begun.entry(lane(call)).or_insert(now.clone());
        let first = lanes.filter_map(|lane| begun.get(&lane)).min();
        first.unwrap_or(now).clone()
    }

    fn end(&self, call: Call) {
        self.begun.lock().unwrap().remove(&lane(call));
    }

    /// Everybody makes their calls from `first` to before `last`, and ends their sessions.
    pub async fn run(self: &Arc<Self>, first: u64, last: u64) {
        let mut lanes = JoinSet::new();
        for principal in 0..PRINCIPALS {
            for lane in 0..LANES {
                let mut caller = Lane {
                    all: Arc::clone(self),
                    line: Line::new(self.proxy.addr),
                };
                let numbers = (first..last).filter(move |number| number % LANES == lane);
                lanes.spawn(async move {
                    for number in numbers {
                        caller.call(Call { principal, number }).await;
                    }
                });
            }
        }
        lanes.join_all().await;
        self.world.idle().await;
        self.sessions.end_all(last, &self.world).await;
    }

    fn site(&self, place: Place) -> &Site {
        self.sites.iter().find(|site| site.place == place).unwrap()
    }

    fn path(plan: &Plan) -> String {
        match plan.scoped {
            true => format!("/servers/{}/mcp", plan.place.name()),
            false => "/mcp".to_owned(),
        }
    }
}

/// One of a principal's lanes.
struct Lane {
    all: Arc<Callers>,
    line: Line,
}

impl Lane {
    async fn call(&mut self, call: Call) {
        let plan = self.all.world.chaos.plan(call);
        let made = timeout(PATIENCE, self.made(call, &plan)).await;
        if let Err(what) = made.unwrap_or_else(|_| Err("it hangs".to_owned())) {
            self.line.hang_up();
            self.all.world.wrong(format!("{call}: {plan:?}: {what}"));
        }
    }

    /// What is wrong with the call, if anything.
    async fn made(&mut self, call: Call, plan: &Plan) -> Result<(), String> {
        let all = Arc::clone(&self.all);
        let chaos = all.world.chaos;
        let site = all.site(plan.place);
        let path = Callers::path(plan);
        let session = match chaos.in_session(call.principal, plan.place) {
            true => {
                let session = all.sessions.session(&mut self.line, &path, call, site);
                Some(session.await?)
            }
            false => None,
        };
        let named = match plan.fault {
            Fault::Stranger => {
                let strangers = all.sessions.strangers(&path, call).await;
                if strangers.is_some() {
                    all.world.done(Fault::Stranger);
                }
                strangers.or_else(|| Some("of-nobody".into()))
            }
            _ => session.clone(),
        };
        let request = all.proxy.call(&path, call, named.as_deref(), plan);
        // In a session, and where several calls go on with one token.
        let shares = session.is_some() || plan.list || !plan.place.tells_calls();
        let now = all.now(call.principal);
        let first = all.begin(call, &now);
        let before = match chaos.way == Way::Gateway && shares {
            true => first,
            false => now,
        };
        let came = self.outcome(call, plan, request).await?;
        if came.outcome != Outcome::Left {
            all.end(call);
        }
        let restarted = |(site, before): &(&Arc<Site>, u64)| site.has_restarted(*before);
        let restarted = all.sites.iter().zip(before.restarts).filter(restarted);
        let restarted: Vec<_> = restarted.map(|(site, _)| site.place).collect();

        all.world.count(plan, came.outcome);

        let is_lost = |id: &Arc<str>| chaos.way == Way::Relay && !site.knows(id);
        let lost = session.clone().filter(is_lost);
        if let Some(lost) = &lost
            && came.outcome == Outcome::Status(404)
            && named == session
        {
            // The layer that bound it has learnt of it, too.
            all.sessions.forget(call.principal, &path, lost).await;
        }
        let meantime = Meantime {
            restarted,
            lost: lost.is_some()
                || (chaos.way == Way::Gateway && all.now(call.principal).losses != before.losses),
        };
        let is_allowed = allows(chaos.way, plan, &meantime, &came);
        let Came {
            outcome,
            missing,
            error,
        } = came;
        is_allowed
            .then_some(())
            .ok_or_else(|| format!("{outcome:?} {error} without {missing:?} ({meantime:?})"))
    }

    /// Sends the call, or goes away during it, as its plan has it.
    async fn outcome(
        &mut self,
        call: Call,
        plan: &Plan,
        request: Request<Bytes>,
    ) -> Result<Came, String> {
        let all = Arc::clone(&self.all);
        let world = &all.world;
        let in_gateway = world.chaos.way == Way::Gateway;
        match plan.fault {
            Fault::Leave => {
                let at = Duration::from_micros(world.chaos.roll(call, 8, 100_000));
                tokio::select! {
                    came = self.exchange(request, call, plan) => return came,
                    () = sleep(at) => world.done(Fault::Leave),
                }
            }
            Fault::Vanish => {
                let arrival = world.arrival(call);
                tokio::select! {
                    came = self.exchange(request, call, plan) => return came,
                    _ = arrival => {}
                }
            }
            // Nobody else ends it: not so soon, where it is a list.
            Fault::Silent | Fault::StallInBody if in_gateway => {
                let arrival = world.arrival(call);
                let session = request.headers().get("mcp-session-id").cloned();
                tokio::select! {
                    came = self.exchange(request, call, plan) => return came,
                    _ = arrival => {}
                }
                if let Some(session) = session {
                    let path = Callers::path(plan);
                    let session = session.to_str().unwrap();
                    all.sessions.cancel(&path, call, session).await?;
                }
            }
            Fault::StallInBody => {
                let response = self.line.send(request).await;
                let response = response.map_err(|error| error.to_string())?;
                let begun = Answer::begun(response).await;
                let came = begun.came(call, plan)?;
                if !begun.has_body() || came.outcome != Outcome::Cut {
                    return Ok(came);
                }
            }
            _ => return self.exchange(request, call, plan).await,
        }
        self.line.hang_up();
        Ok(Outcome::Left.into())
    }

    async fn exchange(
        &mut self,
        request: Request<Bytes>,
        call: Call,
        plan: &Plan,
    ) -> Result<Came, String> {
        let response = self.line.send(request).await;
        let response = response.map_err(|error| error.to_string())?;
        Answer::read(response).await.came(call, plan)
    }
}
