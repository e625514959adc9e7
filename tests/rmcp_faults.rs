//! What goes wrong between a caller and an upstream, each case with its outcome: a renewed token, a
//! caller who leaves, an upstream that restarts, loses its session, or refuses.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use std::time::Duration;

use futures_util::future::join;
use http::StatusCode;
use mcp::{
    Answer, Caller, Front, KINDS, Kind, PATIENCE, Seen, Server, answer, builder, call, factory,
    hold, told, until,
};
use mcp_forward::{
    ClientFactory, ConnectError, Inbound, Upstream,
    rmcp::{Client, Error, ErrorKind, Factory},
};
use rmcp::model::SubscriptionFilter;
use serde_json::{Value, json};
use support::capture;

const OLD: [(&str, &str); 1] = [("authorization", "Bearer old")];
const NEW: [(&str, &str); 1] = [("authorization", "Bearer new")];

async fn whoami(client: &Client) -> Result<Value, Error> {
    client.call_tool(call("whoami", json!({}))).await.map(told)
}

fn cause(error: &ConnectError) -> Error {
    let source = std::error::Error::source(error).unwrap();
    source.downcast_ref::<Error>().unwrap().clone()
}

/// The whole way: connect and call.
async fn attempt(
    factory: &Factory,
    upstream: &Upstream,
    inbound: &Inbound,
) -> Result<Value, Error> {
    let client = factory.connect_for(upstream, inbound).await;
    whoami(&client.map_err(|error| cause(&error))?).await
}

/// One front session, before and after its caller renewed the token.
struct Renewed {
    server: Server,
    upstream: Upstream,
    factory: Factory,
    old: Inbound,
    new: Inbound,
}

impl Renewed {
    async fn start() -> Self {
        let server = Server::start(Kind::Sessions).await;
        let (upstream, factory) = (server.upstream(), factory());
        // Not the factory's only holder.
        let front = Front::start(Kind::Sessions, &upstream, &Factory::clone(&factory)).await;
        let caller = Caller::open(&front, OLD).await;
        let old = front.inbound(&caller).await;
        let new = front.inbound(&caller.with(NEW)).await;
        Self {
            server,
            upstream,
            factory,
            old,
            new,
        }
    }

    async fn client(&self, inbound: &Inbound) -> Client {
        let client = self.factory.connect_for(&self.upstream, inbound).await;
        client.unwrap()
    }

    async fn call(&self, inbound: &Inbound) -> Result<Value, Error> {
        attempt(&self.factory, &self.upstream, inbound).await
    }
}

#[tokio::test]
async fn a_renewed_token_is_used_at_once_in_the_same_session() {
    let it = Renewed::start().await;
    assert_eq!(
        it.call(&it.old).await.unwrap()["authorization"],
        json!(["Bearer old"])
    );
    let stream = it.server.wait_for("GET", 1).await;
    assert_eq!(stream[0].token(), Some("Bearer old"));
    let held = hold(&it.server, it.client(&it.old).await).await;
    assert_eq!(
        it.call(&it.new).await.unwrap()["authorization"],
        json!(["Bearer new"])
    );

    // The call before it goes on; what it still has to say goes out as whoever is there now.
    held.abort();
    let cancelled = it.server.wait_for("notifications/cancelled", 1).await;
    assert_eq!(cancelled[0].token(), Some("Bearer new"));
    it.server.wait_event("cancelled").await;

    // A stream that breaks off is taken up again.
    let rest = r#"{"jsonrpc":"2.0","id":ID,"result":{"content":[{"type":"text","text":"1"}]}}"#;
    let id = std::sync::Mutex::new(0);
    it.server.intercept(move |seen| {
        let sse = [("content-type", "text/event-stream")];
        if seen.rpc() == "tools/call" {
            *id.lock().unwrap() = seen.body["id"].as_i64().unwrap();
            return Some(answer(200, &sse, "id: 1\nretry: 1\ndata:\n\n"));
        }
        seen.header("last-event-id")?;
        let rest = rest.replace("ID", &id.lock().unwrap().to_string());
        Some(answer(200, &sse, format!("data: {rest}\n\n")))
    });
    assert_eq!(it.call(&it.new).await.unwrap(), 1);
    let resumed = it.server.wait_for("GET", 2).await.pop().unwrap();
    assert_eq!(resumed.header("last-event-id"), Some("1"));
    assert_eq!(resumed.token(), Some("Bearer new"));

    // One session for all of it, and its end.
    it.server
        .intercept(|seen| (seen.rpc() == "tools/call").then(|| answer(401, &[], "")));
    it.call(&it.new).await.unwrap_err();
    let opened = it.server.of("initialize");
    assert_eq!(opened.len(), 1);
    let ended = it.server.wait_for("DELETE", 1).await;
    assert_eq!(ended[0].session(), opened[0].assigned.as_deref());
    assert_eq!(ended[0].token(), Some("Bearer new"));
    let calls = it.server.of("tools/call");
    assert!(
        calls
            .iter()
            .all(|it| it.session() == opened[0].assigned.as_deref())
    );
}

