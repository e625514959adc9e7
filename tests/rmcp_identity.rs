//! Identity through a proxy on rmcp: each of many concurrent calls is its own caller's, whatever the
//! front and the upstream speak.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::sync::Arc;

use mcp::{Caller, Front, KINDS, Kind, Server, bearer, builder, factory};
use mcp_forward::rmcp::Factory;
use serde_json::json;
use tokio::task::JoinSet;

const CALLERS: usize = 64;
const CALLS: usize = 100;

/// All callers at once, a quarter of them at each front; returns what the upstream saw.
async fn storm(kind: Kind, factory: Factory, calls: usize) {
    let server = Server::start(kind).await;
    let upstream = server.upstream();
    let mut fronts = Vec::new();
    for kind in KINDS {
        fronts.push(Front::start(kind, &upstream, &factory).await);
    }
    let fronts = Arc::new(fronts);
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let fronts = Arc::clone(&fronts);
        callers.spawn(async move {
            let user = format!("user-{number}");
            let token = bearer(&user);
            let front = &fronts[number % fronts.len()];
            let lines = [("authorization", token.as_str()), ("x-user", &user)];
            let caller = Caller::open(front, lines).await;
            let expected = json!({ "authorization": [token], "x-user": [user] });
            for _ in 0..calls {
                let answer = caller.call("whoami", json!({ "user": user })).await;
                assert_eq!(answer, expected, "{:?}", front.kind);
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    let seen = server.of("tools/call");
    assert_eq!(seen.len(), CALLERS * calls, "{kind:?}");
    for seen in seen {
        let user = seen.body["params"]["arguments"]["user"].as_str().unwrap();
        assert_eq!(seen.token(), Some(bearer(user).as_str()), "{kind:?}");
        assert_eq!(seen.header("x-user"), Some(user), "{kind:?}");
    }
    // Whatever else went out had a caller's headers, and whole ones.
    for seen in server.seen() {
        let user = seen.header("x-user").unwrap();
        assert_eq!(seen.token(), Some(bearer(user).as_str()), "{kind:?}");
    }
}

fn pooled() -> Factory {
    builder().max_connections(1_000).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_on_sessions() {
    storm(Kind::Sessions, pooled(), CALLS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_on_stateless_sse() {
    storm(Kind::StatelessSse, pooled(), CALLS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_on_stateless_json() {
    storm(Kind::StatelessJson, pooled(), CALLS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_on_2026_07_28() {
    storm(Kind::Newest, pooled(), CALLS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_where_nothing_is_kept() {
    for kind in KINDS {
        storm(kind, builder().fresh().build().unwrap(), 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_while_connections_are_closed_for_others() {
    for kind in KINDS {
        let small = builder().max_connections(5).build().unwrap();
        storm(kind, small, 4).await;
    }
}

/// rmcp binds a session to nobody; even so no message has another caller's headers.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_its_callers_where_a_session_is_shared() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let upstream = server.upstream();
        let front = Front::start(Kind::Sessions, &upstream, &factory()).await;
        let first = Caller::open(&front, []).await;
        let mut callers = JoinSet::new();
        for number in 0..16 {
            let token = bearer(&format!("user-{number}"));
            let caller = first.with([("authorization", token.as_str())]);
            callers.spawn(async move {
                for _ in 0..20 {
                    let answer = caller.call("whoami", json!({ "user": token })).await;
                    assert_eq!(answer["authorization"], json!([token]), "{kind:?}");
                }
            });
        }
        while let Some(done) = callers.join_next().await {
            done.unwrap();
        }
        if kind == Kind::Sessions {
            assert_eq!(server.of("initialize").len(), 1);
        }
    }
}
