//! What the benchmarks share: the request that they measure, and the cases.
#![allow(dead_code, reason = "each benchmark uses its own part")]
#![allow(
    unreachable_pub,
    clippy::panic,
    clippy::unwrap_used,
    reason = "benchmarks"
)]

pub mod cases;
pub mod request;
