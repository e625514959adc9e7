//! Any request, any rules: what leaves is what the rules make of it, by every way out.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use mcp_forward::{
    CaptureLayer, ClientFactory, ConnectErrorKind, ForwardLayer, Inbound, OnConflict,
    OutboundError, OutboundErrorKind as Kind, Upstream,
};
use tower::{Layer, ServiceExt, service_fn};

use super::{
    capture,
    config::{Config, RuleOf, folded},
    connection, headers, identity,
    oracle::done,
};

/// So low that they come into reach, in bytes.
const MAX_VALUE: usize = 48;
const MAX_TOTAL: usize = 96;

/// Header lines by their name.
type Lines = BTreeMap<String, Vec<Vec<u8>>>;

/// A configuration, an empty line, and the caller's headers; whether anything of theirs was sent.
pub fn check(text: &[u8]) -> bool {
    let end = text.windows(2).position(|bytes| bytes == b"\n\n");
    let end = end.unwrap_or(text.len());
    let config = Config::read(&text[..end]);
    let Ok(upstream) = config.builder().build() else {
        return false;
    };
    let layer = CaptureLayer::for_upstreams([&upstream]);
    let Ok(layer) = layer.max_value(MAX_VALUE).max_total(MAX_TOTAL).build() else {
        return false;
    };
    let sent = headers(text.get(end + 2..).unwrap_or_default());
    let model = Model {
        config: &config,
        sent: &sent,
    };
    let refused = model.refused(layer.names());
    let inbound = match capture(&layer, sent.clone()) {
        Ok(inbound) => inbound,
        Err(status) => {
            assert!(refused.contains(&status), "{status}, not {refused:?}");
            return false;
        }
    };
    assert!(refused.is_empty(), "not refused: {refused:?}");
    let expected = model.expected();
    let merged = done(identity().connect_for(&upstream, &inbound));
    let merged = merged.map_err(|error| match error.kind() {
        ConnectErrorKind::Outbound(kind) => kind,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        merged
            .as_ref()
            .map(|it| by_name(it.iter()))
            .map_err(Kind::clone),
        expected.clone()
    );
    // Worst of all, the request has a copy of everything that the caller sent.
    let whole = expected.map(|lines| model.written(lines));
    let forwarded = forward(&upstream, inbound, sent.clone());
    assert_eq!(
        forwarded.as_ref().map(by_name).map_err(Kind::clone),
        whole.clone()
    );
    let (Ok(outbound), Ok(whole)) = (merged, whole) else {
        return false;
    };
    let mut applied = sent.clone();
    outbound.apply(&mut applied).unwrap();
    assert_eq!(by_name(&applied), whole);
    assert!(outbound.iter().all(|(_, value)| value.is_sensitive()));
    let names: Vec<_> = outbound.iter().map(|(name, _)| name).collect();
    let shown = format!("Outbound {{ upstream: \"up\", headers: {names:?} }}");
    assert_eq!(format!("{outbound:?}"), shown);
    outbound.iter().count() > config.statics.len()
}

/// What `ForwardLayer` sends for a request that has `headers` already.
fn forward(upstream: &Upstream, inbound: Inbound, headers: HeaderMap) -> Result<HeaderMap, Kind> {
    let service = ForwardLayer::new(upstream).layer(service_fn(|request: Request<()>| {
        std::future::ready(Ok::<_, OutboundError>(Response::new(
            request.into_parts().0.headers,
        )))
    }));
    let mut request = Request::post(upstream.url()).body(()).unwrap();
    *request.headers_mut() = headers;
    inbound.attach(request.extensions_mut());
    let response = done(service.oneshot(request)).map(Response::into_body);
    response.map_err(|error| error.downcast_ref::<OutboundError>().unwrap().kind())
}

fn by_name<'a>(lines: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> Lines {
    let mut found = Lines::new();
    for (name, value) in lines {
        let lines = found.entry(name.to_string()).or_default();
        lines.push(value.as_bytes().to_vec());
    }
    found
}

/// DESIGN 4.1 and 4.2, read again.
struct Model<'a> {
    config: &'a Config,
    sent: &'a HeaderMap,
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
    fn refused(&self, names: &[HeaderName]) -> BTreeSet<u16> {
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
    fn expected(&self) -> Result<Lines, Kind> {
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
    fn written(&self, expected: Lines) -> Lines {
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
