//! The adversarial catalogue, groups A and B: names, values and encodings, one function per case.
//!
//! Where the catalogue and DESIGN.md differ, DESIGN decides. A9, A10, A11, B6's static half and B7
//! have their function beside the rules and the merge; A13 is among the wire cases.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use mcp_forward::{
    BuildError, CaptureLayer, ConnectErrorKind, MistakeKind, OnConflict, OutboundErrorKind, Relay,
    Rule, Upstream, UpstreamBuilder,
};
use support::{
    OK, RawUpstream, capture, http_client, lines, merge, own_error, post, raw, serve, status,
};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, sync::mpsc};
use tower::{Layer, ServiceExt, service_fn};

/// One of each group of DESIGN 4.2; `names.rs` has the whole table.
const RESTRICTED: [&str; 20] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "expect",
    "accept",
    "range",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "last-event-id",
    "dpop",
    "forwarded",
    "x-real-ip",
    "origin",
    "set-cookie",
];

fn builder() -> UpstreamBuilder {
    Upstream::builder("up", "https://up.example/mcp")
}

fn kinds<T: std::fmt::Debug>(built: Result<T, BuildError>) -> Vec<MistakeKind> {
    let error = built.expect_err("built");
    error.mistakes().iter().map(|m| m.kind()).collect()
}

/// Refused as restricted, and the message names the header.
fn restricted(name: &str, built: Result<Upstream, BuildError>) {
    let error = built.expect_err(name);
    assert_eq!(error.mistakes().len(), 1, "{error}");
    let mistake = &error.mistakes()[0];
    assert_eq!(mistake.kind(), MistakeKind::Restricted, "{name}");
    let lower = name.to_ascii_lowercase();
    assert_eq!(mistake.header().unwrap(), lower.as_str());
    assert!(error.to_string().contains(&format!("`{lower}`")), "{error}");
}

/// Every spelling of `name` in upper and lower case.
fn cases(name: &str) -> Vec<String> {
    let letters: Vec<_> = (0..name.len())
        .filter(|at| name.as_bytes()[*at].is_ascii_alphabetic())
        .collect();
    let spell = |mask: usize| {
        let mut spelled = name.as_bytes().to_vec();
        for (bit, at) in letters.iter().enumerate() {
            if mask & (1 << bit) != 0 {
                spelled[*at].make_ascii_uppercase();
            }
        }
        String::from_utf8(spelled).unwrap()
    };
    (0..1 << letters.len()).map(spell).collect()
}

/// A relay with its capture layer in front of `server`.
async fn proxy(
    server: &RawUpstream,
    rules: impl FnOnce(UpstreamBuilder) -> UpstreamBuilder,
) -> SocketAddr {
    let up = rules(Upstream::builder("up", server.url("/mcp")))
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    serve(capture.layer(Relay::new(&up, http_client()))).await
}

#[test]
fn a1_a_restricted_name_is_refused_in_every_case() {
    for name in ["host", "te", "via", "dpop", "content-length", "x-real-ip"] {
        for spelled in cases(name) {
            restricted(&spelled, builder().allow(&spelled).build());
        }
    }
    for name in RESTRICTED {
        restricted(name, builder().allow(name).build());
    }
}

#[test]
fn a2_a_restricted_name_is_refused_as_rename_target() {
    for name in RESTRICTED {
        for spelled in [name.to_owned(), name.to_ascii_uppercase()] {
            restricted(
                &spelled,
                builder().rule(Rule::new("X-A").to(&spelled)).build(),
            );
        }
    }
}

#[test]
fn a3_a_restricted_name_is_refused_as_static_header() {
    for name in RESTRICTED {
        for spelled in [name.to_owned(), name.to_ascii_uppercase()] {
            restricted(&spelled, builder().set(&spelled, "v").build());
        }
    }
}

#[test]
fn a4_forwarded_names_are_refused_by_their_prefix() {
    for name in [
        "X-Forwarded-Prefix",
        "x-forwarded-anything",
        "x-forwarded-",
        "X_Forwarded_For",
    ] {
        restricted(name, builder().allow(name).build());
        restricted(name, builder().set(name, "v").build());
    }
    // No prefix of a word: and what a front proxy verified is none of them.
    assert!(builder().allow("x-forwardedness").build().is_ok());
    assert!(builder().allow("x-forwarded-user").build().is_ok());
}

#[test]
fn a5_mcp_names_are_refused_by_their_prefix() {
    for name in [
        "Mcp-Param-Region",
        "MCP-PROTOCOL-VERSION",
        "Mcp-Future",
        "mcp_session_id",
    ] {
        restricted(name, builder().allow(name).build());
        restricted(name, builder().rule(Rule::new("x-a").to(name)).build());
        restricted(name, builder().set(name, "v").build());
    }
    assert!(builder().allow("mcpx").build().is_ok());
}

