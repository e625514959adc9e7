//! Which headers an upstream gets over the factory's connections, and where they never go.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "support/mcp.rs"]
mod mcp;
mod support;

use http::Method;
use mcp::{
    Caller, Front, KINDS, Kind, LEGACY, NEWEST, Server, answer, builder, call, factory, hold, told,
};
use mcp_forward::{
    ClientFactory, Inbound, Rule, Upstream,
    rmcp::{Client, Error, ErrorKind, Factory},
};
use serde_json::{Value, json};
use support::{OK, RawUpstream, capture};

const ALICE: [(&str, &str); 1] = [("authorization", "Bearer alice")];
const BOB: [(&str, &str); 1] = [("authorization", "Bearer bob")];

async fn whoami(client: &Client) -> Value {
    told(client.call_tool(call("whoami", json!({}))).await.unwrap())
}

async fn kind_of_failure(factory: &Factory, upstream: &Upstream, inbound: &Inbound) -> ErrorKind {
    let client = match factory.connect_for(upstream, inbound).await {
        Ok(client) => client,
        Err(error) => {
            let source = std::error::Error::source(&error).unwrap();
            return source.downcast_ref::<Error>().unwrap().kind();
        }
    };
    let call = client.call_tool(call("whoami", json!({}))).await;
    call.unwrap_err().kind()
}

/// The names that begin with `mcp-`, and what they say.
fn hop(seen: &mcp::Seen) -> Vec<(&str, &str)> {
    let lines = seen.headers.iter();
    let lines = lines.filter(|(name, _)| name.as_str().starts_with("mcp-"));
    let mut lines: Vec<_> = lines
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .filter(|(name, _)| *name != "mcp-session-id")
        .collect();
    lines.sort_unstable();
    lines
}

/// Lines that the MCP transport of the inbound hop has, or that a caller made up.
const FORGED: [(&str, &str); 7] = [
    ALICE[0],
    ("mcp-session-id", "forged"),
    ("mcp-param-region", "forged"),
    ("mcp-param-other", "forged"),
    ("mcp-forged", "forged"),
    ("last-event-id", "forged"),
    ("x-user", "alice"),
];

#[tokio::test]
async fn the_transports_headers_are_those_of_this_hop() {
    for upstream_kind in [Kind::Sessions, Kind::Newest] {
        for front_kind in [Kind::StatelessJson, Kind::StatelessSse, Kind::Newest] {
            let server = Server::start(upstream_kind).await;
            let (upstream, factory) = (server.upstream(), factory());
            let front = Front::start(front_kind, &upstream, &factory).await;
            let caller = Caller::open(&front, FORGED).await;
            // The inbound hop says `mcp-name: lend`, where it says any.
            let inbound = front.inbound(&caller).await;
            let client = factory.connect_for(&upstream, &inbound).await.unwrap();
            let region = json!({ "region": "north" });
            client.call_tool(call("region", region)).await.unwrap();
            whoami(&client).await;
            client.list_tools(None).await.unwrap();
            // An older caller with a session id is in a session, whoever made that up.
            let newest = (upstream_kind, front_kind) == (Kind::Newest, Kind::Newest);
            let version = if newest { NEWEST } else { LEGACY };
            let version = ("mcp-protocol-version", version);
            let expected = |method, name: Option<&'static str>, region| {
                let mut expected = vec![version];
                if newest {
                    expected.push(("mcp-method", method));
                    expected.extend(name.map(|name| ("mcp-name", name)));
                    expected.extend(Option::map(region, |it| ("mcp-param-region", it)));
                }
                expected.sort_unstable();
                expected
            };
            let calls = server.of("tools/call");
            let region = Some("north");
            assert_eq!(
                hop(&calls[0]),
                expected("tools/call", Some("region"), region)
            );
            assert_eq!(hop(&calls[1]), expected("tools/call", Some("whoami"), None));
            let list = server.of("tools/list").pop().unwrap();
            assert_eq!(hop(&list), expected("tools/list", None, None));
            for seen in server.seen() {
                assert_eq!(seen.header("x-user"), Some("alice"));
                let forged = seen.headers.values().any(|value| value == "forged");
                assert!(!forged, "{:?}", seen.headers);
            }
        }
    }
}

