//! The caller's side: what is read from a request, and which pages may send one.
//!
//! What stands here beside the layers, which are at the root of the crate, is named only where a
//! type has to be written down.

pub(crate) mod capture;
#[cfg(feature = "axum")]
mod extract;
pub(crate) mod origin;
mod read;

pub use capture::{Capture, CaptureBuilder, CaptureFuture};
pub use origin::{OriginGuard, OriginGuardBuilder, OriginGuardFuture};
