//! `rmcp::Proxy`: several upstreams as one: pages, prefixes, and whose a resource is.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::net::SocketAddr;

use mcp_forward::Upstream;
use proxy::{Caller, ERAS, Era, Offer, Site, bounded, front};
use serde_json::{Value, json};

const LISTS: [&str; 4] = [
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
];

/// The sites as upstreams of one proxy, in this order.
async fn before(sites: &[&Site]) -> SocketAddr {
    let upstreams: Vec<Upstream> = sites.iter().map(|site| site.upstream()).collect();
    front(&upstreams).await
}

/// Every page of a list, until there is no more.
async fn pages(caller: &Caller, method: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let (items, result) = caller.page(method, cursor.as_deref()).await;
        pages.push(items);
        match result["nextCursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn pages_go_on_at_each_upstream_that_has_more() {
    bounded(async {
        let long = Offer {
            tools: vec!["a", "b", "c", "d"],
            prompts: vec!["a", "b", "c"],
            resources: vec!["file:///1", "file:///2", "file:///3"],
            templates: vec!["one://{x}", "one://{x}/{y}", "one:///{+z}"],
            page: 2,
            ..Offer::default()
        };
        let short = Offer {
            tools: vec!["a"],
            prompts: vec!["a"],
            resources: vec!["file:///4"],
            templates: vec!["three://{x}"],
            page: 1,
            ..Offer::default()
        };
        let one = Site::start("one", long).await;
        let two = Site::start("two", short.clone()).await;
        // The same resources as at `two`: they are listed once.
        let three = Site::start("three", short).await;
        let addr = before(&[&one, &two, &three]).await;
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            for site in [&one, &two, &three] {
                site.heard.forget();
            }
            let tools = pages(&caller, "tools/list").await;
            let expected = [
                vec!["one_a", "one_b", "two_a", "three_a"],
                vec!["one_c", "one_d", "two_for-alice", "three_for-alice"],
                vec!["one_for-alice"],
            ];
            assert_eq!(tools, expected);
            // Whoever has no more is not asked again.
            let asked = [&one, &two, &three].map(|site| site.of("tools/list").len());
            assert_eq!(asked, [3, 2, 2]);
            let prompts = pages(&caller, "prompts/list").await;
            let expected = [vec!["one_a", "one_b", "two_a", "three_a"], vec!["one_c"]];
            assert_eq!(prompts, expected);
            let resources = pages(&caller, "resources/list").await;
            let expected = [
                vec!["file:///1", "file:///2", "file:///4"],
                vec!["file:///3"],
            ];
            assert_eq!(resources, expected);
            let templates = pages(&caller, "resources/templates/list").await;
            let expected = [
                vec!["one://{x}", "one://{x}/{y}", "three://{x}"],
                vec!["one:///{+z}"],
            ];
            assert_eq!(templates, expected);
        }
    })
    .await;
}

