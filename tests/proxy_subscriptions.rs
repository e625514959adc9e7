//! `rmcp::Proxy`: what upstreams say of themselves: changed lists, and resources that a caller has
//! subscribed to.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;

use std::net::SocketAddr;

use proxy::{Caller, Era, Offer, Site, bounded, front};
use rmcp::{
    ServiceError,
    model::{ErrorCode, SubscriptionFilter},
};
use serde_json::{Value, json};

async fn two(newest: bool) -> (Site, Site, SocketAddr) {
    let offer = |resource| Offer {
        newest,
        resources: vec![resource],
        ..Offer::default()
    };
    let one = Site::start("one", offer("file:///one")).await;
    let two = Site::start("two", offer("file:///two")).await;
    let addr = front(&[one.upstream(), two.upstream()]).await;
    (one, two, addr)
}

fn updated(uri: &str) -> Value {
    json!({ "method": "notifications/resources/updated", "params": { "uri": uri } })
}

fn changed(what: &str) -> Value {
    json!({ "method": format!("notifications/{what}/list_changed") })
}

#[tokio::test]
async fn a_subscription_is_its_owners_and_its_news_come_in_the_session() {
    bounded(async {
        for newest in [false, true] {
            let (one, two, addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            bob.list("tools/list").await;
            let uri = json!({ "uri": "file:///two" });
            assert_eq!(
                alice.ask("resources/subscribe", uri.clone()).await,
                json!({})
            );
            let subscribed = "subscribe file:///two alice".to_owned();
            assert!(two.events.all().contains(&subscribed));
            assert!(!one.events.all().iter().any(|it| it.contains("subscribe")));

            // The upstream's session is this front session's, so that the news are.
            two.say(updated("file:///two")).await;
            for caller in [&alice, &bob] {
                // rmcp's upstream says it in every session; each front session has its own.
                let all = caller.ears.told.wait("news", |all| !all.is_empty()).await;
                assert_eq!(all.len(), 1, "{all:?}");
                assert_eq!(all[0]["method"], "notifications/resources/updated");
                assert_eq!(all[0]["params"]["uri"], "file:///two");
            }
            assert_eq!(alice.ask("resources/unsubscribe", uri).await, json!({}));
            let unsubscribed = "unsubscribe file:///two alice".to_owned();
            assert!(two.events.all().contains(&unsubscribed));
        }
    })
    .await;
}

#[tokio::test]
async fn a_changed_list_is_told_in_the_front_session_of_its_connection() {
    bounded(async {
        for newest in [false, true] {
            let (one, two, addr) = two(newest).await;
            let alice = Caller::open(addr, Era::Sessions, "alice").await;
            alice.list("tools/list").await;
            // He has no connection to an upstream, so there is nobody to tell him.
            let bob = Caller::open(addr, Era::Sessions, "bob").await;
            for (site, what) in [(&one, "tools"), (&two, "prompts"), (&one, "resources")] {
                alice.ears.told.forget();
                site.say(changed(what)).await;
                let all = alice.ears.told.wait("news", |all| !all.is_empty()).await;
                assert_eq!(
                    all[0]["method"],
                    format!("notifications/{what}/list_changed")
                );
            }
            assert!(bob.ears.told.all().is_empty());
            // What nobody here knows may mean anything to a client: it goes no further.
            alice.ears.told.forget();
            let custom = json!({ "method": "notifications/x/custom", "params": { "deep": [1] } });
            two.say(custom).await;
            two.say(changed("tools")).await;
            let all = alice.ears.told.wait("news", |all| !all.is_empty()).await;
            assert_eq!(all[0]["method"], "notifications/tools/list_changed");
        }
    })
    .await;
}

fn filter(wanted: Value) -> SubscriptionFilter {
    serde_json::from_value(wanted).unwrap()
}

#[tokio::test]
async fn listen_hears_two_upstreams_and_ends_at_both() {
    bounded(async {
        let (one, two, addr) = two(true).await;
        let alice = Caller::open(addr, Era::Newest, "alice").await;
        let wanted = json!({
            "toolsListChanged": true,
            "resourceSubscriptions": ["file:///two", "file:///one"],
        });
        let mut heard = alice.client.listen(filter(wanted)).await.unwrap();
        let listening = |uri: &str| {
            let wanted = json!({ "toolsListChanged": true, "resourceSubscriptions": [uri] });
            format!("listening {wanted} alice")
        };
        // Each is asked for its own resources only, as this caller.
        for (site, uri) in [(&one, "file:///one"), (&two, "file:///two")] {
            let asked = listening(uri);
            site.events.wait(&asked, |all| all.contains(&asked)).await;
        }
        for (site, news) in [
            (&one, changed("tools")),
            (&two, changed("tools")),
            (&two, updated("file:///two")),
            (&one, updated("file:///one")),
        ] {
            site.publish(news.clone()).await;
            let told = heard.next().await.unwrap().unwrap();
            let told = serde_json::to_value(told).unwrap();
            assert_eq!(told["method"], news["method"], "{told}");
            assert_eq!(told["params"]["uri"], news["params"]["uri"], "{told}");
        }
        // What was not asked for is not told.
        one.publish(changed("prompts")).await;
        one.publish(updated("file:///one")).await;
        let told = heard.next().await.unwrap().unwrap();
        let told = serde_json::to_value(told).unwrap();
        assert_eq!(told["params"]["uri"], "file:///one", "{told}");

        heard.cancel().await.unwrap();
        let ended = |all: &[String]| all.iter().any(|it| it == "no longer alice");
        one.events.wait("end", ended).await;
        two.events.wait("end", ended).await;
    })
    .await;
}

#[tokio::test]
async fn many_uris_of_one_message_are_looked_for_at_once() {
    bounded(async {
        let newest = |templates| Offer {
            newest: true,
            templates,
            ..Offer::default()
        };
        let one = Site::start("one", newest(vec!["a:{x}"])).await;
        let two = Site::start("two", newest(vec!["a:{x}", "b:{x}"])).await;
        let addr = front(&[one.upstream(), two.upstream()]).await;
        let alice = Caller::open(addr, Era::Newest, "alice").await;
        let uris = |count: usize| -> Vec<_> {
            let scheme = |at| if at % 2 == 0 { "a" } else { "b" };
            (0..count)
                .map(|at| format!("{}:{at}", scheme(at)))
                .collect()
        };
        let wanted = |count| filter(json!({ "resourceSubscriptions": uris(count) }));
        let _heard = alice.client.listen(wanted(256)).await.unwrap();
        for (site, scheme) in [(&one, "a:"), (&two, "b:")] {
            let listening = |all: &[String]| all.iter().any(|it| it.starts_with("listening"));
            let events = site.events.wait("subscription", listening).await;
            assert_eq!(events[0].matches(scheme).count(), 128, "{events:?}");
            for list in ["resources/list", "resources/templates/list"] {
                assert_eq!(site.of(list).len(), 1, "{list}");
            }
            site.heard.forget();
        }
        // More than that nobody is asked for.
        let mut heard = alice.client.listen(wanted(257)).await.unwrap();
        let Err(ServiceError::McpError(error)) = heard.next().await else {
            panic!("it was taken");
        };
        assert_eq!(error.code, ErrorCode::INVALID_PARAMS, "{error:?}");
        for site in [&one, &two] {
            assert!(site.of("resources/list").is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn two_callers_listen_each_to_what_is_theirs() {
    bounded(async {
        let (one, _, addr) = two(true).await;
        let alice = Caller::open(addr, Era::Newest, "alice").await;
        let bob = Caller::open(addr, Era::Newest, "bob").await;
        let tools = || filter(json!({ "toolsListChanged": true }));
        let prompts = || filter(json!({ "promptsListChanged": true }));
        let mut hers = alice.client.listen(tools()).await.unwrap();
        let mut his = bob.client.listen(prompts()).await.unwrap();
        let both =
            |all: &[String]| all.iter().filter(|it| it.starts_with("listening")).count() == 2;
        one.events.wait("subscriptions", both).await;
        one.publish(changed("prompts")).await;
        one.publish(changed("tools")).await;
        let told = serde_json::to_value(hers.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(told["method"], "notifications/tools/list_changed");
        let told = serde_json::to_value(his.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(told["method"], "notifications/prompts/list_changed");
        // She goes, he stays.
        hers.cancel().await.unwrap();
        let ended = |all: &[String]| all.iter().any(|it| it == "no longer alice");
        one.events.wait("end", ended).await;
        one.publish(changed("prompts")).await;
        assert!(his.next().await.unwrap().is_some());
        assert!(!one.events.all().contains(&"no longer bob".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_cannot_be_listened_to_does_not_end_it() {
    bounded(async {
        let newest = Offer {
            newest: true,
            ..Offer::default()
        };
        let one = Site::start("one", newest).await;
        let old = Site::start("old", Offer::default()).await;
        let addr = front(&[old.upstream(), one.upstream()]).await;
        let alice = Caller::open(addr, Era::Newest, "alice").await;
        let wanted = || filter(json!({ "toolsListChanged": true }));
        let mut heard = alice.client.listen(wanted()).await.unwrap();
        let listening = |all: &[String]| all.iter().any(|it| it.starts_with("listening"));
        one.events.wait("subscription", listening).await;
        one.publish(changed("tools")).await;
        assert!(heard.next().await.unwrap().is_some());

        // Nobody who could be listened to: the caller is told.
        let addr = front(&[old.upstream()]).await;
        let alice = Caller::open(addr, Era::Newest, "alice").await;
        let mut heard = alice.client.listen(wanted()).await.unwrap();
        assert!(heard.next().await.is_err());
    })
    .await;
}
