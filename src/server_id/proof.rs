//! `InternalForward`: the proof that a request was passed on by another worker (feature `hmac`).
//!
//! `v1;t=<unix s>;k=<key id>;n=<nonce>;d=<sha-256 of the body>;m=<mac>`, the last three in base64url.
//! It may not know what is believed beside it.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, request::Parts};
use sha2::Sha256;

use super::{
    claim::{Claim, Sha256Digest, digest},
    internal::{Doubt, MARK},
    nonces::{Nonce, Nonces, Unfit},
};
use crate::{
    error::{BuildError, Mistake, MistakeKind, SignError, SignErrorKind},
    reply::Rejection,
};

const WRONG_TIME: Rejection = Rejection::fixed(
    StatusCode::SERVICE_UNAVAILABLE,
    "the request was passed on more than 30 seconds ago, or the workers' clocks differ; set them",
);
const TOO_MANY: Rejection = Rejection::fixed(
    StatusCode::SERVICE_UNAVAILABLE,
    "too many requests were passed on lately; send it again in a minute",
);

const VERSION: &str = "v1";
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// How far two workers' clocks may be apart, in seconds; a proof is as old at most.
pub(super) const MAX_SKEW: u64 = 30;

/// How short a key may be, in bytes: as long as its hash.
const MIN_KEY: usize = 32;

/// How long the id of a key may be, in bytes.
const MAX_KEY_ID: usize = 64;

/// The keys that the workers of one gateway share, and what was proved with them: a cheap handle.
///
/// A proof holds for one request: its method, path and query, session id and body, within 30 seconds,
/// and once at each worker. It does not hold the caller's credentials, which the other worker checks
/// by itself. Seen proofs are remembered for as long as they would hold, at most 262,144 of them; a
/// request with one more is answered with **503**.
#[derive(Clone)]
pub struct InternalForward {
    inner: Arc<Inner>,
}

struct Inner {
    /// Not empty; the first one signs.
    keys: Vec<Key>,
    nonces: Nonces,
}

struct Key {
    id: String,
    mac: Hmac<Sha256>,
}

impl InternalForward {
    /// The first of `keys`, each with its id, signs; all of them are believed, so that they can be
    /// exchanged one worker after the other.
    ///
    /// ```
    /// use mcp_forward::InternalForward;
    ///
    /// # let (new, old) = ([1; 32], [2; 32]);
    /// let forward = InternalForward::new([("2026-06", new), ("2026-05", old)])?;
    /// # let _ = forward;
    /// # Ok::<_, mcp_forward::BuildError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BuildError`] lists each mistake: no key, a key of less than 32 bytes, an id that is not of 1
    /// to 64 ASCII letters, digits, `_`, `-` and `.`, and two keys of one id.
    pub fn new(
        keys: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>,
    ) -> Result<Self, BuildError> {
        let mut mistakes = Vec::new();
        let mut wrong = |message| mistakes.push(Mistake::new(MistakeKind::InvalidKey, message));
        let mut read: Vec<Key> = Vec::new();
        for (index, (id, key)) in keys.into_iter().enumerate() {
            let (id, key, number) = (id.as_ref(), key.as_ref(), index + 1);
            if !is_key_id(id) {
                wrong(format!(
                    "the id of key {number} may have 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `-` and `.` only"
                ));
            } else if read.iter().any(|key| key.id == id) {
                wrong(format!(
                    "key {number} has the id of another; give it its own"
                ));
            } else if key.len() < MIN_KEY {
                wrong(format!(
                    "key {number} has less than 32 bytes; make a random one"
                ));
            } else if let Ok(mac) = Hmac::new_from_slice(key) {
                read.push(Key {
                    id: id.to_owned(),
                    mac,
                });
            }
        }
        if read.is_empty() && mistakes.is_empty() {
            let message = "there is no key; give one of 32 random bytes".to_owned();
            mistakes.push(Mistake::new(MistakeKind::InvalidKey, message));
        }
        if mistakes.is_empty() {
            let nonces = Nonces::default();
            let inner = Arc::new(Inner { keys: read, nonces });
            Ok(Self { inner })
        } else {
            Err(BuildError::new("the internal forward", mistakes))
        }
    }

