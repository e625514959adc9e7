//! Which server a message is for: the id from the path, in the message itself and in the request's
//! extensions, on every path that a message can take.
//!
//! What stands here beside the layers, which are at the root of the crate, is named only where a
//! type has to be written down.

// `service.rs` is the one way of all of them. This folder may not know inbounds, rules or
// upstreams.

mod body;
#[cfg(feature = "hmac")]
mod claim;
pub(crate) mod internal;
pub(crate) mod layer;
#[cfg(feature = "hmac")]
mod nonces;
mod path;
#[cfg(feature = "hmac")]
pub(crate) mod proof;
mod scan;
mod service;
mod splice;

use std::{fmt, sync::Arc};

pub use body::Body;
pub use internal::{InternalForwarding, InternalForwardingFuture};
pub use layer::ServerIdBuilder;
pub use service::{Scoped, ScopedFuture};

/// The server that a request is for, in the request's extensions.
///
/// Put there by [`ServerIdLayer`](crate::ServerIdLayer). It is the id from the path, decoded:
/// at most 256 bytes, and never empty.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServerId(Arc<str>);

/// In a request's extensions in place of a [`ServerId`]: its path is no server's.
#[derive(Clone, Copy)]
struct Unscoped;

impl ServerId {
    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A path can be a secret.
        f.debug_struct("ServerId").finish_non_exhaustive()
    }
}
