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

use mcp::{Caller, Front, Kind, Seen, Server, answer, builder, factory};
use serde_json::json;

/// One call through the front, and what came to the upstream of it.
async fn call(server: &Server, caller: &Caller, ends: bool) -> Vec<String> {
    server.forget();
    caller.call("whoami", json!({})).await;
    let in_session = |it: &Seen| it.session().is_some();
    let opens =
        !server.of("initialize").is_empty() && server.of("tools/call").iter().all(in_session);
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
async fn costs(front: Kind, kind: Kind) -> [Vec<String>; 4] {
    let server = Server::start(kind).await;
    server.intercept(|seen| {
        // One page.
        let list = json!({ "resultType": "complete", "tools": [] });
        let list = json!({ "jsonrpc": "2.0", "id": seen.body["id"], "result": list });
        let lines = [("content-type", "application/json")];
        (seen.rpc() == "tools/list").then(|| answer(200, &lines, list.to_string()))
    });
    let upstream = server.upstream();
    let factories = [factory(), builder().fresh().build().unwrap()];
    let kept = Front::start(front, &upstream, &factories[0]).await;
    let alice = Caller::open(&kept, [("authorization", "Bearer alice")]).await;
    let bob = Caller::open(&kept, [("authorization", "Bearer bob")]).await;
    let first = call(&server, &alice, false).await;
    let other = call(&server, &bob, false).await;
    let warm = call(&server, &bob, false).await;
    let fresh = Front::start(front, &upstream, &factories[1]).await;
    let carol = Caller::open(&fresh, [("authorization", "Bearer carol")]).await;
    call(&server, &carol, true).await;
    let fresh = call(&server, &carol, true).await;
    [first, other, warm, fresh]
}

#[tokio::test]
async fn the_requests_of_a_call_are_as_the_table_says() {
    println!("| caller | upstream | first call of all | first of a caller | kept | nothing kept |");
    println!("|---|---|---|---|---|---|");
    for (front, kind, expected) in [
        (Kind::Sessions, Kind::Sessions, [4, 4, 1, 5]),
        (Kind::Sessions, Kind::StatelessJson, [3, 3, 1, 3]),
        (Kind::Sessions, Kind::Newest, [4, 4, 1, 5]),
        (Kind::Sessions, Kind::NewestOnly, [4, 4, 1, 4]),
        (Kind::Newest, Kind::Sessions, [5, 5, 1, 6]),
        (Kind::Newest, Kind::StatelessJson, [4, 4, 1, 4]),
        (Kind::Newest, Kind::Newest, [3, 3, 1, 3]),
        (Kind::Newest, Kind::NewestOnly, [3, 3, 1, 3]),
    ] {
        let costs = costs(front, kind).await;
        let counts = costs.each_ref().map(Vec::len);
        let cells = counts.map(|count| count.to_string()).join(" | ");
        println!("| {front:?} | {kind:?} | {cells} |");
        assert_eq!(counts, expected, "{front:?} {kind:?}: {costs:#?}");
    }
}
