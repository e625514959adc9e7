//! The slot in which an upstream's refusal comes back to whoever answers the caller.
//!
//! It may not know who reports into it, nor who reads it.

/// Where to answer.
///
/// Uninhabited until a layer here opens one.
#[derive(Clone)]
pub(crate) enum Slot {}