#[test]
fn a6_what_is_no_field_name_is_refused() {
    let texts = [
        ":authority",
        "",
        "X Y",
        "x:y",
        "Café",
        "a\r\nb",
        "a\nb",
        "x\0",
        "\u{212A}ey",
    ];
    // Every byte that no token has (RFC 9110 section 5.6.2), and every character beyond ASCII.
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let bytes = ('\0'..='\u{17f}').filter(|c| !token(*c));
    let built = bytes.map(|c| format!("x{c}y"));
    for text in texts.map(str::to_owned).into_iter().chain(built) {
        for built in [
            builder().allow(&text).build(),
            builder().rule(Rule::new("x-a").to(&text)).build(),
            builder().set(&text, "v").build(),
        ] {
            assert_eq!(kinds(built), [MistakeKind::InvalidName], "{text:?}");
        }
    }
}

#[test]
fn a7_the_longest_name_is_256_bytes() {
    for (length, allowed) in [(256, true), (257, false), (65_535, false), (65_536, false)] {
        let name = "x".repeat(length);
        for built in [
            builder().allow(&name).build(),
            builder().set(&name, "v").build(),
        ] {
            assert_eq!(built.is_ok(), allowed, "{length}");
            if !allowed {
                assert_eq!(kinds(built), [MistakeKind::InvalidName]);
            }
        }
    }
}

#[tokio::test]
async fn a8_an_underscore_is_another_name() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("X-Api-Key")).await;
    // DESIGN 4.1: not the same name, not captured; both together are no ambiguity.
    let answer = raw(addr, post(addr, "X_Api_Key: evil\r\n")).await;
    assert_eq!(status(&answer), 200);
    let both = "X_Api_Key: evil\r\nx-api-key: mine\r\nX-Api_Key: evil\r\n";
    assert_eq!(status(&raw(addr, post(addr, both)).await), 200);
    let seen = server.requests();
    assert!(seen[0].all("x-api-key").is_empty());
    assert_eq!(seen[1].all("x-api-key"), ["mine"]);
    for request in seen {
        assert!(!request.headers.iter().any(|(_, value)| value == "evil"));
    }
}

