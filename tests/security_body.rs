//! The adversarial catalogue, group N: the body of a message, one function per case, and how bodies
//! come and stop.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. N6, N13 and N19 are in `ids.toml`, the
//! cases of other layers beside those.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use mcp_forward::ServerIdLayer;
use support::{
    RawUpstream, Seen, Witness, http_client, http2_client, message, own_error, raw, serve, status,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tower::{Layer, ServiceBuilder};

const PATH: &str = "/servers/a/mcp";

/// What comes through a layer with `limit`.
struct Scoped {
    addr: SocketAddr,
    witness: Witness,
}

impl Scoped {
    async fn limited(limit: usize) -> Self {
        let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp");
        let layer = layer.max_body(limit).build().unwrap();
        let witness = Witness::default();
        let addr = serve(layer.layer(witness.clone())).await;
        Self { addr, witness }
    }

    async fn new() -> Self {
        Self::limited(4 * 1024 * 1024).await
    }

    /// What came through, or the status and the code of our answer to a request of these bytes.
    async fn raw(&self, request: impl AsRef<[u8]>) -> Result<Seen, (u16, i64)> {
        let answer = raw(self.addr, request).await;
        let mut seen = self.witness.take();
        match status(&answer) {
            200 => Ok(seen.remove(0)),
            status => {
                assert!(seen.is_empty(), "{seen:?}");
                let code = if answer.contains("-32700") {
                    -32700
                } else {
                    -32600
                };
                own_error(&answer, code);
                Err((status, code))
            }
        }
    }

    async fn send(&self, lines: &str, body: impl AsRef<[u8]>) -> Result<Seen, (u16, i64)> {
        self.raw(message(self.addr, PATH, lines, body)).await
    }

    async fn body(&self, body: impl AsRef<[u8]>) -> Result<String, (u16, i64)> {
        let seen = self.send("", body).await?;
        Ok(String::from_utf8(seen.body).unwrap())
    }
}

const BAD: Result<String, (u16, i64)> = Err((400, -32600));
const NOT_JSON: Result<String, (u16, i64)> = Err((400, -32700));

fn chunked(body: &[u8], size: usize, trailers: &str) -> Vec<u8> {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let mut request = head.into_bytes();
    for chunk in body.chunks(size) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(format!("0\r\n{trailers}\r\n").bytes());
    request
}

#[tokio::test]
async fn n1_batches_are_400() {
    let scoped = Scoped::new().await;
    for body in [
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}]"#,
        "[]",
        "  \n\t[",
        "[",
    ] {
        assert_eq!(scoped.body(body).await, BAD, "{body}");
    }
}

#[tokio::test]
async fn n2_only_the_white_space_of_json_may_lead() {
    let scoped = Scoped::new().await;
    for lead in [
        "\u{b}", "\u{c}", "\u{feff}", "\u{a0}", "\0", "/**/", "\u{2028}",
    ] {
        for rest in ["[]", r#"{"method":"m"}"#] {
            assert_eq!(
                scoped.body(format!("{lead}{rest}")).await,
                NOT_JSON,
                "{lead:?}"
            );
        }
    }
    let expected = " \t\r\n{\"params\":{\"server_id\":\"a\"},\"method\":\"m\"}";
    assert_eq!(
        scoped.body(" \t\r\n{\"method\":\"m\"}").await.unwrap(),
        expected
    );
}

