//! `Proxy`: an MCP server in front of one or several upstreams, for rmcp's server.
//!
//! Each message is served as its own caller. It keeps nothing that one caller was told for another;
//! it may not know how several upstreams become one (`reach.rs`).
#![expect(
    deprecated,
    reason = "rmcp deprecates what callers before 2026-07-28 still use"
)]

use std::{collections::BTreeSet, fmt, panic::AssertUnwindSafe, slice, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use http::request::Parts;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult,
        CustomRequest, CustomResult, Extensions, GetPromptRequestParams, GetPromptResponse,
        Implementation, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
        ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
        Reference, RootsListChangedNotification, ServerCapabilities, ServerConfig, SetLevelRequest,
        SetLevelRequestParams, SubscribeRequest, SubscribeRequestParams, SubscriptionFilter,
        UnsubscribeRequest, UnsubscribeRequestParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};

use super::{
    context::{ContextExt, since_2026_07_28},
    custom,
    factory::Factory,
    reach::Reach,
};
use crate::{
    error::{BuildError, Mistake, MistakeKind},
    outbound::client::ClientFactory,
    rules::Upstream,
    server_id::ServerId,
};

/// Clients give up after 60 s, and would then have nothing from the other upstreams either.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// A [`ServerHandler`] that passes every request on to its upstreams, as the caller who sent it.
///
/// With one upstream, everything has the upstream's own names. With several:
///
/// - Tools and prompts are named `<upstream>_<name>`; upstreams' names have no `_`.
/// - A resource belongs to the first upstream, in the order given, that lists its URI or a template for
///   it, as this caller; a URI that nobody lists is asked nowhere. Where an upstream before that one refuses to
///   list, with 401 or 403, or because the caller's headers for it are missing or no good, it may own the resource:
///   the caller gets that refusal or error, and no other upstream is asked for it. One that is down, fails or takes
///   [too long](Self::list_timeout) is passed over: while it is away, its resource is the next upstream's that lists the
///   same URI.
/// - With several upstreams a message may have 256 different URIs, which is for `subscriptions/listen`; with more it is
///   answered with -32602. What the upstreams list is asked for once for all of them.
/// - Lists are asked for at all upstreams at once. An upstream that fails, or takes [longer than
///   30 s](Self::list_timeout), does not empty the list: it is named in the log and in the result's
///   `_meta`, under `mcp-forward/failed`. If all refuse, the caller gets the refusal.
///
/// Progress and log messages of a call go to its caller, under the caller's own progress token; sampling,
/// elicitation and roots to the caller of the call that they belong to, and one that belongs to no
/// call to the front session that owns the connection; see [the module](super) for when there is one. A
/// cancelled call, or in 2026-07-28 a closed response, cancels at the upstream.
///
/// A call of 2026-07-28 whose `Mcp-Param-*` headers are missing, malformed or not what its arguments say is
/// refused, with 400 and -32020. Which arguments have one is in the schema of the tool, as this caller is
/// told it: the tools of the upstream are listed for that, once on a connection. Where they cannot be listed,
/// the call fails with the error of the list; not where the upstream knows no such list.
///
/// A message that is for one server, by a [`ServerIdLayer`](crate::ServerIdLayer) around the HTTP service,
/// sees the upstream of that name alone, without prefixes.
///
/// Put [`CaptureLayer`](crate::CaptureLayer) and the refusal layer around the HTTP service that it is
/// given to:
///
/// ```
/// use std::sync::Arc;
///
/// use axum::Router;
/// use mcp_forward::{CaptureLayer, RefusalLayer, Upstream, rmcp::{Factory, Proxy}};
/// use rmcp::transport::streamable_http_server::{
///     StreamableHttpService, session::local::LocalSessionManager,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_forward::BuildError> {
/// let github = Upstream::builder("github", "https://github.example/mcp").allow("x-user-id").build()?;
/// let search = Upstream::builder("search", "https://search.example/mcp").build()?;
/// let proxy = Proxy::new([&github, &search], Factory::builder().build()?)?;
/// let sessions = Arc::<LocalSessionManager>::default();
/// let mcp = StreamableHttpService::new(move || Ok(proxy.clone()), sessions, Default::default());
/// let app: Router = Router::new()
///     .route_service("/mcp", mcp)
///     .layer(RefusalLayer::new())
///     .layer(CaptureLayer::for_upstreams([&github, &search]).build()?);
/// # let _ = app;
/// # Ok(())
/// # }
/// ```
///
/// # What is not passed on
///
/// The upstream connection of a front session ends when no call has used it for
/// [`idle_time`](super::FactoryBuilder::idle_time), or when more than
/// [`max_connections`](super::FactoryBuilder::max_connections) to that upstream are kept. Subscriptions and the
/// log level in it end with it, though the front session goes on.
///
/// A caller in a session has no log level, no subscriptions and no questions at an upstream that speaks
/// 2026-07-28 alone. A caller of 2026-07-28 cannot be asked by an older upstream.
///
/// A notification to a server without sessions (`StreamableHttpServerConfig::with_legacy_session_mode`) is
/// dropped by rmcp. What an upstream says of itself between calls, such as a changed list, reaches a caller only
/// in a front session and from an upstream with sessions, or in answer to `subscriptions/listen` (2026-07-28)
/// from an upstream that knows it. Tasks, skills and an upstream's notifications of methods that MCP does
/// not know are not passed on.
#[derive(Clone)]
pub struct Proxy {
    upstreams: Arc<[Upstream]>,
    factory: Factory,
    list_timeout: Duration,
}

