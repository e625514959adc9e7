//! The server id: every row of what becomes of a message, from outside and from another worker, on
//! real sockets.
#![cfg(feature = "hmac")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::net::SocketAddr;

use http::Request;
use mcp_forward::{InternalForward, InternalForwardLayer, MistakeKind, ServerIdLayer};
use support::{Seen, Witness, message, own_error, raw, serve, status};
use tower::{Layer, ServiceBuilder, ServiceExt};

const BAD: (u16, i64) = (400, -32600);
const NOT_JSON: (u16, i64) = (400, -32700);
const POSITIONAL: (u16, i64) = (400, -32602);

/// What becomes of a body: another one, or a status and a code.
type Row<'a> = (&'a str, Result<&'a str, (u16, i64)>);

fn builder() -> mcp_forward::server_id::ServerIdBuilder {
    ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp", "/other/"])
}

/// A gateway behind both layers, and what comes through them.
struct Gateway {
    addr: SocketAddr,
    witness: Witness,
    forward: InternalForward,
}

impl Gateway {
    async fn new(layer: ServerIdLayer) -> Self {
        let forward = InternalForward::new([("k1", [7; 32])]).unwrap();
        let witness = Witness::default();
        let stack = ServiceBuilder::new()
            .layer(InternalForwardLayer::for_keys(&forward))
            .layer(layer)
            .service(witness.clone());
        Self {
            addr: serve(stack).await,
            witness,
            forward,
        }
    }

    /// The line that another worker adds.
    fn mark(&self, path: &str, body: &str) -> String {
        let mut request = Request::post(path).body(body).unwrap();
        self.forward.sign(&mut request).unwrap();
        let mark = request.headers()["x-forwarded-internally"].to_str();
        format!("x-forwarded-internally: {}\r\n", mark.unwrap())
    }

    /// What came through; or the status and the code of our answer.
    async fn send(&self, path: &str, lines: &str, body: &str) -> Result<Seen, (u16, i64)> {
        let answer = raw(self.addr, message(self.addr, path, lines, body)).await;
        let mut seen = self.witness.take();
        match status(&answer) {
            200 => Ok(seen.remove(0)),
            status => {
                assert!(seen.is_empty(), "{seen:?}");
                let (_, json) = answer.split_once("\r\n\r\n").unwrap();
                let error: serde_json::Value = serde_json::from_str(json).unwrap();
                let code = error["error"]["code"].as_i64().unwrap();
                own_error(&answer, code);
                Err((status, code))
            }
        }
    }

