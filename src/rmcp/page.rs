//! `Page`: one page of what an upstream lists, whatever that is.
//!
//! It may not know that there are several upstreams.

use rmcp::model::{
    Cursor, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    MetaObject, PaginatedRequestParams, Prompt, Resource, ResourceTemplate, Tool,
};

use super::{client::Client, error::Error};

type Parts<'a, T> = (
    &'a mut Vec<T>,
    &'a mut Option<Cursor>,
    &'a mut Option<MetaObject>,
);

/// A result of `tools/list` and its like.
pub(super) trait Page: Default + Send {
    type Item: Send;

    fn ask(
        client: &Client,
        params: Option<PaginatedRequestParams>,
    ) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Its items, where the next page begins, and its `_meta`.
    fn parts(&mut self) -> Parts<'_, Self::Item>;

    /// Puts `prefix` in front of a name by which callers ask for it.
    fn prefix(_: &mut Self::Item, _: &str) {}

    /// The URI, or the template of URIs, by which callers ask for it.
    fn uri(_: &Self::Item) -> Option<&str> {
        None
    }
}

impl Page for ListToolsResult {
    type Item = Tool;

    async fn ask(client: &Client, params: Option<PaginatedRequestParams>) -> Result<Self, Error> {
        client.list_tools(params).await
    }

    fn parts(&mut self) -> Parts<'_, Tool> {
        (&mut self.tools, &mut self.next_cursor, &mut self.meta)
    }

    fn prefix(item: &mut Tool, prefix: &str) {
        item.name = format!("{prefix}{}", item.name).into();
    }
}

impl Page for ListPromptsResult {
    type Item = Prompt;

    async fn ask(client: &Client, params: Option<PaginatedRequestParams>) -> Result<Self, Error> {
        client.list_prompts(params).await
    }

    fn parts(&mut self) -> Parts<'_, Prompt> {
        (&mut self.prompts, &mut self.next_cursor, &mut self.meta)
    }

    fn prefix(item: &mut Prompt, prefix: &str) {
        item.name = format!("{prefix}{}", item.name);
    }
}

impl Page for ListResourcesResult {
    type Item = Resource;

    async fn ask(client: &Client, params: Option<PaginatedRequestParams>) -> Result<Self, Error> {
        client.list_resources(params).await
    }

    fn parts(&mut self) -> Parts<'_, Resource> {
        (&mut self.resources, &mut self.next_cursor, &mut self.meta)
    }

    fn uri(item: &Resource) -> Option<&str> {
        Some(&item.uri)
    }
}

impl Page for ListResourceTemplatesResult {
    type Item = ResourceTemplate;

    async fn ask(client: &Client, params: Option<PaginatedRequestParams>) -> Result<Self, Error> {
        client.list_resource_templates(params).await
    }

    fn parts(&mut self) -> Parts<'_, ResourceTemplate> {
        (
            &mut self.resource_templates,
            &mut self.next_cursor,
            &mut self.meta,
        )
    }

    fn uri(item: &ResourceTemplate) -> Option<&str> {
        Some(&item.uri_template)
    }
}

/// Whether `listed` is `uri`, or a template (RFC 6570) that can become it.
///
/// Only what stands around a template's variables is compared; it has to begin with a scheme.
pub(super) fn is_for(listed: &str, uri: &str) -> bool {
    let Some((before, rest)) = listed.split_once('{') else {
        return listed == uri;
    };
    let after = rest.rsplit_once('}').map_or("", |(_, after)| after);
    let rest = uri.strip_prefix(before).filter(|_| before.contains(':'));
    rest.is_some_and(|rest| rest.ends_with(after))
}
