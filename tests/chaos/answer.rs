//! What a caller reads from an answer: its outcome, or what is wrong with it.
//!
//! It may not know how the answer came, nor whether the table has it.

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{LOCATION, WWW_AUTHENTICATE},
};
use http_body_util::BodyExt;
use hyper::{Response, body::Incoming};
use serde_json::Value;

use crate::{
    house::METADATA,
    plan::{Call, PLACES, Place, Plan},
    table::Outcome,
    values::{MARK, SECRET, expected, told},
};

/// What an answer says.
#[derive(Debug)]
pub struct Came {
    pub outcome: Outcome,
    /// Which upstreams a list names as missing.
    pub missing: Vec<Place>,
    /// Why there is no result.
    pub error: String,
}

impl From<Outcome> for Came {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            missing: Vec::new(),
            error: String::new(),
        }
    }
}

/// How the proxy names an upstream in an error, which is in JSON either way.
fn named(place: Place) -> String {
    format!("upstream `{}`", place.name())
}

/// Whether an error has anything that an upstream said, or that anybody sent.
fn quotes(text: &str) -> bool {
    [MARK, SECRET].iter().any(|it| text.contains(it))
}

/// The head, and as much of the body as came.
pub struct Answer {
    pub status: StatusCode,
    headers: HeaderMap,
    body: String,
    is_whole: bool,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Self {
        Self::read_frames(response, usize::MAX).await
    }

    /// The head and what comes first of the body, where more is to come.
    pub async fn begun(response: Response<Incoming>) -> Self {
        let frames = match response.status() {
            StatusCode::OK => 1,
            _ => usize::MAX,
        };
        Self::read_frames(response, frames).await
    }

    async fn read_frames(response: Response<Incoming>, at_most: usize) -> Self {
        let (head, mut body) = response.into_parts();
        let (mut bytes, mut is_whole) = (Vec::new(), false);
        for _ in 0..at_most {
            match body.frame().await {
                Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
                Some(Err(_)) => break,
                None => {
                    is_whole = true;
                    break;
                }
            }
        }
        Self {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8_lossy(&bytes).into_owned(),
            is_whole,
        }
    }

    pub fn has_body(&self) -> bool {
        !self.body.is_empty()
    }

    pub fn session(&self) -> Option<String> {
        let id = self.headers.get("mcp-session-id")?;
        Some(id.to_str().unwrap().to_owned())
    }

    /// What `call` came to.
    pub fn came(&self, call: Call, plan: &Plan) -> Result<Came, String> {
        let places = if plan.list {
            &PLACES[..]
        } else {
            &[plan.place]
        };
        self.check_values(places, call)?;
        self.check_head()?;
        match self.status {
            StatusCode::OK if !self.is_whole => Ok(Outcome::Cut.into()),
            StatusCode::OK => self.result(call, plan),
            _ => Ok(self.status(plan)?.into()),
        }
    }

    /// What another status than 200 says.
    fn status(&self, plan: &Plan) -> Result<Outcome, String> {
        if !self.is_whole || quotes(&self.body) {
            return Err(self.show());
        }
        let status = self.status.as_u16();
        let challenge = match status {
            401 => Some(""),
            // Without another scope no other token helps.
            403 if self.headers.contains_key(WWW_AUTHENTICATE) => {
                Some("error=\"insufficient_scope\", ")
            }
            _ => None,
        };
        let is_own = match status {
            // The upstream's own.
            404 if self.body.is_empty() => true,
            404 => self.is_error(-32600),
            401 | 403 => self.is_error(-32000) && challenge.is_none_or(|it| self.challenges(it)),
            // Who does not answer as agreed is named.
            _ => self.is_error(-32603) && self.body.contains(&named(plan.place)),
        };
        match challenge {
            _ if !is_own => Err(self.show()),
            Some(_) => Ok(Outcome::Refused(status)),
            None => Ok(Outcome::Status(status)),
        }
    }

    /// Whether it is this proxy's own challenge, and what the upstream said of the error.
    fn challenges(&self, error: &str) -> bool {
        let line = format!("Bearer {error}resource_metadata=\"{METADATA}\"");
        let mut lines = self.headers.get_all(WWW_AUTHENTICATE).iter();
        lines.next().is_some_and(|it| *it == *line) && lines.next().is_none()
    }