    /// Checks each row, from outside and from another worker.
    async fn check(&self, path: &str, server: Option<&str>, rows: &[Row<'_>]) {
        for (sent, expected) in rows {
            for forwarded in [false, true] {
                let mark = forwarded.then(|| self.mark(path, sent));
                let mark = mark.unwrap_or_default();
                let seen = self.send(path, &mark, sent).await;
                let what = format!("{path} {sent} {forwarded}");
                match (expected, seen) {
                    (Ok(expected), Ok(seen)) => {
                        assert_eq!(String::from_utf8_lossy(&seen.body), *expected, "{what}");
                        let length = expected.len().to_string();
                        assert_eq!(seen.header("content-length"), Some(&*length), "{what}");
                        assert_eq!(seen.server(), server, "{what}");
                        assert_eq!(seen.is_forwarded(), forwarded, "{what}");
                        assert_eq!(seen.parts.uri.path(), path, "{what}");
                    }
                    (expected, seen) => {
                        let seen =
                            seen.map(|seen| String::from_utf8_lossy(&seen.body).into_owned());
                        assert_eq!(seen.as_deref().map_err(|e| *e), *expected, "{what}");
                    }
                }
            }
        }
    }
}

/// What is the same for every path.
const ALWAYS: &[Row<'_>] = &[
    // Responses are nobody's to edit.
    (
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        Ok(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#),
    ),
    (
        r#"{"id":1,"error":{"code":1,"server_id":"x"}}"#,
        Ok(r#"{"id":1,"error":{"code":1,"server_id":"x"}}"#),
    ),
    (r#"{"id":1,"method":"m","result":{}}"#, Err(BAD)),
    (r#"{"id":1,"method":"m","error":null}"#, Err(BAD)),
    (r#"{"id":1,"method":1}"#, Err(BAD)),
    (r#"{"id":1,"method":null,"params":{}}"#, Err(BAD)),
    (r#"{"id":1}"#, Err(BAD)),
    ("{}", Err(BAD)),
    // Batches.
    (r#"[{"id":1,"method":"m"}]"#, Err(BAD)),
    ("[]", Err(BAD)),
    // Which one would a reader take?
    (
        r#"{"method":"m","params":{"server_id":"x","server_id":"y"}}"#,
        Err(BAD),
    ),
    (
        r#"{"method":"m","params":{"server_id":"x","server\u005fid":"y"}}"#,
        Err(BAD),
    ),
    (
        r#"{"method":"m","params":{"server_id":"x","Server_ID":"y"}}"#,
        Err(BAD),
    ),
    (r#"{"method":"m","params":{"SERVER_ID":"y"}}"#, Err(BAD)),
    (
        r#"{"method":"m","params":{"\u017ferver_id":"y"}}"#,
        Err(BAD),
    ),
    (r#"{"method":"m","params":{"ſerver_id":"y"}}"#, Err(BAD)),
    (
        r#"{"method":"m","params":{"server_\u0131d":"y"}}"#,
        Err(BAD),
    ),
    (
        r#"{"method":"m","params":{"server_id\u0000x":"y"}}"#,
        Err(BAD),
    ),
    (r#"{"method":"m","params":{"serverId":"y"}}"#, Err(BAD)),
    (
        r#"{"method":"m","params":{"server_id":"x","serverId":"y"}}"#,
        Err(BAD),
    ),
    (r#"{"method":"m","params":{"server-id":"y"}}"#, Err(BAD)),
    (
        r#"{"method":"m","params":{"_Server\u005f\u002dID":"y"}}"#,
        Err(BAD),
    ),
    (r#"{"method":"m","par_ams":{"server_id":"x"}}"#, Err(BAD)),
    (r#"{"method":"m","method":"n"}"#, Err(BAD)),
    (r#"{"method":"m","meth\u006fd":"n"}"#, Err(BAD)),
    (r#"{"method":"m","Method":"n"}"#, Err(BAD)),
    (r#"{"method":"m","params":{},"params":{}}"#, Err(BAD)),
    (r#"{"method":"m","Params":{"server_id":"x"}}"#, Err(BAD)),
    (
        r#"{"method":"m","param\u017f":{"server_id":"x"}}"#,
        Err(BAD),
    ),
    (r#"{"id":1,"method":"m","id":2}"#, Err(BAD)),
    (
        r#"{"jsonrpc":"2.0","method":"m","jsonrpc":"1.0"}"#,
        Err(BAD),
    ),
    (r#"{"id":1,"result":1,"result":2}"#, Err(BAD)),
    // No message.
    ("", Err(NOT_JSON)),
    ("   ", Err(NOT_JSON)),
    ("nonsense", Err(NOT_JSON)),
    (r#"{"method":"m""#, Err(NOT_JSON)),
    (r#"{"method":"m"}{}"#, Err(NOT_JSON)),
    (r#"{"method":"m",}"#, Err(NOT_JSON)),
    ("1", Err(BAD)),
    (r#""method""#, Err(BAD)),
    ("null", Err(BAD)),
];

#[tokio::test]
async fn a_path_with_an_id_scopes_every_message() {
    let gateway = Gateway::new(builder().build().unwrap()).await;
    let rows: &[Row<'_>] = &[
        // `params` an object.
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"cursor":"x"}}"#,
            Ok(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"server_id":"a","cursor":"x"}}"#),
        ),
        (
            r#"{"method":"m","params":{}}"#,
            Ok(r#"{"method":"m","params":{"server_id":"a"}}"#),
        ),
        (
            " { \"params\" : { \n } , \"method\" : \"m\" } \n",
            Ok(" { \"params\" : {\"server_id\":\"a\" \n } , \"method\" : \"m\" } \n"),
        ),
        (
            r#"{"params":{"x":1,"server_id":"evil","y":2},"method":"m","id":7}"#,
            Ok(r#"{"params":{"x":1,"server_id":"a","y":2},"method":"m","id":7}"#),
        ),
        (
            r#"{"params":{"server_id": [{"server_id":"x"}] },"method":"m"}"#,
            Ok(r#"{"params":{"server_id": "a" },"method":"m"}"#),
        ),
        (
            r#"{"par\u0061ms":{"server\u005fid":"evil"},"method":"m"}"#,
            Ok(r#"{"par\u0061ms":{"server\u005fid":"a"},"method":"m"}"#),
        ),
        // Only the one of `params` itself.
        (
            r#"{"method":"server_id","params":{"arguments":{"server_id":"x"},"name":"\"server_id\":"}}"#,
            Ok(
                r#"{"method":"server_id","params":{"server_id":"a","arguments":{"server_id":"x"},"name":"\"server_id\":"}}"#,
            ),
        ),
        (
            r#"{"server_id":"x","method":"m","params":{}}"#,
            Ok(r#"{"server_id":"x","method":"m","params":{"server_id":"a"}}"#),
        ),
        // `params` missing or null.
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            Ok(r#"{"params":{"server_id":"a"},"jsonrpc":"2.0","id":1,"method":"tools/list"}"#),
        ),
        (
            r#"{"id":1,"params" : null ,"method":"m"}"#,
            Ok(r#"{"id":1,"params" : {"server_id":"a"} ,"method":"m"}"#),
        ),
        // A notification.
        (
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
            Ok(
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"server_id":"a","requestId":1}}"#,
            ),
        ),
        // `params` an array or scalar.
        (r#"{"id":1,"method":"m","params":[1]}"#, Err(POSITIONAL)),
        (r#"{"id":1,"method":"m","params":[]}"#, Err(POSITIONAL)),
        (r#"{"id":1,"method":"m","params":"x"}"#, Err(POSITIONAL)),
        (r#"{"id":1,"method":"m","params":1}"#, Err(POSITIONAL)),
        (r#"{"id":1,"method":"m","params":false}"#, Err(POSITIONAL)),
    ];
    for path in ["/servers/a/mcp", "/servers/a/mcp/", "/servers/%61/mcp"] {
        gateway.check(path, Some("a"), rows).await;
        gateway.check(path, Some("a"), ALWAYS).await;
    }
}

#[tokio::test]
async fn an_unscoped_path_removes_the_callers_own() {
    let gateway = Gateway::new(builder().build().unwrap()).await;
    let rows: &[Row<'_>] = &[
        (
            r#"{"method":"m","params":{"server_id":"evil"}}"#,
            Ok(r#"{"method":"m","params":{}}"#),
        ),
        (
            r#"{"method":"m","params":{"server_id":"evil", "x":1}}"#,
            Ok(r#"{"method":"m","params":{"x":1}}"#),
        ),
        (
            r#"{"method":"m","params":{"x":1 , "server\u005fid" : "evil" }}"#,
            Ok(r#"{"method":"m","params":{"x":1 }}"#),
        ),
        (
            r#"{"method":"m","params":{"x":1,"server_id":2,"y":3,"z":4}}"#,
            Ok(r#"{"method":"m","params":{"x":1,"y":3,"z":4}}"#),
        ),
        (r#"{"method":"m"}"#, Ok(r#"{"method":"m"}"#)),
        (
            r#"{"method":"m","params":null}"#,
            Ok(r#"{"method":"m","params":null}"#),
        ),
        (
            r#"{"method":"m","params":[1]}"#,
            Ok(r#"{"method":"m","params":[1]}"#),
        ),
        (
            r#"{"method":"m","params":{"a":{"server_id":"x"}}}"#,
            Ok(r#"{"method":"m","params":{"a":{"server_id":"x"}}}"#),
        ),
    ];
    for path in ["/mcp", "/other/"] {
        gateway.check(path, None, rows).await;
        gateway.check(path, None, ALWAYS).await;
    }
}

#[tokio::test]
async fn any_other_path_is_404_and_never_unscoped() {
    let gateway = Gateway::new(builder().build().unwrap()).await;
    let long = format!("/servers/{}/mcp", "i".repeat(257));
    let encoded = format!("/servers/{}/mcp", "%C3%A9".repeat(129));
    for path in [
        "/",
        "/mcp/",
        "/other",
        "//mcp",
        "/servers",
        "/servers/a",
        "/servers/a/mcp/x",
        "/servers/a/mcp//",
        "/servers/a//mcp",
        "//servers/a/mcp",
        "/servers//mcp",
        "/servers/a/b/mcp",
        "/Servers/a/mcp",
        "/servers/a/MCP",
        "/%73ervers/a/mcp",
        "/servers/a/%6dcp",
        "/x/servers/a/mcp",
        "/servers/./mcp",
        "/servers/../mcp",
        "/servers/%2e/mcp",
        "/servers/%2E%2e/mcp",
        "/servers/a%2fmcp",
        "/servers/a%2Fb/mcp",
        "/servers/a%5Cb/mcp",
        "/servers/a\\b/mcp",
        "/servers/%2561/mcp",
        "/servers/%/mcp",
        "/servers/%6/mcp",
        "/servers/%zz/mcp",
        "/servers/%+1/mcp",
        "/servers/%ff/mcp",
        "/servers/%c0%ae/mcp",
        "/servers/%00/mcp",
        "/servers/a%0ab/mcp",
        "/servers/a%7f/mcp",
        "/servers/a%c2%85/mcp",
        "/servers/%e2%80%aea/mcp",
        "/servers/%e2%81%a6a/mcp",
        "/servers/%d8%9ca/mcp",
        &long,
        &encoded,
    ] {
        let body = r#"{"method":"tools/list","params":{"server_id":"evil"}}"#;
        for lines in [String::new(), gateway.mark("/servers/a/mcp", body)] {
            let got = gateway.send(path, &lines, body).await;
            assert_eq!(got.map(|seen| seen.body), Err((404, -32600)), "{path}");
        }
    }
}

#[tokio::test]
async fn an_id_is_decoded_once_and_written_as_json() {
    let gateway = Gateway::new(builder().build().unwrap()).await;
    let longest = "i".repeat(256);
    for (segment, id, json) in [
        ("a", "a", r#""a""#),
        ("a.b", "a.b", r#""a.b""#),
        ("...", "...", r#""...""#),
        ("%22%7b%22", "\"{\"", r#""\"{\"""#),
        ("caf%C3%A9", "caf\u{e9}", "\"caf\u{e9}\""),
        ("a+b%20c", "a+b c", r#""a+b c""#),
        ("mcp", "mcp", r#""mcp""#),
        (&longest, &longest, &format!("\"{longest}\"")),
    ] {
        let path = format!("/servers/{segment}/mcp");
        let body = format!(r#"{{"method":"m","params":{{"server_id":{json}}}}}"#);
        gateway
            .check(
                &path,
                Some(id),
                &[(r#"{"method":"m","params":{}}"#, Ok(&body))],
            )
            .await;
    }
}

#[tokio::test]
async fn a_batch_is_accepted_whole_or_not_at_all() {
    let gateway = Gateway::new(builder().accept_batches().build().unwrap()).await;
    let rows: &[Row<'_>] = &[
        (
            r#" [ {"method":"m"} , {"id":1,"result":{}},{"params":{"server_id":"x"},"method":"n"} ] "#,
            Ok(
                r#" [ {"params":{"server_id":"a"},"method":"m"} , {"id":1,"result":{}},{"params":{"server_id":"a"},"method":"n"} ] "#,
            ),
        ),
        (r#"[{"id":1,"result":1}]"#, Ok(r#"[{"id":1,"result":1}]"#)),
        ("[]", Err(BAD)),
        (r#"[[{"method":"m"}]]"#, Err(BAD)),
        (r#"[{"method":"m"},[]]"#, Err(BAD)),
        (r#"[{"method":"m"},1]"#, Err(BAD)),
        (r#"[{"method":"m"},{}]"#, Err(BAD)),
        (
            r#"[{"method":"m"},{"method":"m","params":[]}]"#,
            Err(POSITIONAL),
        ),
        (
            r#"[{"method":"m"},{"method":"m","params":{"server_id":1,"Server_id":1}}]"#,
            Err(BAD),
        ),
        (r#"[{"method":"m"}"#, Err(NOT_JSON)),
        (r#"[{"method":"m"},]"#, Err(BAD)),
        (r#"[{"method":"m"}] x"#, Err(NOT_JSON)),
    ];
    gateway.check("/servers/a/mcp", Some("a"), rows).await;
    for (count, fits) in [(1024, true), (1025, false)] {
        let batch = vec![r#"{"method":"m"}"#; count].join(",");
        let got = gateway
            .send("/servers/a/mcp", "", &format!("[{batch}]"))
            .await;
        match got {
            Ok(seen) => {
                let all: Vec<serde_json::Value> = serde_json::from_slice(&seen.body).unwrap();
                assert!(fits && all.iter().all(|one| one["params"]["server_id"] == "a"));
                assert_eq!(all.len(), count);
            }
            Err(error) => assert_eq!((error, fits), ((413, -32600), false)),
        }
    }
}

#[tokio::test]
async fn what_has_no_body_is_scoped_by_its_path_alone() {
    let gateway = Gateway::new(builder().build().unwrap()).await;
    for method in ["GET", "DELETE"] {
        let send = async |path: &str, lines: &str, body: &str| {
            let request = message(gateway.addr, path, lines, body);
            let request = String::from_utf8(request)
                .unwrap()
                .replacen("POST", method, 1);
            raw(gateway.addr, request).await
        };
        let answer = send("/servers/a/mcp", "x-a: 1\r\n", "").await;
        let seen = gateway.witness.take().remove(0);
        assert_eq!((status(&answer), seen.server()), (200, Some("a")));
        assert!(seen.body.is_empty());
        // A body that nobody expects is a message all the same.
        let body = r#"{"method":"m","params":{"server_id":"x"}}"#;
        let chunked = format!(
            "{method} /servers/a/mcp HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        assert_eq!(status(&raw(gateway.addr, chunked).await), 200);
        let seen = gateway.witness.take().remove(0);
        assert_eq!(seen.body, br#"{"method":"m","params":{"server_id":"a"}}"#);
        assert_eq!(status(&send("/servers/a/mcp", "", "[]").await), 400);
        assert_eq!(status(&send("/servers/a/x", "", "").await), 404);
        assert!(gateway.witness.take().is_empty());
        // From another worker.
        let mut request = Request::builder()
            .method(method)
            .uri("/servers/a/mcp")
            .body("")
            .unwrap();
        gateway.forward.sign(&mut request).unwrap();
        let mark = request.headers()["x-forwarded-internally"]
            .to_str()
            .unwrap();
        send(
            "/servers/a/mcp",
            &format!("x-forwarded-internally: {mark}\r\n"),
            "",
        )
        .await;
        assert!(gateway.witness.take().remove(0).is_forwarded());
    }
}

#[tokio::test]
async fn nothing_becomes_a_tunnel() {
    let gateway = Gateway::new(builder().build().unwrap()).await;
    for path in ["/servers/a/mcp", "/mcp"] {
        for method in ["GET", "POST"] {
            for (lines, passes) in [
                ("", true),
                ("connection: upgrade\r\nupgrade: websocket\r\n", false),
                ("upgrade: \r\n", false),
                ("upgrade: h2c, websocket\r\n", false),
                // Java's client offers HTTP/2 so on plain HTTP, and means the message all the same.
                (
                    "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n",
                    true,
                ),
            ] {
                let body = if method == "GET" {
                    ""
                } else {
                    r#"{"method":"m"}"#
                };
                let request = message(gateway.addr, path, lines, body);
                let request = String::from_utf8(request).unwrap();
                let answer = raw(gateway.addr, request.replacen("POST", method, 1)).await;
                let expected = if passes { 200 } else { 400 };
                assert_eq!(status(&answer), expected, "{method} {path} {lines}");
                assert_eq!(gateway.witness.take().len(), usize::from(passes));
            }
        }
        // With a path only HTTP/2 has it (RFC 8441), which hyper does not offer by itself.
        let witness = Witness::default();
        let service = builder().build().unwrap().layer(witness.clone());
        let request = Request::connect(path).body(http_body_util::Empty::<bytes::Bytes>::new());
        let answer = service.oneshot(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 400);
        assert!(witness.take().is_empty());
    }
}

#[tokio::test]
async fn the_parameter_has_another_name() {
    let gateway = Gateway::new(builder().param("virtual-server").build().unwrap()).await;
    let rows: &[Row<'_>] = &[
        (
            r#"{"method":"m","params":{"server_id":"x"}}"#,
            Ok(r#"{"method":"m","params":{"virtual-server":"a","server_id":"x"}}"#),
        ),
        (
            r#"{"method":"m","params":{"Virtual-Server":"x"}}"#,
            Err(BAD),
        ),
        (r#"{"method":"m","params":{"virtualServer":"x"}}"#, Err(BAD)),
    ];
    gateway.check("/servers/a/mcp", Some("a"), rows).await;
}

#[test]
fn every_mistake_is_reported() {
    for template in [
        "",
        "/",
        "/mcp",
        "mcp/{id}",
        "{id}",
        "/{}",
        "/a{id}",
        "/{id}a",
        "/{a}/{b}",
        "/{a/b}",
        "/{id",
        "/%61/{id}",
        "/../{id}",
        "//{id}",
        "/{id}?x",
        "/{id}//mcp",
        "/\u{e9}/{id}",
        "/a b/{id}",
    ] {
        let error = ServerIdLayer::for_path(template).build().unwrap_err();
        let kinds: Vec<_> = error
            .mistakes()
            .iter()
            .map(mcp_forward::Mistake::kind)
            .collect();
        assert_eq!(kinds, [MistakeKind::InvalidPath], "{template}");
    }
    for template in ["/{id}", "/{id}/", "/a.b/{server-id}/mcp", "/a/{id}/b/c/"] {
        let _ = ServerIdLayer::for_path(template).build().expect(template);
    }
    let long = "p".repeat(65);
    for param in ["", "a b", "\"", "\u{e9}", "a\\u0062", &long] {
        let error = ServerIdLayer::for_path("/{id}")
            .param(param)
            .build()
            .unwrap_err();
        assert_eq!(
            error.mistakes()[0].kind(),
            MistakeKind::InvalidParameter,
            "{param}"
        );
    }
    let error = ServerIdLayer::for_path("/mcp")
        .unscoped_paths(["/ok", "mcp", "/a%2f", "/a/../b", "*"])
        .param("?")
        .build()
        .unwrap_err();
    assert_eq!(error.mistakes().len(), 6, "{error}");
    let error = builder()
        .unscoped_paths(["/servers/x/mcp", "/servers/x/mcp/"])
        .build()
        .unwrap_err();
    assert_eq!(error.mistakes().len(), 2, "{error}");
    assert!(
        error
            .to_string()
            .contains("unscoped path 3 is also one of the template's"),
        "{error}"
    );
}

#[tokio::test]
async fn readiness_is_the_inner_services_and_it_is_called_once_ready() {
    let layer = builder().build().unwrap();
    let (service, mut handle) = tower_test::mock::pair::<
        Request<mcp_forward::server_id::Body<http_body_util::Full<bytes::Bytes>>>,
        http::Response<http_body_util::Full<bytes::Bytes>>,
    >();
    let mut service = tower_test::mock::Spawn::new(layer.layer(service));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let body = http_body_util::Full::from(r#"{"method":"m"}"#);
    let response = service.call(Request::post("/servers/a/mcp").body(body).unwrap());
    let answer = async {
        let (request, respond) = handle.next_request().await.unwrap();
        assert_eq!(request.uri().path(), "/servers/a/mcp");
        respond.send_response(http::Response::default());
    };
    let (response, ()) = tokio::join!(response, answer);
    assert_eq!(response.unwrap().status(), 200);
    handle.send_error("gone");
    assert!(matches!(
        service.poll_ready(),
        std::task::Poll::Ready(Err(_))
    ));
}
