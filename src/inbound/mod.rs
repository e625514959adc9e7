//! The caller's side: what is read from a request, and which pages may send one.

pub(crate) mod capture;
pub(crate) mod origin;

pub use capture::{Capture, CaptureBuilder, CaptureFuture};
pub use origin::{OriginGuard, OriginGuardBuilder, OriginGuardFuture};
