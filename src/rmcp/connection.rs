//! `Connection`: one rmcp client, connected to one upstream.
//!
//! It may not know who else uses it, nor how long it is kept.

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use rmcp::{
    RoleClient,
    model::{
        ClientCapabilities, ClientNotification, ClientRequest, GetExtensions, GetMeta,
        ListToolsRequest, ListToolsResult, PaginatedRequestParams, ServerResult,
    },
    service::{
        ClientCacheConfig, ClientLifecycleMode, ClientServiceExt, Peer, PeerRequestOptions,
        RunningService,
    },
    transport::streamable_http_client::{
        StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
    },
};
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    bridge::{Abandoned, Bridge, Caller, Event, Route, Routes, answer, front, tell},
    error::Error,
    param_headers::{ParamHeaders, ToolHeaders},
    streams::Streams,
    wire::Wire,
};
use crate::{carry::SessionKey, outbound::Outbound};

/// How many POSTs rmcp has in progress on one connection; one that has opened an event stream does
/// not count.
const MAX_POSTS: usize = 1024;

/// How many pages of tools are looked through for headers of theirs.
const MAX_PAGES: usize = 64;

pub(super) struct Connection {
    running: RunningService<RoleClient, Bridge>,
    wire: Wire,
    streams: Streams,
    front: Option<SessionKey>,
    /// Whether all the tools' schemas were seen, from which rmcp makes `Mcp-Param-*`.
    tools_listed: OnceCell<()>,
    /// What they say of those headers, for a connection that is one caller's.
    tool_headers: ToolHeaders,
    /// Without it nothing that is still under way goes on.
    _open: DropGuard,
}

impl Connection {
    /// Connects as `outbound`, and declares that its front session, if there is one, can be asked
    /// what is `answerable`.
    pub(super) async fn open(
        http: reqwest::Client,
        outbound: &Outbound,
        answerable: ClientCapabilities,
        lifecycle: ClientLifecycleMode,
    ) -> Result<Self, Error> {
        let routes = Routes::default();
        let streams = Streams::default();
        let closed = CancellationToken::new();
        let open = closed.clone().drop_guard();
        let wire = Wire::new(
            http,
            outbound.clone(),
            routes.clone(),
            streams.clone(),
            closed,
        );
        let url = outbound.upstream().url().to_string();
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        let mut config = config.max_concurrent_requests(MAX_POSTS);
        config.retry_config = Arc::new(streams.clone());
        let transport = StreamableHttpClientTransport::with_client(wire.clone(), config);
        let front = outbound.session().cloned();
        let bridge = Bridge::new(front.clone(), answerable, routes);
        let running = bridge.serve_with_lifecycle(transport, lifecycle).await;
        let running = running.map_err(|error| match wire.refusal() {
            Some(refusal) => Error::refused(refusal),
            None => Error::handshake(outbound.upstream(), &error),
        })?;
        // A cached answer would be one caller's for another.
        let uncached = ClientCacheConfig::disabled();
        running.set_response_cache_config(uncached).await;
        Ok(Self {
            running,
            wire,
            streams,
            front,
            tools_listed: OnceCell::new(),
            tool_headers: ToolHeaders::default(),
            _open: open,
        })
    }

    /// Whether the upstream speaks a version without sessions: 2026-07-28 and later.
    pub(super) fn is_sessionless(&self) -> bool {
        let info = self.running.peer_info();
        info.is_some_and(|info| !info.protocol_version.has_initialize())
    }

    pub(super) fn is_open(&self) -> bool {
        !self.running.is_transport_closed() && !self.streams.are_lost()
    }

    /// Whether whatever has no message of its own goes out as `outbound`.
    pub(super) fn is_of(&self, outbound: &Outbound) -> bool {
        self.wire.newest() == *outbound
    }

    /// What has no message of its own goes out as `outbound` from now on.
    pub(super) fn renew(&self, outbound: &Outbound) {
        self.wire.renew(outbound);
    }

    pub(super) fn peer(&self) -> &Peer<RoleClient> {
        &self.running
    }

    /// Sends `request` as `outbound`. What the upstream asks meanwhile is asked in this task. Dropped
    /// before the answer is there, it cancels the request.
    pub(super) async fn request(
        &self,
        outbound: &Outbound,
        caller: Option<&Caller>,
        request: ClientRequest,
    ) -> Result<ServerResult, Error> {
        if matches!(request, ClientRequest::CallToolRequest(_)) && self.is_sessionless() {
            match self.see_tools(outbound).await {
                // Whoever may not list may still call; then no argument is in a header.
                Err(error) if error.is_answer() || is_forbidden(&error) => {}
                seen => seen?,
            }
        }
        let is_first = matches!(
            &request,
            ClientRequest::ListToolsRequest(list)
                if list.params.as_ref().is_none_or(|page| page.cursor.is_none())
        );
        let result = self.send(outbound, caller, request).await?;
        if let ServerResult::ListToolsResult(page) = &result {
            self.learn(page, is_first && page.next_cursor.is_none());
        }
        Ok(result)
    }

