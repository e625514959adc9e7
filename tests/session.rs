//! `SessionLayer`: what makes a session, what ends it, what may be sent in it, and how many there are.
//!
//! Whose a session is, is `security_sessions.rs`; frozen headers are `session_pin.rs`.
#![cfg(feature = "session")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/session.rs"]
mod session;
mod support;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use mcp_forward::{CaptureLayer, MistakeKind, SessionLayer, Upstream, inbound::Principal};
use session::{ALICE, ALICE_RENEWED, BOB, Front, STAGES, front, id, user};
use support::{own_error, post, raw, serve, status};
use tokio::{
    io::AsyncReadExt,
    sync::{Notify, Semaphore},
};
use tower::{Layer, ServiceExt, service_fn};

fn bound() -> SessionLayer<String> {
    SessionLayer::bind(user)
}

fn line(id: &str) -> String {
    format!("mcp-session-id: {id}\r\n")
}

/// A version without sessions.
const MODERN: &str = "mcp-protocol-version: 2026-07-28\r\n";

/// A service of bare hyper that answers as the request's `x-script` says, such as `201 a b`: a status
/// and session ids. It keeps what it saw.
#[derive(Clone, Default)]
struct Script {
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Script {
    async fn front<P: Principal>(&self, layer: &SessionLayer<P>) -> Front {
        let this = self.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.answer(&request)) }
        });
        Front::start(&upstream(), layer, service).await
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let script = request.headers().get("x-script");
        let script = script.map_or("200", |script| script.to_str().unwrap());
        let mut words = script.split(' ');
        let mut response = Response::new(Full::from("the server's own"));
        *response.status_mut() = words.next().unwrap().parse().unwrap();
        for id in words {
            let id = id.parse().unwrap();
            response.headers_mut().append("mcp-session-id", id);
        }
        self.seen.lock().unwrap().push(request.headers().clone());
        response
    }

    fn last(&self) -> HeaderMap {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

fn upstream() -> Upstream {
    let builder = Upstream::builder("up", "http://localhost/mcp");
    builder.allow_credential("authorization").build().unwrap()
}

fn script(script: &str) -> String {
    format!("x-script: {script}\r\n")
}

#[tokio::test]
async fn a_2xx_to_a_post_without_an_id_that_has_one_makes_a_session() {
    let layer = bound();
    let front = Script::default().front(&layer).await;
    for (method, answer, live) in [
        ("POST", "200", 0),
        ("POST", "202", 0),
        ("POST", "400 a", 0),
        ("POST", "404 a", 0),
        ("POST", "500 a", 0),
        ("POST", "301 a", 0),
        ("GET", "200 a", 0),
        ("DELETE", "200 a", 0),
        ("PUT", "200 a", 0),
        ("POST", "200 a", 1),
        ("POST", "201 b", 2),
    ] {
        let lines = format!("{ALICE}{}", script(answer));
        let got = front.send(method, &lines, "").await;
        let expected = answer.split(' ').next().unwrap();
        assert_eq!(status(&got).to_string(), expected, "{method} {answer}");
        assert_eq!(layer.live(), live, "{method} {answer}");
        assert_eq!(layer.principals(), live.min(1), "{method} {answer}");
    }
    for (id, lines, expected) in [("a", ALICE, 200), ("b", ALICE, 200), ("a", BOB, 404)] {
        assert_eq!(status(&front.call(id, lines).await), expected);
    }
}

#[tokio::test]
async fn an_answer_with_an_id_that_cannot_be_the_callers_is_502() {
    let layer = bound();
    let front = Script::default().front(&layer).await;
    let begin = |who: &str, id: &str| format!("{who}{}", script(&format!("200 {id}")));
    for (who, id) in [(ALICE, "alices"), (BOB, "bobs")] {
        assert_eq!(status(&front.initialize(&begin(who, id)).await), 200);
    }
    let long = "x".repeat(257);
    for (method, lines, answer) in [
        // Held by another.
        ("POST", "", "200 alices"),
        ("POST", "", "500 alices"),
        ("GET", "", "200 alices"),
        // Another than the request's.
        ("POST", "mcp-session-id: bobs\r\n", "200 alices"),
        ("POST", "mcp-session-id: bobs\r\n", "200 new"),
        ("GET", "mcp-session-id: bobs\r\n", "500 new"),
        // Of no use.
        ("POST", "", "200 one two"),
        ("POST", "", "200 one one"),
        ("POST", "", &format!("200 {long}")),
        ("POST", "mcp-session-id: bobs\r\n", "200 bobs bobs"),
    ] {
        let lines = format!("{BOB}{lines}{}", script(answer));
        let got = front.send(method, &lines, "").await;
        assert_eq!(status(&got), 502, "{method} {answer}");
        let told = own_error(&got, -32603);
        assert!(!got.contains("alices") && id(&got).is_none(), "{told}");
        assert!(!got.contains("the server's own"), "{got}");
        assert_eq!((layer.live(), layer.principals()), (2, 2), "{answer}");
    }
    for (id, who, expected) in [
        ("alices", ALICE, 200),
        ("alices", BOB, 404),
        ("bobs", BOB, 200),
        ("new", BOB, 404),
        ("one", BOB, 404),
    ] {
        assert_eq!(status(&front.call(id, who).await), expected, "{id}");
    }
    // The request's own id is none of these, and neither is one that its owner is given again.
    let lines = format!("{BOB}mcp-session-id: bobs\r\n{}", script("200 bobs"));
    assert_eq!(status(&front.send("POST", &lines, "").await), 200);
    for _ in 0..300 {
        assert_eq!(status(&front.initialize(&begin(BOB, "bobs")).await), 200);
    }
    assert_eq!((layer.live(), layer.principals()), (2, 2));
}

#[tokio::test]
async fn an_owners_delete_ends_the_session_where_it_is_gone() {
    let layer = bound();
    let front = Script::default().front(&layer).await;
    for (answer, lives) in [
        ("200", false),
        ("202", false),
        ("204", false),
        ("404", false),
        ("405", true),
        ("401", true),
        ("500", true),
    ] {
        let begun = front
            .initialize(&format!("{ALICE}{}", script("200 s")))
            .await;
        assert_eq!(status(&begun), 200);
        for who in [BOB, "", ALICE] {
            let lines = format!("{who}{}{}", line("s"), script(answer));
            front.send("DELETE", &lines, "").await;
            assert_eq!(layer.live() == 1, lives || who != ALICE, "{who} {answer}");
        }
        // Twice is nothing.
        let lines = format!("{ALICE}{}{}", line("s"), script("200"));
        front.send("DELETE", &lines, "").await;
        assert_eq!((layer.live(), layer.principals()), (0, 0));
        assert_eq!(status(&front.send("DELETE", &lines, "").await), 404);
    }
    for stage in STAGES {
        let front = session::front(stage, &layer).await;
        let id = front.begin(ALICE).await;
        let lines = format!("{ALICE_RENEWED}{}", line(&id));
        assert!(status(&front.send("DELETE", &lines, "").await) < 300);
        assert_eq!(layer.live(), 0);
        assert_eq!(status(&front.call(&id, ALICE).await), 404);
    }
}

#[tokio::test]
async fn a_session_that_the_service_knows_no_more_leaves_room_for_another() {
    let layer = bound().max_per_principal(1);
    let front = Script::default().front(&layer).await;
    let begin = format!("{ALICE}{}", script("200 s"));
    for (method, lines, lives) in [
        ("POST", "", false),
        ("GET", "", false),
        ("DELETE", "", false),
        // It was not of the session for the service.
        ("POST", MODERN, true),
        ("DELETE", MODERN, true),
    ] {
        assert_eq!(status(&front.initialize(&begin).await), 200);
        assert_eq!(status(&front.initialize(&begin).await), 503);
        // Others are answered before.
        let stranger = format!("{BOB}{}{}", line("s"), script("404"));
        assert_eq!(status(&front.send(method, &stranger, "").await), 404);
        assert_eq!(layer.live(), 1, "{method}");
        let lines = format!(
            "{ALICE}{lines}mcp-method: tools/list\r\n{}{}",
            line("s"),
            script("404")
        );
        assert_eq!(status(&front.send(method, &lines, "").await), 404);
        assert_eq!(layer.live() == 1, lives, "{method} {lines}");
        layer.remove("s");
    }
    // A server of an SDK's says so too.
    let service = session::mcp();
    let other_way = service.clone();
    let layer = bound();
    let front = Front::start(&upstream(), &layer, service).await;
    let id = front.begin(ALICE).await;
    let ends = end_behind(&other_way, &id).await;
    assert!(ends.is_success(), "{ends}");
    assert_eq!(layer.live(), 1);
    assert_eq!(status(&front.call(&id, ALICE).await), 404);
    assert_eq!((layer.live(), layer.principals()), (0, 0));
}

/// Ends a session of rmcp's behind the layer's back.
async fn end_behind(service: &session::McpService, id: &str) -> http::StatusCode {
    let request = Request::delete("/mcp").header("host", "localhost");
    let request = request.header("mcp-session-id", id);
    let request = request.body(Full::<Bytes>::default()).unwrap();
    service.clone().oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn an_event_is_of_a_session() {
    let script = Script::default();
    let layer = bound();
    let front = script.front(&layer).await;
    let event = "last-event-id: 7\r\n";
    front
        .initialize(&format!("{ALICE}{}", self::script("200 s")))
        .await;
    let unknown = front
        .send("GET", &format!("{ALICE}{}", line("unknown")), "")
        .await;
    for method in ["GET", "POST", "DELETE"] {
        let answer = front.send(method, &format!("{ALICE}{event}"), "").await;
        assert_eq!(answer, unknown);
    }
    let modern = "mcp-protocol-version: 2026-07-28\r\n";
    let lines = format!("{ALICE}{event}{modern}");
    assert_eq!(front.send("GET", &lines, "").await, unknown);
    assert_eq!(front.reached(), 1);
    let answer = front
        .send("GET", &format!("{ALICE}{event}{}", line("s")), "")
        .await;
    assert_eq!(status(&answer), 200);
    assert_eq!(script.last()["last-event-id"], "7");
}

#[tokio::test]
async fn another_spelling_of_a_header_does_not_reach_the_service() {
    let script = Script::default();
    let layer = bound();
    let front = script.front(&layer).await;
    front
        .initialize(&format!("{ALICE}{}", self::script("200 s")))
        .await;
    let names = [
        "mcp_session_id",
        "mcp-session_id",
        "Mcp_Session-Id",
        "last_event_id",
        "last-event_id",
        "mcp_protocol_version",
        "mcp_method",
    ];
    let lines: String = names.map(|name| format!("{name}: s\r\n")).concat();
    let lines = format!("{lines}mcp_name: kept\r\nx_mcp_session_id: kept\r\n");
    for (who, session) in [(BOB, ""), (ALICE, "mcp-session-id: s\r\n")] {
        for method in ["POST", "GET", "DELETE"] {
            let lines = format!("{who}{session}{lines}{}", self::script("405"));
            let answer = front.send(method, &lines, "").await;
            assert_eq!(status(&answer), 405, "{method}");
            let seen = script.last();
            for name in names {
                assert!(!seen.contains_key(name), "{method} {name}");
            }
            for name in ["mcp_name", "x_mcp_session_id"] {
                assert_eq!(seen[name], "kept");
            }
            assert_eq!(seen.contains_key("mcp-session-id"), !session.is_empty());
        }
    }
}

#[tokio::test]
async fn a_protocol_without_sessions_gets_none() {
    let script = Script::default();
    let layer = bound();
    let front = script.front(&layer).await;
    front
        .initialize(&format!("{ALICE}{}", self::script("200 s")))
        .await;
    for (version, removed) in [
        ("2024-11-05", false),
        ("2025-11-25", false),
        ("2026-07-27", false),
        ("2026-7-28", false),
        ("DRAFT-2026-v1", false),
        ("9999", false),
        ("2026-07-28", true),
        ("2026-07-29", true),
        ("2027-01-01", true),
    ] {
        for method in ["POST", "GET", "DELETE"] {
            let version = format!("mcp-protocol-version: {version}\r\n");
            let lines = format!("{ALICE}{version}last-event-id: 7\r\n{}", line("s"));
            // A DELETE without the session deletes none.
            let answer = self::script(if removed { "200" } else { "405" });
            front.send(method, &format!("{lines}{answer}"), "").await;
            let seen = script.last();
            for name in ["mcp-session-id", "last-event-id"] {
                assert_eq!(seen.contains_key(name), !removed, "{version} {name}");
            }
            assert_eq!(seen["authorization"], "Bearer alice.1");
            assert_eq!(layer.live(), 1);
        }
        // Somebody who calls `initialize` by that name gets a session all the same.
        let lines = format!("{BOB}mcp-protocol-version: {version}\r\n");
        let lines = format!("{lines}{}", self::script("200 bobs"));
        assert_eq!(status(&front.initialize(&lines).await), 200);
        assert_eq!(status(&front.call("bobs", ALICE).await), 404);
        assert!(layer.remove("bobs"));
    }
}

#[tokio::test]
async fn an_unknown_session_passes_where_that_is_said() {
    let script = Script::default();
    let layer = bound().pass_unknown();
    let front = script.front(&layer).await;
    front
        .initialize(&format!("{ALICE}{}", self::script("200 s")))
        .await;
    for (id, who, expected) in [
        ("s", BOB, 404),
        ("s", "", 404),
        ("old", BOB, 200),
        ("s", ALICE, 200),
    ] {
        let answer = front.call(id, who).await;
        assert_eq!(status(&answer), expected, "{id} {who}");
    }
    // It is not bound for that, and its answers have no other id.
    let lines = format!("{BOB}{}", line("old"));
    for (answer, expected) in [("200 old", 200), ("200 s", 502), ("200 new", 502)] {
        let lines = format!("{lines}{}", self::script(answer));
        assert_eq!(status(&front.send("POST", &lines, "").await), expected);
    }
    assert_eq!(status(&front.call("old", ALICE).await), 200);
    assert_eq!((layer.live(), layer.principals()), (1, 1));
    let event = format!("{BOB}last-event-id: 7\r\n");
    assert_eq!(status(&front.send("GET", &event, "").await), 404);
}

#[tokio::test]
async fn a_principal_can_be_required() {
    for stage in STAGES {
        let layer = bound().require_principal();
        let front = front(stage, &layer).await;
        let answer = front.initialize("").await;
        assert_eq!(status(&answer), 401, "{stage:?}");
        assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
        own_error(&answer, -32000);
        assert_eq!((front.reached(), layer.live()), (0, 0));
        let id = front.begin(ALICE).await;
        assert_eq!(status(&front.call(&id, "").await), 404);
        front.check(&id, ALICE, "Bearer alice.1").await;
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct User(String);

#[tokio::test]
async fn a_principal_from_the_extensions_or_a_header() {
    let layer = SessionLayer::<User>::bind_extension();
    let made = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn(move |_: Request<Incoming>| {
        let id = made.fetch_add(1, Ordering::Relaxed);
        let response = Response::builder().header("mcp-session-id", format!("s{id}"));
        async move { response.body(Full::<Bytes>::default()) }
    }));
    // What an authentication does.
    let addr = serve(service.map_request(|request: Request<Incoming>| {
        let (mut parts, body) = request.into_parts();
        if let Some(user) = user(&parts) {
            parts.extensions.insert(User(user));
        }
        Request::from_parts(parts, body)
    }))
    .await;
    assert_eq!(status(&raw(addr, post(addr, ALICE)).await), 200);
    assert_eq!(status(&raw(addr, post(addr, BOB)).await), 200);
    assert_eq!((layer.live(), layer.principals()), (2, 2));
    let answer = raw(addr, post(addr, &format!("{BOB}{}", line("s0")))).await;
    assert_eq!(status(&answer), 404);

    let layer = SessionLayer::bind_header("X-User").unwrap();
    let front = Script::default().front(&layer).await;
    let begun = front
        .initialize(&format!("x-user: alice\r\n{}", script("200 s")))
        .await;
    assert_eq!(status(&begun), 200);
    for (lines, expected) in [("alice", 200), ("bob", 404), ("alice\r\nx-user: bob", 400)] {
        let answer = front.call("s", &format!("x-user: {lines}\r\n")).await;
        assert_eq!(status(&answer), expected, "{lines}");
    }
    // An empty one is none.
    let front = Script::default().front(&layer.require_principal()).await;
    assert_eq!(status(&front.initialize("x-user:\r\n").await), 401);
    let error = SessionLayer::bind_header("x-user: s3cret").unwrap_err();
    assert_eq!(error.mistakes()[0].kind(), MistakeKind::InvalidName);
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

/// A service that answers once it may, with a new session or in the old one; and how many wait.
#[derive(Clone)]
struct Gate {
    may: Arc<Semaphore>,
    came: Arc<Notify>,
    status: Arc<Mutex<u16>>,
}

impl Gate {
    async fn front<P: Principal>(layer: &SessionLayer<P>) -> (Self, Arc<Front>) {
        let gate = Self {
            may: Arc::new(Semaphore::new(0)),
            came: Arc::default(),
            status: Arc::new(Mutex::new(200)),
        };
        let this = gate.clone();
        let made = Arc::new(AtomicUsize::new(0));
        let service = service_fn(move |request: Request<Incoming>| {
            let (this, made) = (this.clone(), Arc::clone(&made));
            async move {
                this.came.notify_one();
                this.may.acquire().await.unwrap().forget();
                let (parts, _) = request.into_parts();
                let mut response = Response::new(Full::<Bytes>::from(session::acts_as(&parts)));
                *response.status_mut() = (*this.status.lock().unwrap()).try_into().unwrap();
                if !parts.headers.contains_key("mcp-session-id") {
                    let id = format!("s{}", made.fetch_add(1, Ordering::Relaxed));
                    response
                        .headers_mut()
                        .insert("mcp-session-id", id.parse().unwrap());
                }
                Ok::<_, Infallible>(response)
            }
        });
        (
            gate,
            Arc::new(Front::start(&upstream(), layer, service).await),
        )
    }

    /// Sends, and waits until the service has it.
    async fn sent(
        &self,
        front: &Arc<Front>,
        method: &'static str,
        lines: impl Into<String>,
    ) -> tokio::task::JoinHandle<String> {
        let (front, lines) = (Arc::clone(front), lines.into());
        let sent = tokio::spawn(async move { front.send(method, &lines, "").await });
        self.came.notified().await;
        sent
    }
}

#[tokio::test]
async fn what_begins_a_session_counts_as_one() {
    let layer = bound().max_per_principal(2).max_sessions(3);
    let (gate, front) = Gate::front(&layer).await;
    let one = gate.sent(&front, "POST", ALICE).await;
    let other = gate.sent(&front, "POST", ALICE).await;
    assert_eq!(status(&front.initialize(ALICE).await), 503);
    // Somebody else has room, and nobody more.
    let bobs = gate.sent(&front, "POST", BOB).await;
    assert_eq!(status(&front.initialize("").await), 503);
    assert_eq!((layer.live(), layer.principals()), (0, 2));
    // What makes no session leaves nothing.
    *gate.status.lock().unwrap() = 500;
    gate.may.add_permits(3);
    for failed in [one, other, bobs] {
        assert_eq!(status(&failed.await.unwrap()), 500);
    }
    assert_eq!((layer.live(), layer.principals()), (0, 0));
    // Two at once are two.
    *gate.status.lock().unwrap() = 200;
    let one = gate.sent(&front, "POST", ALICE).await;
    let other = gate.sent(&front, "POST", ALICE).await;
    gate.may.add_permits(2);
    let (one, other) = (one.await.unwrap(), other.await.unwrap());
    assert_ne!(id(&one).unwrap(), id(&other).unwrap());
    assert_eq!((layer.live(), layer.principals()), (2, 1));
    assert_eq!(status(&front.initialize(ALICE).await), 503);
    // A request of a session is not another one.
    let call = gate
        .sent(
            &front,
            "POST",
            format!("{ALICE}{}", line(id(&one).unwrap())),
        )
        .await;
    gate.may.add_permits(1);
    assert_eq!(status(&call.await.unwrap()), 200);
}

#[tokio::test]
async fn a_caller_who_leaves_during_initialize_leaves_nothing() {
    let layer = bound().max_per_principal(1);
    let (gate, front) = Gate::front(&layer).await;
    let gone = gate.sent(&front, "POST", ALICE).await;
    assert_eq!(layer.principals(), 1);
    gone.abort();
    while layer.principals() > 0 {
        tokio::task::yield_now().await;
    }
    let stays = gate.sent(&front, "POST", ALICE).await;
    gate.may.add_permits(1);
    assert_eq!(status(&stays.await.unwrap()), 200);
    assert_eq!(layer.live(), 1);
}

#[tokio::test]
async fn a_protocol_without_sessions_has_as_many_calls_as_it_likes() {
    let layer = bound().max_per_principal(1);
    let (gate, front) = Gate::front(&layer).await;
    let modern = format!("{ALICE}{MODERN}mcp-method: tools/list\r\n");
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(gate.sent(&front, "POST", modern.clone()).await);
    }
    // The first makes a session, which it may; for the others there is no room.
    gate.may.add_permits(3);
    let mut answers = Vec::new();
    for call in calls {
        answers.push(status(&call.await.unwrap()));
    }
    answers.sort_unstable();
    assert_eq!(answers, [200, 503, 503]);
    assert_eq!((layer.live(), layer.principals()), (1, 1));
}

#[tokio::test]
async fn no_header_of_an_initialize_passes_the_limit() {
    let layer = bound().max_per_principal(1);
    let front = front(session::Stage::Rmcp, &layer).await;
    let id = front.begin(ALICE).await;
    let before = front.reached();
    let modern_body = session::INITIALIZE.replace("2025-11-25", "2026-07-28");
    for lines in [
        MODERN.to_owned(),
        format!("{MODERN}{}", line(&id)),
        format!("{MODERN}mcp-method: initialize\r\n"),
        format!("{MODERN}mcp-method: Initialize\r\n"),
        format!("{MODERN}mcp-method:\r\n"),
        format!("{MODERN}mcp-method: tools/list\r\nmcp-method: initialize\r\n"),
        format!("{MODERN}mcp-protocol-version: 2025-11-25\r\nmcp-method: tools/list\r\n"),
        format!("mcp-protocol-version: 2025-11-25\r\n{MODERN}mcp-method: tools/list\r\n"),
    ] {
        let lines = format!("{ALICE}{lines}");
        let answer = front.send("POST", &lines, &modern_body).await;
        assert_eq!(status(&answer), 503, "{lines}");
    }
    assert_eq!(
        front.reached(),
        before,
        "the service may have made a session"
    );
    // What goes on says another method than it has, and makes none.
    let lines = format!("{ALICE}{MODERN}mcp-method: tools/list\r\n");
    for lines in [lines.clone(), format!("{lines}{}", line(&id))] {
        let answer = front.send("POST", &lines, &modern_body).await;
        assert_eq!(status(&answer), 400, "{answer}");
    }
    assert_eq!(layer.live(), 1);
    // Within the limit it is a session, also where another one was named.
    assert!(layer.remove(&id));
    let id = front.begin(ALICE).await;
    let layer = layer.max_per_principal(2);
    let lines = format!("{ALICE}{MODERN}{}", line(&id));
    let begun = front.send("POST", &lines, &modern_body).await;
    assert_eq!(status(&begun), 200);
    assert_eq!(layer.live(), 2);
    front
        .check(session::id(&begun).unwrap(), ALICE, "Bearer alice.1")
        .await;
}

#[tokio::test]
async fn a_call_outlives_its_session() {
    // Less than what the call itself may take.
    let idle = Duration::from_secs(5);
    let expire = async || {
        tokio::time::pause();
        tokio::time::advance(idle).await;
        tokio::time::resume();
    };
    for ended_by in ["DELETE", "expiry", "remove"] {
        let layer = bound().pin().idle(idle);
        let (gate, front) = Gate::front(&layer).await;
        gate.may.add_permits(1);
        let begun = front.initialize(ALICE).await;
        gate.came.notified().await;
        let id = id(&begun).unwrap();
        let lines = format!("{ALICE_RENEWED}{}", line(id));
        let call = gate.sent(&front, "POST", lines.clone()).await;
        match ended_by {
            "DELETE" => {
                let delete = gate.sent(&front, "DELETE", lines.clone()).await;
                gate.may.add_permits(2);
                assert_eq!(status(&delete.await.unwrap()), 200);
            }
            "expiry" => expire().await,
            _ => assert!(layer.remove(id)),
        }
        gate.may.add_permits(1);
        let answer = call.await.unwrap();
        assert_eq!(status(&answer), 200, "{ended_by}");
        assert!(answer.contains("Bearer alice.1"), "{ended_by}: {answer}");
        assert_eq!(layer.live(), 0, "{ended_by}");
        assert_eq!(
            status(&front.send("POST", &lines, "").await),
            404,
            "{ended_by}"
        );
    }
}

#[tokio::test]
async fn a_stream_is_not_cut() {
    let (frames, stream) = tokio::sync::mpsc::unbounded_channel::<Result<_, Infallible>>();
    let stream = Arc::new(Mutex::new(Some(stream)));
    let service = service_fn(move |request: Request<Incoming>| {
        let body = if request.method() == "GET" {
            let stream = stream.lock().unwrap().take().unwrap();
            let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(stream);
            StreamBody::new(stream).boxed_unsync()
        } else {
            Full::<Bytes>::default().boxed_unsync()
        };
        let response = Response::builder().header("mcp-session-id", "s").body(body);
        async move { response }
    });
    let layer = bound();
    let front = Front::start(&upstream(), &layer, service).await;
    assert_eq!(status(&front.initialize(ALICE).await), 200);
    let (opened, mut stream) = front.open("GET", &format!("{ALICE}{}", line("s"))).await;
    assert_eq!(opened, 200);
    assert!(layer.remove("s"));
    let data = Bytes::from_static(b"after its end");
    frames.send(Ok(http_body::Frame::data(data))).unwrap();
    drop(frames);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("after its end"), "{rest}");
}

#[tokio::test]
async fn after_a_restart_clients_initialize_again() {
    for stage in STAGES {
        let id = front(stage, &bound()).await.begin(ALICE).await;
        let restarted = front(stage, &bound()).await;
        let answer = restarted.call(&id, ALICE).await;
        assert_eq!(status(&answer), 404, "{stage:?}");
        let again = restarted.begin(ALICE).await;
        restarted.check(&again, ALICE, "Bearer alice.1").await;
    }
}

#[tokio::test]
async fn the_embedder_counts_and_removes() {
    for stage in STAGES {
        let layer = bound();
        let front = front(stage, &layer).await;
        let (alices, bobs) = (front.begin(ALICE).await, front.begin(BOB).await);
        assert_eq!((layer.live(), layer.principals()), (2, 2));
        assert!(layer.clone().remove(&alices));
        assert!(!layer.remove(&alices) && !layer.remove("unknown"));
        assert_eq!((layer.live(), layer.principals()), (1, 1));
        assert_eq!(status(&front.call(&alices, ALICE).await), 404);
        front.check(&bobs, BOB, "Bearer bob.1").await;
    }
}

#[tokio::test]
async fn a_limit_is_one_of_all_clones_and_of_what_they_serve() {
    let layer = bound();
    let front = front(session::Stage::Hyper, &layer).await;
    let first = front.begin(ALICE).await;
    let limited = layer.clone().max_per_principal(2).max_sessions(3);
    let limited = limited.idle(Duration::from_secs(60));
    let second = front.begin(ALICE).await;
    assert_eq!(status(&front.initialize(ALICE).await), 503);
    front.begin(BOB).await;
    assert_eq!(status(&front.initialize("").await), 503);
    assert_eq!((layer.live(), limited.live()), (3, 3));
    // Either handle tells the truth, and none is ended for a smaller number.
    assert!(limited.remove(&first) && !layer.remove(&first));
    assert_eq!(status(&front.call(&first, ALICE).await), 404);
    let layer = layer.max_sessions(1);
    front.check(&second, ALICE, "Bearer alice.1").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    assert_eq!((layer.live(), limited.live()), (0, 0));
}

#[tokio::test]
async fn a_shorter_time_is_that_of_a_session_that_is_there_already() {
    let owner = Arc::new(());
    let user = Arc::downgrade(&owner);
    let layer = SessionLayer::bind(move |_: &Parts| user.upgrade().map(Watched));
    let service = layer.layer(service_fn(|_: Request<()>| async {
        let response = Response::builder().header("mcp-session-id", "s");
        response.body(Full::<Bytes>::default())
    }));
    tokio::time::pause();
    let request = Request::post("/").body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
    // The sweeper has to be asleep.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _ = layer.clone().idle(Duration::from_secs(60));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(Arc::strong_count(&owner), 1);
}

/// A principal that shows whether something of it is kept.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Watched(Arc<()>);

#[tokio::test]
async fn sessions_expire_where_nobody_asks_for_any() {
    let watched = Arc::new(());
    let user = Watched(Arc::clone(&watched));
    let layer = SessionLayer::bind(move |_: &Parts| Some(user.clone()));
    let service = layer.layer(service_fn(|_: Request<()>| async {
        let response = Response::builder().header("mcp-session-id", "s");
        response.body(Full::<Bytes>::default())
    }));
    let idle = Arc::strong_count(&watched);
    // The clock moves by itself where nothing else can: no request, and no question either.
    tokio::time::pause();
    let request = Request::post("/").body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
    assert!(Arc::strong_count(&watched) > idle);
    tokio::time::sleep(Duration::from_secs(30 * 60 - 1)).await;
    assert!(Arc::strong_count(&watched) > idle);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(Arc::strong_count(&watched), idle);
}

#[tokio::test]
async fn what_was_used_last_expires_last() {
    let layer = bound().idle(Duration::from_secs(60));
    let front = Script::default().front(&layer).await;
    for id in ["one", "other"] {
        let lines = format!("{ALICE}{}", script(&format!("200 {id}")));
        front.initialize(&lines).await;
    }
    let wait = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    wait(30).await;
    assert_eq!(status(&front.call("one", ALICE).await), 200);
    wait(31).await;
    assert_eq!(layer.live(), 1);
    assert_eq!(status(&front.call("other", ALICE).await), 404);
    assert_eq!(status(&front.call("one", ALICE).await), 200);
}

#[test]
fn without_a_runtime_what_has_expired_makes_room_all_the_same() {
    let layer = SessionLayer::bind(|_| Some(())).idle(Duration::ZERO);
    let layer = layer.max_per_principal(1);
    let service = layer.layer(service_fn(|_: Request<()>| async {
        let response = Response::builder().header("mcp-session-id", "s");
        response.body(Full::<Bytes>::default())
    }));
    for _ in 0..3 {
        let begun = service
            .clone()
            .oneshot(Request::post("/").body(()).unwrap());
        let response = begun.now_or_never().unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let inside = Request::post("/").header("mcp-session-id", "s");
        let call = service.clone().oneshot(inside.body(()).unwrap());
        assert_eq!(call.now_or_never().unwrap().unwrap().status(), 404);
    }
    assert_eq!((layer.live(), layer.principals()), (0, 0));
}

#[tokio::test]
async fn the_end_of_a_session_is_not_that_of_a_later_one() {
    let (came, may) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gate = (Arc::clone(&came), Arc::clone(&may));
    let service = service_fn(move |request: Request<Incoming>| {
        let (came, may) = gate.clone();
        async move {
            if request.method() == "DELETE" {
                came.notify_one();
                may.notified().await;
            }
            let response = Response::builder().header("mcp-session-id", "s");
            response.body(Full::<Bytes>::default())
        }
    });
    let layer = bound();
    let front = Arc::new(Front::start(&upstream(), &layer, service).await);
    front.initialize(ALICE).await;
    let delete = {
        let front = Arc::clone(&front);
        tokio::spawn(async move {
            front
                .send("DELETE", &format!("{ALICE}{}", line("s")), "")
                .await
        })
    };
    came.notified().await;
    assert!(layer.remove("s"));
    front.initialize(ALICE).await;
    may.notify_one();
    assert_eq!(status(&delete.await.unwrap()), 200);
    assert_eq!(layer.live(), 1);
}

#[tokio::test]
async fn k10_only_the_clock_that_never_goes_back_counts() {
    let front = Script::default().front(&bound()).await;
    front
        .initialize(&format!("{ALICE}{}", script("200 s")))
        .await;
    let day = std::time::SystemTime::now();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(30 * 60)).await;
    tokio::time::resume();
    assert_eq!(status(&front.call("s", ALICE).await), 404);
    // The day's own time has not moved.
    assert!(day.elapsed().unwrap() < Duration::from_secs(30 * 60));
}

#[tokio::test]
async fn without_a_capture_layer_binding_works_and_pinning_says_so() {
    for (layer, expected) in [(bound(), 200), (bound().pin(), 500)] {
        let service = service_fn(|_: Request<Incoming>| async {
            let response = Response::builder().header("mcp-session-id", "s");
            response.body(Full::<Bytes>::default())
        });
        // Inside a capture layer, and then outside of it.
        let capture = CaptureLayer::for_upstreams([&upstream()]).build().unwrap();
        let bare = serve(layer.layer(service)).await;
        let outside = serve(layer.layer(capture.layer(service))).await;
        for addr in [bare, outside] {
            for lines in [ALICE.to_owned(), format!("{ALICE}{}", line("s"))] {
                let answer = raw(addr, post(addr, &lines)).await;
                assert_eq!(status(&answer), expected, "{answer}");
                if expected == 500 {
                    let told = own_error(&answer, -32603);
                    assert!(
                        told.contains("put `CaptureLayer` directly around"),
                        "{told}"
                    );
                }
            }
        }
    }
}
