//! `rmcp::Proxy`: what an upstream asks reaches the caller of the call that it belongs to.
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
use mcp_forward::Upstream;
use proxy::{Caller, Era, Offer, Site, bounded, elicitation, front, roots, sampling};
use serde_json::{Value, json};

/// Two upstreams that have sessions; where they are `newest`, they speak 2026-07-28 as well.
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

/// Checks what came back, from the caller's own answer.
async fn asks_its_caller(caller: &Caller, site: &str, text: &str) {
    let name = &caller.name;
    let told = caller
        .call(&format!("{site}_elicit"), json!({ "text": text }))
        .await;
    let expected = json!({ "action": "accept", "content": { "by": name, "to": text } });
    assert_eq!(told, expected);
    let told = caller
        .call(&format!("{site}_sample"), json!({ "text": text }))
        .await;
    assert_eq!(told["model"], **name, "{told}");
    assert_eq!(told["content"]["text"], text, "{told}");
    let told = caller.call(&format!("{site}_roots"), json!({})).await;
    assert_eq!(told["roots"][0]["uri"], format!("file:///{name}"), "{told}");
}

#[tokio::test]
async fn two_callers_at_once_are_each_asked_what_is_theirs() {
    bounded(async {
        for newest in [false, true] {
            let (.., addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            let asked = [&alice, &bob].into_iter().flat_map(|caller| {
                (0..10).map(move |turn| async move {
                    for site in ["one", "two"] {
                        asks_its_caller(caller, site, &format!("{} {site} {turn}", caller.name))
                            .await;
                    }
                })
            });
            join_all(asked).await;
            for caller in [&alice, &bob] {
                let asked = caller.ears.asked.all();
                assert_eq!(asked.len(), 60);
                for question in asked {
                    let text = &question["params"]["message"];
                    let text = text
                        .as_str()
                        .or_else(|| question["params"]["messages"][0]["content"]["text"].as_str());
                    let owner = text.map(|text| text.split(' ').next().unwrap());
                    assert!(owner.is_none_or(|it| it == caller.name), "{question}");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn both_are_asked_while_neither_has_answered() {
    bounded(async {
        for newest in [false, true] {
            let (.., addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            let silences = [
                alice.ears.silent.clone().lock_owned().await,
                bob.ears.silent.clone().lock_owned().await,
            ];
            let ask = |caller: &'static str| json!({ "text": caller });
            let asking = async {
                futures_util::join!(
                    alice.call("one_elicit", ask("for alice")),
                    bob.call("one_elicit", ask("for bob")),
                    alice.call("two_sample", ask("also for alice")),
                )
            };
            let answering = async {
                alice
                    .ears
                    .asked
                    .wait("questions", |all| all.len() == 2)
                    .await;
                bob.ears.asked.wait("question", |all| all.len() == 1).await;
                drop(silences);
            };
            let ((first, second, third), ()) = futures_util::join!(asking, answering);
            assert_eq!(
                first["content"],
                json!({ "by": "alice", "to": "for alice" })
            );
            assert_eq!(second["content"], json!({ "by": "bob", "to": "for bob" }));
            assert_eq!(third["content"]["text"], "also for alice");
            assert_eq!(third["model"], "alice");
        }
    })
    .await;
}

#[tokio::test]
async fn what_belongs_to_no_call_is_asked_in_the_session_that_owns_the_connection() {
    bounded(async {
        for newest in [false, true] {
            let (one, _, addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            alice.list("tools/list").await;
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            // The newest session of the upstream is the one of whoever came last.
            for caller in [&bob] {
                caller.list("tools/list").await;
                one.events.wait("sessions", |all| all.len() == 2).await;
                let told = one.ask(elicitation("anybody?")).await;
                assert_eq!(told["content"]["by"], *caller.name, "{told}");
                let told = one.ask(sampling("hm")).await;
                assert_eq!(told["model"], *caller.name, "{told}");
                let told = one.ask(roots()).await;
                assert_eq!(told["roots"][0]["uri"], "file:///bob", "{told}");
            }
            assert!(alice.ears.asked.all().is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn where_nobody_can_be_asked_the_upstream_is_told_so() {
    bounded(async {
        let (one, _, addr) = two(false).await;
        // In 2026-07-28 there is no session to ask in.
        let caller = Caller::open(addr, Era::Newest, "alice").await;
        for tool in ["one_elicit", "one_sample", "one_roots"] {
            let told = caller.call(tool, json!({ "text": "?" })).await;
            assert!(
                told["error"].is_number() || told["error"].is_string(),
                "{tool}: {told}"
            );
        }
        for question in [elicitation("?"), sampling("?"), roots()] {
            let told = one.ask(question).await;
            assert!(!told["error"].is_null(), "{told}");
        }
        assert!(caller.ears.asked.all().is_empty());
        let declared = &one.of("initialize")[0].body["params"]["capabilities"];
        assert_eq!(*declared, json!({}));
    })
    .await;
}

#[tokio::test]
async fn an_upstream_is_told_that_the_roots_have_changed() {
    bounded(async {
        for newest in [false, true] {
            let (one, two, addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            alice.list("tools/list").await;
            bob.list("tools/list").await;
            let changed = json!({ "method": "notifications/roots/list_changed" });
            let changed = serde_json::from_value(changed).unwrap();
            alice.client.send_notification(changed).await.unwrap();
            for site in [&one, &two] {
                let told = |all: &[String]| all.contains(&"roots changed alice".to_owned());
                let all = site.events.wait("roots", told).await;
                assert!(!all.contains(&"roots changed bob".to_owned()));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_of_2026_07_28_asks_by_its_result() {
    bounded(async {
        let newest = Offer {
            newest: true,
            ..Offer::default()
        };
        let site = Site::start("one", newest).await;
        let upstreams: [Upstream; 1] = [site.upstream()];
        let addr = front(&upstreams).await;
        let caller = Caller::open(addr, Era::Newest, "alice").await;
        // rmcp's client answers, and calls again.
        let params = serde_json::from_value(json!({ "name": "mrtr", "arguments": {} })).unwrap();
        let told = caller.client.call_tool(params).await.unwrap();
        let told = &told.content[0].as_text().unwrap().text;
        let told: Value = serde_json::from_str(told).unwrap();
        assert_eq!(told["answers"]["who"]["content"]["by"], "alice", "{told}");
        assert_eq!(told["state"], "of one");
        // It may ask what this caller has declared, and nothing else.
        for heard in site.of("tools/call") {
            let declared = &heard.body["params"]["_meta"];
            let declared = &declared["io.modelcontextprotocol/clientCapabilities"];
            let expected = json!({
                "elicitation": {}, "sampling": {}, "roots": { "listChanged": true },
            });
            assert_eq!(*declared, expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_prompt_and_a_resource_may_ask_by_their_result_as_well() {
    bounded(async {
        let newest = Offer {
            newest: true,
            resources: vec!["file:///r"],
            ..Offer::default()
        };
        let site = Site::start("one", newest).await;
        site.answer(|heard| {
            let asks = ["prompts/get", "resources/read"].contains(&&*heard.method)
                && heard.body["params"]["inputResponses"].is_null();
            let result = json!({
                "resultType": "input_required",
                "inputRequests": { "who": elicitation("who?") },
                "requestState": "of one",
            });
            let id = &heard.body["id"];
            asks.then(|| (200, json!({ "jsonrpc": "2.0", "id": id, "result": result })))
        });
        let upstreams: [Upstream; 1] = [site.upstream()];
        let caller = Caller::open(front(&upstreams).await, Era::Newest, "alice").await;
        let prompt = serde_json::from_value(json!({ "name": "greet" })).unwrap();
        caller.client.get_prompt(prompt).await.unwrap();
        let resource = serde_json::from_value(json!({ "uri": "file:///r" })).unwrap();
        caller.client.read_resource(resource).await.unwrap();
        for method in ["prompts/get", "resources/read"] {
            let heard = site.of(method);
            assert_eq!(heard.len(), 2, "{method}");
            let params = &heard[1].body["params"];
            let answered = &params["inputResponses"]["who"]["content"]["by"];
            assert_eq!(answered, "alice", "{params}");
            assert_eq!(params["requestState"], "of one");
        }
    })
    .await;
}

/// Reads an event stream up to the message that `wanted` accepts.
async fn event(stream: &mut reqwest::Response, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut text = String::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut messages = lines.filter_map(|line| serde_json::from_str(line).ok());
        if let Some(found) = messages.find(&wanted) {
            return found;
        }
    }
    panic!("the stream ended: {text}");
}

#[tokio::test]
async fn a_question_comes_in_the_answer_to_the_call_that_it_belongs_to() {
    bounded(async {
        for newest in [false, true] {
            let (.., addr) = two(newest).await;
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            let post = |session: &str, message: Value| {
                let request = http
                    .post(format!("http://{addr}/mcp"))
                    .header("content-type", "application/json")
                    .header("accept", "application/json, text/event-stream")
                    .header("x-user", "alice");
                let request = match session {
                    "" => request,
                    session => request.header("mcp-session-id", session),
                };
                request.body(message.to_string()).send()
            };
            let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": { "elicitation": {} },
            "clientInfo": { "name": "raw", "version": "1" },
        } });
            let answer = post("", initialize).await.unwrap();
            let session = answer.headers()["mcp-session-id"].to_str().unwrap();
            let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
            post(session, initialized).await.unwrap();

            // There is no other stream, and each call has its own.
            let call = |id: u64| {
                let params =
                    json!({ "name": "one_elicit", "arguments": { "text": format!("of {id}") } });
                post(
                    session,
                    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }),
                )
            };
            let mut streams = [call(1).await.unwrap(), call(2).await.unwrap()];
            for (stream, id) in streams.iter_mut().zip([1, 2]) {
                let asked = event(stream, |it| it["method"] == "elicitation/create").await;
                assert_eq!(asked["params"]["message"], format!("of {id}"), "{asked}");
                let answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": {
                "action": "accept", "content": { "answer": id },
            } });
                assert_eq!(post(session, answer).await.unwrap().status(), 202);
                let result = event(stream, |it| it["id"] == id && it["result"].is_object()).await;
                let told = result["result"]["content"][0]["text"].as_str().unwrap();
                let told: Value = serde_json::from_str(told).unwrap();
                assert_eq!(told["content"]["answer"], id, "{result}");
            }
        }
    })
    .await;
}
