//! What may travel: the names, the rules and the upstreams. It may not know any request.

pub(crate) mod names;
pub(crate) mod place;
mod rule;
mod upstream;

pub(crate) use rule::CompiledRule;
pub use rule::{OnConflict, Rule};
pub(crate) use upstream::{Line, Provenance, admission_forwarded};
pub use upstream::{Upstream, UpstreamBuilder};