    /// What `tool` wants as headers, as whoever sends `outbound` is told.
    pub(super) async fn param_headers(
        &self,
        outbound: &Outbound,
        tool: &str,
    ) -> Result<Option<Arc<ParamHeaders>>, Error> {
        self.see_tools(outbound).await?;
        Ok(self.tool_headers.of(tool))
    }

    /// Only one caller's connection, in no session, is asked for what was learned.
    fn learn(&self, page: &ListToolsResult, anew: bool) {
        if self.front.is_none() {
            self.tool_headers.learn(page, anew);
        }
    }

    /// Lists all tools, unless that was done; a list that failed is asked for again.
    async fn see_tools(&self, outbound: &Outbound) -> Result<(), Error> {
        let listed = self
            .tools_listed
            .get_or_try_init(|| self.list_tools(outbound));
        listed.await.copied()
    }

    async fn list_tools(&self, outbound: &Outbound) -> Result<(), Error> {
        let mut request = ListToolsRequest::default();
        for pages in 0..MAX_PAGES {
            let page = match self.send(outbound, None, request.into()).await {
                Ok(ServerResult::ListToolsResult(page)) => page,
                Ok(_) => return Err(Error::unusable(outbound.upstream())),
                // Without a list no tool has a header to be sent.
                Err(error) if pages == 0 && error.is_unknown_method() => return Ok(()),
                Err(error) => return Err(error),
            };
            self.learn(&page, pages == 0);
            let Some(cursor) = page.next_cursor else {
                return Ok(());
            };
            let next = PaginatedRequestParams::default().with_cursor(Some(cursor));
            request = ListToolsRequest::with_param(next);
        }
        Err(Error::endless(outbound.upstream()))
    }

    async fn send(
        &self,
        outbound: &Outbound,
        caller: Option<&Caller>,
        mut request: ClientRequest,
    ) -> Result<ServerResult, Error> {
        let upstream = outbound.upstream();
        let (route, mut events) = Route::new();
        let extensions = request.extensions_mut();
        extensions.insert(outbound.clone());
        extensions.insert(route);
        let mut options = PeerRequestOptions::no_options();
        if let Some(caller) = caller {
            request.get_meta_mut().extend(caller.meta.clone());
            if self.is_sessionless() {
                // Over what rmcp says of its own client.
                options = options.with_meta(caller.sessionless.clone());
            }
        }
        let peer = self.peer();
        let sent = peer.send_cancellable_request(request, options);
        let handle = sent.await.map_err(|error| Error::call(upstream, error))?;
        // As whoever called last, since the token of this call may have been renewed meanwhile.
        let mut abandoned = Abandoned::new(peer, handle.id.clone());
        let asked = caller.map(|caller| &caller.peer);
        let asked = asked.or_else(|| front(self.front.as_ref()));
        let mut answers = FuturesUnordered::new();
        let mut response = pin!(handle.await_response());
        let result = loop {
            tokio::select! {
                // What the upstream said before its answer is told before it.
                biased;
                Some(event) = events.recv() => match (event, asked) {
                    (Event::Asked(question), Some(asked)) => answers.push(answer(asked, question)),
                    (Event::Said(notification), _) => tell(caller, notification).await,
                    (Event::Asked(_), None) => {}
                },
                Some(()) = answers.next() => {}
                result = &mut response => break result,
            }
        };
        abandoned.disarm();
        while let Ok(Event::Said(notification)) = events.try_recv() {
            tell(caller, notification).await;
        }
        result.map_err(|error| Error::call(upstream, error))
    }

    pub(super) async fn notify(
        &self,
        outbound: &Outbound,
        mut notification: ClientNotification,
    ) -> Result<(), Error> {
        notification.extensions_mut().insert(outbound.clone());
        let sent = self.peer().send_notification(notification).await;
        sent.map_err(|error| Error::call(outbound.upstream(), error))
    }
}

/// Whether the upstream refuses this to the caller, who may be allowed something else.
fn is_forbidden(error: &Error) -> bool {
    let refusal = error.refusal();
    refusal.is_some_and(|refusal| refusal.status() == StatusCode::FORBIDDEN)
}
