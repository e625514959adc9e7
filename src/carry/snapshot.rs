//! `Inbound`: an immutable, redacted snapshot of what the caller sent, and where to answer.
//!
//! It holds values only under names that a capture layer was told to read. It may not know the
//! rules, nor how it is carried (`mod.rs`).

use std::{
    any::Any,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use http::{Extensions, HeaderName, HeaderValue};

use super::refusal::{Refusal, Slot};

/// What one caller sent, of what the rules read: a cheap handle to an immutable snapshot.
///
/// Made by [`CaptureLayer`](crate::CaptureLayer). Every value in it is
/// [sensitive](HeaderValue::set_sensitive), and `Debug` prints names only.
///
/// *Empty* and *absent* differ: [`Inbound::empty`] acts on behalf of nobody; outside every scope
/// there is no inbound at all, and an upstream whose rules read the caller is then not called.
#[derive(Clone, Default)]
pub struct Inbound {
    /// The names that were looked for; `None` where nobody looked.
    captured: Option<Arc<[HeaderName]>>,
    /// Whether a caller may be behind this of whom nothing was captured.
    unknown: bool,
    snapshot: Option<Arc<[Entry]>>,
    slot: Option<Slot>,
    session: Option<SessionKey>,
}

/// One line that was found.
#[derive(Clone)]
pub(crate) struct Entry {
    /// The place of its name among the captured ones.
    pub(crate) name: usize,
    pub(crate) value: HeaderValue,
    /// Whether the embedder vouches for it, and not the caller.
    pub(crate) attested: bool,
}

/// Which front session a request belongs to: opaque, never a header, never printed.
///
/// The identity is kept alive, so that no other session can come to have its address.
#[derive(Clone)]
pub(crate) struct SessionKey {
    identity: Arc<dyn Any + Send + Sync>,
    #[cfg(feature = "rmcp")]
    session: Arc<dyn Any + Send + Sync>,
}

impl SessionKey {
    /// Keys of one session are made with the same `identity`: not one that is equal.
    #[cfg(feature = "rmcp")]
    pub(crate) fn new(
        identity: Arc<dyn Any + Send + Sync>,
        session: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { identity, session }
    }

    /// The session itself, for whoever made the key.
    #[cfg(feature = "rmcp")]
    pub(crate) fn get<T: 'static>(&self) -> Option<&T> {
        self.session.downcast_ref()
    }

    #[cfg(feature = "rmcp")]
    pub(crate) fn is_identified_by<T>(&self, identity: &Arc<T>) -> bool {
        self.address() == Arc::as_ptr(identity).cast()
    }

    fn address(&self) -> *const () {
        Arc::as_ptr(&self.identity).cast()
    }
}

