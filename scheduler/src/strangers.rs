//! The way in for strangers: connections to workers' and KEDA's doors, until whoever is behind them has said who it is.
//! Before that a connection may take little time and few bytes, and there may be few of its kind.

use crate::peer::{self, Peer};
use capstan_common::users::Users;
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request,
    transport::server::{Connected, Server, TlsConnectInfo},
};

/// How long a stranger may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that are read of a stranger.
const STRANGER_BYTES: usize = 64 << 10;
/// Connections at one time, of all that is served at a door.
const CONNECTIONS: usize = 1 << 14;
/// Strangers at one time; more wait to be accepted.
const STRANGERS: usize = 1024;
/// Strangers at one time of one address; more are closed.
const STRANGERS_OF_ONE: usize = 512;

/// Bytes of one stream that may lie unread.
const WINDOW: u32 = 1 << 20;
/// Streams of one connection.
const STREAMS: u32 = 64;
/// Bytes of a request's headers.
const HEADERS: u32 = 16 << 10;
/// How often a silent connection is asked whether anybody is there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Who is behind a connection, as far as that is known.
#[derive(Debug)]
pub struct Caller {
    /// Where it comes from.
    pub from: SocketAddr,
    introduced: AtomicBool,
    waiting: Mutex<Option<Waiting>>,
    _connection: OwnedSemaphorePermit,
}

impl Caller {
    /// It has said who it is, and may stay.
    pub fn introduce(&self) {
        self.introduced.store(true, Ordering::Relaxed);
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The caller of a request; none on connections within this machine that only its owner can make.
    pub fn of<T>(request: &Request<T>) -> Option<Arc<Self>> {
        let extensions = request.extensions();
        let encrypted = || extensions.get::<TlsConnectInfo<Arc<Self>>>().map(|info| info.get_ref().clone());
        extensions.get::<Arc<Self>>().cloned().or_else(encrypted)
    }
}

/// Strangers by their addresses.
type Strangers = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

/// A stranger's place; given back when dropped.
#[derive(Debug)]
struct Waiting {
    of: IpAddr,
    strangers: Strangers,
    _place: OwnedSemaphorePermit,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = strangers.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                strangers.remove(&self.of);
            }
        }
    }
}

/// A connection that ends unless its caller introduces itself in time and in few bytes.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    caller: Arc<Caller>,
    patience: Pin<Box<Sleep>>,
    read: usize,
}

impl Connected for Guarded {
    type ConnectInfo = Arc<Caller>;
    fn connect_info(&self) -> Arc<Caller> {
        self.caller.clone()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.caller.introduced.load(Ordering::Relaxed) {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        if self.patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.read += buf.filled().len() - before;
        if self.read > STRANGER_BYTES {
            return Poll::Ready(Err(io::Error::other("it sends much and does not say who it is")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connections of a listener as they come, guarded until their callers introduce themselves. On a door that is open to this machine
/// those of functions, which have these users, are closed.
pub fn incoming(listener: TcpListener, functions: Option<Users>) -> ReceiverStream<io::Result<Guarded>> {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let (all, strangers) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(STRANGERS)));
        let by_address = Strangers::default();
        loop {
            let places = async {
                let connection = all.clone().acquire_owned().await;
                (connection, strangers.clone().acquire_owned().await, listener.accept().await)
            };
            let accepted = tokio::select! {
                accepted = places => accepted,
                () = ready.closed() => return,
            };
            let (Ok(connection), Ok(place), Ok((stream, from))) = accepted else {
                // Out of open files, perhaps: for a moment.
                tokio::time::sleep(PATIENCE / 100).await;
                continue;
            };
            let of_function =
                |users| stream.local_addr().map_or(true, |ours| peer::behind(from, ours, users) != Peer::Anybody);
            if functions.as_ref().is_some_and(of_function) {
                tracing::warn!(%from, "a function asks a door that is not for functions: its connection is closed");
                continue;
            }
            let Some(waiting) = wait(&by_address, from.ip(), place) else {
                tracing::warn!(%from, "too many connections of one address do not say who they are: one is closed");
                continue;
            };
            let _ = stream.set_nodelay(true);
            let caller = Arc::new(Caller {
                from,
                introduced: AtomicBool::new(false),
                waiting: Mutex::new(Some(waiting)),
                _connection: connection,
            });
            let patience = Box::pin(tokio::time::sleep(PATIENCE));
            if ready.send(Ok(Guarded { stream, caller, patience, read: 0 })).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(connections)
}

/// A server whose connections hold little of what is sent and not read, and end when nobody is behind them any more.
pub fn bounded(server: Server) -> Server {
    server
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
}

fn wait(strangers: &Strangers, of: IpAddr, place: OwnedSemaphorePermit) -> Option<Waiting> {
    let mut counts = strangers.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(of).or_default();
    if *count >= STRANGERS_OF_ONE {
        return None;
    }
    *count += 1;
    Some(Waiting { of, strangers: strangers.clone(), _place: place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn a_stranger_that_sends_much_is_cut_off_and_one_that_is_known_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = incoming(listener, None);
        for known in [false, true] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let sending = tokio::spawn(async move { client.write_all(&vec![1; 2 * STRANGER_BYTES]).await });
            let mut guarded = connections.next().await.unwrap().unwrap();
            if known {
                guarded.caller.introduce();
            }
            let mut all = vec![0; 2 * STRANGER_BYTES];
            assert_eq!(guarded.read_exact(&mut all).await.is_ok(), known);
            drop(guarded);
            let _ = sending.await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut guarded = incoming(listener, None).next().await.unwrap().unwrap();
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
