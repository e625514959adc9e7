//! `Reach`: the upstreams that one message of a caller's may reach, and how several become one.
//!
//! Everything here runs as the caller, in the scope of the message. It may not know MCP methods beyond
//! what it lists.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use futures_util::future::join_all;
use rmcp::{
    ErrorData, RoleServer,
    model::{Cursor, PaginatedRequestParams},
    service::{RequestContext, SubscriptionContext},
};

use super::{client::Client, error::Error, factory::Factory, page::Page};
use crate::{
    carry::{Inbound, Refusal},
    events,
    outbound::client::ClientFactory,
    refusal::collect,
    rules::Upstream,
};

/// Where a list names the upstreams that are missing in it.
const FAILED: &str = "mcp-forward/failed";

/// What one message may reach.
pub(super) struct Reach<'a> {
    pub(super) upstreams: &'a [Upstream],
    factory: &'a Factory,
    /// How long each of several may take for what all are asked.
    list_timeout: Duration,
    context: &'a RequestContext<RoleServer>,
}

impl<'a> Reach<'a> {
    pub(super) fn new(
        upstreams: &'a [Upstream],
        factory: &'a Factory,
        list_timeout: Duration,
        context: &'a RequestContext<RoleServer>,
    ) -> Self {
        Self {
            upstreams,
            factory,
            list_timeout,
            context,
        }
    }

