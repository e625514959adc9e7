//! Where something is on the web: an origin, and a path below it.
//!
//! Credentials follow these comparisons, so whatever cannot be read with certainty is elsewhere.

use std::fmt;

use http::Uri;

/// Scheme, host and port (RFC 6454 section 4): case folded, with the default port filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// The origin of an absolute URI; `None` with userinfo, or with a port that is no port.
    pub(crate) fn of(uri: &Uri) -> Option<Self> {
        let (scheme, host, port) = parts(uri)?;
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// Whether `uri` is absolute and of this origin.
    pub(crate) fn holds(&self, uri: &Uri) -> bool {
        parts(uri).is_some_and(|(scheme, host, port)| {
            self.scheme.eq_ignore_ascii_case(scheme)
                && self.host.eq_ignore_ascii_case(host)
                && self.port == port
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    pub(crate) fn is_http(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
    }

    pub(crate) fn is_cleartext(&self) -> bool {
        self.scheme == "http"
    }

    /// Whether it is this machine by its literal text; a name that resolves to it is not.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if Some(port) != default_port(&self.scheme) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

/// `localhost`, 127.0.0.0/8 or `[::1]`.
pub(crate) fn is_loopback(host: &str) -> bool {
    let v6 = || host.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse()
            .is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback())
        || v6().is_some_and(|ip: std::net::Ipv6Addr| ip.is_loopback())
}

fn parts(uri: &Uri) -> Option<(&str, &str, Option<u16>)> {
    let scheme = uri.scheme_str()?;
    let (host, port) = host_and_port(uri.authority()?.as_str())?;
    Some((scheme, host, port.or_else(|| default_port(scheme))))
}

/// `host`, `host:` or `host:port`, without userinfo.
pub(crate) fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at_checked(end)?;
    let port = match rest {
        "" | ":" => None,
        _ => {
            let digits = rest.strip_prefix(':')?;
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            Some(digits.parse().ok().filter(|_| plain)?)
        }
    };
    (!host.is_empty() && !authority.contains('@')).then_some((host, port))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => Some(80),
        _ if scheme.eq_ignore_ascii_case("https") => Some(443),
        _ => None,
    }
}

/// Whether `path` is `base` or lies below it, by segment.
pub(crate) fn is_below(base: &str, path: &str) -> bool {
    path.strip_prefix(base).is_some_and(|rest| {
        rest.is_empty() || (base.ends_with('/') || rest.starts_with('/')) && is_plain(rest)
    })
}

/// Whether `path` has no segment that climbs, for any reader that we know of: not percent-encoded
/// once or twice, overlong, cut by a path parameter or a control byte, nor behind a hidden separator.
pub(crate) fn is_plain(path: &str) -> bool {
    static TRICKS: [&str; 8] = ["\\", "%2f", "%5c", "%25", "%c0", "%c1", "%0", "%1"];
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    let climbs =
        |segment: &str| segment.starts_with("..") || matches!(segment.split(';').next(), Some("."));
    !TRICKS.iter().any(|trick| path.contains(trick)) && !path.split('/').any(climbs)
}
