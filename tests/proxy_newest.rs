//! `rmcp::Proxy`: what callers of 2026-07-28 are due, whatever the upstream speaks.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;

use std::net::SocketAddr;

use proxy::{Caller, ERAS, Era, Offer, Site, bounded, front};
use serde_json::{Value, json};

#[tokio::test]
async fn results_say_their_type_and_to_nobody_else() {
    bounded(async {
        for newest in [false, true] {
            let offer = Offer {
                newest,
                resources: vec!["file:///r"],
                ..Offer::default()
            };
            let site = Site::start("up", offer).await;
            let other = Site::start("other", Offer::default()).await;
            let alone = front(&[site.upstream()]).await;
            let both = front(&[site.upstream(), other.upstream()]).await;
            for (addr, prefix) in [(alone, ""), (both, "up_")] {
                for era in ERAS {
                    let caller = Caller::open(addr, era, "alice").await;
                    let greet = format!("{prefix}greet");
                    let tool = json!({ "name": format!("{prefix}whoami"), "arguments": {} });
                    let argument = json!({ "name": "who", "value": "a" });
                    let prompt = json!({ "type": "ref/prompt", "name": greet });
                    let mut asked = vec![
                        ("tools/list", json!({})),
                        ("prompts/list", json!({})),
                        ("resources/list", json!({})),
                        ("resources/templates/list", json!({})),
                        ("tools/call", tool),
                        ("prompts/get", json!({ "name": greet })),
                        ("resources/read", json!({ "uri": "file:///r" })),
                        (
                            "completion/complete",
                            json!({ "ref": prompt, "argument": argument }),
                        ),
                    ];
                    if prefix.is_empty() {
                        asked.push(("custom/method", json!({})));
                    }
                    for (method, params) in asked {
                        let told = caller.ask(method, params).await;
                        let due = (era == Era::Newest).then_some("complete");
                        assert!(told.get("error").is_none(), "{told}");
                        assert_eq!(told["resultType"].as_str(), due, "{method} {era:?}: {told}");
                    }
                }
            }
        }
    })
    .await;
}

/// One `tools/call` of 2026-07-28 with these `Mcp-Param-*` lines; its HTTP status and its message.
async fn call(
    addr: SocketAddr,
    user: &str,
    tool: &str,
    lines: &[(&str, &str)],
    arguments: Value,
) -> (u16, Value) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let params = json!({ "name": tool, "arguments": arguments, "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": user, "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    } });
    let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let mut request = http
        .post(format!("http://{addr}/mcp"))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool)
        .header("x-user", user);
    for (name, value) in lines {
        request = request.header(format!("mcp-param-{name}"), *value);
    }
    let response = request.body(message.to_string()).send().await.unwrap();
    let status = response.status().as_u16();
    let body = response.text().await.unwrap();
    let mut data = body.lines().filter_map(|line| line.strip_prefix("data: {"));
    let data = data
        .next_back()
        .map_or(body.clone(), |it| format!("{{{it}"));
    // A refusal has none.
    (status, serde_json::from_str(&data).unwrap_or_default())
}

const MISMATCH: i64 = -32020;

fn assert_refused((status, told): (u16, Value), what: &str) {
    assert_eq!(status, 400, "{what}: {told}");
    assert_eq!(told["error"]["code"], MISMATCH, "{what}: {told}");
}

fn mirror(newest: bool, mirrored: Vec<&'static str>) -> Offer {
    Offer {
        newest,
        tools: vec!["mirror"],
        mirrored,
        ..Offer::default()
    }
}

