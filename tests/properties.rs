//! Properties of the merge, over random upstreams and random requests: what leaves is allowed or
//! static, never restricted, in order, and the same however often and by whichever way out it is made.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support;

use std::{cell::Cell, collections::BTreeMap, convert::Infallible, fmt::Debug};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use mcp_forward::{
    BuildError, CaptureLayer, ClientFactory, ConnectErrorKind, ForwardLayer, Inbound, Mistake,
    MistakeKind, OnConflict, Outbound, OutboundError, OutboundErrorKind, Rule, Upstream,
};
use proptest::{
    bool::weighted,
    collection::vec,
    option,
    prelude::{Strategy, any},
    sample::{select, subsequence},
    test_runner::{Config, TestCaseError, TestRunner},
};
use support::identity;
use tower::{Layer, ServiceExt, service_fn};

const URL: &str = "https://up.example/mcp";

const GUARDED: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// What a rule may read and write.
const GOOD: [&str; 10] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-a",
    "x-b",
    "x-c",
    "x-forwarded-user",
    "x-list",
    "x-trace_id",
    "x-user-id",
];

/// The same to many servers.
const TWINS: [&str; 4] = ["x_a", "x_user_id", "x-trace-id", "proxy_authorization"];

/// Restricted, as they are or in the other spelling.
const BAD: [&str; 14] = [
    "access-control-allow-origin",
    "connection",
    "content-type",
    "content_length",
    "dpop",
    "host",
    "last_event_id",
    "mcp-session-id",
    "mcp_anything",
    "origin",
    "sec-fetch-mode",
    "te",
    "x-forwarded-for",
    "x_forwarded_proto",
];

/// Admit a caller to the proxy.
const ADMISSION: [&str; 2] = ["x-key", "x-proxy_key"];

const VALUES: [&str; 10] = [
    "",
    "Bearer t0k",
    "NTLM x",
    "a, b",
    "c=1; d=2",
    "t0k.en~+/==",
    "two words",
    "v1",
    "v2",
    "\u{e9}",
];

#[derive(Clone, Debug)]
struct RuleOf {
    source: &'static str,
    target: &'static str,
    credential: bool,
    bearer: bool,
    required: bool,
    multi: bool,
    on_conflict: OnConflict,
    only_with: Option<&'static str>,
}

/// One upstream and one request to the proxy.
#[derive(Clone, Debug)]
struct Case {
    rules: Vec<RuleOf>,
    statics: Vec<(&'static str, &'static str)>,
    /// Line by line.
    sent: Vec<(&'static str, &'static str)>,
    /// The place of each name in another order of the same request.
    order: BTreeMap<&'static str, u8>,
}

fn rule() -> impl Strategy<Value = RuleOf> {
    let flags = (any::<bool>(), weighted(0.15), weighted(0.1), any::<bool>());
    let winner = select(&[OnConflict::Caller, OnConflict::Static][..]);
    let admission = option::weighted(0.15, select(&ADMISSION[..]));
    (select(&GOOD[..]), flags, winner, admission).prop_map(
        |(source, (credential, bearer, required, multi), winner, only_with)| RuleOf {
            source,
            target: source,
            credential,
            bearer,
            required,
            multi,
            on_conflict: winner,
            only_with,
        },
    )
}

/// A request's lines, of which few come twice, and the order of the other request.
fn sent() -> impl Strategy<Value = (Vec<(&'static str, &'static str)>, Vec<u8>)> {
    let names = [&GOOD[..], &TWINS, &BAD, &ADMISSION].concat();
    let count = names.len();
    let once = (
        subsequence(names.clone(), 0..=count),
        vec(select(&VALUES[..]), count),
    );
    let again = vec((select(names), select(&VALUES[..])), 0..3);
    let again = option::weighted(0.2, again);
    let order = vec(any::<u8>(), count);
    (once, again, order).prop_map(|((names, values), again, order)| {
        let again = again.into_iter().flatten();
        (names.into_iter().zip(values).chain(again).collect(), order)
    })
}

