//! `ServerIdLayer`: which paths are for which server, and what is configured beside them.
//!
//! It may not know a message; `service.rs` runs what is built here.

use std::{collections::BTreeSet, fmt, sync::Arc};

use http::request::Parts;
use tower::Layer;

use super::{
    path::{self, Template},
    service::Scoped,
};
use crate::error::{BuildError, Mistake, MistakeKind};

/// How long a body may be, unless set otherwise, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// How long the name of the parameter may be, in bytes.
const MAX_PARAM: usize = 64;

type ReadPath = Arc<dyn Fn(&Parts) -> &str + Send + Sync>;

/// Writes the server id of the path into `params.server_id` of every JSON-RPC request and
/// notification, and as [`ServerId`](crate::ServerId) into the request's extensions.
///
/// Whatever the caller wrote there is replaced, and every other byte stays as it was. It is the same
/// for a message from outside and for one that another worker passed on: put it inside
/// [`InternalForwardLayer`](crate::InternalForwardLayer) and inside your authentication, outside
/// [`CaptureLayer`](crate::CaptureLayer).
///
/// The body is read whole before the service is called; content type and path stay as they are,
/// trailers are dropped. After an edit `content-length` is that of the new body, and headers with a
/// digest of the old one are gone. A body that came with GET or DELETE is treated alike; where there is
/// none, the id is in the extensions only.
///
/// # Rejected requests
///
/// With a JSON-RPC error body:
///
/// | status | code | when |
/// |---|---|---|
/// | 400 | -32700 | the body is not JSON (RFC 8259), or is not there |
/// | 400 | -32600 | it is no JSON-RPC request, notification or response; `jsonrpc`, `id`, `method`, `params`, `result`, `error` or the parameter is repeated, or spelled in another case or with other `_` or `-` (`serverId`): readers differ in which one they take |
/// | 400 | -32602 | `params` of a request is an array or a scalar |
/// | 400 | -32600 | it is nested deeper than 128; it is a batch, unless [accepted](ServerIdBuilder::accept_batches) |
/// | 400 | -32600 | the body ended early |
/// | 400 | -32600 | the method is CONNECT, or there is an `upgrade` to another protocol than `h2c`: what comes after it is no message of this request |
/// | 404 | -32600 | the path is neither of the template nor [unscoped](ServerIdBuilder::unscoped_paths); or its id has a malformed escape, is not UTF-8, empty, `.`, `..`, longer than 256 bytes, or has `/`, `\`, `%`, control or bidi-control characters |
/// | 413 | -32600 | the body is longer than 4 MiB; a batch has more than 1,024 messages |
/// | 415 | -32600 | it has a `content-encoding`; `content-type` is on two lines, or names a `charset` other than `utf-8`: readers that decode by it would find another message |
/// | 500 | -32603 | with feature `axum`: the unscoped path is what axum's `nest` left of another one |
#[derive(Clone)]
#[must_use = "a layer works once it is put around a service"]
pub struct ServerIdLayer {
    scope: Arc<Scope>,
}

/// What is configured.
pub(super) struct Scope {
    pub(super) template: Template,
    pub(super) unscoped: BTreeSet<String>,
    /// Where it is not simply the URI's.
    read_path: Option<ReadPath>,
    pub(super) param: String,
    pub(super) accept_batches: bool,
    pub(super) max_body: usize,
}

impl Scope {
    pub(super) fn path<'a>(&self, parts: &'a Parts) -> &'a str {
        let read = self.read_path.as_ref();
        read.map_or_else(|| parts.uri.path(), |read| read(parts))
    }

    /// Whether axum's `nest` took a part of the path that nobody looks at.
    #[cfg(feature = "axum")]
    pub(super) fn misses_path(&self, parts: &Parts) -> bool {
        self.read_path.is_none() && original_path(parts) != parts.uri.path()
    }
}

#[cfg(feature = "axum")]
fn original_path(parts: &Parts) -> &str {
    let original = parts.extensions.get::<axum::extract::OriginalUri>();
    original.map_or(&parts.uri, |original| &original.0).path()
}

impl ServerIdLayer {
    /// Takes the id from paths like `template`, in which one segment is a name in braces. A path may
    /// have one slash more at its end.
    ///
    /// ```
    /// use mcp_forward::ServerIdLayer;
    ///
    /// let layer = ServerIdLayer::for_path("/servers/{server_id}/mcp")
    ///     .unscoped_paths(["/mcp"])
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    pub fn for_path(template: impl AsRef<str>) -> ServerIdBuilder {
        ServerIdBuilder {
            template: template.as_ref().to_owned(),
            unscoped: Vec::new(),
            read_path: None,
            param: "server_id".to_owned(),
            accept_batches: false,
            max_body: MAX_BODY,
        }
    }
}

