//! Which upstream connection a call uses, and how long it is kept: the table in the documentation of
//! `mcp_forward::rmcp`, row by row.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures_util::{future::join_all, poll};
use mcp::{Caller, Front, Kind, NEWEST, Server, answer, builder, call, factory, hold, told};
use mcp_forward::{
    ClientFactory, ConnectError, Inbound, InboundExt, Upstream,
    rmcp::{Client, Error, ErrorKind, Factory},
};
use serde_json::json;
use support::capture;

const ALICE: [(&str, &str); 1] = [("authorization", "Bearer alice")];
const BOB: [(&str, &str); 1] = [("authorization", "Bearer bob")];

async fn whoami(client: &Client) -> serde_json::Value {
    told(client.call_tool(call("whoami", json!({}))).await.unwrap())
}

/// Calls as `inbound`, and returns the upstream session that the call was in.
async fn session(
    server: &Server,
    upstream: &Upstream,
    factory: &Factory,
    inbound: &Inbound,
) -> String {
    let client = factory.connect_for(upstream, inbound).await.unwrap();
    whoami(&client).await;
    let calls = server.of("tools/call");
    calls.last().unwrap().session().unwrap().to_owned()
}

fn cause(error: &ConnectError) -> &Error {
    let source = std::error::Error::source(error).unwrap();
    source.downcast_ref().unwrap()
}

#[tokio::test]
async fn a_front_session_has_one_upstream_session() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;

    // No headers, equal headers, other headers: what counts is the front session.
    let mut sessions = BTreeSet::new();
    let nobody = [
        Caller::open(&front, []).await,
        Caller::open(&front, []).await,
    ];
    let alices = [
        Caller::open(&front, ALICE).await,
        Caller::open(&front, ALICE).await,
    ];
    let callers = nobody.iter().chain(&alices);
    for caller in callers.clone() {
        for _ in 0..2 {
            let inbound = front.inbound(caller).await;
            sessions.insert(session(&server, &upstream, &factory, &inbound).await);
        }
    }
    assert_eq!(sessions.len(), 4, "{sessions:?}");

    // Everybody finds theirs again, also with another token, and through the front's own handler.
    for caller in callers {
        let caller = caller.with(BOB);
        let inbound = front.inbound(&caller).await;
        let found = session(&server, &upstream, &factory, &inbound).await;
        assert!(sessions.contains(&found));
        caller.call("whoami", json!({})).await;
        let last = server.of("tools/call").pop().unwrap();
        assert_eq!(
            (last.session(), last.token()),
            (Some(&*found), Some("Bearer bob"))
        );
    }
    let all: BTreeSet<_> = server
        .of("initialize")
        .iter()
        .map(|it| it.assigned.clone())
        .collect();
    assert_eq!(all.len(), 4, "{all:?}");
}

#[tokio::test]
async fn a_front_session_has_an_upstream_session_for_each_upstream() {
    let server = Server::start(Kind::Sessions).await;
    let factory = factory();
    let one = server.upstream();
    let other = server.builder().allow("x-other").build().unwrap();
    let front = Front::start(Kind::Sessions, &one, &factory).await;
    let inbound = front.inbound(&Caller::open(&front, []).await).await;
    let first = session(&server, &one, &factory, &inbound).await;
    assert_eq!(session(&server, &one, &factory, &inbound).await, first);
    // Equal in all but a rule.
    assert_ne!(session(&server, &other, &factory, &inbound).await, first);
}

#[tokio::test]
async fn callers_without_a_session_share_only_with_their_equals() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    for kind in [Kind::StatelessSse, Kind::StatelessJson, Kind::Newest] {
        let front = Front::start(kind, &upstream, &factory).await;
        let mut sessions = Vec::new();
        for lines in [ALICE, BOB, ALICE, BOB] {
            let caller = Caller::open(&front, lines).await;
            assert_eq!(
                caller.call("whoami", json!({})).await["authorization"],
                json!([lines[0].1])
            );
            let inbound = front.inbound(&caller).await;
            sessions.push(session(&server, &upstream, &factory, &inbound).await);
        }
        let nobody = Caller::open(&front, []).await;
        let inbound = front.inbound(&nobody).await;
        let none = session(&server, &upstream, &factory, &inbound).await;
        assert_eq!(sessions[..2], sessions[2..], "{kind:?}");
        let all: BTreeSet<_> = sessions.into_iter().chain([none]).collect();
        assert_eq!(all.len(), 3, "{kind:?}: {all:?}");
    }
    // The same three for all fronts.
    assert_eq!(server.of("initialize").len(), 3);
}

