//! Adds the crate to an axum service whose handler itself makes an HTTP call to an MCP server:
//! `cargo run --example axum -- http://127.0.0.1:8000/mcp`. Two layers do it.
#![allow(clippy::print_stdout, reason = "says where it listens")]

use axum::{Router, body::Body, extract::State, http, response::IntoResponse, routing::get};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use mcp_forward::{CaptureLayer, ForwardLayer, Upstream, outbound::Forward};
use tower::{BoxError, Layer, ServiceExt};

type Http = Forward<Client<HttpConnector, Body>>;

async fn tools(State((http, url)): State<(Http, http::Uri)>) -> impl IntoResponse {
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let request = http::Request::post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(list.into());
    let request = request.map_err(|_| http::StatusCode::INTERNAL_SERVER_ERROR)?;
    let answer = http.oneshot(request).await;
    let answer = answer.map_err(|_| http::StatusCode::BAD_GATEWAY)?;
    Ok::<_, http::StatusCode>((answer.status(), Body::new(answer.into_body())))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::args().nth(1);
    let url = url.unwrap_or_else(|| "http://127.0.0.1:8000/mcp".into());
    let upstream = Upstream::builder("tools", url).allow("x-user-id").build()?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let http = ForwardLayer::new(&upstream).layer(client); // the caller's headers go out
    let app = Router::new()
        .route(
            "/tools",
            get(tools).with_state((http, upstream.url().clone())),
        )
        .layer(CaptureLayer::for_upstreams([&upstream]).build()?); // the caller's headers come in
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}/tools", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
