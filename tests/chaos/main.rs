//! Chaos: 64 principals call several upstreams through the relay and through the gateway, with every
//! layer on, while upstreams delay, reset, redirect, refuse, stall, lose sessions and restart, and
//! callers go away. `README.md` says what a caller sees of each, and how to run more calls.
//!
//! A house whose bytes are counted runs on one thread, which is all that is counted, in a process without
//! another one; its callers and upstreams run on threads of their own.
#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests, and the figures that are written down"
)]

mod answer;
mod caller;
mod house;
mod line;
mod message;
mod plan;
mod session;
mod site;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod values;
mod wire;
mod world;

use std::{
    env,
    hash::{BuildHasher, RandomState},
    process::Command,
    sync::Arc,
    time::Duration,
};

use allocation_counter::measure;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::mpsc,
    time::{sleep, timeout},
};

use caller::Callers;
use house::{House, workers};
use message::Proxy;
use plan::{Chaos, FILLING, PLACES, PRINCIPALS, RESTING, RESTS, WEIGHTS, Way};
use site::Site;
use world::World;

/// How many calls there are all together, unless `CHAOS_CALLS` says.
const CALLS: u64 = 100_000;

/// What any wait here is given up after.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often garbage is looked for.
const GARBAGE: usize = 1_000;

/// For how long a layer remembers anything, at most: `InternalForward` what was proved.
const MEMORY: Duration = Duration::from_secs(120);

fn variable(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number")),
    )
}

/// So many hundredths of all calls.
fn share(percent: u64) -> u64 {
    variable("CHAOS_CALLS").unwrap_or(CALLS) * percent / 100
}

/// The callers and the upstreams, in threads of their own.
struct Outside {
    world: Arc<World>,
    sites: Vec<Arc<Site>>,
    runtime: Runtime,
}

impl Outside {
    fn start(way: Way, rests: [u64; RESTS]) -> Self {
        let seed = variable("CHAOS_SEED").unwrap_or_else(|| RandomState::new().hash_one(way as u8));
        println!("{way:?}: CHAOS_SEED={seed}");
        let world = Arc::new(World::new(Chaos { way, seed, rests }));
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let sites = runtime.block_on(async {
            let mut sites = Vec::new();
            for place in PLACES {
                sites.push(Site::start(place, &world).await);
            }
            sites
        });
        let addrs: Vec<_> = sites.iter().map(|site| site.addr).collect();
        sites.iter().for_each(|site| site.meet(&addrs));
        Self {
            world,
            sites,
            runtime,
        }
    }

    /// Callers of `house`: they make so many calls each as they are told, and say when they have.
    fn callers(&self, house: &House) -> (mpsc::UnboundedSender<u64>, mpsc::UnboundedReceiver<()>) {
        let proxy = Proxy {
            addr: house.addr,
            forward: workers(),
        };
        let (world, sites) = (Arc::clone(&self.world), self.sites.clone());
        let callers = Arc::new(Callers::new(world, sites, proxy));
        let (go, mut told) = mpsc::unbounded_channel();
        let (tell, done) = mpsc::unbounded_channel();
        self.runtime.spawn(async move {
            let mut first = 0;
            while let Some(last) = told.recv().await {
                callers.run(first, last).await;
                first = last;
                tell.send(()).unwrap();
            }
        });
        (go, done)
    }

    /// Prints the figures, and fails where anything was wrong, or less was done than `each` principal's
    /// calls.
    fn verdict(&self, each: u64) {
        let tally = self.world.tally();
        let calls: u64 = tally.values().flat_map(|it| it.values()).sum();
        let way = self.world.chaos.way;
        println!("{way:?}: {calls} calls");
        for ((list, fault), outcomes) in &tally {
            let what = if *list { "list" } else { "call" };
            println!(
                "{way:?}: {what} {fault:?} {} times: {outcomes:?}",
                outcomes.values().sum::<u64>()
            );
        }
        let (mismatches, first) = self.world.mismatches();
        let seed = self.world.chaos.seed;
        assert_eq!(mismatches, 0, "CHAOS_SEED={seed}; the first: {first:#?}");
        assert_eq!(calls, each * PRINCIPALS);
        let done = self.world.all_done();
        println!("{way:?}: {done:?}");
        let mut undone = WEIGHTS
            .iter()
            .filter(|(fault, _)| !done.contains_key(fault));
        assert_eq!(undone.next(), None, "CHAOS_SEED={seed}: it never happened");
    }
}

/// A house, and the callers that have been told of it.
struct Attack {
    house: House,
    go: mpsc::UnboundedSender<u64>,
    done: mpsc::UnboundedReceiver<()>,
    /// How many tasks of the house live while nobody calls.
    alone: usize,
}

