//! Tower middleware that carries the caller's headers, above all authentication, through an MCP
//! proxy.
#![doc(test(attr(deny(warnings))))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod carry;
mod error;
pub mod inbound;
pub mod outbound;
pub mod reply;
mod rules;

pub use carry::{Inbound, InboundExt, WithInbound, task};
pub use error::{
    BuildError, ConnectError, ConnectErrorKind, Mistake, MistakeKind, OutboundError,
    OutboundErrorKind,
};
pub use inbound::{capture::CaptureLayer, origin::OriginGuardLayer};
pub use outbound::{
    Outbound,
    client::{BoxClientFactory, ClientFactory},
    forward::ForwardLayer,
    relay::Relay,
};
pub use rules::{OnConflict, Rule, Upstream, UpstreamBuilder};
