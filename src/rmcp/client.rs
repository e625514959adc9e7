//! `Client`: one caller's hold on a connection to one upstream.
//!
//! It may not know how the connection was found.

use std::{fmt, sync::Arc};

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResponse, ClientNotification, ClientRequest,
    CompleteRequest, CompleteRequestParams, CompleteResult, GetPromptRequest,
    GetPromptRequestParams, GetPromptResponse, ListPromptsRequest, ListPromptsResult,
    ListResourceTemplatesRequest, ListResourceTemplatesResult, ListResourcesRequest,
    ListResourcesResult, ListToolsRequest, ListToolsResult, PaginatedRequestParams,
    ReadResourceRequest, ReadResourceRequestParams, ReadResourceResponse, ServerPeerInfo,
    ServerResult, SubscriptionFilter,
};
use rmcp::{
    RoleServer,
    service::{RequestContext, Subscription},
};

use super::{
    bridge::Caller, error::Error, param_headers::ParamHeaders, pool::Lease,
    result_type::with_result_type,
};
use crate::{carry::Inbound, outbound::Outbound};

/// Sends MCP messages to one upstream, as one caller.
///
/// Made by [`Factory`](super::Factory). Take one for each call that you handle, and drop it
/// afterwards: the connection below is kept or closed as the factory was told. A future that is dropped before
/// its answer is there tells the upstream that the call is cancelled.
///
/// What an upstream asks during a call is passed to the caller *in the task that awaits the call*: await
/// it in the handler, so that rmcp knows which message of the caller's that is.
///
/// # Errors
///
/// Every call fails with [`Error`]; a [refusal](crate::Refusal) is reported to whoever answers the
/// caller, too. Nothing is repeated, except that rmcp opens a new session where the upstream has lost
/// one, and sends again what the upstream answered with 404 for that reason.
pub struct Client {
    lease: Lease,
    outbound: Outbound,
    /// Where to answer; nothing else of the caller's.
    inbound: Inbound,
    caller: Option<Caller>,
}

impl Client {
    pub(super) fn new(lease: Lease, outbound: Outbound, inbound: &Inbound) -> Self {
        Self {
            lease,
            outbound,
            inbound: inbound.answer_only(),
            caller: None,
        }
    }

    /// Calls on behalf of the one message that `context` is about: progress and log messages of the
    /// upstream's go to its sender, under the sender's own progress token, and what else its `_meta`
    /// says goes to the upstream.
    #[must_use]
    pub fn in_call(self, context: &RequestContext<RoleServer>) -> Self {
        Self {
            caller: Some(Caller::of(context)),
            ..self
        }
    }

    /// What the upstream said of itself when the connection was made.
    #[must_use]
    pub fn server_info(&self) -> Option<Arc<ServerPeerInfo>> {
        self.lease.connection.peer().peer_info()
    }

