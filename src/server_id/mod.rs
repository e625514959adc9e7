//! Which server a message is for. A stand-in: the branch of issue 8 has the real one.

use std::sync::Arc;

/// The server that a message is for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(dead_code, reason = "nobody makes one yet")]
pub(crate) struct ServerId(pub(crate) Arc<str>);
