//! How an upstream answers over its socket, or breaks off.
//!
//! It may not know to what.

use std::io;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::values::SECRET;

/// Whether the connection is used for another request.
pub type Kept = io::Result<bool>;

pub const JSON: &str = "content-type: application/json\r\n";
pub const EVENTS: &str = "content-type: text/event-stream\r\n";

pub fn result_of(message: &Value, mut result: Value) -> String {
    // What is older than 2026-07-28 does not mind.
    result["resultType"] = json!("complete");
    json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }).to_string()
}

pub async fn respond(stream: &mut TcpStream, status: u16, lines: &str, body: &str) -> Kept {
    let length = body.len();
    let answer = format!("HTTP/1.1 {status} -\r\n{lines}content-length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await?;
    Ok(true)
}

pub async fn refuse(stream: &mut TcpStream, status: u16, challenge: &str) -> Kept {
    let lines = format!("www-authenticate: {challenge}\r\n");
    respond(stream, status, &lines, SECRET).await
}

/// The head of an answer, and the first half of its body.
pub async fn begin(stream: &mut TcpStream, events: bool, body: &str) -> io::Result<()> {
    let lines = if events { EVENTS } else { JSON };
    let length = body.len();
    let half = &body[..length / 2];
    let answer = format!("HTTP/1.1 200 -\r\n{lines}content-length: {length}\r\n\r\n{half}");
    stream.write_all(answer.as_bytes()).await
}

/// The peer finds the connection reset.
pub fn reset(stream: &TcpStream) -> Kept {
    stream.set_zero_linger()?;
    Ok(false)
}