fn alive() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

impl Attack {
    async fn begin(outside: &Outside) -> Self {
        let way = outside.world.chaos.way;
        let sites: Vec<_> = outside.sites.iter().map(|it| (it.place, it.addr)).collect();
        let house = House::start(way, &sites).await;
        let (go, done) = outside.callers(&house);
        let alone = alive() + house.own_tasks(way);
        Self {
            house,
            go,
            done,
            alone,
        }
    }

    /// Everybody calls until they have made `each` calls, and goes away.
    async fn until(&mut self, each: u64) {
        self.go.send(each).unwrap();
        self.done.recv().await.unwrap();
        let waiting = async {
            while alive() > self.alone {
                // A pool that is out of use may lie about there, with a task of its own.
                crossbeam_epoch::pin().flush();
                sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = timeout(PATIENCE, waiting).await;
        let (alive, alone) = (alive(), self.alone);
        assert!(waited.is_ok(), "{alive} tasks are left, not {alone}");
        let sessions = &self.house.sessions;
        assert_eq!((sessions.live(), sessions.principals()), (0, 0));
    }

    /// And, once all is forgotten that is remembered for a while, a few times more.
    async fn until_rest(&mut self, rest: u64) {
        self.until(rest).await;
        tokio::time::pause();
        tokio::time::advance(MEMORY).await;
        tokio::time::resume();
        self.until(rest + RESTING).await;
        // What the pools have thrown away lies about until the threads have looked for it often enough.
        for _ in 0..GARBAGE {
            crossbeam_epoch::pin().flush();
        }
    }
}

/// So many calls through a house on this thread: no mismatch, and at no rest after the first is there
/// more of anything, nor less.
fn counted(way: Way, calls: u64) {
    let each = calls.div_ceil(PRINCIPALS).max(3 * FILLING) - RESTING;
    let first = FILLING.max(each / 10) + RESTING;
    let rests = [0, 1, 2, 3, 4].map(|quarter| first + (each - first) * quarter / 4);
    let outside = Outside::start(way, rests);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut attack = None;
    // Whatever is made once, these make.
    let made = measure(|| {
        runtime.block_on(async {
            let mut begun = Attack::begin(&outside).await;
            begun.until_rest(rests[0]).await;
            attack = Some(begun);
        });
    });
    let mut attack = attack.unwrap();
    let mut live = vec![made.bytes_current];
    for rest in &rests[1..] {
        let more = measure(|| runtime.block_on(attack.until_rest(*rest)));
        live.extend(live.last().map(|before| before + more.bytes_current));
    }
    outside.verdict(each + RESTING);
    println!("{way:?}: live bytes at each rest: {live:?}");
    let is_near = |it: &i64| (it - live[0]).abs() * 10 <= live[0];
    assert!(live[0] > 0 && live.iter().all(is_near), "{live:?}");
}

/// So many calls through a house on four threads.
fn threaded(way: Way, calls: u64) {
    let each = calls.div_ceil(PRINCIPALS).max(3 * FILLING / 2);
    let outside = Outside::start(way, [each; RESTS]);
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(4).enable_all().build().unwrap();
    let attack = async {
        let mut attack = Attack::begin(&outside).await;
        attack.until(each).await;
    };
    runtime.block_on(attack);
    outside.verdict(each);
}

/// Runs the test of this name in a process of its own. The gateway's pool leaves garbage that any thread
/// collects which looks for some: then it is given back where nobody has taken it.
fn apart(test: &str, run: impl FnOnce()) {
    const APART: &str = "CHAOS_APART";
    if env::var_os(APART).is_some() {
        return run();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    let command = command.args([test, "--exact", "--nocapture"]);
    let output = command.env(APART, "1").output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
    println!("{out}{err}");
    let is_run = out.contains("test result: ok. 1 passed");
    assert!(output.status.success() && is_run, "{test} has failed");
}

#[test]
fn through_the_relay_each_call_is_its_own() {
    apart("through_the_relay_each_call_is_its_own", || {
        counted(Way::Relay, share(70));
    });
}

#[test]
fn through_the_relay_on_several_threads_each_call_is_its_own() {
    threaded(Way::Relay, share(20));
}

#[test]
fn through_the_gateway_each_call_is_its_own() {
    apart("through_the_gateway_each_call_is_its_own", || {
        counted(Way::Gateway, share(6));
    });
}

#[test]
fn through_the_gateway_on_several_threads_each_call_is_its_own() {
    threaded(Way::Gateway, share(4));
}
