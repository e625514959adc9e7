//! The adversarial catalogue, group J: fixation, hijack and snapshots of sessions, one function per
//! case, in front of a hyper service, of a relay with rmcp behind it, and of rmcp's server.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. J15 is rmcp's, J19 is no case here.
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
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, Response, request::Parts};
use mcp_forward::{CaptureLayer, ServerIdLayer, SessionLayer, Upstream};
use session::{ALICE, ALICE_RENEWED, BOB, CALL, Front, INITIALIZE, STAGES, Stage, front, user};
use support::{logged, message, own_error, raw, serve, status};
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

fn bound() -> SessionLayer<String> {
    SessionLayer::bind(user)
}

/// The session, as a line of a request.
fn line(id: &str) -> String {
    format!("mcp-session-id: {id}\r\n")
}

const METHODS: [(&str, &str); 3] = [("POST", CALL), ("GET", ""), ("DELETE", "")];

/// Checks that nobody with `lines` gets into the session `id`, and returns the bytes they all get.
async fn refused(front: &Front, id: &str, lines: &str) -> String {
    let before = front.reached();
    let mut answers = Vec::new();
    for (method, body) in METHODS {
        answers.push(
            front
                .send(method, &format!("{lines}{}", line(id)), body)
                .await,
        );
    }
    answers.push(
        front
            .send("POST", &format!("{lines}{}", line(id)), INITIALIZE)
            .await,
    );
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(status(&answers[0]), 404);
    own_error(&answers[0], -32600);
    assert_eq!(front.reached(), before, "the service behind was asked");
    answers.remove(0)
}

#[tokio::test]
async fn j1_another_user_with_an_own_token() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let id = front.begin(ALICE).await;
        let answer = front.call(&id, BOB).await;
        assert_eq!(status(&answer), 404, "{stage:?}");
        front.check(&id, ALICE, "Bearer alice.1").await;
    }
}

#[tokio::test]
async fn j2_another_user_attaches_or_deletes() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let id = front.begin(ALICE).await;
        let (opened, stream) = front.open("GET", &format!("{ALICE}{}", line(&id))).await;
        assert_eq!(opened, 200, "{stage:?}");
        refused(&front, &id, BOB).await;
        front.check(&id, ALICE, "Bearer alice.1").await;
        drop(stream);
    }
}

type Triple = (Option<String>, Option<String>, Option<String>);

fn triple(parts: &Parts) -> Option<Triple> {
    let text = |name: &str| {
        let value = parts.headers.get(name)?;
        Some(value.to_str().ok()?.to_owned())
    };
    Some((text("x-client"), text("x-issuer"), text("x-subject")))
}

/// A session of the first of them, and another who differs by one part.
async fn differs(other: &str) {
    for stage in STAGES {
        let front = front(stage, &SessionLayer::bind(triple)).await;
        let first = "x-client: c\r\nx-issuer: i\r\nx-subject: s\r\n";
        let id = front.begin(&format!("{first}{ALICE}")).await;
        refused(&front, &id, &format!("{other}{ALICE}")).await;
        front
            .check(&id, &format!("{first}{ALICE_RENEWED}"), "Bearer alice.2")
            .await;
    }
}

#[tokio::test]
async fn j3_another_subject_of_the_same_client() {
    differs("x-client: c\r\nx-issuer: i\r\nx-subject: t\r\n").await;
}

#[tokio::test]
async fn j4_the_same_subject_of_another_issuer() {
    differs("x-client: c\r\nx-issuer: j\r\nx-subject: s\r\n").await;
    differs("x-client: c\r\nx-issuer: is\r\nx-subject: \r\n").await;
}

#[tokio::test]
async fn j5_a_principal_that_cannot_be_read_is_nobodys() {
    let layer = SessionLayer::bind_header("x-user").unwrap();
    let front = front(Stage::Hyper, &layer).await;
    let id = front.begin("x-user: alice\r\n").await;
    let before = front.reached();
    for (user, expected) in [
        ("", 404),
        ("x-user:\r\n", 404),
        ("x-user: Alice\r\n", 404),
        ("x-user: alice\u{e9}\r\n", 404),
        ("x_user: alice\r\n", 404),
        ("x-user: alice, bob\r\n", 404),
        ("x-user: alice\r\nx-user: alice\r\n", 400),
        ("x-user: bob\r\nx-user: alice\r\n", 400),
        ("x-user:\r\nx-user: alice\r\n", 400),
        ("x-user: alice\0\r\n", 400),
    ] {
        let answer = front.call(&id, user).await;
        assert_eq!(status(&answer), expected, "{user:?}");
    }
    assert_eq!(front.reached(), before);
    assert_eq!(status(&front.call(&id, "x-user: alice\r\n").await), 200);
}