#[tokio::test]
async fn an_attested_and_a_sent_value_do_not_share() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let sent = capture(&[&upstream], [("x-user", "alice")]).await;
    let first = session(&server, &upstream, &factory, &sent).await;
    let layer = mcp_forward::CaptureLayer::for_upstreams([&upstream])
        .attest("x-user", |_| Some("alice".into()))
        .build()
        .unwrap();
    let (seen, mut got) = tokio::sync::mpsc::unbounded_channel();
    let service = tower::Layer::layer(
        &layer,
        tower::service_fn(move |_: http::Request<()>| {
            seen.send(Inbound::current().unwrap()).unwrap();
            async { Ok::<_, std::convert::Infallible>(http::Response::new(String::new())) }
        }),
    );
    tower::ServiceExt::oneshot(service, http::Request::new(()))
        .await
        .unwrap();
    let attested = got.recv().await.unwrap();
    assert_ne!(
        session(&server, &upstream, &factory, &attested).await,
        first
    );
}

/// A connection to a 2026-07-28 upstream has no session; it begins with a `server/discover`.
#[tokio::test]
async fn i9_a_connection_to_2026_07_28_belongs_to_the_exact_headers() {
    let server = Server::start(Kind::NewestOnly).await;
    let (upstream, factory) = (server.upstream(), factory());
    let sessions = Front::start(Kind::Sessions, &upstream, &factory).await;
    let stateless = Front::start(Kind::StatelessJson, &upstream, &factory).await;
    let alice = Caller::open(&stateless, ALICE).await;
    let bob = Caller::open(&stateless, BOB).await;
    let one = Caller::open(&sessions, ALICE).await;
    let other = Caller::open(&sessions, ALICE).await;
    let renewed = one.with(BOB);
    let mut connections = 0;
    for caller in [&alice, &bob, &one, &other, &renewed] {
        for _ in 0..3 {
            let answer = caller.call("whoami", json!({})).await;
            let token = caller.headers["authorization"].to_str().unwrap();
            assert_eq!(answer["authorization"], json!([token]));
        }
        connections += 1;
        let discovered = server.of("server/discover");
        assert_eq!(discovered.len(), connections);
        let last = discovered.last().unwrap();
        assert_eq!(last.token(), caller.headers["authorization"].to_str().ok());
    }
    let all = server.seen();
    assert!(all.iter().all(|seen| seen.session().is_none()));
    assert!(all.iter().all(|seen| seen.method == http::Method::POST));
}

#[tokio::test]
async fn an_upstream_of_both_families_is_spoken_to_as_the_caller_speaks() {
    let server = Server::start(Kind::Newest).await;
    let (upstream, factory) = (server.upstream(), factory());
    for (kind, version) in [
        (Kind::Sessions, "2025-11-25"),
        (Kind::Newest, NEWEST),
        (Kind::Sessions, "2025-11-25"),
        (Kind::Newest, NEWEST),
    ] {
        // Each time somebody new, and what the others spoke does not matter.
        let front = Front::start(kind, &upstream, &factory).await;
        let caller = Caller::open(&front, ALICE).await;
        let answer = caller.call("whoami", json!({})).await;
        assert_eq!(answer["authorization"], json!(["Bearer alice"]));
        let last = server.of("tools/call").pop().unwrap();
        assert_eq!(last.header("mcp-protocol-version"), Some(version));
        assert_eq!(last.session().is_some(), kind == Kind::Sessions);
    }
}

#[tokio::test]
async fn what_an_upstream_tells_one_caller_of_its_versions_counts_for_that_one() {
    let server = Server::start(Kind::Newest).await;
    let (upstream, factory) = (server.upstream(), factory());
    server.intercept(|seen| {
        let is_alices = seen.token() == Some("Bearer alice");
        (is_alices && seen.rpc() == "server/discover").then(|| answer(404, &[], ""))
    });
    let front = Front::start(Kind::Newest, &upstream, &factory).await;
    for (lines, version) in [(ALICE, "2025-11-25"), (BOB, NEWEST), (ALICE, "2025-11-25")] {
        let caller = Caller::open(&front, lines).await;
        caller.call("whoami", json!({})).await;
        let last = server.of("tools/call").pop().unwrap();
        assert_eq!(last.header("mcp-protocol-version"), Some(version));
    }
}

