//! A caller's connection to the proxy.
//!
//! It may not know what is sent.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::AbortHandle};

/// One HTTP/1 connection, made again where it is gone.
pub struct Line {
    to: SocketAddr,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    pub fn new(to: SocketAddr) -> Self {
        Self { to, open: None }
    }

    /// Goes away, whatever is under way.
    pub fn hang_up(&mut self) {
        self.open = None;
    }

    async fn open(&mut self) -> &mut Open {
        if let Some(open) = &mut self.open
            && open.sender.ready().await.is_err()
        {
            self.open = None;
        }
        if self.open.is_none() {
            let stream = TcpStream::connect(self.to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
            let task = tokio::spawn(async move {
                // Its end is told to whoever has sent something.
                let _ = connection.await;
            });
            self.open = Some(Open {
                sender,
                task: task.abort_handle(),
            });
        }
        self.open.as_mut().unwrap()
    }

    pub async fn send(&mut self, request: Request<Bytes>) -> hyper::Result<Response<Incoming>> {
        let open = self.open().await;
        open.sender.send_request(request.map(Full::from)).await
    }
}
