//! Spawning that carries: each function is its tokio counterpart with the current inbound.
//!
//! A plain [`tokio::spawn`] does not carry.

// This file may not know what an inbound holds.

use tokio::task::JoinHandle;

use super::{Inbound, InboundExt, enter};

/// [`tokio::spawn`], with the current inbound.
///
/// # Panics
///
/// Like [`tokio::spawn`], outside a tokio runtime.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.with_current_inbound())
}

/// [`tokio::task::spawn_local`], with the current inbound.
///
/// # Panics
///
/// Like [`tokio::task::spawn_local`], outside a [`LocalSet`](tokio::task::LocalSet).
#[track_caller]
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    tokio::task::spawn_local(future.with_current_inbound())
}

/// [`tokio::task::spawn_blocking`], with the current inbound.
///
/// # Panics
///
/// Like [`tokio::task::spawn_blocking`], outside a tokio runtime.
#[track_caller]
pub fn spawn_blocking<F, R>(f: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(wrap(f))
}

/// A closure that runs `f` as the inbound that is current *now*: for `JoinSet::spawn_blocking`,
/// `std::thread::spawn` and thread pools.
///
/// ```
/// use mcp_forward::{Inbound, task};
///
/// let worker = Inbound::empty().sync_scope(|| {
///     std::thread::spawn(task::wrap(|| Inbound::current().is_some()))
/// });
/// assert!(worker.join().unwrap());
/// ```
pub fn wrap<F, R>(f: F) -> impl FnOnce() -> R
where
    F: FnOnce() -> R,
{
    let mut scope = Inbound::current();
    move || enter(&mut scope, f)
}