#[tokio::test]
async fn j6_an_anonymous_session_is_not_claimed() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let id = front.begin("").await;
        refused(&front, &id, ALICE).await;
        front.check(&id, "", "nobody").await;
    }
}

#[tokio::test]
async fn j7_a_bound_session_without_a_token() {
    for stage in STAGES {
        for layer in [bound(), bound().pin()] {
            let front = front(stage, &layer).await;
            let id = front.begin(ALICE).await;
            refused(&front, &id, "").await;
        }
    }
}

#[tokio::test]
async fn j8_a_renewed_token_is_used() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let id = front.begin(ALICE).await;
        front.check(&id, ALICE_RENEWED, "Bearer alice.2").await;
        let lines = format!("{ALICE_RENEWED}{}", line(&id));
        if stage == Stage::Hyper {
            assert!(
                front
                    .send("GET", &lines, "")
                    .await
                    .contains("Bearer alice.2")
            );
        }
        assert!(status(&front.send("DELETE", &lines, "").await) < 300);
        assert_eq!(status(&front.call(&id, ALICE_RENEWED).await), 404);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn j9_tokens_renewed_at_once_stay_apart() {
    for stage in STAGES {
        let front = Arc::new(front(stage, &bound()).await);
        let id: Arc<str> = front.begin(ALICE).await.into();
        let mut calls = JoinSet::new();
        for number in 0..32 {
            let (front, id) = (Arc::clone(&front), Arc::clone(&id));
            calls.spawn(async move {
                let token = format!("Bearer alice.{number}x");
                // Two calls at once with one JSON-RPC id may get each other's answer from rmcp.
                let body = CALL.replace("\"id\":2", &format!("\"id\":{}", 100 + number));
                let lines = format!("authorization: {token}\r\n{}", line(&id));
                let answer = front.send("POST", &lines, &body).await;
                assert!(answer.contains(&token), "{answer}");
            });
        }
        calls.join_all().await;
    }
}

#[tokio::test]
async fn j10_a_weaker_token_stays_weak() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let id = front.begin("authorization: Bearer alice.admin\r\n").await;
        let weaker = "authorization: Bearer alice.read\r\n";
        front.check(&id, weaker, "Bearer alice.read").await;
    }
}

#[tokio::test]
async fn j11_ids_that_were_guessed_or_made_up() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let id = front.begin(ALICE).await;
        let longest = "x".repeat(256);
        let unknown = refused(&front, "guessed", ALICE).await;
        for made_up in [
            "../../etc/passwd",
            "a?b=c&d",
            "%0d%0a",
            &longest,
            &id.to_uppercase(),
        ] {
            if made_up != id {
                assert_eq!(refused(&front, made_up, ALICE).await, unknown);
            }
        }
        let before = front.reached();
        let second = format!("{id}\r\nmcp-session-id: {id}");
        let too_long = "x".repeat(257);
        for bad in [
            "",
            "a b",
            "\u{e9}",
            "a\tb",
            &too_long,
            &second,
            &format!("{id}, {id}"),
        ] {
            for (method, body) in METHODS {
                let lines = format!("{ALICE}{}", line(bad));
                let answer = front.send(method, &lines, body).await;
                assert_eq!(status(&answer), 400, "{bad:?}");
                own_error(&answer, -32600);
                assert!(!answer.contains(&id));
            }
        }
        assert_eq!(front.reached(), before);
    }
}

#[tokio::test]
async fn j12_an_id_that_the_client_chose_makes_no_session() {
    for stage in STAGES {
        let layer = bound();
        let front = front(stage, &layer).await;
        let answer = front.initialize(&format!("{BOB}{}", line("chosen"))).await;
        assert_eq!(status(&answer), 404);
        refused(&front, "chosen", ALICE).await;
        refused(&front, "chosen", BOB).await;
        assert_eq!(layer.live(), 0);
    }
}

