//! The HTTP requests that callers write.
//!
//! It may not know what comes of them.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use mcp_forward::InternalForward;
use serde_json::{Value, json};

use crate::{
    house::PROBE,
    plan::{Call, Claim, Plan},
    values::sent,
};

/// Where requests go to.
#[derive(Clone)]
pub struct Proxy {
    pub addr: SocketAddr,
    pub forward: InternalForward,
}

/// What goes with every request of a call; what is in no session is of 2026-07-28.
fn headers(call: Call, session: Option<&str>, newest: bool) -> HeaderMap {
    let mut headers: HeaderMap = sent(call)
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    if let Some(session) = session {
        headers.insert("mcp-session-id", session.parse().unwrap());
    }
    let version = if newest { "2026-07-28" } else { "2025-11-25" };
    headers.insert("mcp-protocol-version", HeaderValue::from_static(version));
    headers
}

impl Proxy {
    fn request(&self, method: &str, path: &str, headers: HeaderMap, body: &str) -> Request<Bytes> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.addr.to_string())
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap();
        request.headers_mut().extend(headers);
        request
    }

    /// A message that has nothing to do with the plan.
    pub fn message(
        &self,
        path: &str,
        call: Call,
        session: Option<&str>,
        message: &Value,
    ) -> Request<Bytes> {
        let headers = headers(call, session, false);
        self.request("POST", path, headers, &message.to_string())
    }

    pub fn delete(&self, path: &str, call: Call, session: &str) -> Request<Bytes> {
        self.request("DELETE", path, headers(call, Some(session), false), "")
    }

    /// The call as it is planned, or the list.
    pub fn call(
        &self,
        path: &str,
        call: Call,
        session: Option<&str>,
        plan: &Plan,
    ) -> Request<Bytes> {
        let Call { principal, number } = call;
        let prefix = match plan.scoped {
            true => String::new(),
            false => format!("{}_", plan.place.name()),
        };
        let tool = format!("{prefix}echo");
        let (method, mut params) = match plan.list {
            true => ("tools/list", json!({})),
            false => (
                "tools/call",
                json!({ "name": tool, "arguments": { "principal": principal, "number": number } }),
            ),
        };
        let newest = session.is_none();
        let mut headers = headers(call, session, newest);
        if newest {
            headers.insert("mcp-method", HeaderValue::from_static(method));
            if !plan.list {
                headers.insert("mcp-name", tool.parse().unwrap());
            }
            params["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "caller", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            });
        }
        if plan.probed {
            headers.insert(PROBE, HeaderValue::from_static(plan.place.name()));
        }
        if plan.claim == Claim::Forged {
            let mark = HeaderValue::from_static("chaos.nobody.mark");
            headers.insert("x-forwarded-internally", mark);
        }
        let body = json!({ "jsonrpc": "2.0", "id": number, "method": method, "params": params });
        let mut request = self.request("POST", path, headers, &body.to_string());
        if plan.claim == Claim::Proved {
            self.forward.sign(&mut request).unwrap();
        }
        request
    }
}