/// In that version nobody asks in a session, so nothing is declared.
#[tokio::test]
async fn an_upstream_that_begins_a_session_in_2026_07_28_has_none() {
    let server = Server::start(Kind::NewestOnly).await;
    let (upstream, factory) = (server.upstream(), factory());
    server.intercept(|seen| {
        let result = json!({
            "protocolVersion": NEWEST, "capabilities": { "tools": {} },
            "serverInfo": { "name": "up", "version": "1" },
        });
        let result = json!({ "jsonrpc": "2.0", "id": seen.body["id"], "result": result });
        let lines = [("content-type", "application/json")];
        (seen.rpc() == "initialize").then(|| answer(200, &lines, result.to_string()))
    });
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let mut alice = Caller::open(&front, ALICE).await;
    alice.session = None;
    alice
        .initialize(json!({ "sampling": {}, "roots": {} }))
        .await;
    let answer = alice.call("whoami", json!({})).await;
    assert_eq!(answer["authorization"], json!(["Bearer alice"]));
    assert_eq!(server.of("server/discover").len(), 1);
    let call = server.of("tools/call").pop().unwrap();
    let declared = &call.body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    assert_eq!(*declared, json!({}), "{}", call.body);
}

#[tokio::test]
async fn a_session_id_that_the_caller_made_up_is_no_session() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    for kind in [Kind::StatelessSse, Kind::StatelessJson] {
        let front = Front::start(kind, &upstream, &factory).await;
        let mut sessions = BTreeSet::new();
        for lines in [ALICE, BOB] {
            for id in ["made-up", "other"] {
                let mut caller = Caller::open(&front, lines).await;
                caller.session = Some(id.to_owned());
                let answer = caller.call("whoami", json!({})).await;
                assert_eq!(answer["authorization"], json!([lines[0].1]));
                let last = server.of("tools/call").pop().unwrap();
                sessions.insert((lines, last.session().unwrap().to_owned()));
            }
        }
        let of = |lines| -> BTreeSet<_> {
            let sessions = sessions.iter().filter(|(of, _)| *of == lines);
            sessions.map(|(_, session)| session).collect()
        };
        assert!(of(ALICE).is_disjoint(&of(BOB)), "{kind:?}: {sessions:?}");
    }
}

#[tokio::test]
async fn a_2026_07_28_request_with_a_session_id_is_not_in_that_session() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let mut front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let alice = Caller::open(&front, ALICE).await;
    alice.call("whoami", json!({})).await;
    let first = server.of("tools/call").pop().unwrap();

    // The same server serves 2026-07-28, whatever session id comes along.
    front.kind = Kind::Newest;
    let mut mallory = Caller::open(&front, [("authorization", "Bearer mallory")]).await;
    mallory.session.clone_from(&alice.session);
    let answer = mallory.call("whoami", json!({})).await;
    assert_eq!(
        answer["authorization"],
        json!(["Bearer mallory"]),
        "{NEWEST}"
    );
    mallory.call("whoami", json!({})).await;
    let calls = server.of("tools/call");
    assert_ne!(calls[1].session(), first.session());
    assert_eq!(calls[1].session(), calls[2].session());
}

#[tokio::test]
async fn concurrent_first_calls_connect_once() {
    for (kind, rpc) in [
        (Kind::Sessions, "initialize"),
        (Kind::StatelessJson, "initialize"),
        (Kind::Newest, "server/discover"),
    ] {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let inbound = capture(&[&upstream], ALICE).await;
        let clients = (0..16).map(|_| factory.connect_for(&upstream, &inbound));
        for client in join_all(clients).await {
            whoami(&client.unwrap()).await;
        }
        assert_eq!(server.of(rpc).len(), 1, "{kind:?}");
        let listed = if kind == Kind::Newest { 2 } else { 0 };
        assert_eq!(server.of("tools/list").len(), listed, "{kind:?}");
    }
}

#[tokio::test]
async fn all_learn_of_a_refusal_and_nothing_is_kept_then() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let alice = front.inbound(&Caller::open(&front, ALICE).await).await;
    server.intercept(|_| Some(answer(401, &[("www-authenticate", "Bearer")], "")));
    let clients = (0..16).map(|_| factory.connect_for(&upstream, &alice));
    for client in join_all(clients).await {
        let error = client.unwrap_err();
        let refusal = cause(&error).refusal().unwrap();
        assert_eq!(refusal.status(), 401);
    }
    assert_eq!(server.seen().len(), 1, "{:?}", server.order());

    server.intercept(|_| None);
    server.forget();
    session(&server, &upstream, &factory, &alice).await;
    assert_eq!(server.of("initialize").len(), 1);
}

#[tokio::test]
async fn whoever_waits_goes_on_where_the_first_caller_leaves() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let inbound = capture(&[&upstream], ALICE).await;
    let mut first = Box::pin(factory.connect_for(&upstream, &inbound));
    let mut second = pin!(factory.connect_for(&upstream, &inbound));
    assert!(poll!(&mut first).is_pending());
    assert!(poll!(&mut second).is_pending());
    drop(first);
    whoami(&second.await.unwrap()).await;
}

