//! `rmcp::Proxy`: what happens during a call, and what belongs to no upstream alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;

use std::net::SocketAddr;

use futures_util::future::join_all;
use proxy::{Caller, ERAS, Era, Offer, Site, answer, bounded, front, log, request};
use rmcp::service::PeerRequestOptions;
use serde_json::{Value, json};

async fn two(newest: bool) -> (Site, Site, SocketAddr) {
    let offer = Offer {
        newest,
        ..Offer::default()
    };
    let one = Site::start("one", offer.clone()).await;
    let two = Site::start("two", offer).await;
    let addr = front(&[one.upstream(), two.upstream()]).await;
    (one, two, addr)
}

/// A call, and what was told about it under its own progress token, in order.
async fn with_progress(caller: &Caller, tool: &str, text: &str) -> (Value, Vec<Value>) {
    let params = json!({ "name": tool, "arguments": { "steps": 20, "text": text } });
    let options = PeerRequestOptions::no_options();
    let sent = caller
        .client
        .send_cancellable_request(request("tools/call", params), options);
    let handle = sent.await.unwrap();
    let token = serde_json::to_value(&handle.progress_token).unwrap();
    let result = answer(handle.await_response().await);
    // Whatever came before the result was told before it.
    let told = caller.ears.told.all().into_iter();
    let mine = told.filter(|it| it["params"]["progressToken"] == token);
    (result, mine.map(|it| it["params"].clone()).collect())
}