#[tokio::test]
async fn j15_the_session_is_ended_once_by_its_own_caller() {
    let it = Renewed::start().await;
    it.call(&it.new).await.unwrap();
    it.server.intercept(|seen| {
        let refused = ["tools/call", "DELETE"].contains(&seen.rpc());
        refused.then(|| answer(401, &[], ""))
    });
    it.call(&it.new).await.unwrap_err();
    it.server.wait_for("DELETE", 1).await;
    // Nothing is left that would try again.
    it.server.intercept(|_| None);
    it.call(&it.new).await.unwrap();
    assert_eq!(it.server.of("initialize").len(), 2);
    let ended = it.server.of("DELETE");
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].token(), Some("Bearer new"));
}

#[tokio::test]
async fn a_caller_who_leaves_ends_the_call_at_the_upstream() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let alice = capture(&[&upstream], OLD).await;
        let client = factory.connect_for(&upstream, &alice).await.unwrap();
        let held = hold(&server, client).await;
        let id = server.of("tools/call")[0].body["id"].clone();
        held.abort();
        server.wait_event("cancelled").await;
        // The connection is as good as before.
        whoami(&factory.connect_for(&upstream, &alice).await.unwrap())
            .await
            .unwrap();
        let cancelled = server.of("notifications/cancelled");
        if kind == Kind::Newest {
            assert!(cancelled.is_empty());
        } else {
            assert_eq!(cancelled.len(), 1, "{kind:?}");
            assert_eq!(cancelled[0].token(), Some("Bearer old"));
            assert_eq!(cancelled[0].body["params"]["requestId"], id);
            assert_eq!(server.of("initialize").len(), 1);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_restarts_loses_the_call_and_is_found_again() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let alice = capture(&[&upstream], OLD).await;
        let client = factory.connect_for(&upstream, &alice).await.unwrap();
        let held = hold(&server, client).await;
        server.stop();
        let error = attempt(&factory, &upstream, &alice).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{kind:?}");
        server.restart().await;
        let ended = tokio::time::timeout(PATIENCE, held).await.unwrap();
        let error = ended.unwrap().unwrap_err();
        // One whose answer had not begun.
        let json = kind == Kind::StatelessJson || kind == Kind::Newest;
        let expected = if json {
            ErrorKind::Unreachable
        } else {
            ErrorKind::Lost
        };
        assert_eq!(error.kind(), expected, "{kind:?}");
        let found = attempt(&factory, &upstream, &alice).await.unwrap();
        assert_eq!(found["authorization"], json!(["Bearer old"]), "{kind:?}");
    }
}