#[tokio::test]
async fn the_tools_are_listed_once_for_each_connection() {
    let server = Server::start(Kind::Newest).await;
    let (upstream, factory) = (server.upstream(), factory());
    for lines in [ALICE, BOB] {
        server.forget();
        let inbound = capture(&[&upstream], lines).await;
        for _ in 0..3 {
            let client = factory.connect_for(&upstream, &inbound).await.unwrap();
            let region = call("region", json!({ "region": "north" }));
            client.call_tool(region).await.unwrap();
        }
        // The list has two pages.
        let expected = ["server/discover", "tools/list", "tools/list"];
        assert_eq!(server.order()[..3], expected);
        assert_eq!(server.order()[3..], ["tools/call"; 3]);
        let token = lines[0].1;
        assert!(server.seen().iter().all(|seen| seen.token() == Some(token)));
    }
    // Nothing else needs the list.
    server.forget();
    let inbound = capture(&[&upstream], []).await;
    let client = factory.connect_for(&upstream, &inbound).await.unwrap();
    client.list_prompts(None).await.unwrap();
    assert_eq!(server.order(), ["server/discover", "prompts/list"]);
}

#[tokio::test]
async fn an_upstream_without_a_list_is_called_all_the_same() {
    let server = Server::start(Kind::Newest).await;
    let (upstream, factory) = (server.upstream(), factory());
    server.intercept(|seen| {
        let error = json!({ "code": -32601, "message": "no list" });
        let error = json!({ "jsonrpc": "2.0", "id": seen.body["id"], "error": error });
        let lines = [("content-type", "application/json")];
        (seen.rpc() == "tools/list").then(|| answer(404, &lines, error.to_string()))
    });
    let inbound = capture(&[&upstream], ALICE).await;
    for _ in 0..2 {
        whoami(&factory.connect_for(&upstream, &inbound).await.unwrap()).await;
    }
    assert_eq!(server.of("tools/list").len(), 1);
}

/// Of callers to whom the schemas are all the same; the list may come next time.
#[tokio::test]
async fn a_list_that_fails_does_not_end_the_call_and_is_not_remembered() {
    let server = Server::start(Kind::Newest).await;
    let (upstream, factory) = (server.upstream(), factory());
    let inbound = capture(&[&upstream], ALICE).await;
    let failures = [
        (403, json!({})),
        (503, json!({})),
        (
            200,
            json!({ "error": { "code": -32603, "message": "later" } }),
        ),
        (
            200,
            json!({ "result": { "resultType": "complete", "prompts": [] } }),
        ),
        (
            200,
            json!({ "result": { "resultType": "complete", "tools": [], "nextCursor": "more" } }),
        ),
    ];
    for (status, told) in failures {
        let case = format!("{status} {told}");
        server.intercept(move |seen| {
            let mut told = told.clone();
            told["jsonrpc"] = json!("2.0");
            told["id"] = seen.body["id"].clone();
            let lines = [("content-type", "application/json")];
            (seen.rpc() == "tools/list").then(|| answer(status, &lines, told.to_string()))
        });
        for _ in 0..2 {
            server.forget();
            whoami(&factory.connect_for(&upstream, &inbound).await.unwrap()).await;
            assert!(!server.of("tools/list").is_empty(), "{case}");
        }
    }
    server.intercept(|_| None);
    let client = factory.connect_for(&upstream, &inbound).await.unwrap();
    let region = call("region", json!({ "region": "north" }));
    client.call_tool(region).await.unwrap();
}

#[tokio::test]
async fn d6_the_authorization_is_on_one_line_of_each_request() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let upstream = Upstream::builder("up", server.url())
            .rule(Rule::new("x-token").to("authorization").bearer().required())
            .set("x-proxy", "edge-1")
            .build()
            .unwrap();
        let front = Front::start(Kind::Sessions, &upstream, &factory()).await;
        let lines = [("x-token", "alice"), ("authorization", "Bearer proxy")];
        let caller = Caller::open(&front, lines).await;
        let inbound = front.inbound(&caller).await;
        let factory = builder().fresh().build().unwrap();
        let client = factory.connect_for(&upstream, &inbound).await.unwrap();
        whoami(&client).await;
        let held = hold(&server, client).await;
        held.abort();
        server.wait_event("cancelled").await;
        if kind == Kind::Sessions {
            server.wait_for("GET", 1).await;
            server.wait_for("DELETE", 1).await;
        }
        for seen in server.seen() {
            // One line each: `header` looks.
            assert_eq!(
                seen.token(),
                Some("Bearer alice"),
                "{kind:?} {}",
                seen.rpc()
            );
            assert_eq!(seen.header("x-proxy"), Some("edge-1"));
            assert!(seen.header("x-token").is_none());
        }
    }
}

