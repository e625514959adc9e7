//! Internal forwards: whose mark is believed, and that it says nothing more.
#![cfg(feature = "hmac")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::{
    Router,
    middleware::{Next, from_fn},
    response::IntoResponse,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, request::Parts};
use http_body_util::Full;
use mcp_forward::{
    CaptureLayer, InternalForward, InternalForwardLayer, MistakeKind, Relay, ServerIdLayer,
    SignErrorKind, Upstream,
};
use sha2::{Digest, Sha256};
use support::{OK, RawUpstream, Witness, http_client, message, own_error, raw, serve, status};
use tower::{Layer, ServiceBuilder, ServiceExt};

const PATH: &str = "/servers/a/mcp?x=1";
const BODY: &str = r#"{"id":1,"method":"m"}"#;
const SCOPED: &str = r#"{"params":{"server_id":"a"},"id":1,"method":"m"}"#;
const KEY: [u8; 32] = [7; 32];
const MARK: &str = "x-forwarded-internally";

fn forward() -> InternalForward {
    InternalForward::new([("k1", KEY)]).unwrap()
}

fn scoping() -> ServerIdLayer {
    ServerIdLayer::for_path("/servers/{server_id}/mcp")
        .build()
        .unwrap()
}

/// A proof made here, from what its documentation says.
#[derive(Clone)]
struct Proof {
    key: Vec<u8>,
    version: &'static str,
    time: String,
    id: String,
    nonce: Vec<u8>,
    method: &'static str,
    target: &'static str,
    session: &'static str,
    body: &'static str,
}

impl Proof {
    /// Made `ahead` seconds from now.
    fn at(ahead: i64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let time = i64::try_from(now.as_secs()).unwrap() + ahead;
        Self {
            key: KEY.into(),
            version: "v1",
            time: time.to_string(),
            id: "k1".into(),
            nonce: now.as_nanos().to_be_bytes().into(),
            method: "POST",
            target: PATH,
            session: "",
            body: BODY,
        }
    }

    fn mark(&self) -> String {
        let digest = Sha256::digest(self.body);
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).unwrap();
        for part in [
            self.version.as_bytes(),
            self.time.as_bytes(),
            self.id.as_bytes(),
            &self.nonce,
            self.method.as_bytes(),
            self.target.as_bytes(),
            self.session.as_bytes(),
            &digest,
        ] {
            mac.update(&u64::try_from(part.len()).unwrap().to_be_bytes());
            mac.update(part);
        }
        format!(
            "{};t={};k={};n={};d={};m={}",
            self.version,
            self.time,
            self.id,
            BASE64.encode(&self.nonce),
            BASE64.encode(digest),
            BASE64.encode(mac.finalize().into_bytes())
        )
    }
}

/// A worker: both layers around what sees.
#[derive(Clone)]
struct Worker {
    layer: InternalForwardLayer,
    witness: Witness,
}

impl Worker {
    fn new(layer: InternalForwardLayer) -> Self {
        let witness = Witness::default();
        Self { layer, witness }
    }

