//! Two worker processes of one gateway behind one port: `cargo run --example workers`.
//!
//! Connections go to one worker and the other in turns, whoever has the session; what lands in the
//! wrong worker is passed on with a proof. It shows that a server's tools are the same through either,
//! what a forged mark gets, and what a proof gets that is used again. It ends by itself.
#![allow(clippy::print_stdout, reason = "it shows what happens")]
#![allow(dead_code, reason = "`examples/workers-redis` uses more of it")]

mod gateway;
mod in_the_id;
mod owners;
mod show;
mod worker;

use in_the_id::InTheId;
use tower::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        return worker::run(async |told| Ok(InTheId::new(told))).await;
    }
    show::show(String::new()).await?;
    Ok(())
}
