//! The caller's side: what is read from a request, which pages may send one, and whose a
//! session is.
//!
//! What stands here beside the layers, which are at the root of the crate, is named only where a
//! type has to be written down.

pub(crate) mod capture;
#[cfg(feature = "axum")]
mod extract;
pub(crate) mod origin;
mod read;
#[cfg(feature = "session")]
pub(crate) mod session;

pub use capture::{Capture, CaptureBuilder, CaptureFuture};
pub use origin::{OriginGuard, OriginGuardBuilder, OriginGuardFuture};
#[cfg(feature = "session")]
pub use session::{Principal, Session, SessionFuture};
