//! Feature `axum`: `Inbound` as an extractor, and the path outside `nest`.
#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use axum::{Router, routing::post};
use mcp_forward::{CaptureLayer, Inbound, ServerIdLayer, Upstream};
use support::{Witness, message, own_error, raw, status};
use tokio::net::TcpListener;

async fn user(inbound: Inbound) -> String {
    let value = inbound.get(&"x-user".parse().unwrap());
    value.map_or("nobody".to_owned(), |value| {
        value.to_str().unwrap().to_owned()
    })
}

async fn call(router: Router, lines: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    raw(addr, support::post(addr, lines)).await
}

#[tokio::test]
async fn a_handler_gets_its_caller() {
    let up = Upstream::builder("up", "https://up.example/")
        .allow("x-user")
        .build()
        .unwrap();
    let router = || {
        let capture = CaptureLayer::for_upstreams([&up]).build().unwrap();
        Router::new().route("/mcp", post(user)).layer(capture)
    };
    assert!(
        call(router(), "x-user: alice\r\n")
            .await
            .ends_with("\r\n\r\nalice")
    );
    assert!(call(router(), "").await.ends_with("\r\n\r\nnobody"));
}

#[tokio::test]
async fn without_a_capture_layer_it_says_so() {
    let answer = call(Router::new().route("/mcp", post(user)), "x-user: alice\r\n").await;
    assert_eq!(status(&answer), 500);
    assert!(own_error(&answer, -32603).contains("put `CaptureLayer` around the router"));
}

#[tokio::test]
async fn inside_nest_a_message_is_scoped_by_the_rest_or_by_the_original_path() {
    let body = r#"{"method":"m","params":{"x":1}}"#;
    let scoped = r#"{"method":"m","params":{"server_id":"a","x":1}}"#;
    let rest = || ServerIdLayer::for_path("/servers/{id}/mcp");
    let whole = || ServerIdLayer::for_path("/api/servers/{id}/mcp");
    for (layer, expected) in [
        (rest(), 200),
        (whole().original_uri(), 200),
        (whole(), 404),
        (rest().original_uri(), 404),
        (
            rest().path(|parts| parts.uri.path().trim_start_matches("/api")),
            200,
        ),
    ] {
        let witness = Witness::default();
        let routes = Router::new()
            .route_service("/servers/{id}/mcp", witness.clone())
            .route_service("/servers/{id}/mcp/", witness.clone())
            .layer(layer.build().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = Router::new().nest("/api", routes);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        for path in ["/api/servers/a/mcp", "/api/servers/a/mcp/"] {
            let answer = raw(addr, message(addr, path, "", body)).await;
            assert_eq!(status(&answer), expected, "{path}");
            for seen in witness.take() {
                assert_eq!(seen.server(), Some("a"));
                assert_eq!(String::from_utf8(seen.body).unwrap(), scoped);
            }
        }
    }
}

#[tokio::test]
async fn inside_nest_an_unscoped_path_is_not_the_rest_of_a_scoped_one() {
    let body = r#"{"method":"m","params":{"server_id":"evil"}}"#;
    let layer = || ServerIdLayer::for_path("/servers/{server_id}/mcp").unscoped_paths(["/mcp"]);
    for (layer, nested, direct) in [
        (layer(), 500, 200),
        (layer().original_uri(), 200, 200),
        // Who reads the path themselves has decided.
        (layer().path(|parts| parts.uri.path()), 200, 200),
    ] {
        let witness = Witness::default();
        let routes = Router::new()
            .route_service("/mcp", witness.clone())
            .layer(layer.build().unwrap());
        let app = Router::new()
            .nest("/servers/{server_id}", routes.clone())
            .merge(routes);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let answer = raw(addr, message(addr, "/servers/a/mcp", "", body)).await;
        assert_eq!(status(&answer), nested);
        if nested == 500 {
            assert!(own_error(&answer, -32603).contains("`.original_uri()`"));
        }
        assert_eq!(witness.take().len(), usize::from(nested == 200));
        let answer = raw(addr, message(addr, "/mcp", "", body)).await;
        assert_eq!(status(&answer), direct);
        assert_eq!(witness.take().remove(0).server(), None);
    }
}