    /// Sends any request.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn request(&self, request: impl Into<ClientRequest>) -> Result<ServerResult, Error> {
        let connection = &self.lease.connection;
        let (outbound, caller) = (&self.outbound, self.caller.as_ref());
        let answer = connection.request(outbound, caller, request.into()).await;
        self.learn(answer).await
    }

    /// Sends any notification.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn notify(&self, notification: impl Into<ClientNotification>) -> Result<(), Error> {
        let connection = &self.lease.connection;
        self.learn(connection.notify(&self.outbound, notification.into()).await)
            .await
    }

    /// `subscriptions/listen`, over a connection in 2026-07-28, which a caller in a front session has only
    /// where the upstream speaks nothing else. It ends when the subscription is dropped; keep this client
    /// until then.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn listen(&self, filter: SubscriptionFilter) -> Result<Subscription, Error> {
        let subscription = self.lease.connection.peer().listen(filter).await;
        let upstream = self.outbound.upstream();
        let subscription = subscription.map_err(|error| Error::call(upstream, error));
        self.learn(subscription).await
    }

    async fn learn<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &outcome {
            if let Some(refusal) = error.refusal() {
                self.inbound.report(refusal.clone());
            }
            if error.ends_connection() {
                self.lease.evict().await;
            }
        }
        outcome
    }

    /// What `tool` wants as headers, too, as this caller is told; asked for once on a connection.
    pub(super) async fn param_headers(
        &self,
        tool: &str,
    ) -> Result<Option<Arc<ParamHeaders>>, Error> {
        let connection = &self.lease.connection;
        let headers = connection.param_headers(&self.outbound, tool).await;
        self.learn(headers).await
    }

    /// Sends `request`, and takes what `pick` finds in the answer.
    async fn ask<T>(
        &self,
        request: impl Into<ClientRequest>,
        pick: impl FnOnce(ServerResult) -> Option<T>,
    ) -> Result<T, Error> {
        let result = with_result_type(self.request(request).await?);
        pick(result).ok_or_else(|| Error::unusable(self.outbound.upstream()))
    }

    /// `tools/list`: one page.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn list_tools(
        &self,
        params: Option<PaginatedRequestParams>,
    ) -> Result<ListToolsResult, Error> {
        let request = ListToolsRequest {
            params,
            ..Default::default()
        };
        self.ask(request, |result| match result {
            ServerResult::ListToolsResult(result) => Some(result),
            _ => None,
        })
        .await
    }

    /// `tools/call`. To a 2026-07-28 upstream the first one on a connection lists the tools before, since
    /// what a tool wants as `Mcp-Param-*` headers is in its schema. Where the upstream does not list them, the
    /// call goes on without such headers, and the next one asks again.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn call_tool(
        &self,
        params: CallToolRequestParams,
    ) -> Result<CallToolResponse, Error> {
        let request = CallToolRequest::new(params);
        self.ask(request, |result| match result {
            ServerResult::CallToolResult(result) => Some(CallToolResponse::Complete(result)),
            ServerResult::InputRequiredResult(result) => {
                Some(CallToolResponse::InputRequired(result))
            }
            ServerResult::CreateTaskResult(result) => Some(CallToolResponse::Task(result)),
            _ => None,
        })
        .await
    }

    /// `prompts/list`: one page.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn list_prompts(
        &self,
        params: Option<PaginatedRequestParams>,
    ) -> Result<ListPromptsResult, Error> {
        let request = ListPromptsRequest {
            params,
            ..Default::default()
        };
        self.ask(request, |result| match result {
            ServerResult::ListPromptsResult(result) => Some(result),
            _ => None,
        })
        .await
    }

    /// `prompts/get`.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn get_prompt(
        &self,
        params: GetPromptRequestParams,
    ) -> Result<GetPromptResponse, Error> {
        let request = GetPromptRequest::new(params);
        self.ask(request, |result| match result {
            ServerResult::GetPromptResult(result) => Some(GetPromptResponse::Complete(result)),
            ServerResult::InputRequiredResult(result) => {
                Some(GetPromptResponse::InputRequired(result))
            }
            _ => None,
        })
        .await
    }

    /// `resources/list`: one page.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn list_resources(
        &self,
        params: Option<PaginatedRequestParams>,
    ) -> Result<ListResourcesResult, Error> {
        let request = ListResourcesRequest {
            params,
            ..Default::default()
        };
        self.ask(request, |result| match result {
            ServerResult::ListResourcesResult(result) => Some(result),
            _ => None,
        })
        .await
    }

    /// `resources/templates/list`: one page.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn list_resource_templates(
        &self,
        params: Option<PaginatedRequestParams>,
    ) -> Result<ListResourceTemplatesResult, Error> {
        let request = ListResourceTemplatesRequest {
            params,
            ..Default::default()
        };
        self.ask(request, |result| match result {
            ServerResult::ListResourceTemplatesResult(result) => Some(result),
            _ => None,
        })
        .await
    }

    /// `resources/read`.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn read_resource(
        &self,
        params: ReadResourceRequestParams,
    ) -> Result<ReadResourceResponse, Error> {
        let request = ReadResourceRequest::new(params);
        self.ask(request, |result| match result {
            ServerResult::ReadResourceResult(result) => {
                Some(ReadResourceResponse::Complete(result))
            }
            ServerResult::InputRequiredResult(result) => {
                Some(ReadResourceResponse::InputRequired(result))
            }
            _ => None,
        })
        .await
    }

    /// `completion/complete`.
    ///
    /// # Errors
    ///
    /// As for every call: see [`Client`].
    pub async fn complete(&self, params: CompleteRequestParams) -> Result<CompleteResult, Error> {
        let request = CompleteRequest::new(params);
        self.ask(request, |result| match result {
            ServerResult::CompleteResult(result) => Some(result),
            _ => None,
        })
        .await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lease: _,
            outbound,
            inbound: _,
            caller: _,
        } = self;
        f.debug_struct("Client")
            .field("outbound", outbound)
            .finish_non_exhaustive()
    }
}
