//! What one caller of a factory can do to the others through `max_connections`, which they share.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp::{Caller, Front, Kind, LEGACY, Server, builder, until};
use mcp_forward::{ClientFactory, Upstream};
use serde_json::json;
use support::capture;
use tokio::{io::AsyncReadExt, net::TcpListener};

const ALICE: [(&str, &str); 1] = [("authorization", "Bearer alice")];
const MALLORY: [(&str, &str); 1] = [("authorization", "Bearer mallory")];

/// How often mallory tries, far beyond what is kept.
const TURNS: usize = 12;

/// Calls, and returns the upstream session that the call was in.
async fn session(server: &Server, caller: &Caller) -> String {
    caller.call("whoami", json!({})).await;
    let call = server.of("tools/call").pop().unwrap();
    call.session().unwrap().to_owned()
}

#[tokio::test]
async fn session_ids_that_are_made_up_close_nobody_elses_connection() {
    for (kind, others) in [
        (Kind::StatelessSse, 0),
        (Kind::StatelessJson, 0),
        // More than half full with those who are there to stay.
        (Kind::StatelessJson, 4),
    ] {
        let server = Server::start(Kind::Sessions).await;
        let factory = builder().max_connections(4 + others).build().unwrap();
        let front = Front::start(kind, &server.upstream(), &factory).await;
        let alice = Caller::open(&front, ALICE).await;
        let kept = session(&server, &alice).await;
        for other in 0..others {
            let token = format!("Bearer other-{other}");
            let other = Caller::open(&front, [("authorization", &*token)]).await;
            session(&server, &other).await;
        }
        let mut mallory = Caller::open(&front, MALLORY).await;
        for turn in 0..TURNS {
            mallory.session = Some(format!("made-up-{turn}"));
            session(&server, &mallory).await;
        }
        assert_eq!(session(&server, &alice).await, kept, "{kind:?} {others}");
    }
}

#[tokio::test]
async fn hands_that_are_shaken_again_close_nobody_elses_connection() {
    let server = Server::start(Kind::Sessions).await;
    let factory = builder().max_connections(4).build().unwrap();
    let front = Front::start(Kind::Sessions, &server.upstream(), &factory).await;
    let alice = Caller::open(&front, ALICE).await;
    let kept = session(&server, &alice).await;
    let mallory = Caller::open(&front, MALLORY).await;
    for _ in 0..TURNS {
        session(&server, &mallory).await;
        let again = json!({
            "protocolVersion": LEGACY,
            "capabilities": {},
            "clientInfo": { "name": "caller", "version": "1" },
        });
        let answer = mallory.ask("initialize", again).await;
        assert_eq!(answer["result"]["protocolVersion"], LEGACY, "{answer}");
    }
    assert_eq!(session(&server, &alice).await, kept);
}

#[cfg(feature = "tracing")]
#[tokio::test]
async fn the_log_tells_of_a_live_session_that_loses_its_connection() {
    for (kind, told) in [(Kind::Sessions, 1), (Kind::StatelessJson, 0)] {
        let server = Server::start(Kind::Sessions).await;
        let factory = builder().max_connections(1).build().unwrap();
        let upstream = server.upstream();
        let front = Front::start(kind, &upstream, &factory).await;
        let ((), log) = support::logged(async {
            let alice = Caller::open(&front, ALICE).await;
            session(&server, &alice).await;
            let mallory = Caller::open(&front, MALLORY).await;
            // What moka has thrown away is dropped by those who come later.
            until("an end of hers", async || {
                session(&server, &mallory).await;
                !server.of("DELETE").is_empty()
            })
            .await;
        })
        .await;
        let ours = log.lines().filter(|it| it.contains(" mcp_forward::"));
        let lost: Vec<_> = ours.filter(|it| it.contains("live session")).collect();
        assert_eq!(lost.len(), told, "{kind:?}: {lost:?}");
        for line in lost {
            let named = format!("upstream=\"{}\" max_connections=1", upstream.name());
            assert!(line.contains("WARN") && line.contains(&named), "{line}");
            assert!(!line.contains("Bearer"), "{line}");
        }
    }
}

#[tokio::test]
async fn handshakes_of_callers_who_have_left_are_bounded() {
    for fresh in [false, true] {
        // It takes every connection and answers nothing.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (come, open) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (coming, opening) = (Arc::clone(&come), Arc::clone(&open));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                coming.fetch_add(1, Ordering::SeqCst);
                opening.fetch_add(1, Ordering::SeqCst);
                let opening = Arc::clone(&opening);
                tokio::spawn(async move {
                    while !matches!(socket.read(&mut [0; 1_024]).await, Ok(0) | Err(_)) {}
                    opening.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let upstream = Upstream::builder("up", format!("http://{addr}/mcp"));
        let upstream = upstream.allow("x-user").build().unwrap();
        let factory = builder().max_connections(4);
        let factory = factory.connect_timeout(Duration::from_secs(600));
        let factory = if fresh { factory.fresh() } else { factory };
        let factory = factory.build().unwrap();
        let mut callers = Vec::new();
        for turn in 0..TURNS + 1 {
            let inbound = capture(&[&upstream], [("x-user", &*format!("user-{turn}"))]).await;
            let (factory, upstream) = (factory.clone(), upstream.clone());
            let connecting = async move { factory.connect_for(&upstream, &inbound).await };
            callers.push(tokio::spawn(connecting));
            let all = callers.len();
            until("a socket", async || come.load(Ordering::SeqCst) == all).await;
        }
        // One stays, and is not in the way of anybody.
        let stays = callers.pop().unwrap();
        for caller in &callers {
            caller.abort();
        }
        until("few sockets", async || open.load(Ordering::SeqCst) <= 5).await;
        assert_eq!(
            open.load(Ordering::SeqCst),
            5,
            "four go on, and one is waited for"
        );
        assert!(!stays.is_finished());
    }
}