#[tokio::test]
async fn a_client_is_made_as_the_task_that_asks() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let inbound = capture(&[&upstream], ALICE).await;
    let client = async { factory.connect(&upstream).await.unwrap() };
    let client = client.with_inbound(inbound).await;
    assert_eq!(
        whoami(&client).await["authorization"],
        json!(["Bearer alice"])
    );
}

#[tokio::test]
async fn fresh_clients_have_a_connection_each_and_end_it() {
    let factory = builder().fresh().build().unwrap();
    let server = Server::start(Kind::Sessions).await;
    let upstream = server.upstream();
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let caller = Caller::open(&front, ALICE).await;
    for calls in 1..4 {
        caller.call("whoami", json!({})).await;
        assert_eq!(server.of("initialize").len(), calls);
        let ended = server.wait_for("DELETE", calls).await;
        let ended = ended.last().unwrap();
        let opened = server.of("initialize").pop().unwrap();
        assert_eq!(ended.session(), opened.assigned.as_deref());
        assert_eq!(ended.token(), Some("Bearer alice"));
    }

    let server = Server::start(Kind::Newest).await;
    let upstream = server.upstream();
    let inbound = capture(&[&upstream], ALICE).await;
    for calls in 1..4 {
        whoami(&factory.connect_for(&upstream, &inbound).await.unwrap()).await;
        assert_eq!(server.of("server/discover").len(), calls);
    }
    assert!(server.of("DELETE").is_empty());
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed() {
    let idle = Duration::from_millis(50);
    let factory = builder().idle_time(idle).build().unwrap();
    let server = Server::start(Kind::Sessions).await;
    let upstream = server.upstream();
    let inbound = capture(&[&upstream], ALICE).await;
    let client = factory.connect_for(&upstream, &inbound).await.unwrap();
    let held = hold(&server, client).await;
    // Longer than the connection is kept.
    tokio::time::sleep(idle * 2).await;
    session(&server, &upstream, &factory, &inbound).await;
    assert_eq!(server.of("initialize").len(), 2);

    // The second one is closed, though nobody asks for another; a call that is under way is no reason to
    // keep the first one for others, and ends as it would have.
    let closed = server.wait_for("DELETE", 1).await;
    let opened = server.of("initialize");
    assert_eq!(closed[0].session(), opened[1].assigned.as_deref());
    server.release(1);
    assert_eq!(
        told(held.await.unwrap().unwrap())["authorization"],
        json!(["Bearer alice"])
    );
    let closed = server.wait_for("DELETE", 2).await;
    assert_eq!(closed[1].session(), opened[0].assigned.as_deref());
}

#[tokio::test]
async fn beyond_the_limit_the_least_used_is_closed() {
    let factory = builder().max_connections(2).build().unwrap();
    let server = Server::start(Kind::Sessions).await;
    let upstream = server.upstream();
    let mut callers = Vec::new();
    for token in ["Bearer a", "Bearer b", "Bearer c"] {
        callers.push(capture(&[&upstream], [("authorization", token)]).await);
    }
    let of = |index: usize| session(&server, &upstream, &factory, &callers[index]);
    let (a, b) = (of(0).await, of(1).await);
    assert_eq!(of(0).await, a);
    // The least used one has a call under way.
    let client = factory.connect_for(&upstream, &callers[1]).await.unwrap();
    let held = hold(&server, client).await;
    assert_eq!(of(0).await, a);
    let c = of(2).await;
    server.release(1);
    assert_eq!(
        told(held.await.unwrap().unwrap())["authorization"],
        json!(["Bearer b"])
    );
    let closed = server.wait_for("DELETE", 1).await;
    assert_eq!(closed[0].session(), Some(&*b));
    assert_eq!(closed[0].token(), Some("Bearer b"));
    assert_eq!((of(0).await, of(2).await), (a, c));
    assert_ne!(of(1).await, b);
    assert_eq!(server.of("initialize").len(), 4);
}

#[tokio::test]
async fn a_factory_that_keeps_nothing_says_so() {
    let error = builder().max_connections(0).build().unwrap_err();
    assert!(error.to_string().contains("`fresh`"), "{error}");
    let nobody = Upstream::builder("up", "http://127.0.0.1:1/mcp")
        .build()
        .unwrap();
    let factory = factory();
    let error = factory.connect_for(&nobody, &Inbound::empty()).await;
    let error = error.unwrap_err();
    assert_eq!(cause(&error).kind(), ErrorKind::Unreachable);
}