#[tokio::test]
async fn k7_a_lost_session_is_opened_again_once_as_the_caller_of_now() {
    let it = Renewed::start().await;
    it.call(&it.old).await.unwrap();
    it.server.forget_sessions();
    let (one, other) = join(it.call(&it.new), it.call(&it.new)).await;
    for answer in [one.unwrap(), other.unwrap()] {
        assert_eq!(answer["authorization"], json!(["Bearer new"]));
    }
    let opened = it.server.of("initialize");
    assert_eq!(opened.len(), 2);
    assert_eq!(opened[1].token(), Some("Bearer new"));
    // Each was sent again once, into the new session.
    let calls = it.server.of("tools/call");
    let [before, after] = [404, 200].map(|status| {
        let calls = calls.iter().filter(|seen| seen.status == status);
        calls.map(|seen| seen.session()).collect::<Vec<_>>()
    });
    assert_eq!(before, [opened[0].assigned.as_deref(); 2]);
    assert_eq!(after[1..], [opened[1].assigned.as_deref(); 2]);
    it.call(&it.new).await.unwrap();
    assert_eq!(it.server.of("initialize").len(), 2);
}

/// rmcp leaves a session that is lost for one call with all that are in it.
#[tokio::test]
async fn a_call_in_a_session_that_is_opened_again_is_lost() {
    let it = Renewed::start().await;
    let held = hold(&it.server, it.client(&it.old).await).await;
    it.server.forget_sessions();
    it.call(&it.new).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, held).await.unwrap();
    assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    it.call(&it.new).await.unwrap();
}

#[tokio::test]
async fn a_lost_session_that_cannot_be_opened_again_is_a_refusal() {
    let it = Renewed::start().await;
    it.call(&it.old).await.unwrap();
    it.server.forget_sessions();
    it.server
        .intercept(|seen| (seen.rpc() == "initialize").then(|| answer(401, &[], "")));
    let error = it.call(&it.new).await.unwrap_err();
    assert_eq!(error.refusal().unwrap().status(), 401);
    it.server.intercept(|_| None);
    it.call(&it.new).await.unwrap();
}

/// A refusal, in whatever dress, of each message with this method.
fn refuse(
    rpc: &'static str,
    status: u16,
    challenge: Option<&'static str>,
    body: &'static str,
) -> Intercepted {
    Box::new(move |seen: &Seen| {
        let mut lines = vec![("content-type", "application/json")];
        lines.extend(challenge.map(|it| ("www-authenticate", it)));
        (seen.rpc() == rpc).then(|| answer(status, &lines, body))
    })
}

const CHALLENGE: &str = r#"Bearer scope="a b", error="x""#;

/// Bytes beyond ASCII are no text to rmcp.
const CHALLENGES: [Option<&str>; 3] = [Some(CHALLENGE), Some("Bearer realm=\"ä\""), None];

type Intercepted = Box<dyn Fn(&Seen) -> Option<Answer> + Send + Sync>;

/// More than rmcp reads of an answer that is no success.
static LARGE: [u8; 70_000] = [b' '; 70_000];

const BODIES: [&str; 4] = [
    "",
    "no",
    r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32001,"message":"no"}}"#,
    match std::str::from_utf8(&LARGE) {
        Ok(body) => body,
        Err(_) => "",
    },
];