#[tokio::test]
async fn progress_comes_in_order_before_the_result_under_the_callers_own_token() {
    bounded(async {
        for newest in [false, true] {
            let (.., addr) = two(newest).await;
            for era in ERAS {
                let alice = Caller::open(addr, era, "alice").await;
                let bob = Caller::open(addr, era, "bob").await;
                // So that the tokens of both hops differ at `one`.
                for caller in [&alice, &bob] {
                    for _ in 0..5 {
                        caller.call("two_whoami", json!({})).await;
                    }
                }
                let calls = [&alice, &bob].into_iter().flat_map(|caller| {
                    ["one_progress", "two_progress", "one_progress"]
                        .into_iter()
                        .enumerate()
                        .map(move |(turn, tool)| async move {
                            let text = format!("{} {turn}", caller.name);
                            let (result, told) = with_progress(caller, tool, &text).await;
                            let issued = result["content"][0]["text"].as_str().unwrap();
                            let issued: Value = serde_json::from_str(issued).unwrap();
                            let own = &told[0]["progressToken"];
                            assert!(tool == "two_progress" || issued["token"] != *own, "{own}");
                            let steps: Vec<_> = told
                                .iter()
                                .map(|it| it["progress"].as_f64().unwrap())
                                .collect();
                            let expected: Vec<_> = (1..=20).map(f64::from).collect();
                            assert_eq!(steps, expected, "{newest} {era:?} {text}");
                            assert!(told.iter().all(|it| it["message"] == *text), "{told:?}");
                        })
                });
                join_all(calls).await;
                for caller in [&alice, &bob] {
                    assert_eq!(caller.ears.told.all().len(), 60, "{newest} {era:?}");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_upstream() {
    bounded(async {
        for newest in [false, true] {
            let (one, two, addr) = two(newest).await;
            for era in ERAS {
                let alice = Caller::open(addr, era, "alice").await;
                let bob = Caller::open(addr, era, "bob").await;
                for site in [&one, &two] {
                    site.events.forget();
                }
                let holding = |caller: &Caller| {
                    let params = json!({ "name": "one_hold", "arguments": {} });
                    let call = request("tools/call", params);
                    let options = PeerRequestOptions::no_options();
                    let peer = caller.client.peer().clone();
                    async move { peer.send_cancellable_request(call, options).await.unwrap() }
                };
                let (cancelled, kept) = (holding(&alice).await, holding(&bob).await);
                let held = |all: &[String]| {
                    ["holding alice", "holding bob"]
                        .iter()
                        .all(|it| all.iter().any(|event| event == it))
                };
                one.events.wait("calls", held).await;
                cancelled
                    .cancel(Some("changed my mind".to_owned()))
                    .await
                    .unwrap();
                let gone = |all: &[String]| all.iter().any(|it| it == "cancelled alice");
                one.events.wait("cancellation", gone).await;
                // Nobody else's call.
                one.release();
                let result = answer(kept.await_response().await);
                assert!(
                    result["content"][0]["text"]
                        .as_str()
                        .unwrap()
                        .contains("bob")
                );
                let all = one.events.all();
                assert!(
                    !all.contains(&"cancelled bob".to_owned()),
                    "{era:?}: {all:?}"
                );
                // The caller goes on.
                assert_eq!(alice.call("one_whoami", json!({})).await["user"], "alice");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_caller_who_goes_cancels_at_the_upstream() {
    bounded(async {
        for newest in [false, true] {
            let (one, _, addr) = two(newest).await;
            // Of 2026-07-28 a closed response is all that there is; a session ends by itself.
            for era in ERAS {
                one.events.forget();
                let alice = Caller::open(addr, era, "alice").await;
                let peer = alice.client.peer().clone();
                let call = tokio::spawn(async move {
                    let params = json!({ "name": "one_hold", "arguments": {} });
                    peer.send_request(request("tools/call", params)).await
                });
                let held = |all: &[String]| all.iter().any(|it| it == "holding alice");
                one.events.wait("call", held).await;
                alice.client.cancel().await.unwrap();
                let gone = |all: &[String]| all.iter().any(|it| it == "cancelled alice");
                one.events.wait("cancellation", gone).await;
                drop(call.await);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn log_messages_go_to_the_caller_of_their_call_and_to_the_session() {
    bounded(async {
        for newest in [false, true] {
            let (one, _, addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            futures_util::join!(
                alice.call("one_log", json!({ "text": "for alice" })),
                bob.call("one_log", json!({ "text": "for bob" })),
            );
            for (caller, text) in [(&alice, "for alice"), (&bob, "for bob")] {
                let said = |all: &[Value]| !all.is_empty();
                let told = caller.ears.told.wait("log message", said).await;
                assert_eq!(told.len(), 1, "{told:?}");
                assert_eq!(told[0]["method"], "notifications/message");
                assert_eq!(told[0]["params"]["data"], text);
            }
            // What is said between calls is for whoever has the session.
            one.say(log("for all")).await;
            for caller in [&alice, &bob] {
                let said = |all: &[Value]| all.iter().any(|it| it["params"]["data"] == "for all");
                caller.ears.told.wait("log message", said).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_of_2026_07_28_says_what_is_logged_of_it() {
    bounded(async {
        let (one, _, addr) = two(true).await;
        let alice = Caller::open(addr, Era::Newest, "alice").await;
        let mut call = request(
            "tools/call",
            json!({ "name": "one_log", "arguments": {
            "text": "for alice",
        } }),
        );
        let level = serde_json::from_value(json!("info")).unwrap();
        rmcp::model::GetMeta::get_meta_mut(&mut call).set_log_level(level);
        alice.client.send_request(call).await.unwrap();
        let told = alice.ears.told.all();
        assert_eq!(told.len(), 1, "before the result: {told:?}");
        assert_eq!(told[0]["params"]["data"], "for alice");
        let meta = &one.of("tools/call")[0].body["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/logLevel"], "info", "{meta}");
        let client = &meta["io.modelcontextprotocol/clientInfo"];
        assert_eq!(client["name"], "mcp-forward", "{meta}");
    })
    .await;
}

#[tokio::test]
async fn the_level_is_set_everywhere() {
    bounded(async {
        for newest in [false, true] {
            let (one, two, addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            let set = alice
                .ask("logging/setLevel", json!({ "level": "error" }))
                .await;
            assert_eq!(set, json!({}));
            for site in [one, two] {
                let events = site.events.all();
                assert!(
                    events.contains(&"level \"error\" alice".to_owned()),
                    "{events:?}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_proxy_answers_a_ping_itself() {
    bounded(async {
        let (one, two, addr) = two(false).await;
        let alice = Caller::open(addr, Era::Sessions, "alice").await;
        assert_eq!(alice.ask("ping", json!({})).await, json!({}));
        assert!(one.heard.all().is_empty() && two.heard.all().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_method_that_nobody_knows_is_for_the_only_upstream() {
    bounded(async {
        let (one, two, addr) = two(false).await;
        let alone = front(&[one.upstream()]).await;
        let alice = Caller::open(alone, Era::Sessions, "alice").await;
        let told = alice.ask("x/custom", json!({ "deep": [1, 2] })).await;
        let expected = json!({
            "at": "one", "method": "x/custom", "params": { "deep": [1, 2] }, "user": "alice",
        });
        assert_eq!(told, expected);
        one.heard.forget();
        let alice = Caller::open(addr, Era::Sessions, "alice").await;
        let told = alice.ask("x/custom", json!({})).await;
        assert_eq!(told["error"]["code"], -32601, "{told}");
        assert!(one.heard.all().is_empty() && two.heard.all().is_empty());
    })
    .await;
}

/// rmcp takes a message that it cannot read for one of a method that nobody knows.
#[tokio::test]
async fn a_message_that_cannot_be_read_reaches_nobody() {
    bounded(async {
        let (one, two, both) = two(false).await;
        let alone = front(&[one.upstream()]).await;
        for addr in [alone, both] {
            for era in ERAS {
                let alice = Caller::open(addr, era, "alice").await;
                for (method, params) in [
                    ("tools/call", json!({ "name": "whoami", "requestState": 7 })),
                    ("prompts/get", json!({ "name": "greet", "arguments": 7 })),
                    ("resources/read", json!({})),
                    ("resources/subscribe", json!({})),
                    ("resources/unsubscribe", json!({})),
                    ("resources/directory/read", json!({})),
                    ("completion/complete", json!({})),
                    ("logging/setLevel", json!({ "level": "loud" })),
                    ("subscriptions/listen", json!({ "notifications": 7 })),
                    ("tasks/get", json!({})),
                    ("tasks/update", json!({})),
                    ("tasks/cancel", json!({})),
                    ("skills/get", json!({})),
                ] {
                    let told = alice.ask(method, params).await;
                    assert_eq!(told["error"]["code"], -32602, "{era:?} {method}: {told}");
                    assert!(one.of(method).is_empty() && two.of(method).is_empty());
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstreams_own_error_comes_as_it_is() {
    bounded(async {
        let (.., addr) = two(false).await;
        for era in ERAS {
            let alice = Caller::open(addr, era, "alice").await;
            let told = alice.call("one_fail", json!({ "text": "data" })).await;
            let expected = json!({ "code": -32602, "message": "no such luck", "data": "data" });
            assert_eq!(told["error"], expected);
        }
    })
    .await;
}

#[tokio::test]
async fn what_the_caller_says_of_a_message_goes_to_the_upstream() {
    bounded(async {
        for newest in [false, true] {
            let (.., addr) = two(newest).await;
            for era in ERAS {
                let alice = Caller::open(addr, era, "alice").await;
                let call = request("tools/call", json!({
                    "name": "one_meta", "arguments": {}, "_meta": { "traceparent": "00-1-2-01" },
                }));
                let told = answer(alice.client.send_request(call).await);
                let told = told["content"][0]["text"].as_str().unwrap();
                let meta: Value = serde_json::from_str(told).unwrap();
                assert_eq!(meta["traceparent"], "00-1-2-01", "{meta}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_of_one_caller_is_cached_for_another() {
    bounded(async {
        for newest in [false, true] {
            let (one, two, addr) = two(newest).await;
            let alone = front(&[one.upstream()]).await;
            for era in ERAS {
                for (addr, prefix) in [(addr, "one_"), (alone, "")] {
                    // Each says for how long, and for whom, its list may be kept: an hour, everybody.
                    for name in ["alice", "bob", "alice"] {
                        let caller = Caller::open(addr, era, name).await;
                        for _ in 0..2 {
                            let before = one.of("tools/list").len();
                            let tools = caller.ask("tools/list", json!({})).await;
                            let tools = tools["tools"].to_string();
                            assert!(
                                tools.contains(&format!("\"{prefix}for-{name}\"")),
                                "{tools}"
                            );
                            assert_eq!(
                                tools.matches("for-").count(),
                                if prefix.is_empty() { 1 } else { 2 }
                            );
                            assert_eq!(one.of("tools/list").len(), before + 1);
                        }
                    }
                }
            }
            assert!(!two.of("tools/list").is_empty());
        }
    })
    .await;
}
