//! `ParamHeaders`: the `Mcp-Param-*` headers of a call, which have to say what its arguments say.
//!
//! It may not know how an upstream is reached.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use rmcp::{
    ErrorData,
    model::{JsonObject, ListToolsResult, Tool},
};
use serde_json::{Number, Value};

/// What says in a schema that an argument has a header.
const ANNOTATION: &str = "x-mcp-header";

/// How many arguments of one tool may have a header; no server takes as many lines.
const MAX_HEADERS: usize = 1024;

/// Which tools of one upstream have such headers, as one caller is told.
#[derive(Default)]
pub(super) struct ToolHeaders(Mutex<HashMap<String, Arc<ParamHeaders>>>);

impl ToolHeaders {
    pub(super) fn of(&self, tool: &str) -> Option<Arc<ParamHeaders>> {
        let tools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tools.get(tool).cloned()
    }

    /// Reads one page of a list; of what was known before it, nothing stays where the list is `anew`.
    pub(super) fn learn(&self, page: &ListToolsResult, anew: bool) {
        let read = |tool: &Tool| (tool.name.to_string(), ParamHeaders::of(tool).map(Arc::new));
        let page: Vec<_> = page.tools.iter().map(read).collect();
        let mut tools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if anew {
            tools.clear();
        }
        for (name, headers) in page {
            match headers {
                Some(headers) => tools.insert(name, headers),
                None => tools.remove(&name),
            };
        }
    }
}

/// Which arguments of one tool stand in headers, too.
///
/// MCP 2026-07-28, Streamable HTTP: whoever reads only one of the two must read what the other says.
pub(super) struct ParamHeaders(Vec<Property>);

/// An argument with a header, or an object with such arguments in it.
struct Property {
    name: String,
    header: Option<HeaderName>,
    properties: Vec<Property>,
}

impl ParamHeaders {
    /// Nothing where no argument has one, or where the schema says it wrongly: rmcp's client then leaves
    /// out the tool, as MCP asks.
    fn of(tool: &Tool) -> Option<Self> {
        if tool.input_schema.contains_key(ANNOTATION) {
            return None;
        }
        let properties = tool.input_schema.get("properties");
        let found = annotated(properties, &mut HashSet::new())?;
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
        check(&self.0, headers, arguments)
    }
}

/// Looks where rmcp's client looks, which makes these headers: along `properties`. `None` where one is
/// annotated wrongly.
fn annotated(
    properties: Option<&Value>,
    headers: &mut HashSet<HeaderName>,
) -> Option<Vec<Property>> {
    let mut found = Vec::new();
    let properties = properties.and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        let header = match schema.get(ANNOTATION) {
            Some(annotation) => Some(header(annotation, schema, headers)?),
            None => None,
        };
        let properties = annotated(schema.get("properties"), headers)?;
        if header.is_some() || !properties.is_empty() {
            found.push(Property {
                name: name.clone(),
                header,
                properties,
            });
        }
    }
    Some(found)
}

/// The header of a single value, under a name that no other has.
fn header(
    annotation: &Value,
    schema: &Value,
    headers: &mut HashSet<HeaderName>,
) -> Option<HeaderName> {
    let name = annotation.as_str().filter(|name| !name.is_empty())?;
    let name = HeaderName::try_from(format!("mcp-param-{name}")).ok()?;
    let of_type = schema.get("type").and_then(Value::as_str);
    let is_single = matches!(of_type, Some("string" | "integer" | "boolean"));
    let is_valid = is_single && headers.len() < MAX_HEADERS && headers.insert(name.clone());
    is_valid.then_some(name)
}

fn check(
    properties: &[Property],
    headers: &HeaderMap,
    object: Option<&JsonObject>,
) -> Result<(), ErrorData> {
    for property in properties {
        let value = object.and_then(|object| object.get(&property.name));
        if let Some(name) = &property.header
            && !agree(headers, name, value)
        {
            let message = format!("header `{name}` does not say what its argument says");
            return Err(ErrorData::header_mismatch(message, None));
        }
        let below = value.and_then(Value::as_object);
        check(&property.properties, headers, below)?;
    }
    Ok(())
}

/// Whether there is one line for an argument that has a value, and none for another.
fn agree(headers: &HeaderMap, name: &HeaderName, argument: Option<&Value>) -> bool {
    let mut lines = headers.get_all(name).iter();
    let (line, second) = (lines.next(), lines.next());
    let agree = match (line.map(said), argument.and_then(text)) {
        (None, None) => true,
        (Some(Some(said)), Some(text)) if argument.is_some_and(Value::is_number) => {
            said == text || integer(&said).is_some_and(|it| integer(&text) == Some(it))
        }
        (Some(Some(said)), Some(text)) => said == text,
        _ => false,
    };
    agree && second.is_none()
}

/// What an integer is, however JSON writes it (`42`, `42.0`, `4.2e1`): to the last digit, which a float would
/// not keep. Nothing of other numbers and of those beyond 128 bits.
fn integer(text: &str) -> Option<i128> {
    serde_json::from_str::<Number>(text).ok()?;
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let value: i128 = format!("{whole}{fraction}").parse().ok()?;
    let zeros = exponent.checked_sub(fraction.len().try_into().ok()?)?;
    let power = 10_i128.checked_pow(zeros.unsigned_abs())?;
    if zeros >= 0 {
        value.checked_mul(power)
    } else {
        (value % power == 0).then_some(value / power)
    }
}

/// What a header says of an argument; nothing of null, or of what is no single value.
fn text(argument: &Value) -> Option<String> {
    match argument {
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
