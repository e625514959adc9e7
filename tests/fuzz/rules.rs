//! Any configuration: it is built without a mistake, or every mistake in it is told, and no value.

use std::collections::BTreeSet;

use http::HeaderName;
use mcp_forward::{
    CaptureLayer, ClientFactory, Inbound, MistakeKind as Kind, OnConflict, Upstream,
};

use super::{
    config::{Config, RuleOf, folded},
    identity,
    oracle::done,
    restricted::{GUARDED, is_restricted},
};

/// A kind, and the header that it is about.
type Mistakes = BTreeSet<(String, Option<String>)>;

fn add(mistakes: &mut Mistakes, kind: Kind, name: &str) {
    mistakes.insert((format!("{kind:?}"), Some(name.to_ascii_lowercase())));
}

/// A configuration of tabs and lines, see `config.rs`; whether it was built.
pub fn check(text: &[u8]) -> bool {
    let config = Config::read(text);
    let built = config.builder().build();
    let blank = blanked(&config).build();
    assert_eq!(
        format!("{built:?}"),
        format!("{blank:?}"),
        "a value is shown"
    );
    if config.rules.len() + config.statics.len() > 256 {
        assert!(built.is_err());
        return false;
    }
    let mut wrong = Mistakes::new();
    let rules = config.rules.iter();
    let rules: Vec<_> = rules.filter(|rule| has_names(rule, &mut wrong)).collect();
    let statics = config.statics.iter();
    let statics: Vec<_> = statics
        .filter(|line| is_good_static(line, &mut wrong))
        .collect();
    for rule in &rules {
        let admits = |other: &&RuleOf| {
            other
                .only_with
                .as_ref()
                .is_some_and(|it| it.eq_ignore_ascii_case(&rule.source))
        };
        if rules.iter().any(admits) {
            add(&mut wrong, Kind::Admission, &rule.source);
        }
    }
    let targets = rules.iter().map(|rule| (&*rule.target, Some(*rule)));
    let targets = targets.chain(statics.iter().map(|(name, _)| (&**name, None)));
    let twice = twice(&targets.collect::<Vec<_>>());
    let upstream = match built {
        Ok(upstream) => upstream,
        Err(error) => {
            let told = error.mistakes().iter().map(|it| {
                let name = it.header().map(HeaderName::to_string);
                (format!("{:?}", it.kind()), name)
            });
            let told: Mistakes = told.collect();
            assert!(told.is_superset(&wrong), "{wrong:?}: {error}");
            assert!(
                told.is_subset(&(&wrong | &twice)),
                "{wrong:?} {twice:?}: {error}"
            );
            // One of them may stand for the others of its header.
            let folds = |mistakes: &Mistakes| {
                let of = mistakes.intersection(&twice);
                of.filter_map(|(_, name)| name.as_ref().map(folded))
                    .collect::<BTreeSet<_>>()
            };
            assert_eq!(folds(&told), folds(&twice), "{error}");
            return false;
        }
    };
    assert!(
        wrong.is_empty() && twice.is_empty(),
        "built: {wrong:?} {twice:?}"
    );
    is_as_configured(&upstream, &config);
    true
}

/// A built upstream reads what its rules name, and holds each static header once.
fn is_as_configured(upstream: &Upstream, config: &Config) {
    let reads: BTreeSet<_> = config.reads().map(|name| name.to_string()).collect();
    match CaptureLayer::for_upstreams([upstream]).build() {
        Ok(layer) => assert!(
            layer
                .names()
                .iter()
                .map(HeaderName::as_str)
                .collect::<BTreeSet<_>>()
                .iter()
                .eq(&reads)
        ),
        Err(error) => {
            let folds: BTreeSet<_> = reads.iter().map(folded).collect();
            assert!(folds.len() < reads.len(), "{error}");
        }
    }
    if let Ok(outbound) = done(identity().connect_for(upstream, &Inbound::empty())) {
        let lines = outbound
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        let statics = config.statics.iter();
        let statics = statics.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        assert_eq!(lines.collect::<Vec<_>>(), statics.collect::<Vec<_>>());
    }
}

/// Whether `name` may stand in a configuration.
fn is_allowed(name: &str, wrong: &mut Mistakes) -> bool {
    let is_name =
        name.len() <= 256 && !name.contains('*') && HeaderName::from_bytes(name.as_bytes()).is_ok();
    if !is_name {
        wrong.insert((format!("{:?}", Kind::InvalidName), None));
    } else if is_restricted(&folded(name)) {
        add(wrong, Kind::Restricted, name);
    }
    is_name && !is_restricted(&folded(name))
}

/// Whether a rule can be held against the others.
fn has_names(rule: &RuleOf, wrong: &mut Mistakes) -> bool {
    let (source, target) = (&*rule.source, &*rule.target);
    let guarded = |name: &str| GUARDED.contains(&&*folded(name));
    let [source_ok, target_ok] = [source, target].map(|name| is_allowed(name, wrong));
    if let Some(name) = &rule.only_with {
        is_allowed(name, wrong);
    }
    if source_ok && guarded(source) && !rule.credential {
        add(wrong, Kind::Guarded, source);
    }
    let single = [(source_ok, source), (target_ok, target)];
    if let Some((_, name)) = single
        .iter()
        .find(|(ok, name)| *ok && rule.multi && guarded(name))
    {
        add(wrong, Kind::SingleValued, name);
    }
    source_ok && target_ok
}

fn is_good_static((name, value): &(String, Vec<u8>), wrong: &mut Mistakes) -> bool {
    let allowed = is_allowed(name, wrong);
    let has_edge = value.starts_with(b" ") || value.ends_with(b" ");
    let is_value = !value.is_empty() && !has_edge && !value.iter().any(u8::is_ascii_control);
    if allowed && !is_value {
        add(wrong, Kind::InvalidValue, name);
    }
    allowed && is_value
}

/// What is wrong between any two that write the same header; a static one has no rule.
fn twice(targets: &[(&str, Option<&RuleOf>)]) -> Mistakes {
    let mut wrong = Mistakes::new();
    let folds: Vec<_> = targets.iter().map(|(name, _)| folded(name)).collect();
    for (at, (name, rule)) in targets.iter().enumerate() {
        let same = (0..at).filter(|earlier| folds[*earlier] == folds[at]);
        for (earlier, other) in same.map(|earlier| targets[earlier]) {
            let is_unclear = |other: &RuleOf| {
                let winner = other.on_conflict;
                winner.is_none() || winner == Some(OnConflict::Caller) && other.required
            };
            match (other, rule) {
                _ if !earlier.eq_ignore_ascii_case(name) => add(&mut wrong, Kind::Ambiguous, name),
                (Some(other), None) if is_unclear(other) => add(&mut wrong, Kind::Conflict, name),
                (Some(_), None) => {}
                _ => add(&mut wrong, Kind::Duplicate, name),
            }
        }
    }
    wrong
}

/// The same with other values, as good or bad as they are.
fn blanked(config: &Config) -> mcp_forward::UpstreamBuilder {
    let mut config = config.clone();
    for (_, value) in &mut config.statics {
        for byte in value.iter_mut().filter(|byte| byte.is_ascii_graphic()) {
            *byte = if *byte == b'#' { b'%' } else { b'#' };
        }
    }
    config.builder()
}
