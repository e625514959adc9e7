//! `Wire`: rmcp's HTTP client, with each message's own headers.
//!
//! Everything that goes to one upstream over one connection goes through here. It may not know which
//! connection a caller has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderName, HeaderValue};
use rmcp::{
    model::{
        ClientJsonRpcMessage, GetExtensions, JsonRpcMessage, ServerJsonRpcMessage,
        ServerNotification,
    },
    transport::{
        common::client_side_sse::BoxedSseResponse,
        streamable_http_client::{
            AuthRequiredError, StreamableHttpClient, StreamableHttpPostResponse,
        },
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    bridge::{Route, Routes},
    failure::{Failure, WireError, failure, is_gone},
    status::seen,
    streams::Streams,
};
use crate::{carry::Refusal, events, outbound::Outbound};

type Headers = HashMap<HeaderName, HeaderValue>;

/// The HTTP side of one connection.
#[derive(Clone)]
pub(super) struct Wire {
    http: reqwest::Client,
    /// For requests without a message: GET, DELETE, and what rmcp sends of itself.
    newest: Arc<Mutex<Outbound>>,
    /// The last one. rmcp loses that of its `notifications/initialized`.
    refusal: Arc<Mutex<Option<Refusal>>>,
    routes: Routes,
    streams: Streams,
    closed: CancellationToken,
}

impl Wire {
    pub(super) fn new(
        http: reqwest::Client,
        outbound: Outbound,
        routes: Routes,
        streams: Streams,
        closed: CancellationToken,
    ) -> Self {
        Self {
            http,
            newest: Arc::new(Mutex::new(outbound)),
            refusal: Arc::default(),
            routes,
            streams,
            closed,
        }
    }

    /// What has no message of its own goes out as `outbound` from now on.
    ///
    /// But never in place of a caller's credential without one: the operator's would stand in for it.
    pub(super) fn renew(&self, outbound: &Outbound) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let is_weaker = newest.has_credential() && !outbound.has_credential();
        if *newest != *outbound && !is_weaker {
            newest.clone_from(outbound);
        }
    }

    pub(super) fn newest(&self) -> Outbound {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.clone()
    }

    /// rmcp leaves a handshake that nobody waits for to itself: with its task, its socket and the
    /// caller's headers, for as long as the upstream likes.
    async fn until_closed<T>(&self, exchange: impl Future<Output = T>) -> Result<T, Failure> {
        let exchange = self.closed.run_until_cancelled(exchange).await;
        exchange.ok_or(Failure::Client(WireError::Unreachable))
    }

    fn ended(&self, events: BoxedSseResponse) -> BoxedSseResponse {
        let closed = self.closed.clone().cancelled_owned();
        events.take_until(closed).boxed()
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.clone()
    }

    fn outbound(&self, message: &ClientJsonRpcMessage) -> Outbound {
        let extensions = match message {
            JsonRpcMessage::Request(request) => Some(request.request.extensions()),
            JsonRpcMessage::Notification(notification) => {
                Some(notification.notification.extensions())
            }
            _ => None,
        };
        let outbound = extensions.and_then(|extensions| extensions.get::<Outbound>());
        outbound.cloned().unwrap_or_else(|| self.newest())
    }

    /// From now on the upstream may ask something that belongs to this call.
    fn open_route(&self, message: &ClientJsonRpcMessage) -> Option<Route> {
        let JsonRpcMessage::Request(request) = message else {
            return None;
        };
        let route = request.request.extensions().get::<Route>()?;
        self.routes.insert(request.id.clone(), route.clone());
        Some(route.clone())
    }
}

/// Adds the merged headers to those that rmcp made for this hop; their names cannot meet, since the
/// transport's are restricted.
fn inject(outbound: &Outbound, headers: &mut Headers) {
    for (name, value) in outbound.iter() {
        let joined = match headers.get(name) {
            Some(earlier) => join(earlier, value),
            None => value.clone(),
        };
        headers.insert(name.clone(), joined);
    }
    events::injected(outbound.upstream(), outbound.iter().map(|(name, _)| name));
}

