//! How many HTTP requests one call costs at the upstream: the table of `benches/README.md`, which
//! `cargo test --test rmcp_cost -- --nocapture` prints.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use mcp::{Caller, Front, Kind, Server, answer, builder, factory};
use serde_json::json;

/// One call through the front, and what came to the upstream of it.
async fn call(server: &Server, caller: &Caller, ends: bool) -> Vec<String> {
    server.forget();
    caller.call("whoami", json!({})).await;
    let opens = server
        .of("initialize")
        .iter()
        .any(|it| it.assigned.is_some());
    if opens {
        server.wait_for("GET", 1).await;
    }
    if opens && ends {
        server.wait_for("DELETE", 1).await;
    }
    server.order()
}

/// The requests of the first call of all, of another caller's first call, of the next one, and of one
/// where nothing is kept.
async fn costs(kind: Kind, older: bool) -> [Vec<String>; 4] {
    let server = Server::start(kind).await;
    server.intercept(move |seen| match seen.rpc() {
        "server/discover" if older => Some(answer(404, &[], "")),
        // One page.
        "tools/list" => {
            let list = json!({ "resultType": "complete", "tools": [] });
            let list = json!({ "jsonrpc": "2.0", "id": seen.body["id"], "result": list });
            let lines = [("content-type", "application/json")];
            Some(answer(200, &lines, list.to_string()))
        }
        _ => None,
    });
    let upstream = server.upstream();
    let factories = [factory(), builder().fresh().build().unwrap()];
    let front = Front::start(Kind::Sessions, &upstream, &factories[0]).await;
    let alice = Caller::open(&front, [("authorization", "Bearer alice")]).await;
    let bob = Caller::open(&front, [("authorization", "Bearer bob")]).await;
    let first = call(&server, &alice, false).await;
    let other = call(&server, &bob, false).await;
    let warm = call(&server, &bob, false).await;
    let front = Front::start(Kind::Sessions, &upstream, &factories[1]).await;
    let carol = Caller::open(&front, [("authorization", "Bearer carol")]).await;
    call(&server, &carol, true).await;
    let fresh = call(&server, &carol, true).await;
    [first, other, warm, fresh]
}

#[tokio::test]
async fn the_requests_of_a_call_are_as_the_table_says() {
    println!("| upstream | first call of all | first of a caller | kept | nothing kept |");
    println!("|---|---|---|---|---|");
    for (what, kind, older, expected) in [
        ("in sessions", Kind::Sessions, false, [5, 4, 1, 5]),
        (
            "in sessions, no discovery",
            Kind::Sessions,
            true,
            [5, 4, 1, 5],
        ),
        (
            "before 2026-07-28, no sessions",
            Kind::StatelessJson,
            false,
            [4, 3, 1, 3],
        ),
        ("2026-07-28", Kind::Newest, false, [3, 3, 1, 3]),
    ] {
        let costs = costs(kind, older).await;
        let counts = costs.each_ref().map(Vec::len);
        println!(
            "| {what} | {} |",
            counts.map(|count| count.to_string()).join(" | ")
        );
        assert_eq!(counts, expected, "{what}: {costs:#?}");
    }
}
