//! `Inbound` as an axum extractor (feature `axum`). It may not know how it was captured.

use axum_core::{
    body::Body,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use crate::{carry::Inbound, error::MissingInbound, events, reply::Rejection};

/// The inbound of the request; *empty* for a caller who sent nothing that the rules read. Without a
/// capture layer it answers 500.
impl<S: Sync> FromRequestParts<S> for Inbound {
    type Rejection = MissingInbound;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingInbound> {
        let inbound = Self::attached(&parts.extensions).or_else(Self::current);
        inbound.ok_or(MissingInbound::new(
            "put `CaptureLayer` around the router (`.layer` comes after the routes)",
        ))
    }
}

impl IntoResponse for MissingInbound {
    fn into_response(self) -> Response {
        let rejection = Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, self.to_string());
        events::rejected("extractor", &rejection);
        rejection.response::<Body>().map(Body::new)
    }
}