/// It fails where rmcp says it in another way, or loses it on the way.
#[tokio::test]
async fn each_refusal_is_one_error_with_its_status_and_challenge() {
    let legacy = [
        "server/discover",
        "initialize",
        "notifications/initialized",
        "tools/call",
    ];
    let newest = ["server/discover", "tools/list", "tools/call"];
    for kind in KINDS {
        let messages = if kind == Kind::Newest {
            &newest[..]
        } else {
            &legacy
        };
        for rpc in messages {
            let server = Server::start(kind).await;
            let (upstream, factory) = (server.upstream(), factory());
            let alice = capture(&[&upstream], OLD).await;
            let dresses = CHALLENGES.map(|challenge| [(401, challenge), (403, challenge)]);
            for (status, challenge) in dresses.into_iter().flatten() {
                for body in BODIES {
                    let case = format!("{kind:?} {rpc} {status} {challenge:?} {}", body.len());
                    server.forget();
                    server.intercept(refuse(rpc, status, challenge, body));
                    let outcome = attempt(&factory, &upstream, &alice).await;
                    if rpc == &"tools/list" && status == 403 {
                        // Whoever may not list may still call.
                        assert!(outcome.is_ok(), "{case}");
                        continue;
                    }
                    let error = outcome.expect_err(&case);
                    assert_eq!(error.kind(), ErrorKind::Refused, "{case}");
                    let refusal = error.refusal().unwrap();
                    assert_eq!(refusal.status().as_u16(), status, "{case}");
                    assert_eq!(refusal.upstream(), "up");
                    assert!(refusal.is_callers());
                    let challenges: Vec<_> = refusal.challenges().collect();
                    let expected = challenge.filter(|it| it.is_ascii());
                    assert_eq!(challenges, Vec::from_iter(expected), "{case}");
                    let refused = server.of(rpc);
                    assert_eq!(refused.len(), 1, "{case}: it was repeated");
                }
            }
            server.intercept(|_| None);
            attempt(&factory, &upstream, &alice).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_401_in_the_middle_ends_the_connection_and_not_the_calls_on_it() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let alice = capture(&[&upstream], OLD).await;
        let client = factory.connect_for(&upstream, &alice).await.unwrap();
        let held = hold(&server, client).await;
        server.intercept(refuse("tools/call", 401, Some(CHALLENGE), ""));
        let error = attempt(&factory, &upstream, &alice).await.unwrap_err();
        assert_eq!(error.refusal().unwrap().status(), 401);
        server.intercept(|_| None);

        let before = server.seen().len();
        attempt(&factory, &upstream, &alice).await.unwrap();
        let handshake = match kind {
            Kind::Newest => "server/discover",
            _ => "initialize",
        };
        assert_eq!(server.of(handshake).len(), 2, "{kind:?}");
        assert!(server.seen().len() > before + 1);
        assert!(server.of("DELETE").is_empty(), "{kind:?}");
        server.release(1);
        told(held.await.unwrap().unwrap());
        if kind == Kind::Sessions {
            let ended = server.wait_for("DELETE", 1).await;
            let opened = server.of("initialize");
            assert_eq!(ended[0].session(), opened[0].assigned.as_deref());
        }
    }
}

#[tokio::test]
async fn a_403_keeps_the_connection() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let alice = capture(&[&upstream], OLD).await;
        attempt(&factory, &upstream, &alice).await.unwrap();
        for challenge in CHALLENGES {
            server.intercept(refuse("tools/call", 403, challenge, ""));
            let error = attempt(&factory, &upstream, &alice).await.unwrap_err();
            assert_eq!(error.refusal().unwrap().status(), 403);
        }
        server.intercept(|_| None);
        server.forget();
        attempt(&factory, &upstream, &alice).await.unwrap();
        assert_eq!(server.order(), ["tools/call"], "{kind:?}");
    }
}

#[tokio::test]
async fn the_operators_credential_is_not_the_callers_fault() {
    let server = Server::start(Kind::Sessions).await;
    let upstream = Upstream::builder("up", server.url())
        .set("authorization", "Bearer operator")
        .build()
        .unwrap();
    server.intercept(|_| Some(answer(401, &[], "")));
    let error = attempt(&factory(), &upstream, &Inbound::empty()).await;
    assert!(!error.unwrap_err().refusal().unwrap().is_callers());
}