#[tokio::test]
async fn several_lines_are_joined_in_their_order() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let upstream = server.builder().rule(Rule::new("x-many").multi());
        let upstream = upstream.build().unwrap();
        let lines = [("x-many", "b"), ("x-many", "a, c"), ("x-many", "a")];
        let inbound = capture(&[&upstream], lines).await;
        let client = factory().connect_for(&upstream, &inbound).await.unwrap();
        whoami(&client).await;
        for seen in server.seen() {
            assert_eq!(seen.header("x-many"), Some("b, a, c, a"), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn connections_are_as_the_embedders_client_makes_them() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let upstream = server.upstream();
        let inbound = capture(&[&upstream], ALICE).await;
        let http = reqwest::Client::builder().no_proxy().user_agent("edge/1");
        let factory = builder().http(http).build().unwrap();
        whoami(&factory.connect_for(&upstream, &inbound).await.unwrap()).await;
        for seen in server.seen() {
            assert_eq!(seen.header("user-agent"), Some("edge/1"), "{}", seen.rpc());
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_nothing_leaks() {
    let elsewhere = RawUpstream::answering(OK).await;
    let location = elsewhere.url("/mcp");
    let following = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::limited(10));
    for factory in [factory(), builder().http(following).build().unwrap()] {
        for kind in KINDS {
            for rpc in [
                "server/discover",
                "initialize",
                "notifications/initialized",
                "tools/list",
                "tools/call",
                "GET",
                "DELETE",
            ] {
                for status in [302, 307, 308] {
                    let server = Server::start(kind).await;
                    let upstream = server.upstream();
                    let location = location.clone();
                    server.intercept(move |seen| {
                        let lines = [("location", location.as_str())];
                        (seen.rpc() == rpc).then(|| answer(status, &lines, ""))
                    });
                    let inbound = capture(&[&upstream], ALICE).await;
                    let client = factory.connect_for(&upstream, &inbound).await;
                    if let Ok(client) = client {
                        let called = client.call_tool(call("whoami", json!({}))).await;
                        assert_eq!(
                            called.is_ok(),
                            ["tools/list", "GET", "DELETE"].contains(&rpc)
                                || server.of(rpc).is_empty()
                        );
                    }
                    assert!(server.of(rpc).len() <= 1, "{kind:?} {rpc} {status}");
                }
            }
        }
    }
    assert!(
        elsewhere.requests().is_empty(),
        "{:?}",
        elsewhere.requests()
    );
}

#[tokio::test]
async fn nothing_is_sent_twice() {
    // It reads the request, and closes.
    let closing = RawUpstream::answering("").await;
    let upstream = Upstream::builder("up", closing.url("/mcp"))
        .build()
        .unwrap();
    let failed = kind_of_failure(&factory(), &upstream, &Inbound::empty()).await;
    assert_eq!(failed, ErrorKind::Unreachable);
    assert_eq!(closing.requests().len(), 1);
}

#[tokio::test]
async fn one_callers_list_is_not_anothers() {
    for kind in KINDS {
        let server = Server::start(kind).await;
        let (upstream, factory) = (server.upstream(), factory());
        let front = Front::start(Kind::Sessions, &upstream, &factory).await;
        let caller = Caller::open(&front, ALICE).await;
        for user in ["alice", "bob", "alice"] {
            // It says that anybody may keep it for an hour.
            let caller = caller.with([("x-user", user)]);
            let list = caller.ask("tools/list", json!({})).await;
            assert_eq!(list["result"]["tools"][0]["name"], user, "{kind:?}");
        }
        let lists = server.of("tools/list");
        let users: Vec<_> = lists.iter().map(|seen| seen.header("x-user")).collect();
        assert_eq!(users, [Some("alice"), Some("bob"), Some("alice")]);
        if kind == Kind::Sessions {
            assert_eq!(server.of("initialize").len(), 1);
        }
    }
}

#[tokio::test]
async fn only_what_the_rules_read_goes_on() {
    let server = Server::start(Kind::Sessions).await;
    let (upstream, factory) = (server.upstream(), factory());
    let front = Front::start(Kind::Sessions, &upstream, &factory).await;
    let lines = [
        ALICE[0],
        ("x-user", "alice"),
        ("cookie", "a=b"),
        ("x-other", "1"),
        ("user-agent", "caller"),
        ("traceparent", "00-1-1-01"),
    ];
    let caller = Caller::open(&front, lines).await;
    caller.call("whoami", json!({})).await;
    server.wait_for("GET", 1).await;
    for seen in server.seen() {
        let mut names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        names.retain(|name| !name.starts_with("mcp-"));
        let body = ["content-length", "content-type"].into_iter();
        let body = body.filter(|_| seen.method == Method::POST);
        let mut expected: Vec<_> = ["accept", "authorization", "host", "x-user"]
            .into_iter()
            .chain(body)
            .collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "{}", seen.rpc());
    }
}
