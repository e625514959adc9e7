//! Events: what each layer tells the log, word by word, and that no value is in it.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use bytes::Bytes;
use http_body_util::Full;
use mcp_forward::{
    CaptureLayer, ForwardLayer, InternalForwardLayer, ProbeLayer, RefusalLayer, Relay,
    ServerIdLayer, Upstream,
};
use support::{OK, RawUpstream, Witness, closed, http_client, message, post, raw, serve, status};
use tower::{Layer, ServiceExt};

/// The log, at every level, of what `run` does, in which no value is.
async fn logged<T>(run: impl Future<Output = T>) -> (T, String) {
    let (done, log) = support::logged(run).await;
    assert!(!log.contains("s3cret"), "{log}");
    (done, log)
}

/// What this crate told of one call through a relay to `url`, without time and target.
async fn call(url: String, lines: &str) -> (u16, Vec<String>) {
    let up = Upstream::builder("up", url)
        .allow_credential("authorization")
        .set("x-key", "s3cret")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let (answer, log) = logged(async {
        let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
        raw(addr, post(addr, lines)).await
    })
    .await;
    (status(&answer), own(&log))
}

/// The lines of this crate: level, message and fields.
fn own(log: &str) -> Vec<String> {
    let own = log.lines().filter_map(|line| {
        let (before, after) = line.split_once(" mcp_forward::events: ")?;
        let level = before.split_whitespace().last()?;
        Some(format!("{level} {after}"))
    });
    own.collect()
}

const TOKEN: &str = "authorization: Bearer s3cret\r\n";

#[tokio::test]
async fn the_good_path_is_silent_at_info() {
    let server = RawUpstream::answering(OK).await;
    let (status, own) = call(server.url("/mcp?key=s3cret"), TOKEN).await;
    assert_eq!(status, 200);
    assert_eq!(
        own,
        [
            r#"DEBUG captured count=1 names=["authorization"]"#,
            r#"DEBUG injected upstream="up" names=["authorization", "x-key"]"#,
            r#"DEBUG relayed upstream="up" status=200"#,
        ]
    );
}

#[tokio::test]
async fn a_rejected_request_says_which_layer_and_why() {
    let server = RawUpstream::answering(OK).await;
    for (lines, expected) in [
        (
            format!("{TOKEN}{TOKEN}"),
            "WARN rejected layer=\"capture\" reason=400: `authorization` came on several lines",
        ),
        (
            "content-type: a\r\ncontent-type: b\r\n".to_owned(),
            "WARN rejected layer=\"relay\" reason=400: `content-type` came on several lines",
        ),
        (
            "origin: http://s3cret.example\r\n".to_owned(),
            "WARN rejected layer=\"relay\" reason=403: pages of this origin",
        ),
    ] {
        let (_, own) = call(server.url("/mcp"), &lines).await;
        let warnings: Vec<_> = own.iter().filter(|line| line.starts_with("WARN")).collect();
        assert_eq!(warnings.len(), 1, "{own:?}");
        assert!(warnings[0].starts_with(expected), "{own:?}");
    }
    let guard = mcp_forward::OriginGuardLayer::loopback();
    let (_, log) = logged(async {
        let service = guard.layer(tower::service_fn(|_: http::Request<()>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(()))
        }));
        let request = http::Request::builder().header("host", "s3cret.example");
        service.oneshot(request.body(()).unwrap()).await
    })
    .await;
    assert!(
        own(&log)[0].starts_with("WARN rejected layer=\"origin guard\" reason=403"),
        "{log}"
    );
}

#[tokio::test]
async fn what_cannot_be_merged_is_named() {
    let server = RawUpstream::answering(OK).await;
    let (status, own) = call(server.url("/mcp"), "authorization: NTLM s3cret\r\n").await;
    assert_eq!(status, 400);
    let text = "WARN not merged upstream=\"up\" kind=Invalid reason=nothing was sent to upstream `up`: \
                the value of `authorization`";
    assert!(own.iter().any(|line| line.starts_with(text)), "{own:?}");
}

