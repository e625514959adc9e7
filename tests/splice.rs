//! The edit of a message, as a property: whatever a reader takes out of the bytes, it is what was
//! there before with the one change, and no byte outside the edit is another.
#![cfg(feature = "hmac")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/oracle.rs"]
mod oracle;

use mcp_forward::ServerIdLayer;
use proptest::{collection::vec, option, prelude::*, sample::select};

/// A string of JSON in one of its spellings.
fn spelled(text: &'static str) -> impl Strategy<Value = String> {
    vec(any::<u8>(), text.chars().count()).prop_map(move |dice| {
        let spell = |(c, die): (char, u8)| match die {
            0..40 => format!("\\u{:04x}", u32::from(c)),
            40..60 => format!("\\u{:04X}", u32::from(c)),
            _ => c.to_string(),
        };
        let body: String = text.chars().zip(dice).map(spell).collect();
        format!("\"{body}\"")
    })
}

fn blank() -> impl Strategy<Value = &'static str> {
    select(&["", "", "", " ", "\n", "\t \r\n"][..])
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        spelled("a"),
        spelled("name"),
        spelled("Name"),
        spelled("server_id"),
        spelled("serverId"),
        spelled("params"),
        spelled("method"),
        Just(r#""""#.to_owned()),
        Just(r#""\"server_id\":""#.to_owned()),
        Just("\"\u{1f600}\\ud83d\\ude00é\"".to_owned()),
    ]
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        select(
            &[
                "null",
                "true",
                "false",
                "0",
                "-0",
                "1.0",
                "1e2",
                "9007199254740993",
                "18446744073709551616",
                "123456789012345678901234567890",
                "-1.5E-300",
                r#""""#,
                r#""server_id""#,
                r#""}{][,:\"\\""#,
                r#""\u0000\/\b""#,
            ][..]
        )
        .prop_map(str::to_owned),
        spelled("server_id"),
        any::<f64>()
            .prop_filter("JSON has none", |n| n.is_finite())
            .prop_map(|n| n.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ]
}

fn joined(open: char, parts: &[String], blanks: &[&str], close: char) -> String {
    let mut blanks = blanks.iter().cycle();
    let mut blank = || blanks.next().unwrap();
    let parts: Vec<_> = parts
        .iter()
        .map(|part| format!("{}{part}{}", blank(), blank()))
        .collect();
    format!("{open}{}{}{close}", blank(), parts.join(","))
}

fn blanks() -> impl Strategy<Value = Vec<&'static str>> {
    vec(blank(), 1..8)
}

fn value() -> impl Strategy<Value = String> {
    scalar().prop_recursive(4, 32, 5, |inner| {
        let member = (key(), blank(), inner.clone())
            .prop_map(|(key, blank, value)| format!("{key}{blank}:{blank}{value}"));
        prop_oneof![
            (vec(inner, 0..4), blanks()).prop_map(|(list, b)| joined('[', &list, &b, ']')),
            (vec(member, 0..4), blanks()).prop_map(|(list, b)| joined('{', &list, &b, '}')),
        ]
    })
}

/// Members of `params` that are not the parameter, in any spelling.
fn others() -> impl Strategy<Value = Vec<String>> {
    let key = key().prop_filter("the parameter is apart", |key| {
        let key: String = serde_json::from_str(key).unwrap();
        !["server_id", "serverId"].contains(&&*key)
    });
    vec(
        (key, value()).prop_map(|(key, value)| format!("{key}:{value}")),
        0..4,
    )
}

/// A message, and how many of its bytes may go: the old value, or nothing.
fn request() -> impl Strategy<Value = (String, usize)> {
    let own = option::of((spelled("server_id"), value()));
    let object = (others(), own, any::<prop::sample::Index>(), blanks()).prop_map(
        |(mut members, own, at, blanks)| {
            let gone = own.as_ref().map_or(0, |(_, value)| value.len());
            if let Some((key, value)) = own {
                members.insert(at.index(members.len() + 1), format!("{key}:{value}"));
            }
            (joined('{', &members, &blanks, '}'), gone)
        },
    );
    let params = option::of(prop_oneof![4 => object, 1 => Just(("null".to_owned(), 4))]);
    let params = (spelled("params"), params);
    let rest = (
        spelled("jsonrpc"),
        spelled("method"),
        option::of((spelled("id"), scalar())),
        option::of(value().prop_map(|value| format!("\"x\":{value}"))),
    );
    (params, rest, any::<prop::sample::Index>(), blanks()).prop_map(
        |((key, params), (jsonrpc, method, id, extra), turn, blanks)| {
            let mut members = vec![
                format!(r#"{jsonrpc}:"2.0""#),
                format!(r#"{method}:"tools/call""#),
            ];
            members.extend(id.map(|(key, id)| format!("{key}:{id}")));
            members.extend(extra);
            let gone = params.as_ref().map_or(0, |(_, gone)| *gone);
            members.extend(params.map(|(params, _)| format!("{key}:{params}")));
            let turn = turn.index(members.len());
            members.rotate_left(turn);
            (joined('{', &members, &blanks, '}'), gone)
        },
    )
}

fn layer() -> ServerIdLayer {
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    layer.accept_batches().build().unwrap()
}

/// How many bytes two texts have in common at the start, and at the end beyond.
fn kept(before: &[u8], after: &[u8]) -> usize {
    let start = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let ends = before[start..]
        .iter()
        .rev()
        .zip(after[start..].iter().rev());
    start + ends.take_while(|(a, b)| a == b).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_the_one_change((message, gone) in request()) {
        let body = message.as_bytes();
        let after = oracle::check(&layer(), "/servers/srv-1/mcp", Some("srv-1"), body);
        let after = after.expect("a good message was refused");
        prop_assert!(kept(body, &after) >= body.len() - gone, "{message}");
        prop_assert!(after.len() <= body.len() - gone + 40);
        // Without a server only the caller's own goes, with its key, its comma and white space.
        let after = oracle::check(&layer(), "/mcp", None, body).unwrap();
        prop_assert_eq!(kept(body, &after), after.len());
    }

    #[test]
    fn a_batch_is_edited_as_its_messages(messages in vec(request(), 1..5), blanks in blanks()) {
        let messages: Vec<_> = messages.into_iter().map(|(message, _)| message).collect();
        let layer = layer();
        let path = "/servers/srv-1/mcp";
        let edited = messages.iter().map(|message| {
            let bytes = oracle::scoped(&layer, path, message.as_bytes()).unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        });
        let edited: Vec<_> = edited.collect();
        let batch = joined('[', &messages, &blanks, ']');
        let after = oracle::check(&layer, path, Some("srv-1"), batch.as_bytes()).unwrap();
        prop_assert_eq!(String::from_utf8(after.to_vec()).unwrap(), joined('[', &edited, &blanks, ']'));
    }

    #[test]
    fn a_broken_message_is_refused_or_still_one((message, _) in request(), cuts in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut body = message.into_bytes();
        for (at, byte) in cuts {
            let at = at.index(body.len());
            match byte {
                0..64 => { body.remove(at); }
                64..96 => body.truncate(at + 1),
                96..128 => body.insert(at, b"{}[],:\"\\ 0e"[usize::from(byte) % 11]),
                _ => body[at] = byte,
            }
            if body.is_empty() {
                break;
            }
        }
        oracle::splice(&body);
    }

    #[test]
    fn any_bytes_are_refused_or_a_message(body in vec(any::<u8>(), 0..64)) {
        oracle::splice(&body);
    }
}