    /// Whether it is one of this proxy's answers.
    fn is_error(&self, code: i64) -> bool {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let is_own = body["jsonrpc"] == "2.0" && body["error"]["code"] == code;
        is_own && body.get("id").is_none()
    }

    fn result(&self, call: Call, plan: &Plan) -> Result<Came, String> {
        let lines = self.body.lines().map(str::trim_start);
        let data = lines.map(|line| line.strip_prefix("data:").unwrap_or(line));
        let messages = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let mut own = messages.filter(|message| message["id"] == call.number);
        let (Some(message), None) = (own.next(), own.next()) else {
            return Err(self.show());
        };
        if let Some(code) = message["error"]["code"].as_i64() {
            let error = message["error"]["message"].to_string();
            let came = Came {
                error,
                ..Outcome::Error(code).into()
            };
            let names = plan.list || came.error.contains(&named(plan.place));
            let is_own = names && !quotes(&came.error);
            return is_own.then_some(came).ok_or_else(|| self.show());
        }
        let result = &message["result"];
        if plan.list {
            return self.list(call, result);
        }
        let content = result["content"].as_array();
        let text = content.filter(|it| it.len() == 1).map(|it| &it[0]["text"]);
        let own = told(plan.place, &expected(plan.place, call));
        match text {
            Some(text) if *text == own => Ok(Outcome::Answered.into()),
            _ => Err(self.show()),
        }
    }

    /// One tool of each upstream, which says what this very call was sent there as; but for those that
    /// are named as missing.
    fn list(&self, call: Call, result: &Value) -> Result<Came, String> {
        let failed = &result["_meta"]["mcp-forward/failed"];
        let failed = failed.as_array().map_or(&[][..], Vec::as_slice);
        let is_missing = |place: &Place| failed.iter().any(|it| it == place.name());
        let (missing, listed): (Vec<_>, Vec<_>) = PLACES.into_iter().partition(is_missing);
        let tools = result["tools"].as_array().map_or(&[][..], Vec::as_slice);
        let is_own = |(tool, place): (&Value, Place)| {
            tool["name"] == format!("{}_echo", place.name())
                && tool["description"] == told(place, &expected(place, call))
        };
        let is_own = tools.len() == listed.len() && tools.iter().zip(listed).all(is_own);
        if !is_own || missing.len() != failed.len() {
            return Err(self.show());
        }
        let outcome = match missing.is_empty() {
            true => Outcome::Answered,
            false => Outcome::Without,
        };
        Ok(Came {
            missing,
            ..outcome.into()
        })
    }

    /// Nothing in the head is an upstream's of what is about itself: where it is, and whom it trusts.
    fn check_head(&self) -> Result<(), String> {
        let may_challenge = matches!(self.status.as_u16(), 401 | 403);
        let is_clean = !self.headers.contains_key(LOCATION)
            && (may_challenge || !self.headers.contains_key(WWW_AUTHENTICATE))
            && !self
                .headers
                .values()
                .any(|it| quotes(&String::from_utf8_lossy(it.as_bytes())));
        is_clean.then_some(()).ok_or_else(|| self.show())
    }

    /// Nobody's value is in an answer but those that this call sent to these upstreams.
    fn check_values(&self, places: &[Place], call: Call) -> Result<(), String> {
        let own = places.iter().flat_map(|place| expected(*place, call));
        let own = own.filter_map(|(_, value)| Some(value[value.find(MARK)?..].to_owned()));
        let own: Vec<_> = own.collect();
        let values = self.headers.values().map(HeaderValue::as_bytes);
        for text in values.chain([self.body.as_bytes()]) {
            let text = String::from_utf8_lossy(text);
            for (at, _) in text.match_indices(MARK) {
                let found = &text[at..];
                let in_value = |it: char| it.is_ascii_alphanumeric() || it == '.';
                let is_own = match found.find(|it| !in_value(it)) {
                    Some(end) => own.iter().any(|it| *it == found[..end]),
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