/// An upstream without a mistake, and a request to it.
fn case() -> impl Strategy<Value = Case> {
    let rules = (
        subsequence(&GOOD[..], 0..=6),
        vec((rule(), any::<bool>()), 6),
    );
    let statics = (
        subsequence(&GOOD[..], 0..=4),
        vec(select(&["s1", "s2", "s 3"][..]), 4),
    );
    let lists = vec(select(&VALUES[..]), 0..4);
    (rules, statics, sent(), lists).prop_map(|(rules, statics, (mut sent, order), lists)| {
        let statics: Vec<_> = statics.0.into_iter().zip(statics.1).collect();
        let mut rules: Vec<_> = rules
            .0
            .into_iter()
            .zip(rules.1)
            .map(|(target, (rule, renamed))| {
                let source = if renamed { rule.source } else { target };
                let is_static = statics.iter().any(|(name, _)| *name == target);
                let guarded = GUARDED.contains(&source) || GUARDED.contains(&target);
                RuleOf {
                    source,
                    target,
                    credential: rule.credential || GUARDED.contains(&source),
                    multi: rule.multi && !guarded,
                    required: rule.required
                        && !(is_static && rule.on_conflict == OnConflict::Caller),
                    ..rule
                }
            })
            .collect();
        // Several lines are kept where every rule that reads the name takes them.
        for source in GOOD {
            let mut readers = rules
                .iter_mut()
                .filter(|rule| rule.source == source)
                .peekable();
            if readers.peek().is_some() && readers.all(|rule| rule.multi) {
                sent.extend(lists.iter().map(|value| (source, *value)));
            }
        }
        let names = sent.iter().map(|(name, _)| *name);
        Case {
            rules,
            statics,
            order: names.zip(order.into_iter().cycle()).collect(),
            sent,
        }
    })
}

impl RuleOf {
    fn build(&self) -> Rule {
        let mut rule = match self.credential {
            true => Rule::credential(self.source),
            false => Rule::new(self.source),
        };
        if self.target != self.source {
            rule = rule.to(self.target);
        }
        if let Some(admission) = self.only_with {
            rule = rule.only_with(admission);
        }
        rule = if self.bearer { rule.bearer() } else { rule };
        rule = if self.required { rule.required() } else { rule };
        rule = if self.multi { rule.multi() } else { rule };
        rule.on_conflict(self.on_conflict)
    }
}

impl Case {
    fn build(&self) -> Result<Upstream, BuildError> {
        let builder = Upstream::builder("up", URL);
        let builder = self
            .rules
            .iter()
            .fold(builder, |builder, rule| builder.rule(rule.build()));
        let statics = self.statics.iter();
        let builder = statics.fold(builder, |builder, (name, value)| builder.set(name, value));
        builder.build()
    }

    fn headers(&self) -> HeaderMap {
        map(&self.sent)
    }

    /// The same request, with its names in another order.
    fn reordered(&self) -> HeaderMap {
        let mut sent = self.sent.clone();
        sent.sort_by_key(|(name, _)| self.order[name]);
        map(&sent)
    }

    /// What the caller said under `name`: empty is absent, and the lines of `cookie` are one.
    fn said(&self, name: &str) -> Vec<String> {
        let lines = self
            .sent
            .iter()
            .filter(|(sent, value)| *sent == name && !value.is_empty());
        let lines: Vec<_> = lines.map(|(_, value)| (*value).to_owned()).collect();
        if name == "cookie" && lines.len() > 1 {
            vec![lines.join("; ")]
        } else {
            lines
        }
    }

    /// What `rule` makes of it.
    fn forwarded(&self, rule: &RuleOf) -> Vec<String> {
        if rule
            .only_with
            .is_some_and(|name| self.said(name).is_empty())
        {
            return Vec::new();
        }
        let prefixed = |value: String| {
            let bare = rule.bearer && !value.to_ascii_lowercase().starts_with("bearer ");
            if bare {
                format!("Bearer {value}")
            } else {
                value
            }
        };
        self.said(rule.source).into_iter().map(prefixed).collect()
    }

    /// Everything that may leave, and all of it.
    fn expected(&self) -> BTreeMap<String, Vec<String>> {
        let mut expected = BTreeMap::new();
        for (name, value) in &self.statics {
            expected.insert((*name).to_owned(), vec![(*value).to_owned()]);
        }
        for rule in &self.rules {
            let forwarded = self.forwarded(rule);
            let loses =
                rule.on_conflict == OnConflict::Static && expected.contains_key(rule.target);
            if !forwarded.is_empty() && !loses {
                expected.insert(rule.target.to_owned(), forwarded);
            }
        }
        expected
    }
}

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        map.append(HeaderName::try_from(*name).unwrap(), value);
    }
    map
}

/// Every value by its name, line by line.
fn by_name<'a>(
    lines: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in lines {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        found.entry(name.to_string()).or_default().push(value);
    }
    found
}

/// What a capture layer for `upstream` makes of a request, and the request as it goes on; or the
/// status of its refusal. Nothing here waits for anything.
fn capture(upstream: &Upstream, headers: HeaderMap) -> Result<(Inbound, HeaderMap), u16> {
    let layer = CaptureLayer::for_upstreams([upstream]).build().unwrap();
    let service = layer.layer(service_fn(|request: Request<()>| {
        let mut response = Response::new(());
        let seen = (Inbound::current().unwrap(), request.headers().clone());
        response.extensions_mut().insert(seen);
        std::future::ready(Ok::<_, Infallible>(response))
    }));
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    let mut response = service.oneshot(request).now_or_never().unwrap().unwrap();
    let seen = response.extensions_mut().remove();
    seen.ok_or(response.status().as_u16())
}