#[tokio::test]
async fn j13_all_who_may_not_know_get_the_same_bytes() {
    for stage in STAGES {
        let front = front(stage, &bound()).await;
        let alices = front.begin(ALICE).await;
        let nobodys = front.begin("").await;
        let unknown = refused(&front, "unknown", ALICE).await;
        assert_eq!(refused(&front, &alices, BOB).await, unknown, "foreign");
        assert_eq!(refused(&front, &alices, "").await, unknown, "no principal");
        assert_eq!(refused(&front, &nobodys, ALICE).await, unknown, "claimed");
        assert_eq!(refused(&front, "unknown", "").await, unknown, "nobody");
        let deleted = front.begin(ALICE).await;
        let answer = front
            .send("DELETE", &format!("{ALICE}{}", line(&deleted)), "")
            .await;
        assert!(status(&answer) < 300);
        assert_eq!(refused(&front, &deleted, ALICE).await, unknown, "deleted");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(30 * 60)).await;
        tokio::time::resume();
        assert_eq!(refused(&front, &alices, ALICE).await, unknown, "expired");
    }
}

const MODERN: [&str; 3] = ["2026-07-28", "2026-12-01", "2030-01-01"];

#[tokio::test]
async fn j14_a_protocol_without_sessions_opens_nobody_elses() {
    for stage in STAGES {
        let layer = bound();
        let front = front(stage, &layer).await;
        let id = front.begin(ALICE).await;
        let unknown = refused(&front, "unknown", BOB).await;
        for version in MODERN {
            let version = format!("{BOB}mcp-protocol-version: {version}\r\n");
            // Also as `initialize`.
            assert_eq!(refused(&front, &id, &version).await, unknown);
            let twice = format!("mcp-protocol-version: 2025-11-25\r\n{version}");
            assert_eq!(refused(&front, &id, &twice).await, unknown);
        }
        assert_eq!(layer.live(), 1);
        front.check(&id, ALICE, "Bearer alice.1").await;
    }
}

#[tokio::test]
async fn j16_after_its_time_a_session_is_of_nobody() {
    for stage in STAGES {
        let layer = bound().pin().idle(Duration::from_secs(60));
        let front = front(stage, &layer).await;
        let id = front.begin(ALICE).await;
        // A use is a new start, and a stranger's try is none.
        for _ in 0..2 {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(59)).await;
            tokio::time::resume();
            front.check(&id, ALICE, "Bearer alice.1").await;
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(59)).await;
        refused(&front, &id, BOB).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::time::resume();
        refused(&front, &id, ALICE).await;
        assert_eq!(layer.live(), 0);
    }
}

#[tokio::test]
async fn j17_sessions_that_nobody_closes_are_bounded() {
    for stage in STAGES {
        let layer = bound().max_per_principal(3).max_sessions(4);
        let front = front(stage, &layer).await;
        let first = front.begin(ALICE).await;
        for _ in 0..2 {
            front.begin(ALICE).await;
        }
        let before = front.reached();
        let full = front.initialize(ALICE).await;
        assert_eq!(status(&full), 503);
        own_error(&full, -32603);
        front.begin(BOB).await;
        let carol = "authorization: Bearer carol.1\r\n";
        assert_eq!(front.initialize(carol).await, full);
        assert_eq!(front.reached(), before + 2);
        // Nobody lost one for it, and one that ends makes room.
        assert_eq!((layer.live(), layer.principals()), (4, 2));
        front.check(&first, ALICE, "Bearer alice.1").await;
        assert!(layer.remove(&first));
        front.begin(carol).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(30 * 60)).await;
        tokio::time::resume();
        assert_eq!((layer.live(), layer.principals()), (0, 0));
        front.begin(ALICE).await;
    }
}

#[tokio::test]
async fn j18_nothing_prints_an_id_or_a_principal() {
    let ((layer, ids), log) = logged(async {
        let layer = bound().pin().max_per_principal(9);
        let mut ids = Vec::new();
        for stage in STAGES {
            let front = front(stage, &layer).await;
            let secret = "authorization: Bearer s3cretuser.1\r\n";
            let made = front.begin(secret).await;
            for lines in [secret, BOB, ""] {
                front.call(&made, lines).await;
                front.call(&format!("{made}-s3cretguess"), lines).await;
            }
            front
                .send("DELETE", &format!("{secret}{}", line(&made)), "")
                .await;
            let kept = front.begin(secret).await;
            ids.extend([made, kept]);
        }
        (layer, ids)
    })
    .await;
    // rmcp's own lines name its sessions.
    let own = log.lines().filter(|line| line.contains("mcp_forward"));
    let printed = own.collect::<Vec<_>>().join("\n") + &format!("{layer:#?}");
    let found = ids.iter().filter(|id| printed.contains(*id)).count();
    assert!(found == 0 && !printed.contains("s3cret"), "{printed}");
    #[cfg(feature = "tracing")]
    assert!(printed.contains("session denied"), "{printed}");
}

