//! `Bridge`: what an upstream asks, brought to the caller whom it is about.
//!
//! It may not know headers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rmcp::{
    ErrorData, RoleClient, RoleServer, Service,
    model::{
        CancelledNotification, CancelledNotificationParam, ClientCapabilities, ClientConfig,
        ClientResult, ErrorCode, GetMeta, Implementation, JsonObject, ProgressToken,
        ProtocolVersion, RequestId, RequestMetaObject, ServerNotification, ServerRequest,
    },
    service::{
        InboundStreamOrigin, NotificationContext, Peer, PeerRequestOptions, RequestContext,
        ServiceError, ServiceRole,
    },
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use crate::carry::SessionKey;

/// How much of what an upstream does during one call waits for its caller; then its stream waits.
const MAX_WAITING: usize = 64;

/// How many questions and notifications of one upstream wait for callers who do not read.
const MAX_ASKED: usize = 64;

/// How the keys begin that MCP reserves for itself in `_meta`.
const MCP_META: &str = "io.modelcontextprotocol/";
const PROGRESS_TOKEN: &str = "progressToken";

/// What an upstream does while a call is under way, for the task that waits for the answer to it.
pub(super) enum Event {
    Asked(Question),
    Said(ServerNotification),
}

/// One question of the upstream's.
pub(super) struct Question {
    request: ServerRequest,
    answer: oneshot::Sender<Result<ClientResult, ErrorData>>,
}

/// Where that goes: in the extensions of the call's message.
#[derive(Clone)]
pub(super) struct Route(mpsc::Sender<Event>);

impl Route {
    pub(super) fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Self(sender), receiver)
    }

    /// A call that has ended hears nothing more.
    pub(super) async fn say(&self, notification: ServerNotification) {
        let _ = self.0.send(Event::Said(notification)).await;
    }
}

/// The calls that are under way on one connection.
#[derive(Clone, Default)]
pub(super) struct Routes(Arc<Mutex<HashMap<RequestId, Route>>>);

impl Routes {
    pub(super) fn insert(&self, call: RequestId, route: Route) {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A call that has ended has dropped its receiver.
        routes.retain(|_, route| !route.0.is_closed());
        routes.insert(call, route);
    }

    fn get(&self, call: &RequestId) -> Option<Route> {
        let routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        routes.get(call).cloned()
    }
}

/// The client's side of one connection.
pub(super) struct Bridge {
    /// The front session that the connection belongs to.
    front: Option<SessionKey>,
    /// What the upstream was told that it may ask.
    answerable: ClientCapabilities,
    routes: Routes,
    room: Semaphore,
}

impl Bridge {
    pub(super) fn new(
        front: Option<SessionKey>,
        answerable: ClientCapabilities,
        routes: Routes,
    ) -> Self {
        Self {
            front,
            answerable,
            routes,
            room: Semaphore::new(MAX_ASKED),
        }
    }

    fn may_ask(&self, request: &ServerRequest) -> bool {
        match request {
            ServerRequest::CreateMessageRequest(_) => self.answerable.sampling.is_some(),
            ServerRequest::ElicitRequest(_) => self.answerable.elicitation.is_some(),
            ServerRequest::ListRootsRequest(_) => self.answerable.roots.is_some(),
            _ => false,
        }
    }

    /// Asks in the task of the call, where rmcp knows which call of the caller's that is.
    async fn ask_in_call(
        &self,
        origin: Option<&InboundStreamOrigin>,
        request: ServerRequest,
    ) -> Result<Result<ClientResult, ErrorData>, ServerRequest> {
        let Some(InboundStreamOrigin::OutboundRequest(call)) = origin else {
            return Err(request);
        };
        let Some(route) = self.routes.get(call) else {
            return Err(request);
        };
        let (answer, answered) = oneshot::channel();
        let question = Question { request, answer };
        match route.0.send(Event::Asked(question)).await {
            Ok(()) => Ok(answered.await.unwrap_or_else(|_| Err(unanswered()))),
            Err(unsent) => match unsent.0 {
                Event::Asked(question) => Err(question.request),
                Event::Said(_) => Ok(Err(unanswered())),
            },
        }
    }
}

