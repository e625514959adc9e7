//! Feature `axum`: `Inbound` as an extractor.
#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use axum::{Router, routing::post};
use mcp_forward::{CaptureLayer, Inbound, Upstream};
use support::{own_error, raw, status};
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
