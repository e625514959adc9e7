//! `Error`: a call through a client of this wing that gave no result.
//!
//! No text of the transport's or of an upstream's answer is in it, since either may quote what was
//! sent; the upstream's own JSON-RPC error is there as data.

use std::{fmt, sync::Arc};

use http::StatusCode;
use rmcp::{
    ErrorData,
    model::ErrorCode,
    service::{ClientInitializeError, ServiceError},
    transport::streamable_http_client::StreamableHttpError,
};

use super::failure::WireError;
use crate::{
    carry::Refusal,
    error::{ConnectError, MissingInbound},
    events,
    rules::Upstream,
};

/// What rmcp says in the upstream's place of a call whose session another call has found lost.
const LEFT_BEHIND: &str = "streamable HTTP session was re-initialized before the response arrived";

/// Why there is no client, or no result.
#[derive(Clone, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] Arc<Inner>);

#[derive(Debug, thiserror::Error)]
enum Inner {
    // A source, and not transparent: whoever reports a refusal looks for it among the causes.
    #[error("{0}")]
    Refused(#[source] Refusal),
    #[error("upstream `{upstream}` answered with error {}", data.code.0)]
    Answered { upstream: String, data: ErrorData },
    #[error("upstream `{upstream}` does not know what it was asked; check its URL")]
    Unknown { upstream: String },
    #[error("upstream `{upstream}` {what}")]
    Failed {
        upstream: String,
        what: &'static str,
        kind: ErrorKind,
    },
}

/// The kind of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The upstream answered 401 or 403: [`Error::refusal`].
    Refused,
    /// The upstream answered with a JSON-RPC error: [`Error::data`].
    Answered,
    /// The upstream could not be reached, or did not answer in time. It may have carried the call out.
    Unreachable,
    /// The connection or its session ended during the call, which may have been carried out; or during the
    /// handshake before it: then it was not sent. The next one connects anew.
    Lost,
    /// The upstream and this client speak no protocol version in common.
    NoCommonVersion,
    /// The upstream's answer is no result of this call: another HTTP status, content or type.
    Unusable,
}

impl Error {
    fn failed(upstream: &Upstream, kind: ErrorKind, what: &'static str) -> Self {
        let upstream = upstream.name().to_owned();
        let inner = Inner::Failed {
            upstream,
            what,
            kind,
        };
        Self(Arc::new(inner))
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        Self(Arc::new(Inner::Refused(refusal)))
    }

    fn answered(upstream: &Upstream, data: ErrorData) -> Self {
        let upstream = upstream.name().to_owned();
        Self(Arc::new(Inner::Answered { upstream, data }))
    }

    pub(super) fn lost(upstream: &Upstream) -> Self {
        let what = "closed the connection during the call; it may have been carried out";
        Self::failed(upstream, ErrorKind::Lost, what)
    }

    /// Before there was anything to be carried out.
    pub(super) fn cut_short(upstream: &Upstream) -> Self {
        let what = "closed the connection during the handshake; the call was not sent";
        Self::failed(upstream, ErrorKind::Lost, what)
    }

    pub(super) fn unusable(upstream: &Upstream) -> Self {
        let what = "gave no usable answer; check its URL";
        Self::failed(upstream, ErrorKind::Unusable, what)
    }

    pub(super) fn unknown(upstream: &Upstream) -> Self {
        let upstream = upstream.name().to_owned();
        Self(Arc::new(Inner::Unknown { upstream }))
    }

    pub(super) fn endless(upstream: &Upstream) -> Self {
        let what = "lists its tools on more pages than are looked through";
        Self::failed(upstream, ErrorKind::Unusable, what)
    }

    pub(super) fn late(upstream: &Upstream) -> Self {
        events::late(upstream);
        Self::failed(upstream, ErrorKind::Unreachable, "did not answer in time")
    }

