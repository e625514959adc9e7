//! The flags that say which headers an upstream receives.

use mcp_forward::{OnConflict, Rule, Upstream};

use super::{GUARDED, built};

#[derive(clap::Args, Clone)]
pub(crate) struct Headers {
    /// Copy this header when the caller sent it
    #[arg(long, value_name = "NAME")]
    pub(crate) allow: Vec<String>,
    /// Copy this credential, such as authorization, which was issued for the upstream
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_credential: Vec<String>,
    /// Send the caller's FROM as TO. Naming authorization, cookie or proxy-authorization as FROM
    /// says, as --allow-credential does, that the upstream may have it
    #[arg(long, value_name = "FROM=TO")]
    pub(crate) rename: Vec<String>,
    /// Like --rename, with `Bearer ` in front of a bare token
    #[arg(long, value_name = "FROM=TO")]
    pub(crate) bearer: Vec<String>,
    /// Send nothing to the upstream unless the caller sent NAME, which another flag forwards
    #[arg(long, value_name = "NAME")]
    pub(crate) require: Vec<String>,
    /// Send this header on the operator's behalf. Other users of this machine can see VALUE in the
    /// list of processes; --set-env avoids that
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Like --set, with the value of the environment variable VAR
    #[arg(long, value_name = "NAME=VAR")]
    pub(crate) set_env: Vec<String>,
    /// Who wins where the caller and --set write one header. With `caller`, callers who send nothing
    /// act with the operator's value
    #[arg(long, value_name = "WINNER", value_parser = ["static", "caller"])]
    on_conflict: Option<String>,
    /// The header with the proxy's own key, which is never forwarded. Credentials travel only where
    /// it came too: those of --allow-credential, and authorization, cookie and proxy-authorization
    /// as FROM
    #[arg(long, value_name = "NAME")]
    admission_header: Option<String>,
    /// Let headers cross a network to an http upstream; normal inside a service mesh
    #[arg(long)]
    allow_cleartext: bool,
}

impl Headers {
    /// The upstream that receives them.
    pub(crate) fn upstream(
        &self,
        name: &str,
        url: &str,
        mistakes: &mut Vec<String>,
    ) -> Option<Upstream> {
        let mut upstream = Upstream::builder(name, url);
        for rule in self.rules(mistakes) {
            upstream = upstream.rule(rule);
        }
        for (name, value) in pairs("--set", &self.set, mistakes) {
            upstream = upstream.set(name, value);
        }
        for (name, variable) in pairs("--set-env", &self.set_env, mistakes) {
            match std::env::var(variable) {
                Ok(value) => upstream = upstream.set(name, value),
                Err(_) => mistakes.push(format!(
                    "--set-env: `{}` is not set to a text",
                    shown(variable)
                )),
            }
        }
        if self.allow_cleartext {
            upstream = upstream.allow_cleartext();
        }
        built(upstream.build(), mistakes)
    }

    /// An admission header without a credential to admit would do nothing.
    pub(crate) fn check_admission(all: &[&Self], mistakes: &mut Vec<String>) {
        let admits = all.iter().any(|it| it.admission_header.is_some());
        if admits && !all.iter().any(|it| it.forwards_credential()) {
            mistakes.push("--admission-header: no other flag forwards a credential".to_owned());
        }
    }

    fn forwards_credential(&self) -> bool {
        let pairs = self.rename.iter().chain(&self.bearer);
        let mut renamed = pairs.filter_map(|text| text.split_once('='));
        !self.allow_credential.is_empty() || renamed.any(|(from, _)| among(&GUARDED, from))
    }

    fn rules(&self, mistakes: &mut Vec<String>) -> Vec<Rule> {
        // Each with the name of the header that it reads.
        let mut rules = Vec::new();
        for name in &self.allow {
            rules.push((name.as_str(), Rule::new(name)));
        }
        for name in &self.allow_credential {
            rules.push((name, self.rule(name, true)));
        }
        for (from, to) in pairs("--rename", &self.rename, mistakes) {
            rules.push((from, self.rule(from, false).to(to)));
        }
        for (from, to) in pairs("--bearer", &self.bearer, mistakes) {
            rules.push((from, self.rule(from, false).to(to).bearer()));
        }
        let sources: Vec<_> = rules.iter().map(|(source, _)| *source).collect();
        for name in &self.require {
            if !among(&sources, name) {
                mistakes.push(format!("--require: no other flag forwards `{name}`"));
            }
        }
        let rules = rules.into_iter().map(|(source, rule)| {
            let rule = match among(&self.require, source) {
                true => rule.required(),
                false => rule,
            };
            match self.on_conflict.as_deref() {
                None => rule,
                Some("caller") => rule.on_conflict(OnConflict::Caller),
                Some(_) => rule.on_conflict(OnConflict::Static),
            }
        });
        rules.collect()
    }

    /// A rule that reads `name`; one for a credential is only for callers who were admitted.
    fn rule(&self, name: &str, credential: bool) -> Rule {
        match &self.admission_header {
            _ if !credential && !among(&GUARDED, name) => Rule::new(name),
            None => Rule::credential(name),
            Some(admission) => Rule::credential(name).only_with(admission),
        }
    }
}

/// Whether `name` is one of `names`, whatever the case of its letters.
fn among(names: &[impl AsRef<str>], name: &str) -> bool {
    names
        .iter()
        .any(|it| it.as_ref().eq_ignore_ascii_case(name))
}

/// The halves of each text. One without `=` is a mistake, and not shown: it may be a value.
fn pairs<'a>(
    flag: &str,
    texts: &'a [String],
    mistakes: &mut Vec<String>,
) -> Vec<(&'a str, &'a str)> {
    let whole = texts.iter().filter(|text| !text.contains('='));
    mistakes.extend(whole.map(|_| format!("{flag}: there is no `=` between two parts")));
    texts
        .iter()
        .filter_map(|text| text.split_once('='))
        .collect()
}

/// The name of a variable; of anything else, which may be the value itself, nothing.
fn shown(variable: &str) -> &str {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if variable.bytes().all(named) {
        variable
    } else {
        "…"
    }
}