#[tokio::test]
async fn a_header_that_says_something_else_than_its_argument_is_refused() {
    bounded(async {
        for newest in [false, true] {
            let site = Site::start("up", mirror(newest, vec!["alice"])).await;
            let other = Site::start("other", Offer::default()).await;
            let alone = front(&[site.upstream()]).await;
            let both = front(&[site.upstream(), other.upstream()]).await;
            for (addr, tool) in [(alone, "mirror"), (both, "up_mirror")] {
                let region = json!({ "region": "Hello" });
                let deep = json!({ "deep": { "size": 7, "fast": true } });
                for (lines, arguments) in [
                    (&[][..], json!({})),
                    (&[], json!({ "region": null, "other": "Hello" })),
                    (&[("region", "Hello")], region.clone()),
                    (&[("region", "=?base64?SGVsbG8=?=")], region.clone()),
                    (&[("region", "SGVsbG8=")], json!({ "region": "SGVsbG8=" })),
                    (
                        &[("region", "=?base64?SG")],
                        json!({ "region": "=?base64?SG" }),
                    ),
                    (
                        &[("region", "=?base64?w7w=?=")],
                        json!({ "region": "\u{fc}" }),
                    ),
                    (&[("size", "7"), ("fast", "true")], deep.clone()),
                    // No argument has it as its header.
                    (&[("other", "1")], json!({ "other": 2 })),
                ] {
                    let (status, told) = call(addr, "alice", tool, lines, arguments.clone()).await;
                    assert_eq!(status, 200, "{lines:?}: {told}");
                    let text = told["result"]["content"][0]["text"].as_str().unwrap();
                    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), arguments);
                }
                site.heard.forget();
                for (lines, arguments) in [
                    (&[][..], region.clone()),
                    (&[("region", "hello")], region.clone()),
                    (&[("region", "=?base64?SGVsbG8?=")], region.clone()),
                    (&[("region", "=?base64?SGVs!!!bG8=?=")], region.clone()),
                    (&[("region", "=?base64?/w==?=")], region.clone()),
                    (&[("region", "Hello"), ("region", "Hello")], region.clone()),
                    (&[("region", "Hello")], json!({})),
                    (&[("region", "null")], json!({ "region": null })),
                    (&[("region", "[]")], json!({ "region": [] })),
                    (&[("size", "7")], deep.clone()),
                    (&[("size", "8"), ("fast", "true")], deep.clone()),
                ] {
                    let told = call(addr, "alice", tool, lines, arguments).await;
                    let said = told.1.to_string();
                    assert_refused(told, &format!("{lines:?}"));
                    assert!(!said.to_lowercase().contains("hello"), "a value: {said}");
                }
                assert!(site.of("tools/call").is_empty());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_one_caller_was_told_of_a_tool_counts_for_that_caller() {
    bounded(async {
        for newest in [false, true] {
            let site = Site::start("up", mirror(newest, vec!["alice"])).await;
            let addr = front(&[site.upstream()]).await;
            let region = || json!({ "region": "north" });
            for _ in 0..2 {
                let told = call(addr, "alice", "mirror", &[], region()).await;
                assert_refused(told, "alice");
                let (status, told) = call(addr, "bob", "mirror", &[], region()).await;
                assert_eq!(status, 200, "{told}");
            }
            // Each was told once; and is told of a change by the next list.
            assert_eq!(site.of("tools/list").len(), 2);
            site.offer(|offer| offer.mirrored = vec!["bob"]);
            for user in ["alice", "bob"] {
                let caller = Caller::open(addr, Era::Newest, user).await;
                caller.list("tools/list").await;
            }
            assert_refused(call(addr, "bob", "mirror", &[], region()).await, "bob");
            let (status, told) = call(addr, "alice", "mirror", &[], region()).await;
            assert_eq!(status, 200, "{told}");
        }
    })
    .await;
}

/// Only 2026-07-28 knows these headers.
#[tokio::test]
async fn an_older_caller_says_nothing_in_headers() {
    bounded(async {
        for newest in [false, true] {
            let site = Site::start("up", mirror(newest, vec!["alice"])).await;
            let caller =
                Caller::open(front(&[site.upstream()]).await, Era::Sessions, "alice").await;
            let region = json!({ "region": "north" });
            assert_eq!(caller.call("mirror", region.clone()).await, region);
            assert!(site.of("tools/list").is_empty());
        }
    })
    .await;
}

/// Else a list that fails would be the way around the check.
#[tokio::test]
async fn without_the_schemas_a_call_of_2026_07_28_fails_and_the_next_one_asks_again() {
    bounded(async {
        for newest in [false, true] {
            let site = Site::start("up", mirror(newest, vec!["alice"])).await;
            let addr = front(&[site.upstream()]).await;
            let region = || json!({ "region": "north" });
            for (status, list, code) in [
                (403, json!({}), None),
                (503, json!({}), None),
                (200, json!({ "error": { "code": -32603, "message": "later" } }), Some(-32603)),
                (200, json!({ "result": { "resultType": "complete", "prompts": [] } }), None),
                // Without an end.
                (
                    200,
                    json!({ "result": { "resultType": "complete", "tools": [], "nextCursor": "more" } }),
                    None,
                ),
            ] {
                let case = list.to_string();
                site.answer(move |heard| {
                    let mut list = list.clone();
                    list["jsonrpc"] = json!("2.0");
                    list["id"] = heard.body["id"].clone();
                    (heard.method == "tools/list").then_some((status, list))
                });
                let lines = [("region", "north")];
                let (answered, told) = call(addr, "alice", "mirror", &lines, region()).await;
                if status == 403 {
                    // None of the caller's credential, which this upstream has none of.
                    assert_eq!(answered, 502, "{case}");
                } else {
                    let code = code.unwrap_or(-32603);
                    assert_eq!(told["error"]["code"], code, "{case}: {told}");
                }
                assert!(site.of("tools/call").is_empty(), "{case}");
                // In a session nothing is checked.
                let caller = Caller::open(addr, Era::Sessions, "alice").await;
                assert_eq!(caller.call("mirror", region()).await, region());
                site.heard.forget();
            }
            site.answer(|_| None);
            assert_refused(call(addr, "alice", "mirror", &[], region()).await, "alice");
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_lists_no_tools_wants_nothing_in_headers() {
    bounded(async {
        for newest in [false, true] {
            let site = Site::start("up", mirror(newest, vec!["alice"])).await;
            let addr = front(&[site.upstream()]).await;
            site.answer(|heard| {
                let error = json!({ "code": -32601, "message": "no list" });
                let error = json!({ "jsonrpc": "2.0", "id": heard.body["id"], "error": error });
                (heard.method == "tools/list").then_some((200, error))
            });
            for _ in 0..2 {
                let region = json!({ "region": "north" });
                let (status, told) = call(addr, "alice", "mirror", &[], region).await;
                assert_eq!(status, 200, "{told}");
            }
            assert_eq!(site.of("tools/list").len(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn integers_are_compared_by_what_they_are() {
    bounded(async {
        let mut offer = mirror(false, vec!["alice"]);
        offer.properties = json!({ "size": { "type": "integer", "x-mcp-header": "Size" } });
        let site = Site::start("up", offer).await;
        let addr = front(&[site.upstream()]).await;
        let max = "18446744073709551615";
        for (header, argument, agree) in [
            ("42", "42", true),
            ("42", "42.0", true),
            ("42.0", "42", true),
            ("4.20e1", "42", true),
            ("420E-1", "42", true),
            ("1e3", "1000", true),
            ("1000", "1e3", true),
            ("-7", "-7.0", true),
            ("0", "-0", true),
            (max, max, true),
            ("1.5", "1.5", true),
            ("9007199254740993", "9007199254740993", true),
            ("9007199254740993", "9007199254740992", false),
            ("9007199254740993.0", "9007199254740992", false),
            ("4.00000000000000000001", "4", false),
            ("43", "42", false),
            ("42.5", "42", false),
            ("42", "\"42.0\"", false),
            ("true", "1", false),
            ("+42", "42", false),
            ("042", "42", false),
            ("0x2a", "42", false),
            ("42.", "42", false),
            (".42e2", "42", false),
            ("1e999999999999", "1000", false),
            ("1e2147483647", "1000", false),
            ("1e-2147483648", "0", false),
            ("-", "0", false),
            ("", "0", false),
        ] {
            let argument = serde_json::from_str::<Value>(argument).unwrap();
            let arguments = json!({ "size": argument });
            let told = call(addr, "alice", "mirror", &[("size", header)], arguments).await;
            match agree {
                true => assert_eq!(told.0, 200, "{header} {argument}"),
                false => assert_refused(told, &format!("{header} {argument}")),
            }
        }
    })
    .await;
}

/// Clients leave out such a tool, and make no header of it.
#[tokio::test]
async fn a_schema_that_says_it_wrongly_wants_nothing() {
    bounded(async {
        for newest in [false, true] {
            let region = json!({ "type": "string", "x-mcp-header": "Region" });
            let header = |at: usize| {
                let schema = json!({ "type": "string", "x-mcp-header": format!("h{at}") });
                (at.to_string(), schema)
            };
            let mut too_many: serde_json::Map<_, _> = (0..1024).map(header).collect();
            too_many.insert("region".to_owned(), region.clone());
            for properties in [
                Value::from(too_many),
                json!({ "region": region, "other": { "type": "string", "x-mcp-header": "rEGION" } }),
                json!({ "region": region, "deep": { "properties": { "region": region } } }),
                json!({ "region": region, "n": { "type": "number", "x-mcp-header": "N" } }),
                json!({ "region": region, "n": { "type": "array", "x-mcp-header": "N" } }),
                json!({ "region": region, "n": { "type": ["string"], "x-mcp-header": "N" } }),
                json!({ "region": region, "n": { "x-mcp-header": "N" } }),
                json!({ "region": region, "n": { "type": "string", "x-mcp-header": "" } }),
                json!({ "region": region, "n": { "type": "string", "x-mcp-header": "a b" } }),
                json!({ "region": region, "n": { "type": "string", "x-mcp-header": 7 } }),
            ] {
                let mut offer = mirror(newest, vec!["alice"]);
                offer.properties = properties.clone();
                let site = Site::start("up", offer).await;
                let addr = front(&[site.upstream()]).await;
                let arguments = || json!({ "region": "north" });
                let (status, told) = call(addr, "alice", "mirror", &[], arguments()).await;
                assert_eq!(status, 200, "{properties}: {told}");
            }
            // What a list does not have any more is not remembered of it.
            let site = Site::start("up", mirror(newest, vec!["alice"])).await;
            let addr = front(&[site.upstream()]).await;
            let arguments = || json!({ "region": "north" });
            assert_refused(call(addr, "alice", "mirror", &[], arguments()).await, "");
            site.offer(|offer| offer.tools = Vec::new());
            Caller::open(addr, Era::Newest, "alice")
                .await
                .list("tools/list")
                .await;
            let (status, told) = call(addr, "alice", "mirror", &[], arguments()).await;
            assert_eq!(status, 200, "{told}");
        }
    })
    .await;
}