    /// The upstream, where there is no other.
    pub(super) fn only(&self) -> Option<&'a Upstream> {
        match self.upstreams {
            [only] => Some(only),
            _ => None,
        }
    }

    /// A client for this message.
    pub(super) async fn client(&self, upstream: &Upstream) -> Result<Client, ErrorData> {
        let client = self.factory.connect(upstream).await?;
        Ok(client.in_call(self.context))
    }

    /// Whose `name` it is, and what it is called there.
    pub(super) fn by_name<'n>(&self, name: &'n str) -> Result<(&'a Upstream, &'n str), ErrorData> {
        if let Some(only) = self.only() {
            return Ok((only, name));
        }
        let found = name.split_once('_').and_then(|(prefix, name)| {
            let upstream = self.upstreams.iter().find(|it| it.name() == prefix)?;
            Some((upstream, name))
        });
        found.ok_or_else(|| {
            let message = "no upstream has this name; it is `<upstream>_<name>`, as listed";
            ErrorData::invalid_params(message, None)
        })
    }

    /// One page of one upstream; an empty one where it has no such list.
    pub(super) async fn page<P: Page>(
        &self,
        upstream: &Upstream,
        cursor: Option<Cursor>,
    ) -> Result<P, ErrorData> {
        let params = cursor.map(|it| PaginatedRequestParams::default().with_cursor(Some(it)));
        let client = self.client(upstream).await?;
        match P::ask(&client, params).await {
            Err(error) if error.is_unknown_method() => Ok(P::default()),
            page => Ok(page?),
        }
    }

    /// One page of what all upstreams list.
    pub(super) async fn list<P: Page>(
        &self,
        params: Option<PaginatedRequestParams>,
    ) -> Result<P, ErrorData> {
        let cursor = params.and_then(|params| params.cursor);
        if let Some(only) = self.only() {
            return self.page(only, cursor).await;
        }
        let mut cursors = self.cursors(cursor)?;
        let asked = self.upstreams.iter().filter_map(|upstream| {
            // On the first page, everybody; after that, whoever has more.
            let cursor = match &mut cursors {
                Some(cursors) => Some(cursors.remove(upstream.name())?),
                None => None,
            };
            let page = self.page::<P>(upstream, cursor);
            Some((upstream, self.in_time(upstream, page)))
        });
        let pages = self.settle(asked).await?;
        let mut all = P::default();
        let mut more = BTreeMap::new();
        let mut failed = Vec::new();
        let mut uris = HashSet::new();
        for (upstream, page) in pages {
            let Ok(mut page) = page else {
                failed.push(upstream.name());
                continue;
            };
            let (items, next, _) = page.parts();
            if let Some(next) = next.take() {
                more.insert(upstream.name(), next);
            }
            let (kept, ..) = all.parts();
            for mut item in items.drain(..) {
                if P::uri(&item).is_none_or(|uri| uris.insert(uri.to_owned())) {
                    P::prefix(&mut item, &format!("{}_", upstream.name()));
                    kept.push(item);
                }
            }
        }
        let (_, next, meta) = all.parts();
        if !more.is_empty() {
            *next = serde_json::to_string(&more).ok();
        }
        if !failed.is_empty() {
            let meta = meta.get_or_insert_default();
            meta.0.insert(FAILED.to_owned(), failed.into());
        }
        Ok(all)
    }

    /// Where each upstream's next page begins: what `list` has put into the cursor.
    fn cursors(
        &self,
        cursor: Option<Cursor>,
    ) -> Result<Option<BTreeMap<String, Cursor>>, ErrorData> {
        let Some(cursor) = cursor else {
            return Ok(None);
        };
        let is_known = |name: &String| self.upstreams.iter().any(|it| it.name() == name);
        let cursors: Option<BTreeMap<_, _>> = serde_json::from_str(&cursor).ok();
        let cursors = cursors.filter(|it| !it.is_empty() && it.keys().all(is_known));
        let wrong = || ErrorData::invalid_params("the cursor is none of this list's", None);
        cursors.map(Some).ok_or_else(wrong)
    }

    /// Sends the same to all upstreams; fails where all do.
    pub(super) async fn everywhere<Fut>(
        &self,
        send: impl Fn(Client) -> Fut,
    ) -> Result<(), ErrorData>
    where
        Fut: Future<Output = Result<(), Error>>,
    {
        let sent = self.upstreams.iter().map(|upstream| {
            let client = self.client(upstream);
            let sending = async { Ok(send(client.await?).await?) };
            (upstream, self.in_time(upstream, sending))
        });
        self.settle(sent).await.map(drop)
    }

    /// Passes on what the upstreams say in answer to `subscriptions/listen`, until it is cancelled.
    pub(super) async fn listen(&self, context: &SubscriptionContext) -> Result<(), ErrorData> {
        let mut wanted = context.accepted().clone();
        let uris = wanted.resource_subscriptions.take().unwrap_or_default();
        let uris = Vec::from_iter(uris.iter().map(String::as_str).collect::<BTreeSet<_>>());
        let mut owned = BTreeMap::<_, Vec<_>>::new();
        for (owner, uri) in self.owners(&uris).await?.into_iter().zip(&uris) {
            let uris = owned.entry(owner.name()).or_default();
            uris.push((*uri).to_owned());
        }
        let heard = self.upstreams.iter().map(|upstream| {
            let mut wanted = wanted.clone();
            wanted.resource_subscriptions = owned.remove(upstream.name());
            let hearing = async move {
                let client = self.client(upstream).await?;
                let mut subscription = client.listen(wanted).await?;
                while let Ok(Some(notification)) = subscription.next().await {
                    if context.sink().send(notification).await.is_err() {
                        break;
                    }
                }
                Ok(())
            };
            (upstream, hearing)
        });
        self.settle(heard).await.map(drop)
    }

    /// What `work` gives, or that it took too long.
    pub(super) async fn in_time<T>(
        &self,
        upstream: &Upstream,
        work: impl Future<Output = Result<T, ErrorData>>,
    ) -> Result<T, ErrorData> {
        let done = tokio::time::timeout(self.list_timeout, work).await;
        done.unwrap_or_else(|_| Err(Error::late(upstream).into()))
    }

    /// What the answer of each upstream that is asked came to; the failure, where all failed.
    async fn settle<T, Fut>(
        &self,
        asked: impl Iterator<Item = (&'a Upstream, Fut)>,
    ) -> Result<Vec<(&'a Upstream, Result<T, ErrorData>)>, ErrorData>
    where
        Fut: Future<Output = Result<T, ErrorData>>,
    {
        let (upstreams, answers): (Vec<_>, Vec<_>) = asked.unzip();
        let (answers, refusals) = collect(join_all(answers)).await;
        let answers: Vec<_> = upstreams.into_iter().zip(answers).collect();
        for (upstream, _) in answers.iter().filter(|(_, answer)| answer.is_err()) {
            events::left_out(upstream);
        }
        if answers.iter().any(|(_, answer)| answer.is_ok()) {
            return Ok(answers);
        }
        report(&refusals);
        let first = answers.into_iter().find_map(|(_, answer)| answer.err());
        Err(first.unwrap_or_else(|| ErrorData::internal_error("there is no upstream", None)))
    }
}

/// Tells the caller, after all.
pub(super) fn report(refusals: &[Refusal]) {
    let inbound = Inbound::current().unwrap_or_default();
    refusals.iter().for_each(|it| inbound.report(it.clone()));
}