#[tokio::test]
async fn a12_there_are_no_patterns() {
    for pattern in ["*", "x-*", "x-.*", "x-[ab]", "x-(a|b)", "x-?", "/x-a/"] {
        for built in [
            builder().allow(pattern).build(),
            builder().rule(Rule::new(pattern).to("x-b")).build(),
        ] {
            assert_eq!(kinds(built), [MistakeKind::InvalidName], "{pattern}");
        }
    }
    assert!(CaptureLayer::for_names(["x-*"]).build().is_err());
    // These are tokens, so they are names: nothing but themselves.
    let up = builder()
        .allow("^x-a$")
        .allow("x-.")
        .allow("x-a|x-b")
        .allow("x-")
        .build()
        .unwrap();
    assert!(
        capture(&[&up], [("x-a", "1"), ("x-b", "2")])
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn a14_a_space_before_the_colon_is_refused() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
    for line in ["Authorization : Bearer x", "Authorization\t: Bearer x"] {
        let answer = raw(addr, post(addr, &format!("{line}\r\n"))).await;
        assert_eq!(status(&answer), 400, "{line}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn b1_control_bytes_never_get_into_a_value() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    for byte in ["\r", "\0", "\x01", "\x08", "\x0b", "\x1f", "\x7f"] {
        let answer = raw(addr, post(addr, &format!("x-a: a{byte}b\r\n"))).await;
        assert_eq!(status(&answer), 400, "{byte:?}");
    }
    assert!(server.requests().is_empty());
    // A bare line feed ends the line, so what follows is a header of its own, and not allowed.
    let answer = raw(addr, post(addr, "x-a: a\nx-b: smuggled\r\n")).await;
    assert_eq!(status(&answer), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("x-a"), ["a"]);
    assert!(seen.all("x-b").is_empty());

    // The one hook that makes values is checked as well.
    for value in ["a\r\nx-b: c", "a\nb", "a\0b", "a\x7fb", " a", "a\t"] {
        let up = builder().allow("x-a").build().unwrap();
        let layer = CaptureLayer::for_upstreams([&up])
            .attest("x-a", move |_| Some(value.into()))
            .build()
            .unwrap();
        let service = layer.layer(service_fn(|_: Request<()>| async {
            panic!("called") as Result<Response<Full<Bytes>>, Infallible>
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), 500, "{value:?}");
        support::check_error(&support::body_of(response).await, -32603);
    }
}

#[tokio::test]
async fn b2_a_folded_line_is_refused() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow("x-a")).await;
    for fold in ["x-a: a\r\n b\r\n", "x-a: a\r\n\tb\r\n", "x-a:\r\n b\r\n"] {
        assert_eq!(status(&raw(addr, post(addr, fold)).await), 400, "{fold:?}");
    }
    assert!(server.requests().is_empty());
}

/// An upstream that hands out each request's head as it came, byte by byte.
async fn byte_upstream() -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (heads, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = heads.send(bytes);
            let _ = stream.write_all(OK.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (addr, received)
}

#[tokio::test]
async fn b3_bytes_beyond_ascii_arrive_as_they_are() {
    let (server, mut heads) = byte_upstream().await;
    let up = Upstream::builder("up", format!("http://{server}/mcp"))
        .allow("x-key")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
    // Not UTF-8, so a lossy conversion anywhere would show.
    let every: Vec<u8> = (0x80..=0xff).collect();
    let marker = post(addr, "x-key: \u{1}\r\n");
    let at = marker.find('\u{1}').unwrap();
    let (before, after) = marker.split_at(at);
    let request = [before.as_bytes(), &every, &after.as_bytes()[1..]].concat();
    assert_eq!(status(&raw(addr, request).await), 200);
    let head = heads.recv().await.unwrap();
    let line = [b"x-key: ".as_slice(), &every, b"\r\n"].concat();
    assert!(head.windows(line.len()).any(|window| window == line));
}

#[tokio::test]
async fn b4_authorization_beyond_ascii_is_opaque_and_no_bare_token() {
    // DESIGN 4.2: `Bearer` and all others pass byte for byte.
    let up = builder().allow_credential("authorization").build().unwrap();
    let sent = merge(&up, [("authorization", "Bearer \u{ff}")]).await;
    assert_eq!(
        lines(&sent.unwrap()),
        ["authorization: Bearer \u{ff}".to_owned()]
    );
    // Where a prefix is added, it has to be a token.
    let up = builder()
        .rule(Rule::new("x-token").to("authorization").bearer())
        .build()
        .unwrap();
    let error = merge(&up, [("x-token", "\u{ff}")]).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ConnectErrorKind::Outbound(OutboundErrorKind::Invalid)
    );
}

#[tokio::test]
async fn b5_an_empty_authorization_is_absent() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.rule(Rule::credential("authorization").required())
    })
    .await;
    for line in ["Authorization:\r\n", "Authorization: \t \r\n"] {
        let answer = raw(addr, post(addr, line)).await;
        assert_eq!(status(&answer), 401, "{line:?}");
        own_error(&answer, -32000);
    }
    assert!(server.requests().is_empty());
    let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
    assert_eq!(
        status(&raw(addr, post(addr, "Authorization:\r\n")).await),
        200
    );
    assert!(server.only_request().all("authorization").is_empty());
}

#[tokio::test]
async fn b6_white_space_around_a_value_is_none_of_it() {
    let (server, mut heads) = byte_upstream().await;
    let up = Upstream::builder("up", format!("http://{server}/mcp"))
        .allow_credential("authorization")
        .build()
        .unwrap();
    let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
    let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
    let sent = post(addr, "authorization: \tBearer A\t \r\n");
    assert_eq!(status(&raw(addr, sent).await), 200);
    let head = String::from_utf8(heads.recv().await.unwrap()).unwrap();
    assert!(head.contains("authorization: Bearer A\r\n"), "{head:?}");
    for value in [" Bearer A", "Bearer A ", "\tBearer A", "Bearer A\t", " "] {
        let built = builder().set("authorization", value).build();
        assert_eq!(kinds(built), [MistakeKind::InvalidValue], "{value:?}");
    }
}

#[tokio::test]
async fn b8_schemes_of_another_hop_are_400() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        // Not even where the operator's own could stand in.
        up.rule(Rule::credential("authorization").on_conflict(OnConflict::Caller))
            .set("authorization", "Bearer service")
    })
    .await;
    for value in [
        "Negotiate YII=",
        "NTLM TlRM",
        "Digest username=\"a\"",
        "DPoP eyJ",
        "AWS4-HMAC-SHA256 Credential=x",
        "sharedkey a:b",
    ] {
        let answer = raw(addr, post(addr, &format!("authorization: {value}\r\n"))).await;
        assert_eq!(status(&answer), 400, "{value}");
        assert!(own_error(&answer, -32600).contains("`authorization`"));
        assert!(!answer.contains(value));
    }
    assert!(server.requests().is_empty());
    let answer = raw(addr, post(addr, "authorization: Basic YTpi\r\n")).await;
    assert_eq!(status(&answer), 200);
    assert_eq!(server.only_request().all("authorization"), ["Basic YTpi"]);
}

