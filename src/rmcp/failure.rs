//! `Failure`: what rmcp's HTTP client says went wrong, read for what the upstream said.
//!
//! It may not know which message it was.

use http::{HeaderMap, HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
use rmcp::transport::streamable_http_client::{HttpStatusError, StreamableHttpError};

use crate::{carry::Refusal, events, outbound::Outbound};

/// Why the upstream gave no message. No text of the transport's or the upstream's is in it, since
/// either may quote what was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Refused(Refusal),
    #[error("the upstream cannot be reached")]
    Unreachable,
    #[error("the upstream does not know what it was asked")]
    Unknown,
    #[error("the upstream answered something else than MCP")]
    Unusable,
}

pub(super) type Failure = StreamableHttpError<WireError>;

/// Whether the session of an event stream has ended: MCP 2025-11-25, Streamable HTTP, session
/// management.
pub(super) fn is_gone(error: &StreamableHttpError<reqwest::Error>) -> bool {
    let StreamableHttpError::Client(error) = error else {
        return false;
    };
    error.status() == Some(StatusCode::NOT_FOUND)
}

/// The one place that reads rmcp's errors for what the upstream said.
pub(super) fn failure(
    outbound: &Outbound,
    status: Option<StatusCode>,
    error: StreamableHttpError<reqwest::Error>,
) -> Failure {
    use StreamableHttpError as Rmcp;
    let refused = |status, challenge: Option<&str>| {
        let challenge = challenge.and_then(|line| HeaderValue::from_str(line).ok());
        let headers: HeaderMap = challenge
            .map(|it| (WWW_AUTHENTICATE, it))
            .into_iter()
            .collect();
        let refusal = outbound.refusal(status, &headers);
        refusal.map(WireError::Refused).or_else(|| unknown(status))
    };
    let unusable = Failure::Client(WireError::Unusable);
    match error {
        Rmcp::AuthRequired(error) => refused(
            StatusCode::UNAUTHORIZED,
            Some(&error.www_authenticate_header),
        )
        .map_or(unusable, Failure::Client),
        Rmcp::InsufficientScope(error) => {
            refused(StatusCode::FORBIDDEN, Some(&error.www_authenticate_header))
                .map_or(unusable, Failure::Client)
        }
        // Without a challenge, with one that is no text, or with a body that is too large for rmcp.
        Rmcp::UnexpectedServerResponse(_) | Rmcp::ResponseBodyTooLarge { .. } => status
            .and_then(|status| refused(status, None))
            .map_or(unusable, Failure::Client),
        Rmcp::Client(error) => match error.status() {
            Some(status) => refused(status, None).map_or(unusable, Failure::Client),
            None => {
                events::unreachable(outbound.upstream(), &error);
                Failure::Client(WireError::Unreachable)
            }
        },
        // rmcp logs what it holds, and `retry-after` is the upstream's text.
        Rmcp::HttpStatus(error) => Failure::HttpStatus(HttpStatusError::new(error.status, None)),
        Rmcp::SessionExpired => Failure::SessionExpired,
        Rmcp::ServerDoesNotSupportSse => Failure::ServerDoesNotSupportSse,
        Rmcp::ServerDoesNotSupportDeleteSession => Failure::ServerDoesNotSupportDeleteSession,
        _ => unusable,
    }
}

/// What a server answers that knows no such endpoint, method or version.
fn unknown(status: StatusCode) -> Option<WireError> {
    use StatusCode as Is;
    let is_unknown = matches!(
        status,
        Is::BAD_REQUEST | Is::NOT_FOUND | Is::METHOD_NOT_ALLOWED
    );
    is_unknown.then_some(WireError::Unknown)
}