    /// Marks a request that goes to another worker as it is, in place of an earlier mark.
    ///
    /// Of the URI only path and query are signed. Nothing that is signed may change any more: inside
    /// axum's `nest`, which cuts the URI short, give the request the whole path back before.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum::{Router, body::Body, extract::{OriginalUri, Request}, routing::post};
    /// use mcp_forward::{ForwardedInternally, InternalForward, InternalForwardLayer, ServerIdLayer};
    /// # use tower::ServiceExt;
    ///
    /// # let key = [7; 32];
    /// let forward = InternalForward::new([("2026-06", key)])?;
    /// let signing = forward.clone();
    /// let handler = async move |uri: OriginalUri, request: Request| {
    ///     if request.extensions().get::<ForwardedInternally>().is_some() {
    ///         return "served here".to_owned();
    ///     }
    ///     let body = axum::body::to_bytes(request.into_body(), 4 << 20).await.unwrap_or_default();
    ///     let mut request = http::Request::post(uri.0).body(body).expect("a URI that came is one");
    ///     signing.sign(&mut request).expect("there are random bytes");
    ///     // Here `request` would go to the other worker.
    /// #   request.headers()["x-forwarded-internally"].to_str().expect("it is ASCII").to_owned()
    /// };
    /// let server_id = ServerIdLayer::for_path("/servers/{server_id}/mcp").build()?;
    /// let nested = Router::new().route("/servers/{server_id}/mcp", post(handler)).layer(server_id);
    /// let app = Router::new()
    ///     .nest("/api", nested)
    ///     .layer(InternalForwardLayer::for_keys(&forward)); // around all of it
    /// # let send = async |mark: &str| {
    /// #     let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"server_id":"a"}}"#;
    /// #     let request = Request::post("/api/servers/a/mcp").header("x-forwarded-internally", mark);
    /// #     let answer = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    /// #     let bytes = axum::body::to_bytes(answer.into_body(), 1024).await.unwrap();
    /// #     String::from_utf8(bytes.to_vec()).unwrap()
    /// # };
    /// # let mark = send("forged").await;
    /// # assert!(mark.starts_with("v1;"), "{mark}");
    /// # assert_eq!(send(&mark).await, "served here");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SignError`] where the request has several session ids or too many headers, and where the
    /// system has no random bytes.
    pub fn sign<B: AsRef<[u8]>>(&self, request: &mut Request<B>) -> Result<(), SignError> {
        let error = SignError::new;
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(|_| error(SignErrorKind::Random))?;
        let session = session(request.headers()).ok_or(error(SignErrorKind::Session))?;
        // There is one.
        let key = self
            .inner
            .keys
            .first()
            .ok_or(error(SignErrorKind::Header))?;
        let digest = digest(request.body().as_ref());
        let (time, id) = (now().to_string(), &key.id);
        let signed = Signed {
            time: &time,
            key: id,
            nonce,
            method: request.method(),
            target: target(request.uri()),
            session,
            digest,
        };
        let mac = signed.mac(key).finalize().into_bytes();
        let [nonce, digest, mac] = [&nonce[..], &digest, &mac].map(|bytes| BASE64.encode(bytes));
        let mark = format!("{VERSION};t={time};k={id};n={nonce};d={digest};m={mac}");
        let mut mark = HeaderValue::try_from(mark).map_err(|_| error(SignErrorKind::Header))?;
        mark.set_sensitive(true);
        let written = request.headers_mut().try_insert(MARK, mark);
        written.map_err(|_| error(SignErrorKind::Header))?;
        Ok(())
    }

    /// Checks everything but the body; or says why it is no proof.
    pub(super) fn verify(&self, parts: &Parts, mark: &HeaderValue) -> Result<Claim, Doubt> {
        let mark = Mark::parse(mark.as_bytes()).ok_or("it has not the shape of a proof")?;
        let session = session(&parts.headers).ok_or("the session id is on several lines")?;
        let key = self.inner.keys.iter().find(|key| key.id == mark.key);
        let key = key.ok_or("its key is unknown")?;
        let signed = Signed {
            time: mark.time,
            key: mark.key,
            nonce: mark.nonce,
            method: &parts.method,
            target: target(&parts.uri),
            session,
            digest: mark.digest,
        };
        // In constant time.
        let verified = signed.mac(key).verify_slice(&mark.mac);
        verified.map_err(|_| "it was not made for this request, or not with this key")?;
        // From here on a worker made it.
        if now().abs_diff(mark.seconds) > MAX_SKEW {
            return Err(Doubt::Worker(WRONG_TIME));
        }
        match self.inner.nonces.insert(mark.nonce) {
            Ok(()) => Ok(Claim::new(mark.digest)),
            Err(Unfit::Seen) => Err(Doubt::Outside("it was used before")),
            Err(Unfit::Full) => Err(Doubt::Worker(TOO_MANY)),
        }
    }
}

impl fmt::Debug for InternalForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InternalForward").finish_non_exhaustive()
    }
}

/// What the mac is over.
struct Signed<'a> {
    time: &'a str,
    key: &'a str,
    nonce: Nonce,
    method: &'a Method,
    target: &'a str,
    /// Empty where there is none.
    session: &'a [u8],
    digest: Sha256Digest,
}

impl Signed<'_> {
    /// Each part has its length in front, so that no byte can move from one to the next.
    fn mac(&self, key: &Key) -> Hmac<Sha256> {
        let mut mac = key.mac.clone();
        for part in [
            VERSION.as_bytes(),
            self.time.as_bytes(),
            self.key.as_bytes(),
            &self.nonce,
            self.method.as_str().as_bytes(),
            self.target.as_bytes(),
            self.session,
            &self.digest,
        ] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// A mark that has the shape of a proof.
struct Mark<'a> {
    time: &'a str,
    seconds: u64,
    key: &'a str,
    nonce: Nonce,
    digest: Sha256Digest,
    mac: [u8; 32],
}

impl<'a> Mark<'a> {
    fn parse(mark: &'a [u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(mark).ok()?.split(';');
        let mut field = |name: &str| fields.next()?.strip_prefix(name);
        let time = field(VERSION)
            .filter(|rest| rest.is_empty())
            .and_then(|_| field("t="))?;
        let read = Self {
            time,
            seconds: time.parse().ok()?,
            key: field("k=")?,
            nonce: bytes(field("n=")?)?,
            digest: bytes(field("d=")?)?,
            mac: bytes(field("m=")?)?,
        };
        let is_number = read.time.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && fields.next().is_none()).then_some(read)
    }
}

/// Exactly `N` bytes of base64url, spelled in the one way that there is.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let length = BASE64.decode_slice(text, &mut bytes).ok()?;
    (length == N).then_some(bytes)
}

fn is_key_id(id: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=MAX_KEY_ID).contains(&id.len()) && id.bytes().all(usual)
}

/// The only session id, or nothing; `None` where there are several.
fn session(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(SESSION_ID).iter();
    let first = lines.next().map_or(&[][..], HeaderValue::as_bytes);
    lines.next().is_none().then_some(first)
}

fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

/// Seconds since 1970; a clock from before that is wrong, and its proofs are not believed.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests;