/// Several lines as one: RFC 9110 section 5.3. rmcp has one value for each name.
fn join(earlier: &HeaderValue, value: &HeaderValue) -> HeaderValue {
    let bytes = [earlier.as_bytes(), value.as_bytes()].join(&b", "[..]);
    let mut joined = HeaderValue::from_bytes(&bytes).unwrap_or_else(|_| value.clone());
    joined.set_sensitive(true);
    joined
}

impl StreamableHttpClient for Wire {
    type Error = WireError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let size = usize::MAX;
        self.post_message_with_max_sse_event_size(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            size,
        )
        .await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        mut custom_headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let outbound = self.outbound(&message);
        let route = self.open_route(&message);
        inject(&outbound, &mut custom_headers);
        let exchange = self.http.post_message_with_max_sse_event_size(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            max_sse_event_size,
        );
        let (answer, status) = self.until_closed(seen(exchange)).await?;
        let answer = answer.map_err(|error| {
            let failure = failure(&outbound, status, error);
            if let Failure::Client(WireError::Refused(refusal)) = &failure {
                let mut last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some(refusal.clone());
            }
            failure
        })?;
        Ok(match (answer, route) {
            (StreamableHttpPostResponse::Sse(events, session_id), Some(route)) => {
                let events = tapped(events, route);
                StreamableHttpPostResponse::Sse(self.ended(events), session_id)
            }
            (StreamableHttpPostResponse::Sse(events, session_id), None) => {
                StreamableHttpPostResponse::Sse(self.ended(events), session_id)
            }
            (answer, _) => answer,
        })
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        mut custom_headers: Headers,
    ) -> Result<(), Failure> {
        let outbound = self.newest();
        inject(&outbound, &mut custom_headers);
        let exchange = self
            .http
            .delete_session(uri, session_id, auth_header, custom_headers);
        let (answer, status) = seen(exchange).await;
        answer.map_err(|error| failure(&outbound, status, error))
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<BoxedSseResponse, Failure> {
        let size = usize::MAX;
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            size,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        mut custom_headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<BoxedSseResponse, Failure> {
        let outbound = self.newest();
        let resumed = last_event_id.is_some();
        inject(&outbound, &mut custom_headers);
        let exchange = self.http.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            max_sse_event_size,
        );
        let (answer, status) = self.until_closed(seen(exchange)).await?;
        let events = answer.map_err(|error| {
            // Of a stream that there was; a first one may be unknown to a server that has none.
            let gone = resumed && is_gone(&error);
            if gone {
                self.streams.lose();
            }
            match failure(&outbound, status, error) {
                // rmcp opens the stream again unless it is told so.
                failure if gone || matches!(failure, Failure::Client(WireError::Refused(_))) => {
                    Failure::AuthRequired(AuthRequiredError::new(String::new()))
                }
                failure => failure,
            }
        })?;
        Ok(self.ended(events))
    }
}

/// The stream of one call's answer, without what the upstream says meanwhile: that goes to the call, in
/// its order and before the answer. rmcp would tell neither to which call it belongs nor when it came.
fn tapped(events: BoxedSseResponse, route: Route) -> BoxedSseResponse {
    let tapped = events.and_then(move |mut event| {
        let said = event.data.as_deref().and_then(said);
        if said.is_some() {
            // The event's id stays, for a stream that is resumed.
            event.data = None;
        }
        let route = route.clone();
        async move {
            if let Some(said) = said {
                route.say(said).await;
            }
            Ok(event)
        }
    });
    tapped.boxed()
}

/// Progress or a log message.
fn said(data: &str) -> Option<ServerNotification> {
    if !data.contains("notifications/progress") && !data.contains("notifications/message") {
        return None;
    }
    match serde_json::from_str::<ServerJsonRpcMessage>(data).ok()? {
        JsonRpcMessage::Notification(message) => Some(message.notification).filter(|it| {
            matches!(
                it,
                ServerNotification::ProgressNotification(_)
                    | ServerNotification::LoggingMessageNotification(_)
            )
        }),
        _ => None,
    }
}
