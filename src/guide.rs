//! Guides, one question each. This module is documentation: there is nothing in it to `use`.
//!
//! | you have, or ask | page |
//! |---|---|
//! | an axum service that calls an MCP server | [`axum_service`] |
//! | a hyper server without a framework | [`hyper_service`] |
//! | an MCP client that is not rmcp | [`client_factory`] |
//! | several MCP servers to serve as one | [`gateway`] |
//! | an upstream's 401 that callers never see | [`hold_or_probe`] |
//! | a header that does not arrive | [`what_is_carried`] |
//! | a token for the upstream that you fetch yourself | [`token_exchange`] |
//! | may I forward this token at all? | [`is_it_legitimate`] |
//!
//! Together they need these; each page's `use` lines say which:
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! http = "1"
//! http-body-util = "0.1"
//! hyper = { version = "1", features = ["full"] }
//! hyper-rustls = { version = "0.27", features = ["http2"] }
//! hyper-util = { version = "0.1", features = ["client-legacy", "http1", "http2", "server-auto", "service", "tokio"] }
//! mcp-forward = { version = "0.1", features = ["rmcp", "session"] } # both for `gateway` alone
//! reqwest = "0.13"
//! rmcp = { version = "3.9", features = ["server", "transport-streamable-http-server"] }
//! tokio = { version = "1", features = ["full"] }
//! tower = { version = "0.5", features = ["util"] }
//! ```

#[doc = include_str!("guide/axum_service.md")]
pub mod axum_service {}
#[doc = include_str!("guide/client_factory.md")]
pub mod client_factory {}
#[doc = include_str!("guide/gateway.md")]
pub mod gateway {}
#[doc = include_str!("guide/hold_or_probe.md")]
pub mod hold_or_probe {}
#[doc = include_str!("guide/hyper_service.md")]
pub mod hyper_service {}
#[doc = include_str!("guide/is_it_legitimate.md")]
pub mod is_it_legitimate {}
#[doc = include_str!("guide/token_exchange.md")]
pub mod token_exchange {}
#[doc = include_str!("guide/what_is_carried.md")]
pub mod what_is_carried {}