fn merge(upstream: &Upstream, inbound: &Inbound) -> Result<Outbound, OutboundErrorKind> {
    let factory = identity();
    let outbound = factory
        .connect_for(upstream, inbound)
        .now_or_never()
        .unwrap();
    outbound.map_err(|error| match error.kind() {
        ConnectErrorKind::Outbound(kind) => kind,
        other => panic!("{other:?}"),
    })
}

/// What the other merge, of `ForwardLayer`, sends for a request that has `headers` already.
fn forward(
    upstream: &Upstream,
    inbound: &Inbound,
    headers: HeaderMap,
) -> Result<HeaderMap, OutboundErrorKind> {
    let service = ForwardLayer::new(upstream).layer(service_fn(|request: Request<()>| {
        let mut response = Response::new(());
        *response.headers_mut() = request.headers().clone();
        std::future::ready(Ok::<_, Infallible>(response))
    }));
    let mut request = Request::post(URL).body(()).unwrap();
    *request.headers_mut() = headers;
    inbound.clone().attach(request.extensions_mut());
    let response = service.oneshot(request).now_or_never().unwrap();
    let sent = response.map(|response| response.headers().clone());
    sent.map_err(|error| error.downcast_ref::<OutboundError>().unwrap().kind())
}

/// Runs `property` on many cases; it says whether the case was one of those that it is about, and
/// at least a quarter has to be.
fn holds<T: Debug>(strategy: impl Strategy<Value = T>, property: impl Fn(T) -> bool) {
    const CASES: u32 = 1_500;
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let counted = Cell::new(0);
    let run = TestRunner::new(config).run(&strategy, |case| {
        counted.set(counted.get() + u32::from(property(case)));
        Ok::<_, TestCaseError>(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
    assert!(
        counted.get() > CASES / 4,
        "only {} of {CASES} cases count",
        counted.get()
    );
}

/// A case, its upstream and its inbound, where the request is not refused at once.
fn holds_of_inbounds(property: impl Fn(&Case, &Upstream, &Inbound) -> bool) {
    holds(case(), |case| {
        let upstream = case.build().unwrap();
        match capture(&upstream, case.headers()) {
            Ok((inbound, _)) => property(&case, &upstream, &inbound),
            Err(_) => false,
        }
    });
}

#[test]
fn what_leaves_is_allowed_or_static_and_all_of_it() {
    holds_of_inbounds(|case, upstream, inbound| match merge(upstream, inbound) {
        Ok(outbound) => {
            assert_eq!(by_name(outbound.iter()), case.expected());
            assert!(outbound.iter().all(|(_, value)| value.is_sensitive()));
            true
        }
        Err(kind) => {
            let rules = || case.rules.iter();
            let is_missing = |rule: &RuleOf| rule.required && case.forwarded(rule).is_empty();
            match kind {
                OutboundErrorKind::Missing => assert!(rules().any(is_missing)),
                OutboundErrorKind::Invalid => {
                    assert!(
                        rules().any(|rule| rule.bearer || rule.target.ends_with("authorization"))
                    );
                }
                other => panic!("{other:?}"),
            }
            false
        }
    });
}

#[test]
fn a_required_header_that_is_missing_sends_nothing() {
    holds_of_inbounds(|case, upstream, inbound| {
        // Before it, another rule may find its own reason.
        let mut case = case.clone();
        case.rules
            .retain(|rule| !rule.bearer && !rule.target.ends_with("authorization"));
        let missing = case
            .rules
            .iter()
            .any(|rule| rule.required && case.forwarded(rule).is_empty());
        let merged = merge(&case.build().unwrap(), inbound);
        assert_eq!(merged.err(), missing.then_some(OutboundErrorKind::Missing));
        upstream.name() == "up"
    });
}

#[test]
fn a_restricted_name_is_never_built() {
    let names = [&GOOD[..], &TWINS, &BAD].concat();
    let spoilt = (case(), rule(), select(names), 0..4);
    holds(spoilt, |(mut case, mut rule, name, place)| {
        match place {
            0 => rule.source = name,
            1 => rule.target = name,
            2 => rule.only_with = Some(name),
            _ => case.statics.push((name, "v")),
        }
        if place < 3 {
            case.rules.push(rule);
        }
        let built = case.build();
        if BAD.contains(&name) {
            let error = built.unwrap_err();
            let is_it = |mistake: &Mistake| {
                mistake.kind() == MistakeKind::Restricted
                    && mistake.header().is_some_and(|header| header == name)
            };
            assert!(error.mistakes().iter().any(is_it), "{error}");
            return true;
        }
        if let Ok(upstream) = built
            && let Ok(layer) = CaptureLayer::for_upstreams([&upstream]).build()
        {
            assert!(
                layer
                    .names()
                    .iter()
                    .all(|name| !BAD.contains(&name.as_str()))
            );
        }
        false
    });
}

#[test]
fn the_order_of_names_says_nothing() {
    holds(case(), |case| {
        let upstream = case.build().unwrap();
        let one = capture(&upstream, case.headers());
        let other = capture(&upstream, case.reordered());
        let (Ok((one, _)), Ok((other, _))) = (&one, &other) else {
            assert_eq!(one.err(), other.err());
            return false;
        };
        assert_eq!(merge(&upstream, one), merge(&upstream, other));
        case.headers().keys().ne(case.reordered().keys())
    });
}

#[test]
fn the_lines_of_a_name_keep_their_order() {
    holds(several(), |(case, lines)| {
        let upstream = case.build().unwrap();
        let (inbound, _) = capture(&upstream, case.headers()).unwrap();
        let outbound = merge(&upstream, &inbound).unwrap();
        let sent = outbound.to_header_map();
        let sent: Vec<_> = sent
            .get_all("x-list")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        let kept = lines.iter().filter(|line| !line.is_empty());
        assert_eq!(sent, kept.map(|line| line.as_bytes()).collect::<Vec<_>>());
        sent.len() > 1
    });
}

/// Several lines of one name, among others, and a rule that takes them.
fn several() -> impl Strategy<Value = (Case, Vec<&'static str>)> {
    let lines = vec(select(&VALUES[..]), 0..8);
    // Any but `connection`, which may refuse the request.
    let others = vec((select(&BAD[2..]), select(&VALUES[..])), 8);
    (lines, others).prop_map(|(lines, others)| {
        // Not beside one another.
        let sent = lines
            .iter()
            .zip(&others)
            .flat_map(|(line, other)| [("x-b", *line), *other]);
        let rule = RuleOf {
            source: "x-b",
            target: "x-list",
            credential: false,
            bearer: false,
            required: false,
            multi: true,
            on_conflict: OnConflict::Caller,
            only_with: None,
        };
        let case = Case {
            rules: vec![rule],
            statics: Vec::new(),
            sent: sent.collect(),
            order: BTreeMap::new(),
        };
        (case, lines)
    })
}

#[test]
fn merging_again_changes_nothing_and_every_way_out_is_the_same() {
    holds_of_inbounds(|case, upstream, inbound| {
        let merged = merge(upstream, inbound);
        assert_eq!(merged, merge(upstream, inbound));
        // Worst of all, the request has a copy of everything that the caller sent.
        let forwarded = forward(upstream, inbound, case.headers());
        let (merged, forwarded) = match (merged, forwarded) {
            (Ok(merged), Ok(forwarded)) => (merged, forwarded),
            (merged, forwarded) => {
                assert_eq!(merged.err(), forwarded.err());
                return false;
            }
        };
        let mut once = case.headers();
        merged.apply(&mut once).unwrap();
        let mut twice = once.clone();
        merged.apply(&mut twice).unwrap();
        assert_eq!(once, twice);
        assert_eq!(by_name(&once), by_name(&forwarded));
        assert_eq!(once, forward(upstream, inbound, forwarded).unwrap());
        assert_eq!(by_name(&merged.to_header_map()), case.expected());
        true
    });
}

#[test]
fn what_is_merged_is_unchanged() {
    holds(case(), |case| {
        let upstream = case.build().unwrap();
        let statics = merge_of_nobody(&upstream);
        let Ok((inbound, passed_on)) = capture(&upstream, case.headers()) else {
            return false;
        };
        // The request goes on as it came, and says the same to a second layer.
        assert_eq!(by_name(&passed_on), by_name(&case.headers()));
        let before = by_name(inbound.iter());
        assert_eq!(
            by_name(capture(&upstream, passed_on).unwrap().0.iter()),
            before
        );

        let merged = merge(&upstream, &inbound);
        let forwarded = forward(&upstream, &inbound, case.headers());
        assert_eq!(merged.is_ok(), forwarded.is_ok());
        assert_eq!(by_name(inbound.iter()), before);
        assert_eq!(upstream, case.build().unwrap());
        assert_eq!(merge_of_nobody(&upstream), statics);
        merged.is_ok()
    });
}

/// The static headers; or that a required header is missing.
fn merge_of_nobody(upstream: &Upstream) -> Result<Outbound, OutboundErrorKind> {
    merge(upstream, &Inbound::empty())
}
