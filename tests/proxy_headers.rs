//! `rmcp::Proxy`: each upstream receives exactly its own headers, and each caller's; and its own names.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;

use mcp_forward::Rule;
use proxy::{Caller, ERAS, Era, Offer, Site, bounded, front};
use serde_json::json;

/// What a request has besides its transport's own headers.
fn carried(heard: &proxy::Heard) -> Vec<String> {
    let lines = heard.headers.iter();
    let mut lines: Vec<_> = lines
        .filter(|(name, _)| name.as_str().starts_with("x-") || *name == "authorization")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn two_upstreams_each_receive_their_own_headers() {
    bounded(async {
        for newest in [false, true] {
            let offer = Offer {
                newest,
                resources: vec!["file:///r"],
                ..Offer::default()
            };
            let github = Site::start("github", offer.clone()).await;
            let search = Site::start("search", offer).await;
            let upstreams = [
                github
                    .builder()
                    .rule(
                        Rule::new("x-github-token")
                            .to("authorization")
                            .bearer()
                            .required(),
                    )
                    .set("x-proxy", "edge-1")
                    .build()
                    .unwrap(),
                search
                    .builder()
                    .allow("x-user")
                    .rule(Rule::new("x-search-token").to("x-key"))
                    .build()
                    .unwrap(),
            ];
            for era in ERAS {
                let addr = front(&upstreams).await;
                let lines = [
                    ("x-github-token", "gh"),
                    ("x-search-token", "se"),
                    ("x-user", "alice"),
                    ("x-other", "nobody's"),
                ];
                let caller = Caller::with(addr, era, "alice", &lines).await;
                github.heard.forget();
                search.heard.forget();
                for list in [
                    "tools/list",
                    "prompts/list",
                    "resources/list",
                    "resources/templates/list",
                ] {
                    caller.page(list, None).await;
                }
                for tool in ["github_whoami", "search_whoami"] {
                    let told = caller.call(tool, json!({})).await;
                    assert_eq!(told["at"], tool.split_once('_').unwrap().0, "{told}");
                }
                caller
                    .ask("resources/read", json!({ "uri": "file:///r" }))
                    .await;
                caller
                    .ask("prompts/get", json!({ "name": "search_greet" }))
                    .await;
                for (site, expected) in [
                    (&github, &["authorization: Bearer gh", "x-proxy: edge-1"]),
                    (&search, &["x-key: se", "x-user: alice"]),
                ] {
                    let heard = site.heard.all();
                    for method in ["tools/list", "tools/call", "resources/list"] {
                        let any = heard.iter().any(|it| it.method == method);
                        assert!(any, "{}: no {method}", site.name);
                    }
                    for heard in heard {
                        assert_eq!(carried(&heard), expected, "{}: {heard:?}", site.name);
                    }
                }
            }
        }
    })
    .await;
}

/// What the upstream hears of a call of its tool, and of a prompt, for each protocol on both sides; and
/// whether in 2026-07-28.
async fn asked_by_name(arguments: &serde_json::Value, check: impl Fn(bool, [&proxy::Heard; 2])) {
    for newest in [false, true] {
        let offer = Offer {
            newest,
            ..Offer::default()
        };
        let one = Site::start("one", offer.clone()).await;
        let two = Site::start("two", offer).await;
        for era in ERAS {
            let addr = front(&[one.upstream(), two.upstream()]).await;
            let caller = Caller::open(addr, era, "alice").await;
            one.heard.forget();
            caller.call("one_whoami", arguments.clone()).await;
            let prompt = json!({ "name": "one_greet" });
            caller.ask("prompts/get", prompt).await;
            let (calls, prompts) = (one.of("tools/call"), one.of("prompts/get"));
            assert_eq!((calls.len(), prompts.len()), (1, 1), "{era:?}");
            // A caller in a session is spoken for as in one.
            let newest = newest && matches!(era, Era::Newest);
            check(newest, [&calls[0], &prompts[0]]);
        }
    }
}

#[tokio::test]
async fn f11_the_header_has_the_upstreams_own_name_for_a_tool() {
    bounded(asked_by_name(&json!({}), |newest, heard| {
        // A caller of the newest protocol says `mcp-name: one_whoami`.
        let names = heard.map(|it| it.header("mcp-name"));
        let expected = ["whoami", "greet"].map(|name| newest.then_some(name));
        assert_eq!(names, expected);
    }))
    .await;
}

#[tokio::test]
async fn n6_only_the_name_of_the_tool_is_changed() {
    let arguments = json!({
        "name": "one_whoami", "\"name\":\"one_whoami\"": ["one_whoami", "whoami"],
    });
    let expected = arguments.clone();
    bounded(asked_by_name(&arguments, move |_, [call, prompt]| {
        let params = &call.body["params"];
        assert_eq!(params["name"], "whoami");
        assert_eq!(params["arguments"], expected);
        assert_eq!(prompt.body["params"]["name"], "greet");
    }))
    .await;
}
