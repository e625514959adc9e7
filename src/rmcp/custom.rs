//! A request of a method that nobody here knows, for the only upstream.
//!
//! It may not know what the method means.

use rmcp::{
    ErrorData, RoleServer,
    model::{
        CallToolRequestMethod, CancelTaskMethod, CompleteRequestMethod, ConstString, CustomRequest,
        CustomResult, DiscoverRequestMethod, ErrorCode, GetPromptRequestMethod,
        GetSkillRequestMethod, GetTaskMethod, InitializeResultMethod, ListPromptsRequestMethod,
        ListResourceTemplatesRequestMethod, ListResourcesRequestMethod, ListSkillsRequestMethod,
        ListToolsRequestMethod, PingRequestMethod, ReadResourceDirectoryRequestMethod,
        ReadResourceRequestMethod, ResultType, ServerResult, SetLevelRequestMethod,
        SubscribeRequestMethod, SubscriptionsListenRequestMethod, UnsubscribeRequestMethod,
        UpdateTaskMethod,
    },
    service::RequestContext,
};

use super::{context::since_2026_07_28, reach::Reach};

/// The methods of rmcp's `ClientRequest`. It is untagged: a request of one of these that rmcp cannot read
/// comes as a custom one, past everything that is done for that method.
const KNOWN: [&str; 21] = [
    PingRequestMethod::VALUE,
    InitializeResultMethod::VALUE,
    DiscoverRequestMethod::VALUE,
    CompleteRequestMethod::VALUE,
    SetLevelRequestMethod::VALUE,
    GetPromptRequestMethod::VALUE,
    ListPromptsRequestMethod::VALUE,
    ListResourcesRequestMethod::VALUE,
    ListResourceTemplatesRequestMethod::VALUE,
    ReadResourceRequestMethod::VALUE,
    SubscriptionsListenRequestMethod::VALUE,
    SubscribeRequestMethod::VALUE,
    UnsubscribeRequestMethod::VALUE,
    CallToolRequestMethod::VALUE,
    ListToolsRequestMethod::VALUE,
    GetTaskMethod::VALUE,
    UpdateTaskMethod::VALUE,
    CancelTaskMethod::VALUE,
    ListSkillsRequestMethod::VALUE,
    GetSkillRequestMethod::VALUE,
    ReadResourceDirectoryRequestMethod::VALUE,
];

/// Passes it on, as it is.
pub(super) async fn pass_on(
    reach: &Reach<'_>,
    mut request: CustomRequest,
    context: &RequestContext<RoleServer>,
) -> Result<CustomResult, ErrorData> {
    if KNOWN.contains(&&*request.method) {
        let message = "the parameters are not those of this method";
        return Err(ErrorData::invalid_params(message, None));
    }
    let unknown = || ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "unknown method", None);
    let upstream = reach.only().ok_or_else(unknown)?;
    request.extensions = Default::default();
    let mut result = match reach.client(upstream).await?.request(request).await? {
        ServerResult::CustomResult(result) => result.0,
        result => serde_json::to_value(result).map_err(|_| unreadable())?,
    };
    if let (Some(_), Some(fields)) = (since_2026_07_28(context), result.as_object_mut()) {
        let complete = || ResultType::COMPLETE.as_str().into();
        fields.entry("resultType").or_insert_with(complete);
    }
    Ok(CustomResult::new(result))
}

fn unreadable() -> ErrorData {
    ErrorData::internal_error("the upstream's result cannot be passed on", None)
}
