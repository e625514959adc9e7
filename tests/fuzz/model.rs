//! What becomes of a caller's headers: DESIGN 4.1 and 4.2, read again.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, HeaderName, HeaderValue};
use mcp_forward::{OnConflict, OutboundErrorKind as Kind};

use super::{
    config::{Config, RuleOf, folded},
    connection,
};

/// So low that they come into reach, in bytes.
pub const MAX_VALUE: usize = 48;
pub const MAX_TOTAL: usize = 96;

/// Header lines by their name.
pub type Lines = BTreeMap<String, Vec<Vec<u8>>>;

pub fn by_name<'a>(lines: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> Lines {
    let mut found = Lines::new();
    for (name, value) in lines {
        let lines = found.entry(name.to_string()).or_default();
        lines.push(value.as_bytes().to_vec());
    }
    found
}

/// One upstream, and one request to the proxy.
pub struct Model<'a> {
    pub config: &'a Config,
    pub sent: &'a HeaderMap,
}

impl Model<'_> {
    /// What the caller said under `name`: empty is absent, and the lines of `cookie` are one.
    fn said(&self, name: &str) -> Vec<Vec<u8>> {
        let lines = self.sent.get_all(name).iter().map(HeaderValue::as_bytes);
        let lines: Vec<_> = lines
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        match name.eq_ignore_ascii_case("cookie") && lines.len() > 1 {
            true => vec![lines.join(&b"; "[..])],
            false => lines,
        }
    }

    fn takes_several(&self, name: &HeaderName) -> bool {
        let is_it = |text: &str| text.eq_ignore_ascii_case(name.as_str());
        let rules = || self.config.rules.iter();
        let admits = rules().any(|rule| rule.only_with.as_deref().is_some_and(is_it));
        name == "cookie" || !admits && rules().all(|rule| rule.multi || !is_it(&rule.source))
    }

    /// The statuses with which the request may be refused; none where it is let through.
    pub fn refused(&self, names: &[HeaderName]) -> BTreeSet<u16> {
        let mut statuses = BTreeSet::new();
        if connection::refuses(self.sent, names) {
            statuses.insert(400);
        }
        let (mut total, mut count) = (0, 0);
        for name in names {
            let lines: Vec<_> = self
                .sent
                .get_all(name)
                .iter()
                .map(HeaderValue::as_bytes)
                .collect();
            let said = self.said(name.as_str());
            let has_edge = lines.iter().any(|line| line.trim_ascii() != *line);
            if has_edge || lines.len() > 1 && !self.takes_several(name) {
                statuses.insert(400);
            }
            if said.iter().any(|value| value.len() > MAX_VALUE)
                || lines.iter().any(|line| line.len() > MAX_VALUE)
            {
                statuses.insert(431);
            }
            total += said.iter().map(Vec::len).sum::<usize>();
            count += said.len();
        }
        if total > MAX_TOTAL || count > 256 {
            statuses.insert(431);
        }
        statuses
    }

    /// What the upstream is sent; or why nothing is.
    pub fn expected(&self) -> Result<Lines, Kind> {
        let statics = self.config.statics.iter();
        let mut lines: Lines = statics
            .map(|(name, value)| (name.to_ascii_lowercase(), vec![value.clone()]))
            .collect();
        for rule in &self.config.rules {
            let target = rule.target.to_ascii_lowercase();
            let is_admitted = rule
                .only_with
                .as_ref()
                .is_none_or(|name| !self.said(name).is_empty());
            let said = if is_admitted {
                self.said(&rule.source)
            } else {
                Vec::new()
            };
            if said.is_empty() && rule.required {
                return Err(Kind::Missing);
            }
            let loses = rule.on_conflict == Some(OnConflict::Static) && lines.contains_key(&target);
            if !said.is_empty() && !loses {
                let sent = said
                    .iter()
                    .map(|value| rule.sends(value))
                    .collect::<Option<_>>();
                lines.insert(target, sent.ok_or(Kind::Invalid)?);
            }
        }
        Ok(lines)
    }

    /// The caller's whole request, in which nothing that the configuration names is theirs.
    pub fn written(&self, expected: Lines) -> Lines {
        let rules = self.config.rules.iter();
        let named = rules.flat_map(|rule| rule.reads().chain([&*rule.target]));
        let named = named.chain(self.config.statics.iter().map(|(name, _)| &**name));
        let named: BTreeSet<_> = named.map(folded).collect();
        let mut lines = by_name(self.sent);
        lines.retain(|name, _| !named.contains(&folded(name)));
        lines.extend(expected);
        lines
    }
}

impl RuleOf {
    /// What becomes of one value of the caller's; `None` where it must not be sent on.
    fn sends(&self, value: &[u8]) -> Option<Vec<u8>> {
        let text = value.to_ascii_lowercase();
        let scheme = text
            .split(|byte| b" \t,".contains(byte))
            .find(|word| !word.is_empty());
        let scheme = String::from_utf8_lossy(scheme.unwrap_or_default());
        let bound = "negotiate ntlm kerberos digest dpop oauth signature";
        let is_bound = bound.split(' ').any(|it| it == scheme)
            || scheme.starts_with("aws4-")
            || scheme.starts_with("sharedkey");
        if is_bound && ["authorization", "proxy-authorization"].contains(&&*folded(&self.target)) {
            return None;
        }
        if !self.bearer || text.starts_with(b"bearer ") {
            return Some(value.to_vec());
        }
        let token = std::str::from_utf8(value).ok()?.trim_end_matches('=');
        let is_token = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let is_good = !token.is_empty() && token.chars().all(is_token) && text != b"bearer";
        is_good.then(|| [b"Bearer ", value].concat())
    }
}