    /// A connection that was not made.
    pub(super) fn handshake(upstream: &Upstream, error: &ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::TransportError { error, .. } => {
                let error = Self::transport(upstream, &*error.error);
                match error.kind() {
                    ErrorKind::Lost => Self::cut_short(upstream),
                    _ => error,
                }
            }
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => {
                Self::handshake(upstream, fallback)
            }
            ClientInitializeError::JsonRpcError(data) => Self::answered(upstream, data.clone()),
            ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
                let what = "speaks other versions of MCP than 2024-11-05 to 2026-07-28";
                Self::failed(upstream, ErrorKind::NoCommonVersion, what)
            }
            _ => Self::unusable(upstream),
        }
    }

    /// A call on a connection.
    pub(super) fn call(upstream: &Upstream, error: ServiceError) -> Self {
        match error {
            ServiceError::McpError(data) if data.message == LEFT_BEHIND => Self::lost(upstream),
            ServiceError::McpError(data) => Self::answered(upstream, data),
            ServiceError::TransportSend(error) => Self::transport(upstream, &*error.error),
            ServiceError::UnexpectedResponse => Self::unusable(upstream),
            _ => Self::lost(upstream),
        }
    }

    fn transport(
        upstream: &Upstream,
        error: &(dyn std::error::Error + Send + Sync + 'static),
    ) -> Self {
        match error.downcast_ref::<StreamableHttpError<WireError>>() {
            Some(StreamableHttpError::Client(WireError::Refused(refusal))) => {
                Self::refused(refusal.clone())
            }
            Some(StreamableHttpError::Client(WireError::Unknown)) => Self::unknown(upstream),
            Some(StreamableHttpError::Client(WireError::Unreachable)) => {
                Self::failed(upstream, ErrorKind::Unreachable, "cannot be reached")
            }
            Some(
                StreamableHttpError::Client(WireError::Unusable)
                | StreamableHttpError::HttpStatus(_),
            ) => Self::unusable(upstream),
            _ => Self::lost(upstream),
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Inner::Refused(_) => ErrorKind::Refused,
            Inner::Answered { .. } => ErrorKind::Answered,
            Inner::Unknown { .. } => ErrorKind::Unusable,
            Inner::Failed { kind, .. } => *kind,
        }
    }

    /// The upstream's 401 or 403.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match &*self.0 {
            Inner::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The upstream's JSON-RPC error.
    #[must_use]
    pub fn data(&self) -> Option<&ErrorData> {
        match &*self.0 {
            Inner::Answered { data, .. } => Some(data),
            _ => None,
        }
    }

    pub(super) fn is_unknown_method(&self) -> bool {
        let data = self.data();
        data.is_some_and(|data| data.code == ErrorCode::METHOD_NOT_FOUND)
    }

    /// Whether the upstream answered, and neither with what was asked for nor with a refusal.
    pub(super) fn is_answer(&self) -> bool {
        use ErrorKind::{Answered, NoCommonVersion, Unusable};
        matches!(self.kind(), Answered | NoCommonVersion | Unusable)
    }

    /// Whether this says of an upstream that it knows no `initialize`, or none of its versions. As a JSON-RPC
    /// error rmcp tells no status; these are what 400, 404 and 405 have.
    pub(super) fn knows_no_initialize(&self) -> bool {
        match &*self.0 {
            Inner::Answered { data, .. } => matches!(
                data.code,
                ErrorCode::METHOD_NOT_FOUND
                    | ErrorCode::INVALID_REQUEST
                    | ErrorCode::INVALID_PARAMS
                    | ErrorCode::UNSUPPORTED_PROTOCOL_VERSION
                    | ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY
                    | ErrorCode::HEADER_MISMATCH
            ),
            Inner::Unknown { .. } => true,
            Inner::Refused(_) | Inner::Failed { .. } => false,
        }
    }

    /// Whether the connection is of no use any more: for everybody on it.
    pub(super) fn ends_connection(&self) -> bool {
        match &*self.0 {
            Inner::Refused(refusal) => refusal.status() == StatusCode::UNAUTHORIZED,
            Inner::Answered { .. } | Inner::Unknown { .. } => false,
            Inner::Failed { kind, .. } => *kind == ErrorKind::Lost,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the upstream's own words, which may quote the caller's.
        f.debug_struct("Error")
            .field("kind", &self.kind())
            .field("message", &self.to_string())
            .finish_non_exhaustive()
    }
}

/// The upstream's own error as it is; else an internal error with this crate's message.
impl From<Error> for ErrorData {
    fn from(error: Error) -> Self {
        match error.data() {
            Some(data) => data.clone(),
            None => Self::internal_error(error.to_string(), None),
        }
    }
}

/// As of the [`Error`] behind it, where there is one.
impl From<ConnectError> for ErrorData {
    fn from(error: ConnectError) -> Self {
        let source = std::error::Error::source(&error);
        match source.and_then(|source| source.downcast_ref::<Error>()) {
            Some(error) => error.clone().into(),
            None => Self::internal_error(error.to_string(), None),
        }
    }
}

impl From<MissingInbound> for ErrorData {
    fn from(error: MissingInbound) -> Self {
        Self::internal_error(error.to_string(), None)
    }
}