#[tokio::test]
async fn an_upstream_that_says_something_else_is_unusable_and_asked_once() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let alice = capture(&[&upstream], OLD).await;
        attempt(&factory, &upstream, &alice).await.unwrap();
        for (status, lines, body) in [
            (500, &[][..], ""),
            (503, &[("retry-after", "0")], "later"),
            (429, &[("retry-after", "0")], ""),
            (402, &[], ""),
            (307, &[("location", "http://127.0.0.1:1/")], ""),
            (200, &[("content-type", "text/html")], "<html>"),
            (200, &[("content-type", "application/json")], "{"),
        ] {
            server.forget();
            server.intercept(move |seen| {
                (seen.rpc() == "tools/call").then(|| answer(status, lines, body))
            });
            let error = attempt(&factory, &upstream, &alice).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Unusable,
                "{kind:?} {status} {error}"
            );
            assert_eq!(server.order(), ["tools/call"], "{kind:?} {status}");
            assert!(error.refusal().is_none() && error.data().is_none());
        }
        // It answers as MCP says, that it will not.
        server.intercept(|_| None);
        let client = factory.connect_for(&upstream, &alice).await.unwrap();
        let refused = client
            .call_tool(call("fail", json!({ "text": "no" })))
            .await;
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Answered);
        assert_eq!(error.data().unwrap().message, "no");
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", silent.local_addr().unwrap());
    let upstream = Upstream::builder("up", url).build().unwrap();
    let soon = Duration::from_millis(50);
    let factory = builder().connect_timeout(soon).build().unwrap();
    let error = attempt(&factory, &upstream, &Inbound::empty()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unreachable);
}