#[tokio::test]
async fn j20_a_session_of_one_server_at_another() {
    for stage in STAGES {
        let (one, other) = (front(stage, &bound()).await, front(stage, &bound()).await);
        let id = one.begin(ALICE).await;
        if stage != Stage::Hyper {
            refused(&other, &id, ALICE).await;
        }
        // One layer for both: what tells them apart is in the principal.
        let layer = SessionLayer::bind(|parts| {
            Some((
                user(parts),
                parts.headers.get("host")?.to_str().ok()?.to_owned(),
            ))
        });
        let (one, other) = (front(stage, &layer).await, front(stage, &layer).await);
        let id = one.begin(ALICE).await;
        refused(&other, &id, ALICE).await;
        one.check(&id, ALICE, "Bearer alice.1").await;
    }
}

#[tokio::test]
async fn a_session_belongs_to_the_server_id_that_it_began_under() {
    let layer = bound();
    let upstream = Upstream::builder("up", "http://localhost/mcp");
    let upstream = upstream.allow_credential("authorization").build().unwrap();
    let capture = CaptureLayer::for_upstreams([&upstream]).build().unwrap();
    let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    let server_id = server_id.build().unwrap();
    // One SDK's server behind all paths, which by itself serves each session under each of them.
    let addr = serve(server_id.layer(capture.layer(layer.layer(session::mcp())))).await;
    let send = async |path: &str, lines: &str, body: &str| {
        let lines = format!(
            "{lines}content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        );
        let answer = raw(addr, message(addr, path, &lines, body)).await;
        let lines = answer.split_inclusive("\r\n");
        lines
            .filter(|line| !line.starts_with("date: "))
            .collect::<String>()
    };
    let paths = ["/servers/a/mcp", "/servers/b/mcp", "/mcp"];
    for begun_at in paths {
        let begun = send(begun_at, ALICE, INITIALIZE).await;
        assert_eq!(status(&begun), 200, "{begun}");
        let inside = format!("{ALICE}{}", line(session::id(&begun).unwrap()));
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(status(&send(begun_at, &inside, initialized).await), 202);
        let unknown = send(begun_at, &format!("{ALICE}{}", line("unknown")), CALL).await;
        assert_eq!(status(&unknown), 404);
        for path in paths {
            let answer = send(path, &inside, CALL).await;
            if path == begun_at {
                assert!(answer.contains("Bearer alice.1"), "{answer}");
            } else {
                assert_eq!(answer, unknown, "begun at {begun_at}, used at {path}");
            }
        }
    }
    assert_eq!((layer.live(), layer.principals()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i14_what_has_ended_stays_so_whatever_runs_beside_it() {
    let layer = SessionLayer::bind_header("x-user").unwrap();
    let layer = layer.idle(Duration::from_secs(60)).max_sessions(40);
    let made = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn(move |request: Request<()>| {
        let id = made.fetch_add(1, Ordering::Relaxed).to_string();
        let is_new = !request.headers().contains_key("mcp-session-id");
        async move {
            tokio::task::yield_now().await;
            let mut response = Response::new(String::new());
            if is_new {
                let headers = response.headers_mut();
                headers.insert("mcp-session-id", id.parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        }
    }));
    let mut callers = JoinSet::new();
    for caller in 0..8 {
        let (service, layer) = (service.clone(), layer.clone());
        callers.spawn(async move {
            let user = (caller % 4).to_string();
            let send = |method: &str, id: Option<&HeaderValue>| {
                let request = Request::builder().method(method).header("x-user", &user);
                let request = match id {
                    Some(id) => request.header("mcp-session-id", id),
                    None => request,
                };
                service.clone().oneshot(request.body(()).unwrap())
            };
            for round in 0..200 {
                let response = send("POST", None).await.unwrap();
                assert_eq!(response.status(), 200);
                let id = response.headers()["mcp-session-id"].clone();
                let (call, end) = tokio::join!(send("POST", Some(&id)), async {
                    match round % 2 {
                        0 => layer.remove(&id),
                        _ => send("DELETE", Some(&id)).await.unwrap().status() == 200,
                    }
                });
                assert!(end && [200, 404].contains(&call.unwrap().status().as_u16()));
                assert_eq!(send("POST", Some(&id)).await.unwrap().status(), 404);
                assert!(!layer.remove(&id));
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!((layer.live(), layer.principals()), (0, 0));
}
