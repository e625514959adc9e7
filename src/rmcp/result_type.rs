//! `resultType`, which 2026-07-28 wants in every result and older upstreams do not say.

use rmcp::model::{ResultType, ServerResult};

/// Says of a result from before 2026-07-28 what such a one means. rmcp's server takes it out again for
/// callers from before.
pub(super) fn with_result_type(mut result: ServerResult) -> ServerResult {
    let result_type = match &mut result {
        ServerResult::CallToolResult(it) => &mut it.result_type,
        ServerResult::CompleteResult(it) => &mut it.result_type,
        ServerResult::GetPromptResult(it) => &mut it.result_type,
        ServerResult::ListPromptsResult(it) => &mut it.result_type,
        ServerResult::ListResourceTemplatesResult(it) => &mut it.result_type,
        ServerResult::ListResourcesResult(it) => &mut it.result_type,
        ServerResult::ListToolsResult(it) => &mut it.result_type,
        ServerResult::ReadResourceResult(it) => &mut it.result_type,
        _ => return result,
    };
    result_type.get_or_insert(ResultType::COMPLETE);
    result
}