/// Each of the two handshakes would be in time.
#[tokio::test]
async fn the_time_to_connect_is_for_all_of_it() {
    const TIME: Duration = Duration::from_millis(600);
    let slow = move |status: StatusCode| async move {
        tokio::time::sleep(TIME * 2 / 3).await;
        status
    };
    let app = axum::Router::new().route(
        "/mcp",
        axum::routing::post(move || slow(StatusCode::NOT_FOUND)),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let upstream = Upstream::builder("up", url).build().unwrap();
    let factory = builder().connect_timeout(TIME).build().unwrap();
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let inbound = front.inbound(&Caller::open(&front, []).await).await;
    let error = attempt(&factory, &upstream, &inbound).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn an_older_server_that_knows_no_discovery_is_found() {
    for status in [400, 404, 405] {
        let server = Server::start(Kind::Sessions).await;
        let (upstream, factory) = (server.upstream(), factory());
        server.intercept(move |seen| {
            (seen.rpc() == "server/discover").then(|| answer(status, &[], "what?"))
        });
        for (kind, discovered) in [(Kind::Sessions, 0), (Kind::Newest, 2)] {
            let front = Front::start(kind, &upstream, &factory).await;
            server.forget();
            for token in ["Bearer a", "Bearer b"] {
                let caller = Caller::open(&front, [("authorization", token)]).await;
                let answer = caller.call("whoami", json!({})).await;
                assert_eq!(answer["authorization"], json!([token]), "{status}");
            }
            // It is asked for each caller without a session: what one is told is not known of others.
            assert_eq!(server.of("server/discover").len(), discovered);
            assert_eq!(server.of("initialize").len(), 2);
        }
    }
}

#[tokio::test]
async fn a_server_that_knows_nothing_older_is_found_from_a_session() {
    for (status, body) in [(200, ""), (400, "what?"), (404, "what?"), (405, "")] {
        let server = Server::start(Kind::NewestOnly).await;
        let (upstream, factory) = (server.upstream(), factory());
        server.intercept(move |seen| {
            (status != 200 && seen.rpc() == "initialize").then(|| answer(status, &[], body))
        });
        let front = Front::start(Kind::Sessions, &upstream, &factory).await;
        let alice = Caller::open(&front, [("authorization", "Bearer a")]).await;
        for _ in 0..2 {
            let answer = alice.call("whoami", json!({})).await;
            assert_eq!(answer["authorization"], json!(["Bearer a"]), "{status}");
        }
        let expected = ["initialize", "server/discover", "tools/list", "tools/list"];
        assert_eq!(server.order()[..4], expected, "{status}");
        assert_eq!(server.order()[4..], ["tools/call"; 2], "{status}");
    }
}

/// What passes says nothing about the versions that an upstream knows.
#[tokio::test]
async fn an_upstream_that_fails_at_a_handshake_is_asked_once() {
    let refused =
        |code| json!({ "jsonrpc": "2.0", "id": 0, "error": { "code": code, "message": "later" } });
    for kind in [Kind::Sessions, Kind::Newest] {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let front = Front::start(Kind::Sessions, &upstream, &factory).await;
        let alice = Caller::open(&front, OLD).await;
        let inbound = front.inbound(&alice).await;
        for (status, body) in [
            (429, Value::Null),
            (500, Value::Null),
            (503, Value::Null),
            (402, Value::Null),
            (200, Value::Null),
            (200, refused(-32603)),
            (200, refused(-32000)),
            (503, refused(-32603)),
        ] {
            server.forget();
            let told = body.to_string();
            server.intercept(move |seen| {
                let lines = [("content-type", "application/json")];
                let body = told.replace("\"id\":0", &format!("\"id\":{}", seen.body["id"]));
                Some(answer(status, &lines, body))
            });
            let error = attempt(&factory, &upstream, &inbound).await.unwrap_err();
            assert!(error.refusal().is_none(), "{status} {error}");
            assert_eq!(server.order(), ["initialize"], "{kind:?} {status} {body}");
        }
        server.intercept(|_| None);
        alice.call("whoami", json!({})).await;
        assert!(server.of("tools/call")[0].session().is_some());
    }
}

/// As of an upstream that restarts in between: nobody is told of a call that may have been carried out.
#[tokio::test]
async fn a_session_that_is_lost_in_the_handshake_has_carried_nothing_out() {
    let it = Renewed::start().await;
    it.server.intercept(|seen| {
        let is_second = seen.rpc() == "notifications/initialized";
        is_second.then(|| answer(404, &[], ""))
    });
    let (one, other) = join(it.call(&it.old), it.call(&it.old)).await;
    for error in [one.unwrap_err(), other.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Lost);
        let message = error.to_string();
        assert!(message.ends_with("; the call was not sent"), "{message}");
    }
    assert!(it.server.of("tools/call").is_empty());
    assert_eq!(it.server.of("initialize").len(), 1);
    it.server.intercept(|_| None);
    it.call(&it.old).await.unwrap();
}

/// The answer to `initialize` is the one that the caller is told.
#[tokio::test]
async fn a_handshake_that_fails_with_either_version_fails_as_the_first_did() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let alice = front
        .inbound(&Caller::open(&front, [("authorization", "Bearer a")]).await)
        .await;
    server.intercept(|seen| {
        let error = json!({ "code": -32601, "message": format!("no {}", seen.rpc()) });
        let error = json!({ "jsonrpc": "2.0", "id": seen.body["id"], "error": error });
        let lines = [("content-type", "application/json")];
        Some(answer(200, &lines, error.to_string()))
    });
    let error = attempt(&factory, &upstream, &alice).await.unwrap_err();
    assert_eq!(error.data().unwrap().message, "no initialize");
    assert_eq!(server.order(), ["initialize", "server/discover"]);
    // In no session the other way round.
    server.forget();
    let alone = capture(&[&upstream], OLD).await;
    let error = attempt(&factory, &upstream, &alone).await.unwrap_err();
    assert_eq!(error.data().unwrap().message, "no initialize");
    assert_eq!(server.order(), ["server/discover", "initialize"]);
    server.intercept(|seen| match seen.rpc() {
        "server/discover" => Some(answer(401, &[("www-authenticate", "Bearer")], "")),
        _ => Some(answer(404, &[], "")),
    });
    let error = attempt(&factory, &upstream, &alice).await.unwrap_err();
    assert_eq!(error.refusal().unwrap().status(), 401);
}