impl fmt::Debug for ServerIdLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdLayer")
            .field("template", &self.scope.template)
            .field("unscoped_paths", &self.scope.unscoped)
            .field("param", &self.scope.param)
            .finish_non_exhaustive()
    }
}

/// Collects what a [`ServerIdLayer`] does.
#[derive(Clone)]
#[must_use = "nothing is checked before `build`"]
pub struct ServerIdBuilder {
    template: String,
    unscoped: Vec<String>,
    read_path: Option<ReadPath>,
    param: String,
    accept_batches: bool,
    max_body: usize,
}

impl fmt::Debug for ServerIdBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the texts, which nobody has checked: one may hold a value.
        f.debug_struct("ServerIdBuilder").finish_non_exhaustive()
    }
}

impl ServerIdBuilder {
    /// Lets requests of exactly these paths through for no server. A caller's own parameter is
    /// removed from their messages.
    ///
    /// Inside axum's `nest("/servers/{server_id}", …)` every URI is such a path, so nothing would be
    /// scoped: read the whole path there, with `original_uri()` (feature `axum`) or
    /// [`path`](Self::path). With that feature, an unscoped path that is the rest of another is
    /// answered with **500** until then.
    pub fn unscoped_paths(mut self, paths: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let paths = paths.into_iter().map(|path| path.as_ref().to_owned());
        self.unscoped.extend(paths);
        self
    }

    /// The name of the parameter; `server_id` by default.
    pub fn param(self, name: impl AsRef<str>) -> Self {
        Self {
            param: name.as_ref().to_owned(),
            ..self
        }
    }

    /// Accepts batches (MCP 2025-03-26) of at most 1,024 messages. One that would be rejected alone
    /// has the whole batch rejected.
    pub fn accept_batches(self) -> Self {
        Self {
            accept_batches: true,
            ..self
        }
    }

    /// How long a body may be, in bytes; 4 MiB by default.
    pub fn max_body(self, bytes: usize) -> Self {
        Self {
            max_body: bytes,
            ..self
        }
    }

    /// Where the path is read; by default it is the URI's.
    ///
    /// axum's `nest` leaves only the rest of the path in the URI.
    pub fn path(self, read: impl Fn(&Parts) -> &str + Send + Sync + 'static) -> Self {
        Self {
            read_path: Some(Arc::new(read)),
            ..self
        }
    }

    /// Reads the path as it was before axum's `nest` took a part of it: axum's `OriginalUri`.
    #[cfg(feature = "axum")]
    #[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
    pub fn original_uri(self) -> Self {
        self.path(original_path)
    }

    /// Checks the paths and the parameter.
    ///
    /// # Errors
    ///
    /// [`BuildError`] lists each that is wrong: a template without exactly one segment in braces, a
    /// path that is escaped or climbs, an unscoped path that the template has too, and a parameter
    /// that is not of 1 to 64 ASCII letters, digits, `_`, `-` and `.`.
    pub fn build(self) -> Result<ServerIdLayer, BuildError> {
        let mut mistakes = Vec::new();
        let mut wrong = |kind, message: &str| mistakes.push(Mistake::new(kind, message));
        let template = Template::parse(&self.template);
        if template.is_none() {
            let message = "the template is no path with one whole segment in braces; write it as \
                           `/servers/{server_id}/mcp`";
            wrong(MistakeKind::InvalidPath, message);
        }
        for (index, path) in self.unscoped.iter().enumerate() {
            let is_scoped = || template.as_ref().is_some_and(|it| it.id(path).is_some());
            let what = if !path.starts_with('/') || !path::is_literal(path) {
                "is not written plainly; write it as `/mcp`"
            } else if is_scoped() {
                "is also one of the template's; remove it"
            } else {
                continue;
            };
            let message = format!("unscoped path {} {what}", index + 1);
            wrong(MistakeKind::InvalidPath, &message);
        }
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if !(1..=MAX_PARAM).contains(&self.param.len()) || !self.param.bytes().all(usual) {
            let message = "the parameter's name may have 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `-` \
                           and `.` only, as in `server_id`";
            wrong(MistakeKind::InvalidParameter, message);
        }
        match template {
            Some(template) if mistakes.is_empty() => Ok(ServerIdLayer {
                scope: Arc::new(Scope {
                    template,
                    unscoped: self.unscoped.into_iter().collect(),
                    read_path: self.read_path,
                    param: self.param,
                    accept_batches: self.accept_batches,
                    max_body: self.max_body,
                }),
            }),
            _ => Err(BuildError::new("the server id layer", mistakes)),
        }
    }
}

impl<S> Layer<S> for ServerIdLayer {
    type Service = Scoped<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Scoped::new(inner, Arc::clone(&self.scope))
    }
}
