//! `rmcp::Proxy`: many callers at once, every sort of call, and no answer at the wrong one.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;

use std::sync::Arc;

use proxy::{Caller, ERAS, Era, Offer, Site, front};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const CALLERS: usize = 64;
/// In a debug build, of which rmcp makes little haste, fewer than in a release build.
const CALLS: usize = if cfg!(debug_assertions) { 50 } else { 200 };

/// What is wrong with the answer to this caller's `turn`th call.
async fn mismatch(caller: &Caller, era: Era, turn: usize) -> Option<String> {
    let name = &caller.name;
    let site = if turn.is_multiple_of(2) { "one" } else { "two" };
    let text = format!("{name}-{turn}");
    let (told, expected) = match turn % 10 {
        0 | 1 => {
            let tools = caller.list("tools/list").await;
            let mine = tools.iter().filter(|it| it.contains("_for-"));
            let mine: Vec<_> = mine.cloned().collect();
            let expected = json!([format!("one_for-{name}"), format!("two_for-{name}")]);
            (json!(mine), expected)
        }
        2 => {
            let params = json!({ "name": format!("{site}_greet") });
            let told = caller.ask("prompts/get", params).await;
            let said = told["messages"][0]["content"]["text"].clone();
            (said, json!(format!("{site} greet {name}")))
        }
        3 => {
            let uri = format!("file:///{site}");
            let told = caller.ask("resources/read", json!({ "uri": uri })).await;
            let said = told["contents"][0]["text"].clone();
            (said, json!(format!("{site} {name}")))
        }
        // At the upstream and by the caller who have sessions to ask in.
        4 if era == Era::Sessions => {
            let told = caller
                .call(&format!("{site}_elicit"), json!({ "text": text }))
                .await;
            (told["content"].clone(), json!({ "by": name, "to": text }))
        }
        6 => {
            let arguments = json!({ "text": text, "steps": 2 });
            let told = caller.call(&format!("{site}_progress"), arguments).await;
            (told["user"].clone(), json!(name))
        }
        _ => {
            let told = caller
                .call(&format!("{site}_whoami"), json!({ "text": text }))
                .await;
            (told, json!({ "at": site, "user": name, "text": text }))
        }
    };
    (told != expected).then(|| format!("{era:?} {name} {turn}: {told}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_and_every_answer_is_its_callers() {
    let offer = |newest, resource| Offer {
        newest,
        resources: vec![resource],
        ..Offer::default()
    };
    // One of each family, so that both sorts of connection are shared out.
    let one = Site::start("one", offer(false, "file:///one")).await;
    let two = Site::start("two", offer(true, "file:///two")).await;
    let addr = front(&[one.upstream(), two.upstream()]).await;
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        callers.spawn(async move {
            let era = ERAS[number % 2];
            let caller = Arc::new(Caller::open(addr, era, &format!("user-{number}")).await);
            let mut wrong = Vec::new();
            // Four at a time.
            let mut calls = JoinSet::new();
            for turn in 0..CALLS {
                if calls.len() == 4 {
                    wrong.extend(calls.join_next().await.unwrap().unwrap());
                }
                let caller = Arc::clone(&caller);
                calls.spawn(async move { mismatch(&caller, era, turn).await });
            }
            wrong.extend(calls.join_all().await.into_iter().flatten());
            // Nor was anything told or asked at the wrong one.
            for told in caller.ears.told.all() {
                let message = told["params"]["message"].as_str().unwrap_or_default();
                let own = message.rsplit_once('-').map(|(owner, _)| owner.to_owned());
                if own.as_ref() != Some(&caller.name) {
                    wrong.push(format!("{} was told {told}", caller.name));
                }
            }
            for asked in caller.ears.asked.all() {
                let message: &Value = &asked["params"]["message"];
                if !message
                    .as_str()
                    .unwrap()
                    .starts_with(&format!("{}-", caller.name))
                {
                    wrong.push(format!("{} was asked {asked}", caller.name));
                }
            }
            wrong
        });
    }
    let wrong: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    assert!(
        wrong.is_empty(),
        "{} mismatches: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(20)]
    );
    // What came: every request has one caller.
    for site in [&one, &two] {
        for heard in site.heard.all() {
            assert!(heard.header("x-user").is_some(), "{heard:?}");
        }
    }
}