impl Service<RoleClient> for Bridge {
    async fn handle_request(
        &self,
        mut request: ServerRequest,
        context: RequestContext<RoleClient>,
    ) -> Result<ClientResult, ErrorData> {
        if let ServerRequest::PingRequest(_) = request {
            return Ok(ClientResult::empty(()));
        }
        let front = front(self.front.as_ref()).filter(|_| self.may_ask(&request));
        let Some(front) = front else {
            let message = "this was not declared: nobody is there to answer";
            return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, message, None));
        };
        let Ok(_room) = self.room.try_acquire() else {
            return Err(unanswered());
        };
        request.get_meta_mut().0.0 = own_keys(context.meta.0.0);
        let origin = context.extensions.get::<InboundStreamOrigin>();
        tokio::select! {
            answer = async {
                match self.ask_in_call(origin, request).await {
                    Ok(answer) => answer,
                    Err(request) => ask_apart(front.clone(), request).await,
                }
            } => answer,
            () = context.ct.cancelled() => Err(unanswered()),
        }
    }

    /// What belongs to a call has been taken out of its stream before (`wire.rs`).
    async fn handle_notification(
        &self,
        mut notification: ServerNotification,
        context: NotificationContext<RoleClient>,
    ) -> Result<(), ErrorData> {
        let passed_on = matches!(
            notification,
            ServerNotification::LoggingMessageNotification(_)
                | ServerNotification::ResourceUpdatedNotification(_)
                | ServerNotification::ResourceListChangedNotification(_)
                | ServerNotification::ToolListChangedNotification(_)
                | ServerNotification::PromptListChangedNotification(_)
        );
        let room = self.room.try_acquire();
        let front = front(self.front.as_ref()).filter(|_| passed_on && room.is_ok());
        if let Some(front) = front {
            notification.get_meta_mut().0.0 = own_keys(context.meta.0.0);
            // A caller who has gone hears nothing more.
            let _ = front.send_notification(notification).await;
        }
        Ok(())
    }

    fn get_info(&self) -> ClientConfig {
        let name = Implementation::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        ClientConfig::new(self.answerable.clone(), name)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

/// What a front session can be asked.
pub(super) fn answerable(session: Option<&SessionKey>) -> ClientCapabilities {
    let handshake = front(session).and_then(Peer::peer_info);
    handshake.map_or_else(ClientCapabilities::default, |it| {
        passed_on(&it.capabilities)
    })
}

/// What of a caller's capabilities an upstream may count on.
fn passed_on(declared: &ClientCapabilities) -> ClientCapabilities {
    let mut passed_on = ClientCapabilities::default();
    passed_on.sampling.clone_from(&declared.sampling);
    passed_on.elicitation.clone_from(&declared.elicitation);
    passed_on.roots.clone_from(&declared.roots);
    passed_on
}

/// The message of the caller's that a call is made for.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) peer: Peer<RoleServer>,
    /// What the caller wants told about the progress.
    progress: Option<ProgressToken>,
    /// What else the message said of itself, and the upstream may know.
    pub(super) meta: RequestMetaObject,
    /// What it said to an upstream without sessions, which knows nothing of the caller but this: what
    /// can be asked in the result, and what is to be logged.
    pub(super) sessionless: RequestMetaObject,
}

impl Caller {
    pub(super) fn of(context: &RequestContext<RoleServer>) -> Self {
        let mut meta = context.meta.clone();
        let progress = meta.get_progress_token();
        let mut sessionless = RequestMetaObject::new();
        if let Some(declared) = meta.client_capabilities() {
            sessionless.set_client_capabilities(passed_on(&declared));
        }
        if let Some(level) = meta.log_level() {
            sessionless.set_log_level(level);
        }
        meta.0.0 = own_keys(meta.0.0);
        Self {
            peer: context.peer.clone(),
            progress,
            meta,
            sessionless,
        }
    }
}

/// Tells the caller what the upstream says about the call, under the caller's own progress token.
pub(super) async fn tell(caller: Option<&Caller>, mut notification: ServerNotification) {
    let Some(caller) = caller else { return };
    if let ServerNotification::ProgressNotification(progress) = &mut notification {
        let Some(token) = &caller.progress else {
            return;
        };
        progress.params.progress_token = token.clone();
    }
    let meta = notification.get_meta_mut();
    meta.0.0 = own_keys(std::mem::take(&mut meta.0.0));
    // A caller who has gone hears nothing more.
    let _ = caller.peer.send_notification(notification).await;
}

/// What of a message's `_meta` may go on: MCP's own keys are about the hop on which they came.
fn own_keys(mut meta: JsonObject) -> JsonObject {
    meta.retain(|key, _| key != PROGRESS_TOKEN && !key.starts_with(MCP_META));
    meta
}

/// Whom to ask in a front session.
pub(super) fn front(session: Option<&SessionKey>) -> Option<&Peer<RoleServer>> {
    session.and_then(SessionKey::get)
}

/// Asks the caller, and tells the upstream.
pub(super) async fn answer(front: &Peer<RoleServer>, question: Question) {
    let answer = ask(front, question.request).await;
    let _ = question.answer.send(answer);
}

/// Asks in a task of its own: in the one of a handler rmcp takes the id of the upstream's request for
/// that of a call of the caller's.
async fn ask_apart(
    front: Peer<RoleServer>,
    request: ServerRequest,
) -> Result<ClientResult, ErrorData> {
    let mut asking = JoinSet::new();
    asking.spawn(async move { ask(&front, request).await });
    let answer = asking.join_next().await.and_then(Result::ok);
    answer.unwrap_or_else(|| Err(unanswered()))
}

async fn ask(front: &Peer<RoleServer>, request: ServerRequest) -> Result<ClientResult, ErrorData> {
    let error = |error| match error {
        ServiceError::McpError(error) => error,
        _ => unanswered(),
    };
    let options = PeerRequestOptions::no_options();
    let asked = front.send_cancellable_request(request, options).await;
    let asked = asked.map_err(error)?;
    let mut abandoned = Abandoned::new(front, asked.id.clone());
    let answer = asked.await_response().await;
    abandoned.disarm();
    answer.map_err(error)
}

/// Tells a peer that nobody waits for its answer any more: to a request that is dropped before.
pub(super) struct Abandoned<R: ServiceRole<Not: From<CancelledNotification>>> {
    peer: Peer<R>,
    id: Option<RequestId>,
}

impl<R: ServiceRole<Not: From<CancelledNotification>>> Abandoned<R> {
    pub(super) fn new(peer: &Peer<R>, id: RequestId) -> Self {
        Self {
            peer: peer.clone(),
            id: Some(id),
        }
    }

    pub(super) fn disarm(&mut self) {
        self.id = None;
    }
}

impl<R: ServiceRole<Not: From<CancelledNotification>>> Drop for Abandoned<R> {
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

fn unanswered() -> ErrorData {
    ErrorData::internal_error("the caller gave no answer", None)
}
