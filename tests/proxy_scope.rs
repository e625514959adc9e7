//! `rmcp::Proxy` inside `ServerIdLayer`: a message for one server sees the upstream of that name alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/proxy.rs"]
mod proxy;

use std::net::SocketAddr;

use axum::Router;
use mcp_forward::{
    ServerIdLayer,
    rmcp::{Factory, Proxy},
};
use proxy::{Caller, ERAS, Offer, Site, bounded, layered, listen, mcp};
use serde_json::{Value, json};

async fn scoped() -> (Site, Site, SocketAddr) {
    let offer = |resource| Offer {
        resources: vec![resource],
        ..Offer::default()
    };
    let one = Site::start("one", offer("file:///one")).await;
    let two = Site::start("two", offer("file:///two")).await;
    let upstreams = [one.upstream(), two.upstream()];
    let proxy = Proxy::new(&upstreams, Factory::builder().build().unwrap()).unwrap();
    let service = mcp(proxy);
    let app = Router::new()
        .route_service("/mcp", service.clone())
        .route_service("/servers/{server}/mcp", service);
    let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    let app = layered(&upstreams, app).layer(layer.build().unwrap());
    (one, two, listen(app).await)
}

fn at(addr: SocketAddr, server: &str) -> String {
    format!("http://{addr}/servers/{server}/mcp")
}

const ALICE: [(&str, &str); 1] = [("x-user", "alice")];

#[tokio::test]
async fn a_message_for_one_server_sees_that_upstream_alone() {
    bounded(async {
        let (one, two, addr) = scoped().await;
        for era in ERAS {
            let caller = Caller::at(at(addr, "one"), era, "alice", &ALICE).await;
            let (tools, result) = caller.page("tools/list", None).await;
            assert_eq!(tools, ["whoami", "for-alice"], "{result}");
            assert_eq!(caller.list("resources/list").await, ["file:///one"]);
            assert_eq!(caller.call("whoami", json!({})).await["at"], "one");
            // A prefix is part of a name there, and a message cannot choose for itself.
            let told = caller.call("two_whoami", json!({})).await;
            assert_eq!(told["error"]["message"], "no tool two_whoami");
            let params = json!({ "name": "whoami", "arguments": {}, "server_id": "two" });
            let told = caller.ask("tools/call", params).await;
            let told: Value =
                serde_json::from_str(told["content"][0]["text"].as_str().unwrap()).unwrap();
            assert_eq!(told["at"], "one");
            // Of the other's resources there is only what its own server says.
            let read = caller
                .ask("resources/read", json!({ "uri": "file:///two" }))
                .await;
            assert_eq!(read["contents"][0]["text"], "one alice");
            assert!(two.heard.all().is_empty());

            let caller = Caller::at(format!("http://{addr}/mcp"), era, "alice", &ALICE).await;
            assert_eq!(
                caller.list("prompts/list").await,
                ["one_greet", "two_greet"]
            );
            two.heard.forget();
        }
        assert!(!one.heard.all().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_no_upstream_is_nobody() {
    bounded(async {
        let (one, two, addr) = scoped().await;
        for era in ERAS {
            let caller = Caller::at(at(addr, "three"), era, "alice", &ALICE).await;
            for (method, params) in [
                ("tools/list", json!({})),
                (
                    "tools/call",
                    json!({ "name": "one_whoami", "arguments": {} }),
                ),
                ("resources/read", json!({ "uri": "file:///one" })),
            ] {
                let told = caller.ask(method, params).await;
                assert_eq!(told["error"]["code"], -32602, "{told}");
            }
        }
        assert!(one.heard.all().is_empty() && two.heard.all().is_empty());
    })
    .await;
}