#[tokio::test]
async fn a_redirect_names_its_targets_origin() {
    let location = "location: http://Other.example:8443/s3cret?t=s3cret";
    let server = RawUpstream::answering(format!(
        "HTTP/1.1 307 x\r\n{location}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    ))
    .await;
    let (status, own) = call(server.url("/mcp?key=s3cret"), TOKEN).await;
    assert_eq!(status, 502);
    let fields = r#"upstream="up" status=307 target="http://other.example:8443""#;
    let expected = format!("WARN the upstream redirects; check its URL {fields}");
    assert_eq!(own.last(), Some(&expected));

    // Below a client's own follower.
    let up = Upstream::builder("up", server.url("/mcp")).build().unwrap();
    let client = ForwardLayer::new(&up).layer(http_client::<Full<Bytes>>());
    let request = http::Request::post(server.url("/mcp"))
        .body(Full::default())
        .unwrap();
    let (_, log) = logged(client.oneshot(request)).await;
    let expected = format!("WARN a redirect leaves the upstream; not followed {fields}");
    assert_eq!(self::own(&log).last(), Some(&expected));
}

#[tokio::test]
async fn an_upstream_that_is_down_or_silent_is_named() {
    let (addr, _socket) = closed();
    let (status, own) = call(format!("http://{addr}/mcp?key=s3cret"), TOKEN).await;
    assert_eq!(status, 502);
    let expected =
        r#"WARN the upstream cannot be reached upstream="up" cause="connection refused""#;
    assert_eq!(own.last().unwrap(), expected);

    let up = Upstream::builder("up", "http://localhost/mcp")
        .build()
        .unwrap();
    let silent = tower::service_fn(|_| {
        std::future::pending::<Result<http::Response<Full<Bytes>>, std::convert::Infallible>>()
    });
    let relay = Relay::new(&up, silent).head_timeout(std::time::Duration::ZERO);
    let request = http::Request::post("/")
        .header("host", "localhost")
        .body(Full::<Bytes>::default());
    let (_, log) = logged(relay.oneshot(request.unwrap())).await;
    let expected = r#"WARN the upstream did not answer in time upstream="up""#;
    assert_eq!(self::own(&log).last().unwrap(), expected);
}

#[tokio::test]
async fn a_refusal_says_whose_it_is_and_how_it_was_told() {
    let line = "www-authenticate: Bearer error=\"s3cret\"\r\n";
    let server = RawUpstream::answering(support::refusal::answer(401, line)).await;
    let builder = || Upstream::builder("up", server.url("/mcp?key=s3cret"));
    let callers = builder().allow_credential("authorization");
    let operators = builder().set("authorization", "Bearer s3cret");
    for (builder, probes, expected) in [
        (
            callers.clone(),
            false,
            r#"DEBUG refused upstream="up" status=401 whose="caller" how="at once""#,
        ),
        (
            callers,
            true,
            r#"DEBUG refused upstream="up" status=401 whose="caller" how="probed""#,
        ),
        (
            operators,
            false,
            r#"WARN refused upstream="up" status=401 whose="operator" how="at once""#,
        ),
    ] {
        let up = builder.build().unwrap();
        let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
        let target = probes.then(|| up.clone());
        let (_, log) = logged(async {
            let client = http_client();
            let probe = ProbeLayer::new(client.clone(), move |_| target.clone());
            let relay = RefusalLayer::new().layer(Relay::new(&up, client));
            let addr = serve(capture.layer(probe.layer(relay))).await;
            raw(addr, post(addr, TOKEN)).await
        })
        .await;
        let own = own(&log);
        assert_eq!(own.last().unwrap(), expected);
        let probed = r#"DEBUG probed upstream="up" outcome="refused""#;
        assert_eq!(own.iter().any(|line| line == probed), probes, "{own:?}");
    }
}

#[cfg(feature = "session")]
#[tokio::test]
async fn a_session_is_told_of_without_its_id() {
    use std::time::Duration;

    let server = RawUpstream::new(|request| {
        let begins = request.all("mcp-session-id").is_empty();
        let id = if begins {
            "mcp-session-id: s3cret\r\n"
        } else {
            ""
        };
        let head = format!("HTTP/1.1 200 OK\r\n{id}connection: close\r\ncontent-length: 0\r\n\r\n");
        head.into_bytes()
    })
    .await;
    let up = Upstream::builder("up", server.url("/mcp")).build().unwrap();
    let layer = mcp_forward::SessionLayer::bind_header("x-user").unwrap();
    let (_, log) = logged(async {
        let addr = serve(layer.layer(Relay::new(&up, http_client()))).await;
        let send = |request: String| async move { status(&raw(addr, request).await) };
        let alice = "x-user: alice-s3cret\r\n";
        let inside = format!("{alice}mcp-session-id: s3cret\r\n");
        assert_eq!(send(post(addr, alice)).await, 200);
        // Somebody else, an unknown one, an event of none, two lines.
        assert_eq!(send(post(addr, "mcp-session-id: s3cret\r\n")).await, 404);
        assert_eq!(send(post(addr, "mcp-session-id: s3cret2\r\n")).await, 404);
        assert_eq!(send(post(addr, "last-event-id: s3cret\r\n")).await, 404);
        let twice = format!("{inside}mcp-session-id: s3cret\r\n");
        assert_eq!(send(post(addr, &twice)).await, 400);
        let delete = post(addr, &inside).replacen("POST", "DELETE", 1);
        assert_eq!(send(delete).await, 200);
        assert_eq!(send(post(addr, alice)).await, 200);
        assert!(layer.remove("s3cret"));
        assert_eq!(send(post(addr, alice)).await, 200);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(30 * 60)).await;
        assert_eq!(layer.live(), 0);
    })
    .await;
    let own = own(&log);
    let told = own.iter().filter(|line| line.contains("session"));
    let told: Vec<_> = told.map(String::as_str).collect();
    assert_eq!(
        told,
        [
            "DEBUG session created",
            "WARN session denied reason=\"somebody else's\"",
            "WARN session denied reason=\"unknown\"",
            "WARN session denied reason=\"an event without a session\"",
            "WARN rejected layer=\"session\" reason=400: send one `mcp-session-id`, of 1 to 256 visible \
             ASCII characters",
            "DEBUG session ended reason=\"deleted\"",
            "DEBUG session created",
            "DEBUG session ended reason=\"removed\"",
            "DEBUG session created",
            "DEBUG session ended count=1 reason=\"expired\"",
        ]
    );
}

#[cfg(feature = "session")]
#[tokio::test]
async fn the_first_session_of_nobody_is_told_once_a_layer() {
    let server = RawUpstream::new(|request| {
        let id = request.all("x-begins").join("");
        let head = format!("HTTP/1.1 200 OK\r\nmcp-session-id: {id}\r\nconnection: close\r\n");
        format!("{head}content-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let up = Upstream::builder("up", server.url("/mcp"));
    let up = up.allow("x-begins").build().unwrap();
    let (_, log) = logged(async {
        for _ in 0..2 {
            let layer = mcp_forward::SessionLayer::bind_header("x-user").unwrap();
            for layer in [layer.clone(), layer] {
                let capture = mcp_forward::CaptureLayer::for_upstreams([&up]).build();
                let relay = Relay::new(&up, http_client());
                let addr = serve(capture.unwrap().layer(layer.layer(relay))).await;
                for lines in [
                    "x-user: a\r\nx-begins: a\r\n",
                    "x-begins: b\r\n",
                    "x-begins: b\r\n",
                ] {
                    assert_eq!(status(&raw(addr, post(addr, lines)).await), 200);
                }
            }
        }
    })
    .await;
    let own = own(&log);
    let told = own.iter().filter(|line| line.starts_with("WARN"));
    let expected = "WARN a session of nobody; if you have authentication, put it outside \
                    `SessionLayer`, else all callers are one";
    assert_eq!(told.collect::<Vec<_>>(), [expected, expected]);
}

/// What is told of a message on `path` with `lines`, to a worker that believes `x-worker`.
async fn scoped(path: &str, lines: &str, body: &str) -> Vec<String> {
    let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").build();
    let worker = InternalForwardLayer::for_peers(|parts: &http::request::Parts| {
        parts.headers.contains_key("x-worker")
    });
    let stack = worker.layer(server_id.unwrap().layer(Witness::default()));
    let ((), log) = logged(async {
        let addr = serve(stack).await;
        raw(addr, message(addr, path, lines, body)).await;
    })
    .await;
    own(&log)
}

#[tokio::test]
async fn a_rejected_message_says_why_and_an_internal_forward_whether_it_is_believed() {
    let good = r#"{"method":"s3cret"}"#;
    let path = "/servers/s3cret/mcp";
    let mark = "x-forwarded-internally: s3cret\r\n";
    let worker = format!("{mark}x-worker: 1\r\n");
    let twice = format!("{worker}{mark}");
    let not = "WARN an internal forward is not believed reason=";
    for (path, lines, body, expected) in [
        (path, "", good, vec![]),
        (path, &*worker, good, vec!["DEBUG forwarded internally".to_owned()]),
        (path, mark, good, vec![format!("{not}\"the sender is no worker\"")]),
        (path, &twice, good, vec![format!("{not}\"it is on several lines\"")]),
        (
            "/s3cret",
            "",
            good,
            vec!["WARN rejected layer=\"server id\" reason=404: no server has this path; check its server id".to_owned()],
        ),
        (
            path,
            "",
            r#"{"method":"m","params":["s3cret"]}"#,
            vec!["WARN rejected layer=\"server id\" reason=400: `params` is no object, so it cannot name the server; send it by name".to_owned()],
        ),
    ] {
        assert_eq!(scoped(path, lines, body).await, expected);
    }
}

#[cfg(feature = "hmac")]
#[tokio::test]
async fn a_proof_whose_body_nobody_compares_is_told() {
    let forward = mcp_forward::InternalForward::new([("k1", [7; 32])]).unwrap();
    let worker = InternalForwardLayer::for_keys(&forward);
    let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").build();
    let server_id = server_id.unwrap();
    let not = "WARN an internal forward is not believed reason=";
    for (compared, expected) in [
        (true, "DEBUG forwarded internally".to_owned()),
        (
            false,
            format!("{not}\"the body was not compared; is `ServerIdLayer` inside?\""),
        ),
    ] {
        let mut request = http::Request::post("/servers/s3cret/mcp").body("{\"method\":\"m\"}");
        forward.sign(request.as_mut().unwrap()).unwrap();
        let request = request.unwrap().map(Full::<Bytes>::from);
        let (answer, log) = logged(async {
            if compared {
                let stack = worker.layer(server_id.layer(Witness::default()));
                stack.oneshot(request).await.unwrap().status()
            } else {
                let stack = worker.layer(Witness::default());
                stack.oneshot(request).await.unwrap().status()
            }
        })
        .await;
        assert_eq!((answer.as_u16(), own(&log)), (200, vec![expected]));
    }
}
