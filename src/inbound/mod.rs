//! The caller's side: what is read from a request, and which pages may send one.

pub(crate) mod capture;
#[cfg(feature = "axum")]
mod extract;
pub(crate) mod origin;
mod read;

pub use capture::{Capture, CaptureBuilder, CaptureFuture};
pub use origin::{OriginGuard, OriginGuardBuilder, OriginGuardFuture};