    fn keys() -> Self {
        Self::new(InternalForwardLayer::for_keys(&forward()))
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> bool {
        let service = self.layer.layer(scoping().layer(self.witness.clone()));
        assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
        let seen = self.witness.take().remove(0);
        // Scoped either way, and the mark goes no further.
        assert_eq!(seen.server(), Some("a"));
        let is_message = seen.parts.method == Method::POST;
        assert_eq!(seen.body, if is_message { SCOPED } else { "" }.as_bytes());
        seen.is_forwarded()
    }

    /// The message of the 503 that a request with this line gets.
    async fn refuses(&self, mark: &str) -> String {
        let stack = self.layer.layer(scoping().layer(self.witness.clone()));
        let addr = serve(stack).await;
        let lines = format!("{MARK}: {mark}\r\n");
        let answer = raw(addr, message(addr, PATH, &lines, BODY)).await;
        assert_eq!(status(&answer), 503, "{answer}");
        assert!(self.witness.take().is_empty());
        own_error(&answer, -32603)
    }

    /// Whether a request with these lines is believed.
    async fn believes(&self, marks: &[&str]) -> bool {
        let mut request = Request::post(PATH).body(Full::from(BODY)).unwrap();
        for mark in marks {
            request.headers_mut().append(MARK, mark.parse().unwrap());
        }
        self.call(request).await
    }
}

fn signed(forward: &InternalForward, request: Request<&'static str>) -> Request<Full<Bytes>> {
    let mut request = request;
    forward.sign(&mut request).unwrap();
    assert!(request.headers()[MARK].is_sensitive());
    request.map(Full::from)
}

#[tokio::test]
async fn what_a_worker_signed_is_believed() {
    let forward = forward();
    let worker = Worker::new(InternalForwardLayer::for_keys(&forward));
    for (method, body) in [("POST", BODY), ("GET", ""), ("DELETE", "")] {
        for session in [None, Some("s1")] {
            for uri in [PATH, "http://10.0.0.2:81/servers/a/mcp", "/servers/a/mcp/"] {
                let mut request = Request::builder().method(method).uri(uri);
                if let Some(session) = session {
                    request = request.header("mcp-session-id", session);
                }
                let request = signed(&forward, request.body(body).unwrap());
                assert!(worker.call(request).await, "{method} {uri}");
            }
        }
    }
    // The form is the documented one.
    assert!(worker.believes(&[&Proof::at(0).mark()]).await);
    let one = signed(&forward, Request::post(PATH).body(BODY).unwrap());
    let two = signed(&forward, Request::post(PATH).body(BODY).unwrap());
    assert_ne!(one.headers()[MARK], two.headers()[MARK]);
}

#[tokio::test]
async fn an_absolute_uri_is_signed_as_the_target_that_arrives() {
    let forward = forward();
    let witness = Witness::default();
    let stack = ServiceBuilder::new()
        .layer(InternalForwardLayer::for_keys(&forward))
        .layer(scoping())
        .service(witness.clone());
    let addr = serve(stack).await;
    for client in [support::http_client(), support::http2_client()] {
        let uri = format!("http://{addr}{PATH}");
        let request = signed(&forward, Request::post(uri).body(BODY).unwrap());
        assert_eq!(client.request(request).await.unwrap().status(), 200);
        assert!(witness.take().remove(0).is_forwarded());
    }
}

#[tokio::test]
async fn l13_every_change_of_a_proof_is_refused() {
    let worker = Worker::keys();
    let mark = Proof::at(0).mark();
    for at in 0..mark.len() {
        let mut bytes = mark.clone().into_bytes();
        for other in [b'A', b'0', b';', b'=', b' '] {
            if mark.as_bytes()[at] != other {
                bytes[at] = other;
                let forged = String::from_utf8(bytes.clone()).unwrap();
                assert!(!worker.believes(&[&forged]).await, "{forged}");
            }
        }
    }
    for (from, to) in [
        ("m=", "M="),
        ("v1;", "v2;"),
        (";k=", ";x=1;k="),
        ("=", "=="),
    ] {
        assert!(
            !worker.believes(&[&mark.replacen(from, to, 1)]).await,
            "{from}"
        );
    }
    for end in 0..mark.len() {
        assert!(!worker.believes(&[&mark[..end]]).await, "{end}");
    }
    for forged in [
        "",
        "true",
        "1",
        "v1",
        &format!("{mark};"),
        &format!("{mark}="),
        &format!(" {mark}"),
        &format!("{mark},{mark}"),
    ] {
        assert!(!worker.believes(&[forged]).await, "{forged}");
    }
    // None of them has used it up.
    assert!(worker.believes(&[&mark]).await);
}

#[tokio::test]
async fn a_proof_is_for_one_request() {
    let worker = Worker::keys();
    let good = Proof::at(0);
    let change = |change: &dyn Fn(&mut Proof)| {
        let mut proof = good.clone();
        change(&mut proof);
        proof.mark()
    };
    for (what, mark) in [
        ("method", change(&|proof| proof.method = "GET")),
        (
            "target",
            change(&|proof| proof.target = "/servers/a/mcp?x=2"),
        ),
        ("query", change(&|proof| proof.target = "/servers/a/mcp")),
        ("session", change(&|proof| proof.session = "s1")),
        (
            "body",
            change(&|proof| proof.body = r#"{"id":2,"method":"m"}"#),
        ),
        ("key", change(&|proof| proof.key = vec![8; 32])),
        ("unknown key", change(&|proof| proof.id = "k2".into())),
        ("version", change(&|proof| proof.version = "v2")),
        ("no nonce", change(&|proof| proof.nonce = vec![])),
        ("short nonce", change(&|proof| proof.nonce = vec![1; 15])),
        ("long nonce", change(&|proof| proof.nonce = vec![1; 17])),
        (
            "signed time",
            change(&|proof| proof.time = format!("+{}", proof.time)),
        ),
        (
            "huge time",
            change(&|proof| proof.time = format!("{}00000000000", proof.time)),
        ),
        ("no time", change(&|proof| proof.time = String::new())),
    ] {
        assert!(!worker.believes(&[&mark]).await, "{what}");
    }
    // The body was the last thing that was looked at: that nonce is used up, the proof is not.
    let fresh = Proof::at(0).mark();
    assert!(worker.believes(&[&fresh]).await);
    // No byte moves from the target to the session.
    let mut moved = Request::post("/servers/a/mcp").header("mcp-session-id", "?x=1");
    moved = moved.header(MARK, Proof::at(0).mark());
    assert!(!worker.call(moved.body(Full::from(BODY)).unwrap()).await);
    // A session is its own.
    for (session, believed) in [("s1", true), ("s2", false), ("", false)] {
        let mut proof = Proof::at(0);
        proof.session = "s1";
        let request = Request::post(PATH).header("mcp-session-id", session);
        let request = request.header(MARK, proof.mark()).body(Full::from(BODY));
        assert_eq!(worker.call(request.unwrap()).await, believed, "{session}");
    }
    // A session id on two lines is none.
    let mut proof = Proof::at(0);
    proof.session = "s1";
    let two = Request::post(PATH)
        .header("mcp-session-id", "s1")
        .header("mcp-session-id", "s1");
    let two = two
        .header(MARK, proof.mark())
        .body(Full::from(BODY))
        .unwrap();
    assert!(!worker.call(two).await);
}

#[tokio::test]
async fn a_proof_holds_for_thirty_seconds_either_way() {
    let worker = Worker::keys();
    for ahead in [-28, 28] {
        assert!(worker.believes(&[&Proof::at(ahead).mark()]).await);
    }
    // As if from outside, it could go round between workers whose clocks differ.
    for ahead in [-33, 33, -86_400] {
        let answer = worker.refuses(&Proof::at(ahead).mark()).await;
        assert!(answer.contains("clocks differ"), "{ahead} {answer}");
    }
    let mut forged = Proof::at(-33);
    forged.key = vec![8; 32];
    assert!(!worker.believes(&[&forged.mark()]).await);
}

#[tokio::test]
async fn a_replay_is_refused() {
    let worker = Worker::keys();
    let mark = Proof::at(0).mark();
    assert!(worker.believes(&[&mark]).await);
    for _ in 0..3 {
        assert!(!worker.believes(&[&mark]).await);
    }
    // At clones of the keys and of the layer as well.
    let forward = forward();
    let [one, two] =
        [forward.clone(), forward].map(|f| Worker::new(InternalForwardLayer::for_keys(&f)));
    assert!(one.believes(&[&mark]).await);
    assert!(!two.believes(&[&mark]).await && !one.clone().believes(&[&mark]).await);
}

#[tokio::test]
async fn of_many_at_once_one_is_believed() {
    let worker = Worker::keys();
    let mark = Proof::at(0).mark();
    let calls = (0..32).map(|_| {
        let (worker, mark) = (Worker::new(worker.layer.clone()), mark.clone());
        tokio::spawn(async move { worker.believes(&[&mark]).await })
    });
    let mut believed = 0;
    for call in calls.collect::<Vec<_>>() {
        believed += usize::from(call.await.unwrap());
    }
    assert_eq!(believed, 1);
}

#[tokio::test(start_paused = true)]
async fn nonces_are_kept_for_as_long_as_a_proof_holds() {
    let worker = Worker::keys();
    // The clock that proofs are held against does not move here.
    let mark = Proof::at(0).mark();
    assert!(worker.believes(&[&mark]).await);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(!worker.believes(&[&mark]).await);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(worker.believes(&[&mark]).await, "it is kept for ever");
}

#[test]
fn after_a_burst_of_proofs_the_room_of_their_nonces_is_given_back() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    let (worker, forward) = (Worker::keys(), forward());
    let grown = |after, calls| {
        let calling = async {
            tokio::time::advance(after).await;
            for _ in 0..calls {
                let request = Request::post(PATH).body(BODY).unwrap();
                assert!(worker.call(signed(&forward, request)).await);
            }
        };
        allocation_counter::measure(|| runtime.block_on(calling)).bytes_current
    };
    let burst = grown(Duration::ZERO, 4_000);
    let left = burst + grown(Duration::from_secs(63), 1);
    assert!(left * 8 < burst, "{left} of {burst} bytes are left");
}

#[tokio::test]
async fn two_lines_are_from_outside() {
    let worker = Worker::keys();
    let mark = Proof::at(0).mark();
    for marks in [[&*mark, &mark], [&mark, "x"], ["", &mark]] {
        assert!(!worker.believes(&marks).await);
    }
    assert!(!worker.believes(&[]).await);
    assert!(worker.believes(&[&mark]).await, "and nothing was used up");
}

#[tokio::test]
async fn a_mark_in_another_spelling_is_none_and_goes_no_further() {
    let peers = InternalForwardLayer::for_peers(|_: &Parts| true);
    for layer in [InternalForwardLayer::for_keys(&forward()), peers] {
        for name in [
            "x_forwarded_internally",
            "x_forwarded-internally",
            "X-Forwarded_Internally",
        ] {
            let witness = Witness::default();
            let addr = serve(layer.layer(scoping().layer(witness.clone()))).await;
            let mark = Proof::at(0).mark();
            let lines = format!("{name}: {mark}\r\n{name}: 1\r\n");
            let answer = raw(addr, message(addr, PATH, &lines, BODY)).await;
            assert_eq!(status(&answer), 200);
            let seen = witness.take().remove(0);
            assert!(!seen.is_forwarded(), "{name}");
            assert_eq!(seen.header(&name.to_lowercase()), None);
        }
    }
}

#[tokio::test]
async fn keys_are_exchanged_one_worker_after_the_other() {
    let [old, both, new] = [
        vec![("old", vec![1; 32])],
        vec![("new", vec![2; 64]), ("old", vec![1; 32])],
        vec![("new", vec![2; 64])],
    ]
    .map(|keys| InternalForward::new(keys).unwrap());
    for (signer, verifier, believed) in [
        (&old, &both, true),
        (&both, &both, true),
        (&both, &new, true),
        (&new, &both, true),
        (&both, &old, false),
        (&old, &new, false),
    ] {
        let worker = Worker::new(InternalForwardLayer::for_keys(verifier));
        let request = signed(signer, Request::post(PATH).body(BODY).unwrap());
        assert_eq!(worker.call(request).await, believed);
    }
}

#[test]
fn every_mistake_with_keys_is_reported() {
    let long = "k".repeat(65);
    let keys = [
        ("", vec![0; 32]),
        ("a;b", vec![0; 32]),
        (&long, vec![0; 32]),
        ("short", vec![0; 31]),
        ("ok", vec![0; 32]),
        ("ok", vec![1; 32]),
    ];
    let error = InternalForward::new(keys).unwrap_err();
    assert_eq!(error.mistakes().len(), 5, "{error}");
    assert!(
        error
            .mistakes()
            .iter()
            .all(|mistake| mistake.kind() == MistakeKind::InvalidKey)
    );
    let none: [(&str, [u8; 32]); 0] = [];
    assert!(
        InternalForward::new(none)
            .unwrap_err()
            .to_string()
            .contains("there is no key")
    );
}

#[test]
fn what_cannot_be_signed_says_so() {
    let two = Request::post(PATH)
        .header("mcp-session-id", "s1")
        .header("mcp-session-id", "s2");
    let error = forward().sign(&mut two.body(BODY).unwrap()).unwrap_err();
    assert_eq!(error.kind(), SignErrorKind::Session);
    assert!(error.to_string().contains("send it once"), "{error}");
    let mut full = Request::post(PATH).body(BODY).unwrap();
    let mut headers = HeaderMap::new();
    for i in 0.. {
        let name: http::HeaderName = format!("x-{i}").parse().unwrap();
        if headers
            .try_insert(name, HeaderValue::from_static("v"))
            .is_err()
        {
            break;
        }
    }
    *full.headers_mut() = headers;
    let error = forward().sign(&mut full).unwrap_err();
    assert_eq!(error.kind(), SignErrorKind::Header);
}

#[derive(Clone)]
struct Certificate(&'static str);

#[tokio::test]
async fn the_embedders_verifier_decides_by_the_connection() {
    let verifier = |parts: &Parts| {
        let certificate = parts.extensions.get::<Certificate>();
        certificate.is_some_and(|certificate| certificate.0 == "worker")
    };
    let worker = Worker::new(InternalForwardLayer::for_peers(verifier));
    for (certificate, lines, believed) in [
        ("worker", &["1"][..], true),
        ("worker", &[], false),
        ("worker", &["1", "1"], false),
        ("caller", &["1"], false),
    ] {
        let mut request = Request::post(PATH).body(Full::from(BODY)).unwrap();
        request.extensions_mut().insert(Certificate(certificate));
        for line in lines {
            request.headers_mut().append(MARK, line.parse().unwrap());
        }
        assert_eq!(
            worker.call(request).await,
            believed,
            "{certificate} {lines:?}"
        );
    }
    // What an address says is no proof.
    let request = Request::post(PATH)
        .header("x-forwarded-for", "127.0.0.1")
        .header(MARK, "true");
    assert!(!worker.call(request.body(Full::from(BODY)).unwrap()).await);
}

#[tokio::test]
async fn the_other_way_round_it_says_which_order_is_wrong() {
    let layer = InternalForwardLayer::for_keys(&forward());
    let witness = Witness::default();
    let scoping = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    let scoping = scoping.build().unwrap();
    let addr = serve(scoping.layer(layer.layer(witness.clone()))).await;
    let lines = format!("{MARK}: {}\r\n", Proof::at(0).mark());
    for path in [PATH, "/mcp"] {
        let answer = raw(addr, message(addr, path, &lines, BODY)).await;
        assert_eq!(status(&answer), 500);
        let error = own_error(&answer, -32603);
        assert!(error.contains("`InternalForwardLayer` outside `ServerIdLayer`"));
        assert!(witness.take().is_empty());
    }
}

#[tokio::test]
async fn a_mark_believed_by_an_outer_layer_is_not_by_an_inner_one() {
    let (outer, inner) = (forward(), InternalForward::new([("k1", [9; 32])]).unwrap());
    let [outer, inner] = [outer, inner].map(|f| InternalForwardLayer::for_keys(&f));
    let peers = InternalForwardLayer::for_peers(|_: &Parts| true);
    for layers in [(peers.clone(), inner), (peers, outer)] {
        let witness = Witness::default();
        let service = layers
            .0
            .layer(layers.1.layer(scoping().layer(witness.clone())));
        let request = Request::post(PATH).header(MARK, Proof::at(0).mark());
        service
            .oneshot(request.body(Full::from(BODY)).unwrap())
            .await
            .unwrap();
        assert!(!witness.take().remove(0).is_forwarded());
    }
}

#[tokio::test]
async fn a_believed_mark_replaces_no_authentication_and_reaches_no_upstream() {
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow_credential("authorization")
        .build()
        .unwrap();
    let forward = forward();
    let app: Router = Router::new()
        .route_service("/servers/{id}/mcp", Relay::new(&up, http_client()))
        .layer(CaptureLayer::for_upstreams([&up]).build().unwrap())
        .layer(scoping())
        .layer(from_fn(authenticate))
        .layer(InternalForwardLayer::for_keys(&forward));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    for (token, expected) in [("", 401), ("authorization: Bearer good\r\n", 200)] {
        let lines = format!("{token}{MARK}: {}\r\n", Proof::at(0).mark());
        let answer = raw(addr, message(addr, PATH, &lines, BODY)).await;
        assert_eq!(status(&answer), expected);
    }
    let seen = server.only_request();
    assert!(seen.all(MARK).is_empty());
    assert_eq!(seen.body, SCOPED.as_bytes());
}

/// The embedder's authentication.
async fn authenticate(request: axum::extract::Request, next: Next) -> axum::response::Response {
    let token = request.headers().get("authorization");
    if token.is_some_and(|token| token == "Bearer good") {
        return next.run(request).await;
    }
    StatusCode::UNAUTHORIZED.into_response()
}