impl Proxy {
    /// Serves `upstreams` through the clients that `factory` makes.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where there is no upstream, or where two have one name.
    pub fn new<'a>(
        upstreams: impl IntoIterator<Item = &'a Upstream>,
        factory: Factory,
    ) -> Result<Self, BuildError> {
        let upstreams: Arc<[_]> = upstreams.into_iter().cloned().collect();
        let mut mistakes = Vec::new();
        if upstreams.is_empty() {
            let message = "there is no upstream; give it one";
            mistakes.push(Mistake::new(MistakeKind::Limit, message));
        }
        let mut seen = BTreeSet::new();
        for name in upstreams.iter().map(Upstream::name) {
            if !seen.insert(name) {
                let message = format!("two upstreams have the name `{name}`; rename one");
                mistakes.push(Mistake::new(MistakeKind::DuplicateUpstream, message));
            }
        }
        if mistakes.is_empty() {
            Ok(Self {
                upstreams,
                factory,
                list_timeout: LIST_TIMEOUT,
            })
        } else {
            Err(BuildError::new("the proxy", mistakes))
        }
    }

    /// How long each of several upstreams may take for what all are asked; 30 s by default.
    ///
    /// What one upstream is asked has no such limit: it ends when the caller cancels it.
    #[must_use]
    pub fn list_timeout(self, list_timeout: Duration) -> Self {
        Self {
            list_timeout,
            ..self
        }
    }

    fn reach<'a>(
        &'a self,
        context: &'a RequestContext<RoleServer>,
    ) -> Result<Reach<'a>, ErrorData> {
        let upstreams = self.scoped(&context.extensions)?;
        Ok(Reach::new(
            upstreams,
            &self.factory,
            self.list_timeout,
            context,
        ))
    }

    /// The upstreams; for a message that is for one server, that one alone.
    fn scoped(&self, extensions: &Extensions) -> Result<&[Upstream], ErrorData> {
        let parts = extensions.get::<Parts>();
        let Some(server) = parts.and_then(|parts| parts.extensions.get::<ServerId>()) else {
            return Ok(&self.upstreams);
        };
        let mut upstreams = self.upstreams.iter();
        let upstream = upstreams.find(|upstream| upstream.name() == server.as_str());
        let unknown = || ErrorData::invalid_params("no upstream has this server id", None);
        upstream.map(slice::from_ref).ok_or_else(unknown)
    }
}

/// Does `work` as the caller, until the caller cancels it.
///
/// It is boxed at once: unboxed, rmcp's server would have all handlers' futures on one stack.
fn serve<'a, T: 'a>(
    context: &'a RequestContext<RoleServer>,
    work: impl Future<Output = Result<T, ErrorData>> + Send + 'a,
) -> impl Future<Output = Result<T, ErrorData>> + Send + 'a {
    // rmcp would leave the caller without an answer to a panic.
    let work = Box::pin(AssertUnwindSafe(context.scope(work)).catch_unwind());
    async {
        tokio::select! {
            done = work => done.unwrap_or_else(|_| Err(failed("the proxy failed on this message"))),
            () = context.ct.cancelled() => Err(failed("the caller cancelled this message")),
        }
    }
}

fn failed(message: &'static str) -> ErrorData {
    ErrorData::internal_error(message, None)
}