#[tokio::test]
async fn a_server_without_a_stream_of_its_own_keeps_its_session() {
    for status in [404, 405, 500] {
        let it = Renewed::start().await;
        it.server
            .intercept(move |seen| (seen.rpc() == "GET").then(|| answer(status, &[], "")));
        it.call(&it.old).await.unwrap();
        it.server
            .wait("answer", |it| it.of("GET").iter().any(|get| get.status > 0))
            .await;
        it.call(&it.new).await.unwrap();
        assert_eq!(it.server.of("initialize").len(), 1, "{status}");
        assert_eq!(it.server.of("GET").len(), 1, "{status}");
    }
}

/// Nobody calls meanwhile, so it is the stream that tells.
#[tokio::test]
async fn a_call_whose_session_is_lost_ends_by_itself() {
    let it = Renewed::start().await;
    let held = hold(&it.server, it.client(&it.old).await).await;
    it.server.stop();
    it.server.restart().await;
    let ended = tokio::time::timeout(PATIENCE, held).await.unwrap();
    assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    it.call(&it.new).await.unwrap();
    assert_eq!(it.server.of("initialize").len(), 2);
}

/// Whoever cannot give the stream for a moment has not lost the session.
#[tokio::test]
async fn a_stream_that_cannot_be_taken_up_at_once_is_asked_for_again() {
    let it = Renewed::start().await;
    it.server.intercept(|seen| {
        let sse = [("content-type", "text/event-stream")];
        (seen.rpc() == "GET").then(|| match seen.header("last-event-id") {
            None => answer(200, &sse, "id: 1\nretry: 1\ndata:\n\n"),
            Some(_) => answer(503, &[], ""),
        })
    });
    it.call(&it.old).await.unwrap();
    it.server.wait_for("GET", 3).await;
    it.call(&it.new).await.unwrap();
    assert_eq!(it.server.of("initialize").len(), 1);
}

/// The upstream says on the stream that the session is gone, and would still take calls in it.
#[tokio::test]
async fn a_session_that_is_known_to_be_lost_is_not_used() {
    let it = Renewed::start().await;
    it.server.intercept(|seen| {
        let sse = [("content-type", "text/event-stream")];
        let resumed = seen.header("last-event-id").is_some();
        let broken = answer(200, &sse, "id: 1\nretry: 1\ndata:\n\n");
        (seen.rpc() == "GET").then(|| {
            if resumed {
                answer(404, &[], "")
            } else {
                broken
            }
        })
    });
    it.call(&it.old).await.unwrap();
    let first = it.server.of("initialize").pop().unwrap();
    until("the session is still used", async || {
        it.call(&it.new).await.unwrap();
        let last = it.server.of("tools/call").pop().unwrap();
        last.session() != first.assigned.as_deref()
    })
    .await;
    let ended = it.server.wait_for("DELETE", 1).await;
    assert_eq!(ended[0].session(), first.assigned.as_deref());
    let resumed = it.server.of("GET").into_iter().filter(|seen| {
        seen.header("last-event-id").is_some() && seen.session() == first.assigned.as_deref()
    });
    assert_eq!(resumed.count(), 1, "the stream was asked for again");
}

#[tokio::test]
async fn a_subscription_that_is_answered_and_never_begins_is_unusable() {
    let server = Server::start(Kind::NewestOnly).await;
    let (upstream, factory) = (server.upstream(), factory());
    server.intercept(|seen| {
        let result = json!({ "resultType": "complete" });
        let result = json!({ "jsonrpc": "2.0", "id": seen.body["id"], "result": result });
        let lines = [("content-type", "application/json")];
        (seen.rpc() == "subscriptions/listen").then(|| answer(200, &lines, result.to_string()))
    });
    let alice = capture(&[&upstream], OLD).await;
    let client = factory.connect_for(&upstream, &alice).await.unwrap();
    let heard = client.listen(SubscriptionFilter::default()).await;
    assert_eq!(heard.err().unwrap().kind(), ErrorKind::Unusable);
}
