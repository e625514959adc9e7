//! `rmcp::Proxy`: one of several upstreams that is down, slow, or refuses; and all of them.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;
use mcp_forward::{
    Rule, Upstream,
    rmcp::{Factory, Proxy},
};
use proxy::{Caller, ERAS, Era, Offer, Site, bounded, front, front_of};
use serde_json::{Value, json};
use support::closed;
use tokio::net::TcpListener;

/// `first`, whatever else there is, and `third`; each takes the caller's token.
async fn sites() -> (Site, Site) {
    let first = Site::start("first", Offer::default()).await;
    (first, Site::start("third", Offer::default()).await)
}

fn upstream(site: &Site) -> Upstream {
    let upstream = site.builder().allow("x-user");
    let upstream = upstream.rule(Rule::new("x-token").to("authorization").bearer());
    upstream.build().unwrap()
}

fn second(addr: SocketAddr) -> Upstream {
    let upstream = Upstream::builder("second", format!("http://{addr}/mcp"));
    upstream.allow("x-user").build().unwrap()
}

/// Checks that the others' lists are whole, and say who is missing.
async fn without_second(caller: &Caller) {
    let (tools, result) = caller.page("tools/list", None).await;
    let expected = [
        "first_whoami",
        "first_for-alice",
        "third_whoami",
        "third_for-alice",
    ];
    assert_eq!(tools, expected, "{result}");
    assert_eq!(result["_meta"]["mcp-forward/failed"], json!(["second"]));
    assert_eq!(
        caller.call("third_whoami", json!({})).await["user"],
        "alice"
    );
}