impl ServerHandler for Proxy {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .enable_completions()
            .enable_logging()
            .build();
        let name = Implementation::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(name)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let reach = self.reach(&context)?;
        serve(&context, reach.list(request)).await
    }

    async fn call_tool(
        &self,
        mut request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let reach = self.reach(&context)?;
        let work = async {
            let (upstream, name) = reach.by_name(&request.name)?;
            request.name = name.to_owned().into();
            request.meta = None;
            let client = reach.client(upstream).await?;
            // rmcp's server could do it only before the handler, where nobody can be asked for the schema.
            if let Some(parts) = since_2026_07_28(&context)
                && let Some(headers) = client.param_headers(&request.name).await?
            {
                headers.check(&parts.headers, request.arguments.as_ref())?;
            }
            Ok(client.call_tool(request).await?)
        };
        serve(&context, work).await
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let reach = self.reach(&context)?;
        serve(&context, reach.list(request)).await
    }

    async fn get_prompt(
        &self,
        mut request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let reach = self.reach(&context)?;
        let work = async {
            let (upstream, name) = reach.by_name(&request.name)?;
            request.name = name.to_owned();
            request.meta = None;
            Ok(reach.client(upstream).await?.get_prompt(request).await?)
        };
        serve(&context, work).await
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let reach = self.reach(&context)?;
        serve(&context, reach.list(request)).await
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let reach = self.reach(&context)?;
        serve(&context, reach.list(request)).await
    }

    async fn read_resource(
        &self,
        mut request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let reach = self.reach(&context)?;
        let work = async {
            let upstream = reach.by_uri(&request.uri).await?;
            request.meta = None;
            Ok(reach.client(upstream).await?.read_resource(request).await?)
        };
        serve(&context, work).await
    }

    async fn complete(
        &self,
        mut request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let reach = self.reach(&context)?;
        let work = async {
            let upstream = match &mut request.r#ref {
                Reference::Resource(resource) => reach.by_uri(&resource.uri).await?,
                Reference::Prompt(prompt) => {
                    let (upstream, name) = reach.by_name(&prompt.name)?;
                    prompt.name = name.to_owned();
                    upstream
                }
                _ => {
                    return Err(ErrorData::invalid_params(
                        "`ref` is of an unknown type",
                        None,
                    ));
                }
            };
            request.meta = None;
            Ok(reach.client(upstream).await?.complete(request).await?)
        };
        serve(&context, work).await
    }

    async fn subscribe(
        &self,
        mut request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let reach = self.reach(&context)?;
        let work = async {
            let upstream = reach.by_uri(&request.uri).await?;
            request.meta = None;
            let request = SubscribeRequest::new(request);
            reach.client(upstream).await?.request(request).await?;
            Ok(())
        };
        serve(&context, work).await
    }

    async fn unsubscribe(
        &self,
        mut request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let reach = self.reach(&context)?;
        let work = async {
            let upstream = reach.by_uri(&request.uri).await?;
            request.meta = None;
            let request = UnsubscribeRequest::new(request);
            reach.client(upstream).await?.request(request).await?;
            Ok(())
        };
        serve(&context, work).await
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let reach = self.reach(&context)?;
        let work = reach.everywhere(|client| {
            let request = SetLevelRequest::new(SetLevelRequestParams::new(request.level));
            async move { client.request(request).await.map(drop) }
        });
        serve(&context, work).await
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let reach = self.reach(&context)?;
        serve(&context, custom::pass_on(&reach, request, &context)).await
    }

    async fn on_roots_list_changed(&self, context: NotificationContext<RoleServer>) {
        let upstreams = self.scoped(&context.extensions).unwrap_or_default();
        let told = upstreams.iter().map(|upstream| async {
            let client = self.factory.connect(upstream).await;
            if let Ok(client) = client {
                // An upstream that cannot be told asks again when it wants to know.
                let _ = client.notify(RootsListChangedNotification::default()).await;
            }
        });
        let told = tokio::time::timeout(self.list_timeout, join_all(told));
        let _ = context.scope(told).await;
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let request = context.request_context();
        let reach = self.reach(request)?;
        serve(request, reach.listen(&context)).await
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            upstreams,
            factory,
            list_timeout,
        } = self;
        f.debug_struct("Proxy")
            .field("upstreams", upstreams)
            .field("factory", factory)
            .field("list_timeout", list_timeout)
            .finish()
    }
}
