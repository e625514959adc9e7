//! What comes back: an upstream's refusal reaches the caller as one.
//!
//! What stands here beside the layers, which are at the root of the crate, is named only where a
//! type has to be written down.

mod answers;
mod ask;
pub(crate) mod challenge;
mod collect;
mod held;
pub(crate) mod hold;
pub(crate) mod probe;
mod sse;

pub use collect::collect;
pub use held::HeldBody;
pub use hold::{Hold, HoldFuture};
pub use probe::{Probe, ProbeFuture};