impl PartialEq for SessionKey {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for SessionKey {}

impl Hash for SessionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

/// What the extensions hold. Private, so that reading them is only possible by [`Inbound::of`].
#[derive(Clone)]
struct Attached(Inbound);

impl Inbound {
    /// An inbound that holds nothing: "on behalf of nobody".
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            captured: None,
            unknown: false,
            snapshot: None,
            slot: None,
            session: None,
        }
    }

    /// What was found under the names of `captured`, which are sorted.
    pub(crate) fn new(captured: Arc<[HeaderName]>, snapshot: Option<Arc<[Entry]>>) -> Self {
        Self {
            captured: Some(captured),
            snapshot,
            ..Self::empty()
        }
    }

    /// Whether a caller may be behind this of whom nothing was captured.
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// The inbound that was attached to a request's extensions; one without a header where there is
    /// none.
    ///
    /// It never asks the running task: an actor that serves messages of many callers gets the
    /// one of the message, and a caller who sent nothing is nobody, not whoever started the actor.
    ///
    /// Where nothing is attached, the caller sent nothing, or there is no
    /// [`CaptureLayer`](crate::CaptureLayer). What is optional is then absent; but a rule that falls
    /// back to a static header ([`OnConflict::Caller`](crate::OnConflict::Caller)) fails with
    /// [`NotCaptured`](crate::OutboundErrorKind::NotCaptured), since a layer that knows of such a
    /// rule always attaches. For work on behalf of nobody use [`Inbound::empty`].
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        Self::attached(extensions).unwrap_or(Self {
            unknown: true,
            ..Self::empty()
        })
    }

    pub(crate) fn attached(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Attached>().map(|found| found.0.clone())
    }

    /// Puts this inbound, even an empty one, into a request's extensions, in place of another.
    pub fn attach(self, extensions: &mut Extensions) {
        extensions.insert(Attached(self));
    }

    pub(crate) fn detach(extensions: &mut Extensions) {
        extensions.remove::<Attached>();
    }

    /// The value captured under `name`; the first line, where a rule takes [several]:
    /// [`iter`](Self::iter) has them all.
    ///
    /// [several]: crate::Rule::multi
    #[must_use]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.entries(name)?.first().map(|entry| &entry.value)
    }

    /// Every line that was captured.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let names = self.names();
        let lines = self.lines().iter();
        lines.filter_map(move |entry| Some((names.get(entry.name)?, &entry.value)))
    }

    /// A copy whose values are in memory of their own: for whatever outlives the request.
    ///
    /// A value as it came holds on to the whole read buffer of its HTTP/1 connection, 8 KiB and more.
    /// [`task::spawn`](crate::task::spawn) does not copy; for a task that stays, take the inbound before
    /// the spawn: `tokio::spawn(work.with_inbound(inbound.compact()))`.
    #[must_use]
    pub fn compact(&self) -> Self {
        Self {
            // Whoever keeps it longer than the request has nobody to answer any more.
            slot: None,
            ..self.copied()
        }
    }

    /// This inbound, of a request in a front session.
    #[cfg(feature = "rmcp")]
    pub(crate) fn in_session(self, session: SessionKey) -> Self {
        Self {
            session: Some(session),
            ..self
        }
    }

    /// Where to answer, and nothing that the caller sent.
    #[cfg(feature = "rmcp")]
    pub(crate) fn answer_only(&self) -> Self {
        Self {
            slot: self.slot.clone(),
            ..Self::empty()
        }
    }

    /// As [`compact`](Self::compact), for whatever is still part of the answer.
    pub(super) fn copied(&self) -> Self {
        let copy = |entry: &Entry| Entry {
            value: compact(&entry.value),
            ..entry.clone()
        };
        let lines = self.snapshot.as_ref();
        Self {
            snapshot: lines.map(|lines| lines.iter().map(copy).collect()),
            ..self.clone()
        }
    }

    /// The lines under `name`, in the order in which they came; `None` where their absence would say
    /// nothing: nobody has looked for them, and this is somebody.
    pub(crate) fn entries(&self, name: &HeaderName) -> Option<&[Entry]> {
        let Some(names) = &self.captured else {
            return Some(&[]);
        };
        let place = names.binary_search_by(|known| known.as_str().cmp(name.as_str()));
        let place = place.ok()?;
        // They are in the order of their names.
        let lines = self.lines();
        let start = lines.partition_point(|entry| entry.name < place);
        let lines = lines.get(start..)?;
        let end = lines.partition_point(|entry| entry.name == place);
        lines.get(..end)
    }

    /// Whether nothing was captured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines().is_empty()
    }

    /// Whether it holds nothing at all: not worth a place in the extensions.
    pub(crate) fn is_trivial(&self) -> bool {
        self.is_empty() && self.slot.is_none() && self.session.is_none()
    }

    /// Tells whoever answers the caller that an upstream has refused.
    ///
    /// Nothing happens where nobody listens, and once the answer is on its way.
    pub fn report(&self, refusal: Refusal) {
        if let Some(slot) = &self.slot {
            slot.report(refusal);
        }
    }

    /// The same caller, who is answered elsewhere.
    pub(crate) fn answered_in(self, slot: Slot) -> Self {
        Self {
            slot: Some(slot),
            ..self
        }
    }

    /// This inbound in place of the one that a request with `extensions` has so far: whoever waits for
    /// the answer still hears of it.
    pub(crate) fn in_place_of_known(self, extensions: &Extensions) -> Self {
        let known = Self::attached(extensions).or_else(Self::current);
        match known.and_then(|known| known.slot) {
            Some(slot) => self.answered_in(slot),
            None => self,
        }
    }

    pub(crate) fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }

    pub(crate) fn session(&self) -> Option<&SessionKey> {
        self.session.as_ref()
    }

    fn names(&self) -> &[HeaderName] {
        self.captured.as_deref().unwrap_or_default()
    }

    fn lines(&self) -> &[Entry] {
        self.snapshot.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            captured: _,
            unknown: _,
            snapshot: _,
            slot: _,
            session: _,
        } = self;
        f.write_str("Inbound ")?;
        f.debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

/// A copy in memory of its own, and sensitive as it was.
pub(crate) fn compact(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(true);
    copy
}
