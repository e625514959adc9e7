//! `ClientFactory`: makes any MCP client, for one upstream, as one caller.
//!
//! It may not know which client that is, nor keep one.

use std::{fmt, pin::Pin, sync::Arc};

use tower::BoxError;

use super::Outbound;
use crate::{
    carry::{Inbound, Refusal, WithInbound},
    error::ConnectError,
    rules::Upstream,
};

/// Makes clients that act as the caller; a closure is one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_forward::{ClientFactory, Inbound, Outbound, Upstream};
///
/// let factory = |outbound: Outbound| async move {
///     // Here a real factory builds a client for `outbound.upstream().url()`.
///     Ok::<_, std::io::Error>(outbound.to_header_map())
/// };
/// let search = Upstream::builder("search", "https://search.example/mcp")
///     .set("x-proxy", "edge-1")
///     .build()?;
/// let client = factory.connect_for(&search, &Inbound::empty()).await?;
/// assert_eq!(client["x-proxy"], "edge-1");
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `ClientFactory`",
    note = "a closure is one: `|outbound: Outbound| async move {{ Ok::<_, MyError>(client) }}`"
)]
pub trait ClientFactory: Send + Sync {
    /// The client.
    type Client: Send;
    /// Why there is none.
    type Error: Into<BoxError>;

    /// Makes a client that sends `outbound`'s headers, and only to `outbound`'s upstream.
    ///
    /// An error that is a [`Refusal`], or has one among its sources, is
    /// [reported](Inbound::report) by `connect` and `connect_for`; make it by [`Outbound::refusal`].
    ///
    /// A client that is kept belongs to this exact `Outbound`, which can be its key. While this runs,
    /// the caller's inbound is the [current](Inbound::current) one.
    fn create(
        &self,
        outbound: Outbound,
    ) -> impl Future<Output = Result<Self::Client, Self::Error>> + Send;

    /// Makes a client for `upstream` as the [current](Inbound::current) inbound: the one of the
    /// task that calls this function, wherever the future is awaited.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] where there is no inbound, where the headers cannot be merged, or where
    /// [`create`](Self::create) fails.
    fn connect(
        &self,
        upstream: &Upstream,
    ) -> impl Future<Output = Result<Self::Client, ConnectError>> + Send + use<'_, Self> {
        create(self, upstream, Inbound::current())
    }

    /// Makes a client for `upstream` as `inbound`.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect), except that there is an inbound.
    fn connect_for(
        &self,
        upstream: &Upstream,
        inbound: &Inbound,
    ) -> impl Future<Output = Result<Self::Client, ConnectError>> + Send + use<'_, Self> {
        create(self, upstream, Some(inbound.clone()))
    }
}

/// Merges when it is called, not when it is polled.
fn create<'a, F: ClientFactory + ?Sized>(
    factory: &'a F,
    upstream: &Upstream,
    inbound: Option<Inbound>,
) -> impl Future<Output = Result<F::Client, ConnectError>> + Send + use<'a, F> {
    let outbound = Outbound::merge(upstream, inbound.as_ref());
    WithInbound::scoped(
        async move {
            let outbound = outbound.map_err(ConnectError::outbound)?;
            let upstream = outbound.upstream().clone();
            factory.create(outbound).await.map_err(|error| {
                let error = error.into();
                let inbound = Inbound::current();
                if let (Some(inbound), Some(refusal)) = (inbound, Refusal::behind(&*error)) {
                    inbound.report(refusal.clone());
                }
                ConnectError::create(upstream.name(), error)
            })
        },
        inbound,
    )
}

impl<F, Fut, C, E> ClientFactory for F
where
    F: Fn(Outbound) -> Fut + Send + Sync,
    Fut: Future<Output = Result<C, E>> + Send,
    C: Send,
    E: Into<BoxError>,
{
    type Client = C;
    type Error = E;

    fn create(&self, outbound: Outbound) -> impl Future<Output = Result<C, E>> + Send {
        self(outbound)
    }
}

impl<T: ClientFactory + ?Sized> ClientFactory for Arc<T> {
    type Client = T::Client;
    type Error = T::Error;

    fn create(
        &self,
        outbound: Outbound,
    ) -> impl Future<Output = Result<Self::Client, Self::Error>> + Send {
        T::create(self, outbound)
    }
}

/// Any factory of clients of type `C`, for a struct that does not want to be generic.
pub struct BoxClientFactory<C> {
    inner: Arc<dyn Erased<C>>,
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

trait Erased<C>: Send + Sync {
    fn create(&self, outbound: Outbound) -> BoxFuture<'_, Result<C, BoxError>>;
}

impl<T: ClientFactory> Erased<T::Client> for T {
    fn create(&self, outbound: Outbound) -> BoxFuture<'_, Result<T::Client, BoxError>> {
        Box::pin(async move {
            ClientFactory::create(self, outbound)
                .await
                .map_err(Into::into)
        })
    }
}

impl<C: Send> BoxClientFactory<C> {
    /// Erases the type of `factory`.
    pub fn new(factory: impl ClientFactory<Client = C> + 'static) -> Self {
        Self {
            inner: Arc::new(factory),
        }
    }
}

impl<C: Send> ClientFactory for BoxClientFactory<C> {
    type Client = C;
    type Error = BoxError;

    fn create(&self, outbound: Outbound) -> impl Future<Output = Result<C, BoxError>> + Send {
        self.inner.create(outbound)
    }
}

impl<C> Clone for BoxClientFactory<C> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<C> fmt::Debug for BoxClientFactory<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxClientFactory").finish_non_exhaustive()
    }
}