#[tokio::test]
async fn an_upstream_that_is_down_is_named_in_the_list() {
    bounded(async {
        let (first, third) = sites().await;
        let (addr, _socket) = closed();
        let upstreams = [upstream(&first), second(addr), upstream(&third)];
        let addr = front(&upstreams).await;
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            without_second(&caller).await;
            // A call of its own is told what is wrong.
            let error = caller.call("second_whoami", json!({})).await;
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains("`second` cannot be reached"), "{error}");
        }
        // Whom nobody is missed by.
        let addr = front(&[upstream(&first), upstream(&third)]).await;
        let caller = Caller::open(addr, Era::Newest, "alice").await;
        let (_, result) = caller.page("tools/list", None).await;
        assert!(result["_meta"]["mcp-forward/failed"].is_null(), "{result}");
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_refuses_does_not_refuse_the_list() {
    bounded(async {
        let (first, third) = sites().await;
        let site = Site::start("second", Offer::default()).await;
        let addr = front(&[upstream(&first), upstream(&site), upstream(&third)]).await;
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            for era in ERAS {
                // Before there is a connection, and on one that was good.
                site.refuse(Some(status));
                let caller = Caller::open(addr, era, "alice").await;
                without_second(&caller).await;
                site.refuse(None);
                assert_eq!(
                    caller.call("second_whoami", json!({})).await["at"],
                    "second"
                );
                site.refuse(Some(status));
                without_second(&caller).await;
                // Of a call of its own the caller hears it.
                let refused = caller.call("second_whoami", json!({})).await;
                assert!(refused["lost"].is_string(), "{status}: {refused}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_rule_that_is_not_met_leaves_out_its_upstream_only() {
    bounded(async {
        let (first, third) = sites().await;
        let site = Site::start("second", Offer::default()).await;
        let strict = site.builder().rule(Rule::new("x-key").required());
        let addr = front(&[upstream(&first), strict.build().unwrap(), upstream(&third)]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        without_second(&caller).await;
        assert!(site.heard.all().is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_never_shakes_hands_is_left_out() {
    bounded(async {
        let (first, third) = sites().await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = silent.local_addr().unwrap();
        // Far more than the others take.
        let factory = Factory::builder().connect_timeout(Duration::from_secs(3));
        let upstreams = [upstream(&first), second(addr), upstream(&third)];
        let proxy = Proxy::new(&upstreams, factory.build().unwrap()).unwrap();
        let addr = front_of(&upstreams, proxy).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        without_second(&caller).await;
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_never_answers_is_left_out_and_told_so() {
    bounded(join_all(ERAS.map(|era| async move {
        let (first, third) = sites().await;
        let site = Site::start("second", Offer::default()).await;
        let upstreams = [upstream(&first), upstream(&site), upstream(&third)];
        let proxy = Proxy::new(&upstreams, Factory::builder().build().unwrap()).unwrap();
        // Far more than the others take.
        let proxy = proxy.list_timeout(Duration::from_secs(3));
        let caller = Caller::open(front_of(&upstreams, proxy).await, era, "alice").await;
        assert_eq!(caller.list("tools/list").await.len(), 6);
        site.offer(|offer| offer.stuck = true);
        without_second(&caller).await;
        let cancelled = |all: &[String]| all.contains(&"cancelled alice".to_owned());
        site.events.wait("cancellation", cancelled).await;
    })))
    .await;
}

/// What a POST of bare HTTP is answered: the status, and the challenge.
async fn post(addr: SocketAddr, session: Option<&str>, message: &Value) -> reqwest::Response {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = http
        .post(format!("http://{addr}/mcp"))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("x-user", "alice")
        .header("x-token", "expired");
    if let Some(session) = session {
        request = request.header("mcp-session-id", session);
    } else if message["method"] != "initialize" {
        let method = message["method"].as_str().unwrap();
        request = request
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", method);
        let params = &message["params"];
        if let Some(name) = params["name"].as_str().or(params["uri"].as_str()) {
            request = request.header("mcp-name", name);
        }
    }
    request.body(message.to_string()).send().await.unwrap()
}

async fn begin(addr: SocketAddr) -> String {
    let message = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": { "name": "raw", "version": "1" },
    } });
    let answer = post(addr, None, &message).await;
    let id = answer.headers()["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(post(addr, Some(&id), &initialized).await.status(), 202);
    id
}

/// Checks that the message is answered with `status` and our challenge, in a session and without one.
async fn refused(addr: SocketAddr, status: StatusCode, method: &str, params: &Value) {
    let session = begin(addr).await;
    for session in [Some(&*session), None] {
        let mut params = params.clone();
        if session.is_none() {
            params["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "raw", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            });
        }
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = post(addr, session, &message).await;
        assert_eq!(answer.status(), status, "{method} {session:?}");
        if status == StatusCode::UNAUTHORIZED {
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
            assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        }
    }
}

#[tokio::test]
async fn where_all_refuse_the_caller_is_refused() {
    bounded(async {
        for newest in [false, true] {
            let offer = Offer {
                newest,
                ..Offer::default()
            };
            let first = Site::start("first", offer.clone()).await;
            let third = Site::start("third", offer).await;
            let addr = front(&[upstream(&first), upstream(&third)]).await;
            let alone = front(&[upstream(&first)]).await;
            for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
                for it in [&first, &third] {
                    it.refuse(Some(status));
                }
                for (method, params) in [
                    ("tools/list", json!({})),
                    ("prompts/list", json!({})),
                    (
                        "tools/call",
                        json!({ "name": "first_whoami", "arguments": {} }),
                    ),
                ] {
                    refused(addr, status, method, &params).await;
                    if method != "tools/call" {
                        refused(alone, status, method, &params).await;
                    }
                }
                for it in [&first, &third] {
                    it.refuse(None);
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn where_none_answers_and_one_refuses_the_caller_is_refused() {
    bounded(async {
        let first = Site::start("first", Offer::default()).await;
        let (addr, _socket) = closed();
        let down = second(addr);
        let addr = front(&[down.clone(), upstream(&first)]).await;
        first.refuse(Some(StatusCode::UNAUTHORIZED));
        refused(addr, StatusCode::UNAUTHORIZED, "tools/list", &json!({})).await;
        // Where nobody refuses, there is an error.
        let addr = front(&[down]).await;
        let caller = Caller::open(addr, Era::Sessions, "alice").await;
        let error = caller.ask("tools/list", json!({})).await;
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("`second` cannot be reached"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn the_owner_of_a_resource_may_be_one_that_did_not_say() {
    bounded(async {
        let resources = vec!["file:///r"];
        let offer = Offer {
            resources,
            ..Offer::default()
        };
        let first = Site::start("first", offer).await;
        let site = Site::start("third", Offer::default()).await;
        let (addr, _socket) = closed();
        let down = second(addr);
        let addr = front(&[down, upstream(&first)]).await;
        let refusing = front(&[upstream(&site), upstream(&first)]).await;
        site.refuse(Some(StatusCode::UNAUTHORIZED));
        for era in ERAS {
            let caller = Caller::open(addr, era, "alice").await;
            let read = caller
                .ask("resources/read", json!({ "uri": "file:///r" }))
                .await;
            assert_eq!(read["contents"][0]["text"], "first alice", "{read}");
            let read = caller
                .ask("resources/read", json!({ "uri": "file:///x" }))
                .await;
            let message = read["error"]["message"].as_str().unwrap();
            assert!(message.contains("`second` cannot be reached"), "{read}");
            // Where it is a refusal, the caller can do something about it.
            let caller = Caller::open(refusing, era, "alice").await;
            let read = caller
                .ask("resources/read", json!({ "uri": "file:///x" }))
                .await;
            assert!(read["lost"].is_string(), "{read}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_an_upstream_that_refuses_may_own_is_asked_nowhere_else() {
    bounded(async {
        let uri = "file:///secret";
        let owner = Offer {
            resources: vec![uri],
            ..Offer::default()
        };
        for newest in [false, true] {
            let owner = Site::start(
                "owner",
                Offer {
                    newest,
                    ..owner.clone()
                },
            )
            .await;
            let offer = Offer {
                newest,
                resources: vec![uri],
                templates: vec!["file:///{+any}"],
                ..Offer::default()
            };
            let other = Site::start("other", offer).await;
            let addr = front(&[upstream(&owner), upstream(&other)]).await;
            let reversed = front(&[upstream(&other), upstream(&owner)]).await;
            for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
                owner.refuse(Some(status));
                let reference = json!({ "type": "ref/resource", "uri": uri });
                let argument = json!({ "name": "any", "value": "secret" });
                for (method, params) in [
                    ("resources/read", json!({ "uri": uri })),
                    (
                        "completion/complete",
                        json!({ "ref": reference, "argument": argument }),
                    ),
                ] {
                    refused(addr, status, method, &params).await;
                    assert!(other.of(method).is_empty(), "{status} {method}");
                }
                let subscribing = Caller::open(addr, Era::Sessions, "alice").await;
                for method in ["resources/subscribe", "resources/unsubscribe"] {
                    let told = subscribing.ask(method, json!({ "uri": uri })).await;
                    assert!(told["lost"].is_string(), "{method}: {told}");
                }
                let wanted = json!({ "resourceSubscriptions": [uri] });
                let wanted = serde_json::from_value(wanted).unwrap();
                let listening = Caller::open(addr, Era::Newest, "alice").await;
                if let Ok(mut heard) = listening.client.listen(wanted).await {
                    assert!(heard.next().await.is_err());
                }
                // Whoever stands before it has it.
                for era in ERAS {
                    let caller = Caller::open(reversed, era, "alice").await;
                    let read = caller.ask("resources/read", json!({ "uri": uri })).await;
                    assert_eq!(read["contents"][0]["text"], "other alice", "{read}");
                }
                owner.refuse(None);
                let events = other.events.all();
                let heard = |it: &String| {
                    let heard = ["subscribe", "unsubscribe", "listen"];
                    heard.iter().any(|what| it.starts_with(what))
                };
                assert!(!events.iter().any(heard), "{status}: {events:?}");
                let read = subscribing
                    .ask("resources/read", json!({ "uri": uri }))
                    .await;
                assert_eq!(read["contents"][0]["text"], "owner alice", "{read}");
                other.heard.forget();
            }
            // Nor where there is nothing to ask the owner with.
            let plain = other.builder().allow("x-user").build().unwrap();
            let addr = front(&[upstream(&owner), plain]).await;
            for era in ERAS {
                let lines = [("x-user", "alice"), ("x-token", "no token")];
                let caller = Caller::with(addr, era, "alice", &lines).await;
                let read = caller.ask("resources/read", json!({ "uri": uri })).await;
                assert!(read["contents"].is_null(), "{read}");
                assert!(other.of("resources/read").is_empty());
            }
        }
    })
    .await;
}

/// More than rmcp reads of an answer that is no success.
#[tokio::test]
async fn a_refusal_with_a_large_body_is_one() {
    bounded(async {
        for newest in [false, true] {
            for method in ["initialize", "tools/call"] {
                let offer = Offer {
                    newest,
                    ..Offer::default()
                };
                let site = Site::start("one", offer).await;
                let addr = front(&[upstream(&site)]).await;
                for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
                    site.answer(move |heard| {
                        let handshake = ["initialize", "server/discover"];
                        let refuses = if method == "initialize" {
                            handshake.contains(&&*heard.method)
                        } else {
                            heard.method == method
                        };
                        refuses.then(|| (status.as_u16(), json!("x".repeat(70_000))))
                    });
                    let params = json!({ "name": "whoami", "arguments": {} });
                    refused(addr, status, "tools/call", &params).await;
                }
            }
        }
    })
    .await;
}