#[tokio::test]
async fn b9_a_schemes_case_is_the_callers() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.allow_credential("authorization")
            .rule(Rule::new("x-token").to("x-bearer").bearer())
    })
    .await;
    let sent = "authorization: bEaReR abc\r\nx-token: BEARER abc\r\n";
    assert_eq!(status(&raw(addr, post(addr, sent)).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.all("authorization"), ["bEaReR abc"]);
    assert_eq!(seen.all("x-bearer"), ["BEARER abc"]);
}

#[tokio::test]
async fn b10_a_token_in_the_query_stays_here() {
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| up.allow_credential("authorization")).await;
    let sent = post(addr, "").replace("/mcp ", "/mcp?access_token=s3cret ");
    assert_eq!(status(&raw(addr, sent).await), 200);
    let seen = server.only_request();
    assert_eq!(seen.line, "POST /mcp HTTP/1.1");
    assert!(!format!("{seen:?}").contains("s3cret"));
    // It is no credential here, and what is refused does not quote it.
    let addr = proxy(&server, |up| {
        up.rule(Rule::credential("authorization").required())
    })
    .await;
    let sent = post(addr, "").replace("/mcp ", "/mcp?access_token=s3cret ");
    let answer = raw(addr, sent).await;
    assert_eq!(status(&answer), 401);
    assert!(!answer.contains("s3cret"));
    server.only_request();
}

#[tokio::test]
async fn b11_a_comma_makes_no_list() {
    let up = builder().allow_credential("authorization").build().unwrap();
    let inbound = capture(&[&up], [("authorization", "Bearer a, Bearer b")]).await;
    assert_eq!(inbound.iter().count(), 1);
    let sent = merge(&up, [("authorization", "Bearer a, Bearer b")]).await;
    assert_eq!(
        lines(&sent.unwrap()),
        ["authorization: Bearer a, Bearer b".to_owned()]
    );
}

#[tokio::test]
async fn b12_an_attested_value_that_is_no_value_is_500() {
    // DESIGN 4.1: the hook is `attest`; its values are text, so they are UTF-8 by their type.
    let server = RawUpstream::answering(OK).await;
    let up = Upstream::builder("up", server.url("/mcp"))
        .allow("x-subject")
        .build()
        .unwrap();
    for (value, expected) in [("a\u{0}b", 500), ("a\u{1b}[31m", 500), ("alice", 200)] {
        let capture = CaptureLayer::for_upstreams([&up])
            .attest("x-subject", move |_| Some(value.into()))
            .build()
            .unwrap();
        let addr = serve(capture.layer(Relay::new(&up, http_client()))).await;
        let answer = raw(addr, post(addr, "x-subject: mallory\r\n")).await;
        assert_eq!(status(&answer), expected, "{value:?}");
        if expected == 500 {
            assert!(own_error(&answer, -32603).contains("`x-subject`"));
        }
    }
    assert_eq!(server.only_request().all("x-subject"), ["alice"]);
}

#[tokio::test]
async fn b13_an_encoded_sentinel_is_opaque() {
    let up = builder().allow("x-a").build().unwrap();
    let value = "=?base64?SGVsbG8=?=";
    let sent = merge(&up, [("x-a", value)]).await.unwrap();
    assert_eq!(lines(&sent), [format!("x-a: {value}")]);
}

#[tokio::test]
async fn b14_no_escape_sequence_reaches_a_message() {
    // ESC is refused by the server; its one-byte form beyond ASCII is not.
    let server = RawUpstream::answering(OK).await;
    let addr = proxy(&server, |up| {
        up.rule(Rule::new("x-token").to("authorization").bearer())
    })
    .await;
    let answer = raw(addr, post(addr, "x-token: \x1b[31mred\r\n")).await;
    assert_eq!(status(&answer), 400);
    assert!(!answer.contains('\x1b') && !answer.contains("red"));

    let up = builder()
        .rule(Rule::new("x-token").to("authorization").bearer())
        .build()
        .unwrap();
    let inbound = capture(&[&up], [("x-token", "\u{9b}31mred")]).await;
    let error = merge(&up, [("x-token", "\u{9b}31mred")]).await.unwrap_err();
    let shown = format!("{error} {error:?} {inbound:?}");
    assert!(shown.is_ascii() && !shown.contains("red"), "{shown}");

    // Nor does one of a configuration.
    let error = builder()
        .allow("x-\x1b[31mred")
        .set("x-b", "\x1b[31mred")
        .build()
        .unwrap_err();
    let shown = format!("{error} {error:?}");
    let raw_bytes = shown.chars().any(char::is_control);
    assert!(!raw_bytes && !shown.contains("red"), "{shown}");
}
