//! `seen`: the status of an HTTP answer. rmcp's errors have it as text, or, of a large body, not at all.
//!
//! It may not know what a status means.

use std::cell::Cell;

use http::StatusCode;
use reqwest::{ClientBuilder, retry};

tokio::task_local! {
    static STATUS: Cell<Option<StatusCode>>;
}

/// Repeats nothing. Who decides about that is the only one whom reqwest shows every answer's head, in the
/// task that waits for it.
pub(super) fn watched(http: ClientBuilder) -> ClientBuilder {
    http.retry(retry::never().classify_fn(|exchange| {
        let _ = STATUS.try_with(|status| status.set(exchange.status()));
        exchange.success()
    }))
}

/// What `exchange` gives, and the status of the last answer in it, if the client is [`watched`].
pub(super) async fn seen<T>(exchange: impl Future<Output = T>) -> (T, Option<StatusCode>) {
    let exchange = async {
        let done = exchange.await;
        (done, STATUS.try_with(Cell::get).ok().flatten())
    };
    STATUS.scope(Cell::new(None), exchange).await
}
