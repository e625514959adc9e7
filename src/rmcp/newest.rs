//! What 2026-07-28 asks of a server and rmcp's does not do for a proxy: results that say their type, and
//! `Mcp-Param-*` headers that say what the arguments say.
//!
//! It may not know how an upstream is reached.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use rmcp::{
    ErrorData, RoleServer,
    model::{JsonObject, ResultType, ServerResult, Tool},
    service::RequestContext,
};
use serde_json::Value;

/// The HTTP side of a message whose sender speaks 2026-07-28 or later.
pub(super) fn newest(context: &RequestContext<RoleServer>) -> Option<&Parts> {
    let version = context.protocol_version()?;
    let parts = context.extensions.get::<Parts>();
    parts.filter(|_| !version.has_initialize())
}

/// Says of a result from before 2026-07-28 what such a one means. rmcp's server takes it out again for
/// callers from before.
pub(super) fn complete(mut result: ServerResult) -> ServerResult {
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

/// Which arguments of one tool stand in `Mcp-Param-*` headers, too: `x-mcp-header` in its schema.
///
/// MCP 2026-07-28, Streamable HTTP: whoever reads only one of the two must read what the other says.
pub(super) struct Mirrored(Vec<(Vec<String>, HeaderName)>);

impl Mirrored {
    /// Nothing where no argument does.
    pub(super) fn of(tool: &Tool) -> Option<Self> {
        let mut found = Vec::new();
        collect(&tool.input_schema, &mut Vec::new(), &mut found);
        (!found.is_empty()).then_some(Self(found))
    }

    /// # Errors
    ///
    /// The answer to a caller whose headers say something else than `arguments`. No value is in it.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        arguments: Option<&JsonObject>,
    ) -> Result<(), ErrorData> {
        for (path, name) in &self.0 {
            let mut lines = headers.get_all(name).iter();
            let (line, second) = (lines.next(), lines.next());
            let argument = argument(arguments, path);
            let agree = match (line, &argument) {
                (None, None) => true,
                (Some(line), Some(argument)) => said(line).as_ref() == Some(argument),
                _ => false,
            };
            if !agree || second.is_some() {
                let message = format!("header `{name}` does not say what its argument says");
                return Err(ErrorData::header_mismatch(message, None));
            }
        }
        Ok(())
    }
}

/// Looks where rmcp's client looks, which makes these headers: along `properties`.
fn collect(
    schema: &JsonObject,
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, HeaderName)>,
) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        path.push(name.clone());
        let header = schema.get("x-mcp-header").and_then(Value::as_str);
        let header = header.filter(|it| !it.is_empty());
        let header = header.and_then(|it| HeaderName::try_from(format!("mcp-param-{it}")).ok());
        found.extend(header.map(|header| (path.clone(), header)));
        if let Some(schema) = schema.as_object() {
            collect(schema, path, found);
        }
        path.pop();
    }
}

/// The text of the argument at `path`; nothing of what is missing, null or no single value.
fn argument(arguments: Option<&JsonObject>, path: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let first = arguments?.get(first)?;
    match rest.iter().try_fold(first, |value, name| value.get(name))? {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What a line says, which may be wrapped as `=?base64?…?=`; nothing of one that is malformed.
fn said(line: &HeaderValue) -> Option<String> {
    let line = line.to_str().ok()?;
    let wrapped = line.strip_prefix("=?base64?");
    match wrapped.and_then(|it| it.strip_suffix("?=")) {
        Some(wrapped) => String::from_utf8(BASE64_STANDARD.decode(wrapped).ok()?).ok(),
        None => Some(line.to_owned()),
    }
}
