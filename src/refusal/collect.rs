//! `collect`: refusals as data, for code that can do something about them.

use crate::carry::{Inbound, Refusal, Slot, WithInbound};

/// Runs `future` so that refusals are returned with its output instead of told to the caller.
///
/// For a retry, a token refresh, or calls of several upstreams of which one may refuse. Only what acts
/// as the [current](Inbound::current) inbound reports here: call `connect` and build requests within
/// `future`, and carry it into spawns. What is still meant for the caller is
/// [reported](Inbound::report) again.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use mcp_forward::{Inbound, refusal};
///
/// # async fn call_upstream() -> &'static str { "" }
/// let (answer, refusals) = refusal::collect(async { call_upstream().await }).await;
/// if let (Some(inbound), Some(refusal)) = (Inbound::current(), refusals.into_iter().next()) {
///     inbound.report(refusal); // after all
/// }
/// # let _ = answer;
/// # }
/// ```
pub fn collect<F: Future>(future: F) -> impl Future<Output = (F::Output, Vec<Refusal>)> + use<F> {
    let slot = Slot::default();
    let inbound = Inbound::current().map(|inbound| inbound.answered_in(slot.clone()));
    let collected = WithInbound::scoped(future, inbound);
    async move { (collected.await, slot.close()) }
}
