//! Connections to functions' servers, as these servers are: many write head and body in two pieces and wait for an
//! acknowledgement between them, close a kept connection at any moment, answer before they have read what was sent, or listen
//! on one of the two loopback addresses only.

use hyper_util::client::legacy::connect::{Connected, Connection};
use rustix::net::sockopt::set_tcp_quickack;
use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection to a function's server.
#[derive(Debug)]
pub struct ServerStream {
    stream: TcpStream,
    heard: Arc<AtomicU64>,
    /// The server reads nothing any more. What is still written goes nowhere; its answer may lie in the socket.
    deaf: bool,
}

impl ServerStream {
    /// Connects to a server. One that refuses on 127.0.0.1 may listen on `::1` alone, as Node's `localhost` does.
    ///
    /// # Errors
    /// Those of the address that was asked for.
    pub async fn connect(host: IpAddr, port: u16) -> io::Result<Self> {
        let stream = match TcpStream::connect((host, port)).await {
            Err(error) if host.is_loopback() && host.is_ipv4() && error.kind() == io::ErrorKind::ConnectionRefused => {
                TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| error)?
            }
            connected => connected?,
        };
        stream.set_nodelay(true)?;
        Ok(Self { stream, heard: Arc::default(), deaf: false })
    }

    /// Counts the bytes that were read from the server.
    pub fn heard(&self) -> Arc<AtomicU64> {
        self.heard.clone()
    }

    /// Has the kernel acknowledge at once what comes next. A server that writes its answer in two pieces holds the second one
    /// back until the first is acknowledged (Nagle's algorithm), which Linux does 40 ms late for whoever has just written. The
    /// kernel forgets the wish, so it is told again after each write and each read.
    fn acknowledge(&self) {
        // Only a wish: without it everything works, later.
        let _ = set_tcp_quickack(&self.stream, true);
    }

    /// What became of a write. A server may answer early and close with the rest of the request unread: its answer counts, and
    /// that the rest could not be written does not. If there is no answer, the next read says so.
    fn written(&mut self, result: io::Result<usize>, all: usize) -> io::Result<usize> {
        match result {
            Err(error) if is_closed(&error) => {
                self.deaf = true;
                Ok(all)
            }
            Ok(count) => {
                self.acknowledge();
                Ok(count)
            }
            failed => failed,
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
}

impl AsyncRead for ServerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        if read > 0 {
            self.heard.fetch_add(read as u64, Ordering::Relaxed);
            self.acknowledge();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.written(result, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(all));
        }
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(result, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_shutdown(cx)) {
            // There is nobody left to tell.
            Err(error) if is_closed(&error) => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

impl Connection for ServerStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    #[tokio::test]
    async fn an_answer_that_came_before_the_server_closed_is_read_whatever_was_still_to_be_written() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"enough").await.unwrap();
            // Dropped with bytes unread: the client is sent a reset.
            socket.readable().await.unwrap();
        });
        let mut stream = ServerStream::connect(Ipv4Addr::LOCALHOST.into(), port).await.unwrap();
        let heard = stream.heard();
        let large = vec![0u8; 32 << 20];
        stream.write_all(&large).await.unwrap();
        server.await.unwrap();
        let mut answer = vec![0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!((answer.as_slice(), heard.load(Ordering::Relaxed)), (&b"enough"[..], 6));
    }

    #[tokio::test]
    async fn a_server_on_the_other_loopback_address_is_found() {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        ServerStream::connect(Ipv4Addr::LOCALHOST.into(), port).await.unwrap();
        drop(listener);
        let error = ServerStream::connect(Ipv4Addr::LOCALHOST.into(), port).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