#[tokio::test]
async fn the_pages_of_an_only_upstream_are_its_own() {
    bounded(async {
        let offer = Offer {
            tools: vec!["a", "b"],
            page: 2,
            ..Offer::default()
        };
        let one = Site::start("one", offer).await;
        let addr = before(&[&one]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        let (tools, result) = caller.page("tools/list", None).await;
        assert_eq!(tools, ["a", "b"]);
        assert_eq!(result["nextCursor"], "one2");
        let (tools, result) = caller.page("tools/list", Some("one2")).await;
        assert_eq!(tools, ["for-alice"]);
        assert!(result["nextCursor"].is_null());
    })
    .await;
}

#[tokio::test]
async fn a_forged_cursor_is_refused_and_reaches_nobody_it_does_not_name() {
    bounded(async {
        let one = Site::start("one", Offer::default()).await;
        let two = Site::start("two", Offer::default()).await;
        let addr = before(&[&one, &two]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        for method in LISTS {
            for cursor in [
                "",
                "one2",
                "2",
                "{",
                "{}",
                "[]",
                "null",
                r#""one""#,
                r#"{"one":2}"#,
                r#"{"one":null}"#,
                r#"{"one":"1""#,
                r#"[["one","1"]]"#,
                r#"{"stranger":"1"}"#,
                r#"{"one":"one1","stranger":"1"}"#,
            ] {
                let told = caller.ask(method, json!({ "cursor": cursor })).await;
                assert_eq!(told["error"]["code"], -32602, "{method} {cursor:?}: {told}");
            }
        }
        assert!(one.heard.all().is_empty() && two.heard.all().is_empty());
        // One that is well formed is each upstream's own to judge.
        let forged = json!({ "one": "two1" }).to_string();
        let told = caller.ask("tools/list", json!({ "cursor": forged })).await;
        assert_eq!(told["error"]["message"], "not my cursor", "{told}");
        let forged = json!({ "one": "two1", "two": "two1" }).to_string();
        let told = caller.ask("tools/list", json!({ "cursor": forged })).await;
        assert_eq!(
            told["_meta"]["mcp-forward/failed"],
            json!(["one"]),
            "{told}"
        );
        assert_eq!(two.of("tools/list").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn names_are_split_at_the_first_underscore() {
    bounded(async {
        let one = Site::start("one", Offer::default()).await;
        let two = Site::start("one-two", Offer::default()).await;
        let addr = before(&[&one, &two]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        // The upstream's own error names the tool as it was asked for there.
        for (tool, site, there) in [
            ("one_a", "one", "a"),
            ("one_a_b", "one", "a_b"),
            ("one_", "one", ""),
            ("one__a", "one", "_a"),
            ("one_one-two_a", "one", "one-two_a"),
            ("one-two_a", "one-two", "a"),
            ("one-two_one_a", "one-two", "one_a"),
        ] {
            for site in [&one, &two] {
                site.heard.forget();
            }
            let told = caller.call(tool, json!({})).await;
            assert_eq!(
                told["error"]["message"],
                format!("no tool {there}"),
                "{tool}"
            );
            let prompt = caller.ask("prompts/get", json!({ "name": tool })).await;
            let said = &prompt["messages"][0]["content"]["text"];
            assert_eq!(*said, format!("{site} {there} alice"), "{tool}");
            let other = if site == "one" { &two } else { &one };
            assert!(other.of("tools/call").is_empty() && other.of("prompts/get").is_empty());
        }
        for site in [&one, &two] {
            site.heard.forget();
        }
        for tool in [
            "a", "", "_a", "three_a", "One_a", "one-a", "onetwo_a", "one-two",
        ] {
            let told = caller.call(tool, json!({})).await;
            assert_eq!(told["error"]["code"], -32602, "{tool}: {told}");
            let told = caller.ask("prompts/get", json!({ "name": tool })).await;
            assert_eq!(told["error"]["code"], -32602, "{tool}: {told}");
        }
        assert!(one.heard.all().is_empty() && two.heard.all().is_empty());
        // Of an only upstream, names are what they are.
        let addr = before(&[&one]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        let told = caller.call("one_a", json!({})).await;
        assert_eq!(told["error"]["message"], "no tool one_a");
        assert_eq!(caller.list("prompts/list").await, ["greet"]);
    })
    .await;
}

async fn read(caller: &Caller, uri: &str) -> Value {
    let result = caller.ask("resources/read", json!({ "uri": uri })).await;
    match result["contents"][0]["text"].as_str() {
        Some(text) => {
            assert_eq!(result["contents"][0]["uri"], uri);
            json!(text)
        }
        None => result,
    }
}

#[tokio::test]
async fn a_resource_is_the_first_upstreams_that_lists_it() {
    bounded(async {
        let one = Site::start(
            "one",
            Offer {
                resources: vec!["file:///one"],
                ..Offer::default()
            },
        );
        let two = Site::start(
            "two",
            Offer {
                resources: vec!["file:///x", "file:///y", "file:///both"],
                templates: vec!["db://{table}/rows", "file:///one"],
                // On the last page.
                page: 1,
                ..Offer::default()
            },
        );
        let three = Site::start(
            "three",
            Offer {
                resources: vec!["file:///both", "db://known/rows"],
                templates: vec!["db://{table}/{part}", "{+anything}"],
                ..Offer::default()
            },
        );
        let (one, two, three) = futures_util::join!(one, two, three);
        let addr = before(&[&one, &two, &three]).await;
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            for (uri, owner) in [
                ("file:///one", "one"),
                ("file:///both", "two"),
                ("file:///y", "two"),
                ("db://a/rows", "two"),
                // A template comes first by its upstream, too.
                ("db://known/rows", "two"),
                ("db://a/columns", "three"),
            ] {
                assert_eq!(read(&caller, uri).await, format!("{owner} alice"), "{uri}");
            }
            for site in [&one, &two, &three] {
                site.heard.forget();
            }
            for uri in ["file:///none", "file:///bot", "db:/a/rows", "x://y", ""] {
                let told = read(&caller, uri).await;
                // MCP 2025-11-25, Resources, Error Handling; 2026-07-28 has another code for it.
                let code = if era == Era::Newest { -32602 } else { -32002 };
                assert_eq!(told["error"]["code"], code, "{uri}: {told}");
                let subscribed = caller
                    .ask("resources/subscribe", json!({ "uri": uri }))
                    .await;
                assert!(!subscribed["error"].is_null(), "{uri}: {subscribed}");
            }
            // They were asked what they have, and not for it.
            for site in [&one, &two, &three] {
                for heard in site.heard.all() {
                    let listing = ["resources/list", "resources/templates/list"];
                    assert!(
                        listing.contains(&&*heard.method),
                        "{}: {heard:?}",
                        site.name
                    );
                    assert!(heard.body["params"]["uri"].is_null());
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_resource_of_an_only_upstream_needs_no_list() {
    bounded(async {
        let one = Site::start("one", Offer::default()).await;
        let addr = before(&[&one]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        assert_eq!(read(&caller, "file:///any").await, "one alice");
        assert!(one.of("resources/list").is_empty());
    })
    .await;
}

#[tokio::test]
async fn completion_is_asked_where_the_prompt_or_the_resource_is() {
    bounded(async {
        let one = Site::start("one", Offer::default()).await;
        let two = Site::start(
            "two",
            Offer {
                templates: vec!["db://{table}/rows"],
                ..Offer::default()
            },
        )
        .await;
        let addr = before(&[&one, &two]).await;
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            let argument = json!({ "name": "x", "value": "y" });
            for (about, site, there) in [
                (
                    json!({ "type": "ref/prompt", "name": "one_greet" }),
                    "one",
                    json!({ "type": "ref/prompt", "name": "greet" }),
                ),
                // It is asked for by the template itself.
                (
                    json!({ "type": "ref/resource", "uri": "db://{table}/rows" }),
                    "two",
                    json!({ "type": "ref/resource", "uri": "db://{table}/rows" }),
                ),
            ] {
                let params = json!({ "ref": about, "argument": argument });
                let told = caller.ask("completion/complete", params).await;
                let values = &told["completion"]["values"];
                assert_eq!(values[0], site, "{told}");
                assert_eq!(values[1], "alice", "{told}");
                let asked: Value = serde_json::from_str(values[2].as_str().unwrap()).unwrap();
                assert_eq!(asked, there);
            }
            for about in [
                json!({ "type": "ref/prompt", "name": "greet" }),
                json!({ "type": "ref/resource", "uri": "db://{other}" }),
            ] {
                let params = json!({ "ref": about, "argument": argument });
                let told = caller.ask("completion/complete", params).await;
                assert!(!told["error"].is_null(), "{told}");
            }
        }
    })
    .await;
}

/// What an upstream without prompts, resources and the like says.
#[tokio::test]
async fn a_list_that_an_upstream_does_not_know_is_empty() {
    bounded(async {
        let one = Site::start("one", Offer::default()).await;
        let bare = support::RawUpstream::new(|request| {
            let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let result = match message["method"].as_str() {
                Some("initialize") => json!({
                    "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                    "serverInfo": { "name": "bare", "version": "1" },
                }),
                Some("tools/list") => json!({ "tools": [
                    { "name": "t", "inputSchema": { "type": "object" } },
                ] }),
                _ if message["id"].is_null() => {
                    return "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                        .into();
                }
                _ => Value::Null,
            };
            let mut answer = json!({ "jsonrpc": "2.0", "id": message["id"] });
            if result.is_null() {
                answer["error"] = json!({ "code": -32601, "message": "unknown" });
            } else {
                answer["result"] = result;
            }
            let body = answer.to_string();
            let length = body.len();
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n{body}"
            )
            .into()
        })
        .await;
        let bare = Upstream::builder("bare", bare.url("/mcp")).build().unwrap();
        let addr = front(&[bare.clone(), one.upstream()]).await;
        let alone = front(&[bare]).await;
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            let (prompts, result) = caller.page("prompts/list", None).await;
            assert_eq!(prompts, ["one_greet"]);
            assert!(result["_meta"]["mcp-forward/failed"].is_null(), "{result}");
            let tools = caller.list("tools/list").await;
            assert_eq!(tools, ["bare_t", "one_whoami", "one_for-alice"]);
            let caller = Caller::open(alone, era, "alice").await;
            assert!(caller.list("resources/list").await.is_empty());
            assert_eq!(caller.list("tools/list").await, ["t"]);
        }
    })
    .await;
}