#[tokio::test]
async fn n3_a_peers_batch_is_taken_member_by_member() {
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp").accept_batches();
    let witness = Witness::default();
    let addr = serve(layer.build().unwrap().layer(witness.clone())).await;
    for (batch, expected) in [
        (r#"[{"method":"m"},{"method":"n"}]"#, 200),
        (r#"[{"method":"m"},{"method":"n","method":"o"}]"#, 400),
    ] {
        let answer = raw(
            addr,
            message(addr, PATH, "mcp-protocol-version: 2025-03-26\r\n", batch),
        )
        .await;
        assert_eq!(status(&answer), expected);
    }
    let body = String::from_utf8(witness.take().remove(0).body).unwrap();
    assert_eq!(body.matches(r#""params":{"server_id":"a"}"#).count(), 2);
    assert!(witness.take().is_empty());
}

#[tokio::test]
async fn n4_duplicate_members_are_400() {
    let scoped = Scoped::new().await;
    for (member, other) in [
        (r#""method":"m""#, r#""method":"n""#),
        (r#""id":1"#, r#""id":1"#),
        (r#""params":{}"#, r#""params":null"#),
        (r#""jsonrpc":"2.0""#, r#""jsonrpc":"2.0""#),
    ] {
        let rest = if member.contains("method") {
            ""
        } else {
            r#","method":"m""#
        };
        let escaped = format!(r#""\u{:04x}{}"#, other.as_bytes()[1], &other[2..]);
        for other in [other, &escaped] {
            let body = format!("{{{member}{rest},{other}}}");
            assert_eq!(scoped.body(&body).await, BAD, "{body}");
        }
    }
    // A tool's own arguments may repeat what they like.
    let body = r#"{"method":"m","params":{"name":"t","name":"u"}}"#;
    let expected = r#"{"method":"m","params":{"server_id":"a","name":"t","name":"u"}}"#;
    assert_eq!(scoped.body(body).await.unwrap(), expected);
}

/// DESIGN: a member in another case is refused, since readers that fold would take it.
#[tokio::test]
async fn n5_other_spellings_of_the_messages_members_are_400() {
    let scoped = Scoped::new().await;
    for body in [
        r#"{"method":"m","METHOD":"n"}"#,
        r#"{"METHOD":"m"}"#,
        r#"{"method":"m","ID":1}"#,
        r#"{"method":"m","Error":1}"#,
        r#"{"method":"m","re\u017fult":1}"#,
    ] {
        assert_eq!(scoped.body(body).await, BAD, "{body}");
    }
    let body = r#"{"method":"m","Name":1,"params":{"Name":"t","METHOD":1}}"#;
    let expected = r#"{"method":"m","Name":1,"params":{"server_id":"a","Name":"t","METHOD":1}}"#;
    assert_eq!(scoped.body(body).await.unwrap(), expected);
}

#[tokio::test]
async fn n7_ids_and_numbers_keep_their_spelling() {
    let scoped = Scoped::new().await;
    for id in [
        "9223372036854775808",
        "123456789012345678901234567890",
        "1.0",
        "1e2",
        "-0",
        "-0.0E-7",
        "\"1\"",
        "null",
        "\"\\u0031\\/\"",
    ] {
        let body = format!(r#"{{"id":{id},"method":"m","params":{{"n":{id}}}}}"#);
        let expected =
            format!(r#"{{"id":{id},"method":"m","params":{{"server_id":"a","n":{id}}}}}"#);
        assert_eq!(scoped.body(body).await.unwrap(), expected);
    }
    for id in [
        "01", "+1", "1.", ".5", "1e", "-", "0x1", "NaN", "Infinity", "1_0", "'1'",
    ] {
        let body = format!(r#"{{"id":{id},"method":"m"}}"#);
        assert_eq!(scoped.body(body).await, NOT_JSON, "{id}");
    }
}

#[tokio::test]
async fn n8_nesting_ends_at_128_without_recursion() {
    let scoped = Scoped::new().await;
    // `params` and the message around the arrays are two.
    for (open, close) in [("[", "]"), (r#"{"k":"#, "}")] {
        for (depth, fits) in [(125, true), (126, true), (127, false), (100_000, false)] {
            let (open, close) = (open.repeat(depth), close.repeat(depth));
            let nested = format!("{open}1{close}");
            for body in [
                format!(r#"{{"method":"m","params":{{"a":{nested}}}}}"#),
                format!(r#"{{"method":"m","params":{{"a":1,"server_id":{nested}}}}}"#),
            ] {
                let got = scoped.body(body).await;
                assert_eq!(got.is_ok(), fits, "{depth} {open:.1}");
                assert!(fits || got == BAD);
            }
        }
    }
    // Only the message is around another member.
    for (depth, fits) in [(126, true), (127, true), (128, false)] {
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let request = format!(r#"{{"method":"m","x":{nested}}}"#);
        assert_eq!(scoped.body(request).await.is_ok(), fits, "{depth}");
    }
    // 4 MiB that never close.
    for bomb in ["[", r#"{"a":"#, r#"[{"a":"#] {
        let bomb = bomb.repeat(4 * 1024 * 1024 / bomb.len() - 10);
        assert_eq!(scoped.body(format!(r#"{{"params":{bomb}"#)).await, BAD);
    }
}

#[tokio::test]
async fn n9_the_limit_is_counted_while_the_body_comes() {
    let scoped = Scoped::limited(1000).await;
    for (length, fits) in [(999, true), (1000, true), (1001, false), (5000, false)] {
        let frame = r#"{"method":"m","params":{"x":""}}"#.len();
        let body = format!(
            r#"{{"method":"m","params":{{"x":"{}"}}}}"#,
            "x".repeat(length - frame)
        );
        let expected = if fits {
            Ok(length + 16)
        } else {
            Err((413, -32600))
        };
        let long = |seen: Seen| seen.body.len();
        assert_eq!(scoped.send("", &body).await.map(long), expected, "{length}");
        for size in [1, 100, 10_000] {
            let request = chunked(body.as_bytes(), size, "");
            assert_eq!(
                scoped.raw(request).await.map(long),
                expected,
                "{length} {size}"
            );
        }
    }
    // What says that it will be too long is not waited for.
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(
        scoped.raw(head).await.map(|seen| seen.body),
        Err((413, -32600))
    );
}

#[tokio::test]
async fn the_default_limit_is_four_mebibytes() {
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp")
        .build()
        .unwrap();
    let witness = Witness::default();
    let addr = serve(layer.layer(witness.clone())).await;
    let frame = r#"{"method":"m","x":""}"#.len();
    for (length, expected) in [(4 * 1024 * 1024, 200), (4 * 1024 * 1024 + 1, 413)] {
        let body = format!(r#"{{"method":"m","x":"{}"}}"#, "x".repeat(length - frame));
        let request = chunked(body.as_bytes(), 64 * 1024, "");
        assert_eq!(status(&raw(addr, request).await), expected);
    }
    let seen = witness.take().remove(0);
    let inserted = br#"{"params":{"server_id":"a"},"#;
    assert!(seen.body.starts_with(inserted));
    assert_eq!(seen.body.len(), 4 * 1024 * 1024 + inserted.len() - 1);
}

#[tokio::test]
async fn n11_what_is_no_message_is_400_whatever_its_type() {
    let scoped = Scoped::new().await;
    for lines in [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/json\r\n",
    ] {
        for body in [
            "",
            "{} {}",
            "hello",
            "<xml/>",
            r#"{"method":"m"} {"method":"m"}"#,
            "\u{1f600}",
        ] {
            let got = scoped.send(lines, body).await.map(|seen| seen.body);
            let no_message = body == "{} {}";
            let expected = if no_message {
                (400, -32600)
            } else {
                (400, -32700)
            };
            assert_eq!(got, Err(expected), "{body}");
        }
        let seen = scoped.send(lines, r#"{"method":"m"}"#).await.unwrap();
        assert_eq!(seen.body, br#"{"params":{"server_id":"a"},"method":"m"}"#);
    }
}

/// A reader that decodes by the charset would find another `params`.
#[tokio::test]
async fn a_charset_that_is_not_utf_8_is_415() {
    let scoped = Scoped::new().await;
    let body = r#"{"method":"m","+AHA-arams":{"server_id":"evil"}}"#;
    for (content_type, passes) in [
        ("application/json; charset=utf-8", true),
        ("application/json;charset=UTF-8", true),
        ("application/json; Charset = \"Utf-8\" ; x=y", true),
        ("text/plain", true),
        ("\u{e9}", true),
        ("application/json; charset=utf-7", false),
        ("application/json; charset=utf-16", false),
        ("application/json; charset=unicode_escape", false),
        ("application/json; CHARSET=\"utf-7\"", false),
        ("application/json; charset=\"utf\\-8\"", false),
        ("application/json; charset=\"utf-8", false),
        ("application/json; charset=utf-8; charset=utf-7", false),
        ("application/json; charset=utf-7; charset=utf-8", false),
        ("application/json; charset=utf-8, text/plain", false),
        ("application/json; charset*=utf-7''utf-8", false),
        ("application/json; charset", false),
        ("application/json; charset=", false),
        ("application/json; x=\"; charset=utf-7\"", false),
        ("application/json, application/json; charset=utf-7", false),
        ("application/json\r\ncontent-type: application/json", false),
    ] {
        let lines = format!("content-type: {content_type}\r\n");
        let got = scoped.send(&lines, body).await.map(|_| ());
        let expected = if passes { Ok(()) } else { Err((415, -32600)) };
        assert_eq!(got, expected, "{content_type}");
    }
}

#[tokio::test]
async fn n12_params_of_every_type() {
    let scoped = Scoped::new().await;
    for params in ["[]", "[{}]", "1", "\"x\"", "true"] {
        let body = format!(r#"{{"id":1,"method":"m","params":{params}}}"#);
        let answer = raw(scoped.addr, message(scoped.addr, PATH, "", body)).await;
        assert_eq!(status(&answer), 400);
        own_error(&answer, -32602);
    }
    assert!(scoped.witness.take().is_empty());
    for body in [r#"{"method":"m","params":null}"#, r#"{"method":"m"}"#] {
        let edited: serde_json::Value =
            serde_json::from_str(&scoped.body(body).await.unwrap()).unwrap();
        assert_eq!(edited["params"], serde_json::json!({ "server_id": "a" }));
    }
}

#[tokio::test]
async fn n14_notifications_are_scoped_and_answers_left_alone() {
    let scoped = Scoped::new().await;
    let body = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let expected =
        r#"{"params":{"server_id":"a"},"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(scoped.body(body).await.unwrap(), expected);
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"result":{"server_id":"x"}}"#,
        r#" {"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"server_id"}} "#,
    ] {
        assert_eq!(scoped.body(body).await.unwrap(), body);
    }
}

#[tokio::test]
async fn n17_strings_are_whole_or_not_json() {
    let scoped = Scoped::new().await;
    let bytes = |text: &str| text.as_bytes().to_vec();
    for text in [
        bytes(r"\ud800"),
        bytes(r"\udc00"),
        bytes(r"\udc00\ud800"),
        bytes(r"\ud800\ud800"),
        bytes(r"\ud83d\n"),
        bytes(r"\ud83dx"),
        bytes(r"\u00g0"),
        bytes(r"\u+123"),
        bytes(r"\u12"),
        bytes(r"\x41"),
        bytes(r"\'"),
        bytes("\n"),
        bytes("\0"),
        bytes("12345678\u{1f}"),
        bytes("\n, and more behind it"),
        bytes("123\u{1f}, and more behind it"),
        b"\xff".to_vec(),
        b"\xc0\xaf".to_vec(),
        b"12345678\xed\xa0\x80".to_vec(),
        b"1234567890\xf4\x90\x80\x80".to_vec(),
    ] {
        for (before, after) in [
            (r#"{"method":"m","params":{"x":""#, r#""}}"#),
            (r#"{"method":"m","params":{""#, r#"":1}}"#),
            (r#"{"method":"m",""#, r#"":1}"#),
            (r#"{"id":1,"result":{"a":["#, r#""]}}"#),
        ] {
            let mut body = bytes(before);
            if before.ends_with('[') {
                body.push(b'"');
            }
            body.extend(&text);
            body.extend(after.bytes());
            assert_eq!(
                scoped.body(&body).await,
                NOT_JSON,
                "{}",
                String::from_utf8_lossy(&body)
            );
        }
    }
    // DESIGN: a number's spelling survives, whatever a reader can make of it.
    for text in [
        r#""\u0000""#,
        r#""\ud83d\ude00""#,
        r#""\b\f\n\r\t\/\\\"""#,
        "1e999",
        "\"\u{7f}\u{10ffff}\"",
    ] {
        let body = format!(r#"{{"method":"m","params":{{"x":{text}}}}}"#);
        let expected = format!(r#"{{"method":"m","params":{{"server_id":"a","x":{text}}}}}"#);
        assert_eq!(scoped.body(body).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn n18_an_encoded_body_is_415() {
    let scoped = Scoped::new().await;
    for encoding in ["gzip", "identity", "", "x"] {
        let lines = format!("content-encoding: {encoding}\r\n");
        let got = scoped
            .send(&lines, r#"{"method":"m"}"#)
            .await
            .map(|seen| seen.body);
        assert_eq!(got, Err((415, -32600)), "{encoding}");
    }
}

const DIGESTS: &str = "content-digest: sha-256=:x=:\r\nrepr-digest: sha-256=:x=:\r\ndigest: sha-256=x\r\n\
                       content-md5: x\r\nx-content-sha256: x\r\nx-amz-content-sha256: x\r\nx-ms-content-sha256: x\r\n";

#[tokio::test]
async fn n20_an_edited_body_is_described_anew_and_another_is_not_touched() {
    let scoped = Scoped::new().await;
    let names = |seen: &Seen| {
        let digests = DIGESTS.lines().filter_map(|line| line.split_once(':'));
        let digests = digests.filter(|(name, _)| seen.header(name).is_some());
        digests.count()
    };
    let seen = scoped.send(DIGESTS, r#"{"method":"m"}"#).await.unwrap();
    assert_eq!(seen.body, br#"{"params":{"server_id":"a"},"method":"m"}"#);
    assert_eq!(
        (seen.header("content-length"), names(&seen)),
        (Some("41"), 0)
    );
    let answer = r#" {"id":1, "result":null}"#;
    let seen = scoped.send(DIGESTS, answer).await.unwrap();
    assert_eq!(seen.body, answer.as_bytes());
    assert_eq!(
        (seen.header("content-length"), names(&seen)),
        (Some("24"), 7)
    );
}

#[tokio::test]
async fn n20_the_upstream_gets_the_new_length_on_the_wire() {
    let server = RawUpstream::answering(support::OK).await;
    let up = mcp_forward::Upstream::builder("up", server.url("/mcp"))
        .build()
        .unwrap();
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp")
        .build()
        .unwrap();
    let stack = ServiceBuilder::new()
        .layer(layer)
        .service(mcp_forward::Relay::new(&up, http_client()));
    let addr = serve(stack).await;
    let body = r#"{"method":"m","params":{"x":1}}"#;
    let expected = r#"{"method":"m","params":{"server_id":"a","x":1}}"#;
    for request in [
        message(addr, PATH, "", body),
        chunked(body.as_bytes(), 3, ""),
    ] {
        let request = String::from_utf8(request).unwrap();
        let request = request.replacen("host: a\r\n", &format!("host: {addr}\r\n"), 1);
        assert_eq!(status(&raw(addr, request).await), 200);
    }
    for seen in server.requests() {
        assert_eq!(String::from_utf8_lossy(&seen.body), expected);
        assert_eq!(seen.all("content-length"), [expected.len().to_string()]);
        assert!(seen.all("transfer-encoding").is_empty());
    }
}

#[tokio::test]
async fn http2_has_no_second_content_length_beside_the_new_one() {
    let scoped = Scoped::new().await;
    let body = r#"{"method":"m"}"#;
    let request = http::Request::post(format!("http://{}{PATH}", scoped.addr))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/json")
        .header("content-length", body.len())
        .header("content-length", body.len());
    let request = request.body(Full::<Bytes>::from(body)).unwrap();
    let answer = http2_client().request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let seen = scoped.witness.take().remove(0);
    assert_ne!(seen.body.len(), body.len());
    let length = seen.body.len().to_string();
    assert_eq!(seen.header("content-length"), Some(&*length));
}

#[tokio::test]
async fn a_chunked_body_is_one_message_however_it_is_cut() {
    let scoped = Scoped::new().await;
    let body = r#"{"jsonrpc":"2.0","id":"\u00e9é","method":"m","params":{"x":"é\n","server\u005fid":"evil"}}"#;
    let expected = body.replace("evil", "a");
    for size in 1..=body.len() {
        let request = chunked(body.as_bytes(), size, "x-checksum: 1\r\n");
        let seen = scoped.raw(request).await.unwrap();
        assert_eq!(seen.header("content-length"), None);
        assert_eq!(String::from_utf8(seen.body).unwrap(), expected, "{size}");
    }
}

#[tokio::test]
async fn a_body_that_stops_midway_goes_nowhere() {
    let scoped = Scoped::new().await;
    let body = r#"{"method":"m","params":{}}"#;
    let whole = String::from_utf8(message(scoped.addr, PATH, "", body)).unwrap();
    let cut = String::from_utf8(chunked(body.as_bytes(), 5, "")).unwrap();
    for request in [&whole, &cut] {
        let head = request.find("\r\n\r\n").unwrap() + 4;
        for end in [head, head + 1, head + 10, request.len() - 3] {
            let mut stream = TcpStream::connect(scoped.addr).await.unwrap();
            stream.write_all(&request.as_bytes()[..end]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer)
                .await
                .unwrap();
            let answer = String::from_utf8_lossy(&answer);
            assert_eq!(status(&answer), 400, "{end}");
            assert!(own_error(&answer, -32600).contains("did not come whole"));
        }
    }
    assert!(scoped.witness.take().is_empty());
}

/// Tells when the request that it travels with is gone.
#[derive(Clone)]
struct Guard(#[allow(dead_code, reason = "only its end counts")] Arc<Gone>);

struct Gone(tokio::sync::mpsc::UnboundedSender<()>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp")
        .build()
        .unwrap();
    let witness = Witness::default();
    let (gone, mut is_gone) = tokio::sync::mpsc::unbounded_channel();
    let (come, mut has_come) = tokio::sync::mpsc::unbounded_channel();
    let stack = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            let guard = Guard(Arc::new(Gone(gone.clone())));
            request.extensions_mut().insert(guard);
            come.send(()).unwrap();
            request
        })
        .layer(layer)
        .service(witness.clone());
    let addr = serve(stack).await;
    let body = r#"{"method":"m","params":{}}"#;
    for request in [
        message(addr, PATH, "", body),
        chunked(body.as_bytes(), 5, ""),
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(&request[..request.len() - 9])
            .await
            .unwrap();
        has_come.recv().await.unwrap();
        drop(stream);
        is_gone.recv().await.unwrap();
    }
    assert!(witness.take().is_empty());
}
