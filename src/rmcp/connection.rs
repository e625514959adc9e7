//! `Connection`: one rmcp client, connected to one upstream.
//!
//! It may not know who else uses it, nor how long it is kept.

use std::pin::pin;

use futures_util::{StreamExt, stream::FuturesUnordered};
use rmcp::{
    RoleClient,
    model::{
        CancelledNotification, CancelledNotificationParam, ClientCapabilities, ClientNotification,
        ClientRequest, GetExtensions, GetMeta, ListToolsRequest, PaginatedRequestParams, RequestId,
        ServerResult,
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

use super::{
    bridge::{Bridge, Caller, Event, Route, Routes, answer, front, tell},
    error::Error,
    wire::Wire,
};
use crate::{carry::SessionKey, outbound::Outbound};

/// How many POSTs rmcp has in progress on one connection; one that has opened an event stream does
/// not count.
const MAX_POSTS: usize = 1024;

pub(super) struct Connection {
    running: RunningService<RoleClient, Bridge>,
    wire: Wire,
    front: Option<SessionKey>,
    /// Whether rmcp has seen the tools' schemas, from which it makes `Mcp-Param-*`.
    tools_listed: OnceCell<()>,
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
        let wire = Wire::new(http, outbound.clone(), routes.clone());
        let url = outbound.upstream().url().to_string();
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        let config = config.max_concurrent_requests(MAX_POSTS);
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
            front,
            tools_listed: OnceCell::new(),
        })
    }

    /// Whether the upstream speaks a version without sessions: 2026-07-28 and later.
    pub(super) fn is_sessionless(&self) -> bool {
        let info = self.running.peer_info();
        info.is_some_and(|info| !info.protocol_version.has_initialize())
    }

    pub(super) fn is_open(&self) -> bool {
        !self.running.is_transport_closed()
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
            let listed = self
                .tools_listed
                .get_or_try_init(|| self.list_tools(outbound));
            listed.await?;
        }
        self.send(outbound, caller, request).await
    }

    /// Lists all tools, for rmcp to see their schemas.
    async fn list_tools(&self, outbound: &Outbound) -> Result<(), Error> {
        let mut request = ListToolsRequest::default();
        loop {
            let page = match self.send(outbound, None, request.into()).await {
                Ok(ServerResult::ListToolsResult(page)) => page,
                // Without a list no tool has a header to be sent.
                Ok(_) => return Ok(()),
                Err(error) if error.data().is_some() => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(cursor) = page.next_cursor else {
                return Ok(());
            };
            let next = PaginatedRequestParams::default().with_cursor(Some(cursor));
            request = ListToolsRequest::with_param(next);
        }
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
        let mut abandoned = Abandoned {
            peer,
            id: Some(handle.id.clone()),
        };
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
        abandoned.id = None;
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

/// Tells the upstream that nobody waits any more; as whoever called last, since the token of the call
/// may have been renewed meanwhile.
struct Abandoned<'a> {
    peer: &'a Peer<RoleClient>,
    id: Option<RequestId>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        // Without a runtime the connection is gone, too.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let reason = Some("the caller has gone".to_owned());
        let params = CancelledNotificationParam::new(Some(id), reason);
        let notification = CancelledNotification::new(params);
        let peer = self.peer.clone();
        runtime.spawn(async move { peer.send_notification(notification.into()).await });
    }
}
