//! A Redis of this program's own, where `REDIS_URL` names none.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tower::BoxError;

/// Starts `redis-server` on a loopback port, with a password and without files; and says its URL.
pub(crate) async fn start() -> Result<(Child, String), BoxError> {
    let mut password = [0; 16];
    getrandom::fill(&mut password)?;
    let password: String = password.iter().map(|byte| format!("{byte:02x}")).collect();
    // Free a moment ago; where it no longer is, Redis ends and says so.
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let mut child = Command::new("redis-server")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("`redis-server` does not start ({error}); set `REDIS_URL`"))?;
    let config =
        format!("port {port}\nbind 127.0.0.1\nrequirepass {password}\nsave \"\"\nappendonly no\n");
    let mut stdin = child.stdin.take().ok_or("it has no stdin")?;
    // Not on the command line, which other users can see.
    stdin.write_all(config.as_bytes()).await?;
    drop(stdin);
    let stdout = child.stdout.take().ok_or("it has no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if line.contains("Ready to accept connections") {
            // What it says later must not block it.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok((child, format!("redis://:{password}@127.0.0.1:{port}/")));
        }
    }
    Err("`redis-server` ended; set `REDIS_URL`".into())
}
