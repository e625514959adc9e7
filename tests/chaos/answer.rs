//! What a caller reads from an answer: its outcome, or what is wrong with it.
//!
//! It may not know how the answer came, nor whether the table has it.

use http::{HeaderMap, StatusCode, header::WWW_AUTHENTICATE};
use http_body_util::BodyExt;
use hyper::{Response, body::Incoming};
use serde_json::Value;

use crate::{
    house::METADATA,
    plan::{Call, MARK, Place, expected, told},
    table::Outcome,
};

/// The head, and as much of the body as came.
pub struct Answer {
    pub status: StatusCode,
    headers: HeaderMap,
    body: String,
    is_whole: bool,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Self {
        let (head, mut body) = response.into_parts();
        let (mut bytes, mut is_whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend(frame.into_data().unwrap_or_default()),
                Err(_) => is_whole = false,
            }
        }
        Self {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8_lossy(&bytes).into_owned(),
            is_whole,
        }
    }

    pub fn session(&self) -> Option<String> {
        let id = self.headers.get("mcp-session-id")?;
        Some(id.to_str().unwrap().to_owned())
    }

    /// What `call` to `place` came to.
    pub fn outcome(&self, place: Place, call: Call) -> Result<Outcome, String> {
        self.check_values(place, call)?;
        if !self.is_whole {
            return match self.status {
                StatusCode::OK => Ok(Outcome::Cut),
                status => Err(format!("{status} without its end")),
            };
        }
        let refused = Outcome::Refused(self.status.as_u16());
        match self.status {
            StatusCode::OK => self.result(place, call),
            StatusCode::UNAUTHORIZED if self.challenges("") => Ok(refused),
            StatusCode::FORBIDDEN if self.challenges("error=\"insufficient_scope\", ") => {
                Ok(refused)
            }
            StatusCode::FORBIDDEN if !self.headers.contains_key(WWW_AUTHENTICATE) => {
                self.own_error(-32000)?;
                Ok(refused)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.show()),
            status => {
                match status.as_u16() {
                    // The upstream's own.
                    404 if self.body.is_empty() => {}
                    404 => self.own_error(-32600)?,
                    _ => self.own_error(-32603)?,
                }
                Ok(Outcome::Status(status.as_u16()))
            }
        }
    }

    /// Whether it is this proxy's own challenge, and what the upstream said of the error.
    fn challenges(&self, error: &str) -> bool {
        let line = format!("Bearer {error}resource_metadata=\"{METADATA}\"");
        let mut lines = self.headers.get_all(WWW_AUTHENTICATE).iter();
        lines.next().is_some_and(|it| *it == *line) && lines.next().is_none()
    }

    /// One of this proxy's answers.
    fn own_error(&self, code: i64) -> Result<(), String> {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let is_own = body["jsonrpc"] == "2.0" && body["error"]["code"] == code;
        let is_own = is_own && body.get("id").is_none();
        is_own.then_some(()).ok_or_else(|| self.show())
    }

    fn result(&self, place: Place, call: Call) -> Result<Outcome, String> {
        let lines = self.body.lines().map(str::trim_start);
        let data = lines.map(|line| line.strip_prefix("data:").unwrap_or(line));
        let messages = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let mut own = messages.filter(|message| message["id"] == call.number);
        let (Some(message), None) = (own.next(), own.next()) else {
            return Err(self.show());
        };
        if let Some(code) = message["error"]["code"].as_i64() {
            return Ok(Outcome::Error(code));
        }
        let content = message["result"]["content"].as_array();
        let text = content.filter(|it| it.len() == 1).map(|it| &it[0]["text"]);
        let own = told(place, call, &expected(place, call));
        match text {
            Some(text) if *text == own => Ok(Outcome::Answered),
            _ => Err(self.show()),
        }
    }

    /// Nobody's value is in an answer but those that this call sent to this upstream.
    fn check_values(&self, place: Place, call: Call) -> Result<(), String> {
        let mut texts: Vec<_> = self.headers.values().map(|it| it.as_bytes()).collect();
        texts.push(self.body.as_bytes());
        let own = expected(place, call);
        let own: Vec<_> = own
            .iter()
            .filter_map(|(_, value)| value.find(MARK).map(|at| &value[at..]))
            .collect();
        for text in texts {
            let text = String::from_utf8_lossy(text);
            for (at, _) in text.match_indices(MARK) {
                let found = &text[at..];
                let in_value = |it: char| it.is_ascii_alphanumeric() || it == '.';
                let end = found.find(|it| !in_value(it));
                let is_own = match end {
                    Some(end) => own.contains(&&found[..end]),
                    // It may have been cut.
                    None => own.iter().any(|it| it.starts_with(found)),
                };
                if !is_own {
                    return Err(self.show());
                }
            }
        }
        Ok(())
    }

    pub fn show(&self) -> String {
        let (status, is_whole) = (self.status, self.is_whole);
        format!(
            "{status} {:?} {:?} (whole: {is_whole})",
            self.headers, self.body
        )
    }
}
