//! The workers of `examples/workers/`, which here may come and go: a Redis says who has a session.
//!
//! It is that of `REDIS_URL`, or a `redis-server` that is started for as long as this runs. It shows
//! what `workers` shows, then a worker that comes and one that goes. It ends by itself.

#[path = "../../workers/gateway.rs"]
mod gateway;
mod in_redis;
#[path = "../../workers/owners.rs"]
mod owners;
mod server;
#[path = "../../workers/show.rs"]
mod show;
#[path = "../../workers/worker.rs"]
#[allow(dead_code, reason = "`examples/workers` uses more of it")]
mod worker;

use in_redis::InRedis;
use serde_json::json;
use show::{PASSED_ON, PATH, Show, print};
use tower::BoxError;

const OF_THE_NEW: &str = "worker 2, passed on create_issue, list_pulls";
const GONE: &str = "worker 2, direct    404: no such session here";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        return worker::run(InRedis::new).await;
    }
    if let Ok(url) = std::env::var("REDIS_URL") {
        return show(url).await;
    }
    let (mut redis, url) = server::start().await?;
    let shown = show(url).await;
    redis.kill().await?;
    shown
}

async fn show(store: String) -> Result<(), BoxError> {
    let Show {
        mut gateway,
        caller,
        session,
    } = show::show(store).await?;
    let none = json!({});

    println!("\na worker comes");
    gateway.start(1).await?;
    let urls = gateway
        .addrs
        .iter()
        .map(|addr| format!("http://{addr}{PATH}"));
    let urls: Vec<_> = urls.collect();
    let [first, _, new] = &urls[..] else {
        return Err("there are not three workers".into());
    };
    let (_, later) = caller.begin(new).await?;
    let (session, later) = ([session], [later]);
    let answer = caller.post(new, "tools/list", &none, &session).await?;
    print("an old session, there", &answer, PASSED_ON)?;
    let answer = caller.post(first, "tools/list", &none, &later).await?;
    print("its session, at worker 0", &answer, OF_THE_NEW)?;

    println!("\nworker 0 goes");
    let mut gone = gateway.children.remove(0);
    gone.kill().await?;
    let answer = caller.post(new, "tools/list", &none, &session).await?;
    print("its session", &answer, GONE)
}
