//! `--upstream`, and which header flags are for which upstream.

use mcp_forward::Upstream;

use crate::shared::headers::Headers;

/// The name of an upstream that was given none.
const UNNAMED: &str = "mcp";

/// The upstreams, each with its own headers; without those that have a mistake.
pub(crate) fn upstreams(
    texts: &[String],
    headers: &Headers,
    mistakes: &mut Vec<String>,
) -> Vec<Upstream> {
    let named: Vec<_> = texts.iter().map(|text| named(text)).collect();
    let several = named.len() > 1;
    if several && named.iter().any(|(name, _)| name.is_none()) {
        mistakes.push("--upstream: each of several needs a name: NAME=URL".to_owned());
    }
    let named: Vec<_> = named
        .into_iter()
        .map(|(name, url)| (name.unwrap_or(UNNAMED), url))
        .collect();
    let names: Vec<_> = named.iter().map(|(name, _)| *name).collect();
    for (flag, texts) in scoped(&mut headers.clone()) {
        let strangers = texts.iter().filter_map(|text| split(text).0);
        let strangers = strangers.filter(|it| !names.contains(it));
        // Not shown: it may be a value.
        let message = format!("{flag}: what stands before `:` is no upstream's name");
        mistakes.extend(strangers.map(|_| message.clone()));
    }
    let own: Vec<_> = names.iter().map(|name| own(headers, name)).collect();
    Headers::check_admission(&own.iter().collect::<Vec<_>>(), mistakes);
    let mut upstreams = Vec::new();
    for ((name, url), own) in named.into_iter().zip(own) {
        let mut found = Vec::new();
        upstreams.extend(own.upstream(name, url, &mut found));
        let of = if several {
            format!("upstream {name}: ")
        } else {
            String::new()
        };
        mistakes.extend(found.into_iter().map(|mistake| format!("{of}{mistake}")));
    }
    upstreams
}

/// A name and a URL; neither `:` nor `/` is in a name, and both are in front of a URL's query.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, url)) if !name.contains([':', '/']) => (Some(name), url),
        _ => (None, text),
    }
}

/// The upstream that a header flag is for, and the rest; no header's name has a `:`.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((name, rest)) if !name.contains('=') => (Some(name), rest),
        _ => (None, text),
    }
}

/// Those for the upstream `name`: without a name in front, or with this one.
fn own(headers: &Headers, name: &str) -> Headers {
    let mut headers = headers.clone();
    for (_, texts) in scoped(&mut headers) {
        let own = texts.iter().map(|text| split(text));
        let own = own.filter(|(upstream, _)| upstream.is_none_or(|it| it == name));
        *texts = own.map(|(_, rest)| rest.to_owned()).collect();
    }
    headers
}

/// The flags whose texts begin with a header's name, or with an upstream's.
fn scoped(headers: &mut Headers) -> [(&'static str, &mut Vec<String>); 7] {
    [
        ("--allow", &mut headers.allow),
        ("--allow-credential", &mut headers.allow_credential),
        ("--rename", &mut headers.rename),
        ("--bearer", &mut headers.bearer),
        ("--require", &mut headers.require),
        ("--set", &mut headers.set),
        ("--set-env", &mut headers.set_env),
    ]
}
