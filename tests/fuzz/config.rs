//! An upstream as a text: on each line a rule or a static header, its words parted by tabs.
//!
//! A rule is `source`, and perhaps `to=target`, `with=admission` and the names of `Rule`'s methods, `static`
//! or `caller` for who wins; a static header is `=name` and its value.

use http::HeaderName;
use mcp_forward::{OnConflict, Rule, Upstream, UpstreamBuilder};

#[derive(Clone)]
pub struct Config {
    pub rules: Vec<RuleOf>,
    pub statics: Vec<(String, Vec<u8>)>,
}

#[derive(Clone)]
pub struct RuleOf {
    pub source: String,
    pub target: String,
    pub only_with: Option<String>,
    pub credential: bool,
    pub bearer: bool,
    pub required: bool,
    pub multi: bool,
    pub on_conflict: Option<OnConflict>,
}

impl Config {
    pub fn read(text: &[u8]) -> Self {
        let (mut rules, mut statics) = (Vec::new(), Vec::new());
        for line in text.split(|byte| *byte == b'\n') {
            match line.strip_prefix(b"=") {
                Some(line) => {
                    let mut words = line.splitn(2, |byte| *byte == b'\t');
                    let name = String::from_utf8_lossy(words.next().unwrap_or_default());
                    let value = words.next().unwrap_or_default();
                    statics.push((name.into_owned(), value.to_vec()));
                }
                None => rules.push(RuleOf::read(&String::from_utf8_lossy(line))),
            }
        }
        Self { rules, statics }
    }

    pub fn builder(&self) -> UpstreamBuilder {
        let builder = Upstream::builder("up", "https://up.example/mcp");
        let rules = self.rules.iter().map(RuleOf::build);
        let builder = rules.fold(builder, UpstreamBuilder::rule);
        let statics = self.statics.iter();
        statics.fold(builder, |builder, (name, value)| builder.set(name, value))
    }

    /// Every name that the rules read, as a server has it.
    pub fn reads(&self) -> impl Iterator<Item = HeaderName> {
        let names = self.rules.iter().flat_map(RuleOf::reads);
        names.filter_map(|name| name.parse().ok())
    }
}

impl RuleOf {
    fn read(line: &str) -> Self {
        let mut words = line.split('\t');
        let source = words.next().unwrap_or_default().to_owned();
        let words: Vec<_> = words.collect();
        let has = |word| words.contains(&word);
        let named = |prefix| words.iter().find_map(|word| word.strip_prefix(prefix));
        Self {
            target: named("to=").unwrap_or(&source).to_owned(),
            only_with: named("with=").map(str::to_owned),
            credential: has("credential"),
            bearer: has("bearer"),
            required: has("required"),
            multi: has("multi"),
            on_conflict: match (has("static"), has("caller")) {
                (true, _) => Some(OnConflict::Static),
                (_, true) => Some(OnConflict::Caller),
                _ => None,
            },
            source,
        }
    }

    fn build(&self) -> Rule {
        let mut rule = match self.credential {
            true => Rule::credential(&self.source),
            false => Rule::new(&self.source),
        };
        if self.target != self.source {
            rule = rule.to(&self.target);
        }
        if let Some(admission) = &self.only_with {
            rule = rule.only_with(admission);
        }
        rule = if self.bearer { rule.bearer() } else { rule };
        rule = if self.required { rule.required() } else { rule };
        rule = if self.multi { rule.multi() } else { rule };
        match self.on_conflict {
            Some(winner) => rule.on_conflict(winner),
            None => rule,
        }
    }

    pub fn reads(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.source).chain(self.only_with.as_deref())
    }
}

/// `name` as many servers take it.
pub fn folded(name: impl AsRef<str>) -> String {
    name.as_ref().to_ascii_lowercase().replace('_', "-")
}
