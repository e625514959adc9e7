//! `Reach::by_uri`: whose resource it is that a message of a caller's is about.
//!
//! It may not know what the message wants of the resource.

use futures_util::future::join_all;
use rmcp::{
    ErrorData,
    model::{ListResourceTemplatesResult, ListResourcesResult},
};

use super::{
    page::{Page, is_for},
    reach::{Reach, report},
};
use crate::{
    carry::{Inbound, Refusal},
    outbound::Outbound,
    refusal::collect,
    rules::Upstream,
};

/// How many pages of one upstream are looked through for a URI.
const MAX_PAGES: usize = 64;

/// How many URIs one message may have.
const MAX_URIS: usize = 256;

impl<'a> Reach<'a> {
    /// Whose resource it is.
    pub(super) async fn by_uri(&self, uri: &str) -> Result<&'a Upstream, ErrorData> {
        let owners = self.owners(&[uri]).await?;
        owners.first().copied().ok_or_else(nobodys)
    }

    /// Whose resource each of `uris` is, in their order. Nobody lists more than once for that.
    pub(super) async fn owners(&self, uris: &[&str]) -> Result<Vec<&'a Upstream>, ErrorData> {
        if let Some(only) = self.only() {
            return Ok(vec![only; uris.len()]);
        }
        if uris.len() > MAX_URIS {
            let message = format!("more than {MAX_URIS} URIs in one message; send several");
            return Err(ErrorData::invalid_params(message, None));
        }
        let looked = self.upstreams.iter().map(|upstream| async move {
            let mut others = uris.to_vec();
            let looking = self.in_time(upstream, async {
                self.look::<ListResourcesResult>(upstream, &mut others)
                    .await?;
                self.look::<ListResourceTemplatesResult>(upstream, &mut others)
                    .await
            });
            let (done, refusals) = collect(looking).await;
            let known = Inbound::current();
            let cannot_be_asked = || Outbound::try_merge(upstream, known.as_ref()).is_err();
            let error = done.err();
            Looked {
                upstream,
                others,
                is_refused: error.is_some() && (!refusals.is_empty() || cannot_be_asked()),
                error,
                refusals,
            }
        });
        let looked = join_all(looked).await;
        let owners = uris.iter().map(|uri| owner(uri, &looked));
        owners.collect()
    }

    /// Takes out of `uris` what `upstream` lists, or a template for it.
    async fn look<P: Page>(
        &self,
        upstream: &Upstream,
        uris: &mut Vec<&str>,
    ) -> Result<(), ErrorData> {
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            if uris.is_empty() {
                break;
            }
            let mut page = self.page::<P>(upstream, cursor).await?;
            let (items, next, _) = page.parts();
            uris.retain(|uri| !items.iter().filter_map(P::uri).any(|it| is_for(it, uri)));
            match next.take() {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        Ok(())
    }
}

/// What one upstream was found to list.
struct Looked<'a, 'u> {
    upstream: &'a Upstream,
    /// The URIs that it does not list, as far as it said.
    others: Vec<&'u str>,
    error: Option<ErrorData>,
    /// Whether that is about the caller's headers: the upstream refused them, or there is none to send.
    is_refused: bool,
    refusals: Vec<Refusal>,
}

/// The first that lists `uri`, unless one before refused to say: then it may be that one's, and what is
/// sent for it is for nobody else.
fn owner<'a>(uri: &str, looked: &[Looked<'a, '_>]) -> Result<&'a Upstream, ErrorData> {
    let mut unknown = None;
    for it in looked {
        if !it.others.contains(&uri) {
            return Ok(it.upstream);
        }
        if let Some(error) = &it.error {
            if it.is_refused {
                report(&it.refusals);
                return Err(error.clone());
            }
            unknown = unknown.or(Some(error));
        }
    }
    // It may be one of those that did not say.
    Err(unknown.cloned().unwrap_or_else(nobodys))
}

fn nobodys() -> ErrorData {
    ErrorData::resource_not_found("nobody lists this resource", None)
}
