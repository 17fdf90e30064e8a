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
    time::{Duration, Instant},
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
/// Strangers at one time of one address; more wait for their turn, and are not read meanwhile.
const STRANGERS_OF_ONE: usize = 512;
/// Connections of one address that have a turn or wait for one; more are closed. A rack of workers behind one address comes at once
/// when its scheduler is back.
const WAITING_OF_ONE: usize = 1 << 10;
/// How often a connection that is closed is told of.
const WARN: Duration = Duration::from_secs(10);

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

/// A stranger's place, and one of those of its address; given back when dropped.
#[derive(Debug)]
struct Waiting {
    _place: OwnedSemaphorePermit,
    _of_address: OwnedSemaphorePermit,
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

/// Who lets strangers in, one after the other.
struct Doorkeeper {
    strangers: Arc<Semaphore>,
    /// Places by address. What holds one, or waits for one, holds its semaphore.
    by_address: Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>,
    /// Open to this machine, but not to functions, which have these users.
    functions: Option<Users>,
    warned: Mutex<Option<Instant>>,
    ready: mpsc::Sender<io::Result<Guarded>>,
}

impl Doorkeeper {
    /// Lets one in when there is a place for it, unless that takes too long.
    async fn let_in(self: Arc<Self>, stream: TcpStream, from: SocketAddr, connection: OwnedSemaphorePermit) {
        let of_function =
            |users| stream.local_addr().map_or(true, |ours| peer::behind(from, ours, users) != Peer::Anybody);
        if self.functions.as_ref().is_some_and(of_function) {
            return self.warn(from, "a function asks a door that is not for functions: its connection is closed");
        }
        let turn = async {
            let of_address = self.of(from.ip())?.acquire_owned().await.ok()?;
            Some(Waiting { _place: self.strangers.clone().acquire_owned().await.ok()?, _of_address: of_address })
        };
        let Ok(Some(waiting)) = tokio::time::timeout(PATIENCE, turn).await else {
            return self.warn(from, "too many connections of one address do not say who they are: one is closed");
        };
        let _ = stream.set_nodelay(true);
        let caller = Arc::new(Caller {
            from,
            introduced: AtomicBool::new(false),
            waiting: Mutex::new(Some(waiting)),
            _connection: connection,
        });
        let patience = Box::pin(tokio::time::sleep(PATIENCE));
        // Nobody takes it: the door is closed.
        let _ = self.ready.send(Ok(Guarded { stream, caller, patience, read: 0 })).await;
    }

    /// The places of an address; none if too many wait for one.
    fn of(&self, address: IpAddr) -> Option<Arc<Semaphore>> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if by_address.len() > STRANGERS {
            by_address.retain(|_, places| Arc::strong_count(places) > 1);
        }
        let places = by_address.entry(address).or_insert_with(|| Arc::new(Semaphore::new(STRANGERS_OF_ONE)));
        (Arc::strong_count(places) <= WAITING_OF_ONE).then(|| places.clone())
    }

    /// Strangers do not fill our log.
    fn warn(&self, from: SocketAddr, told: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() > WARN) {
            *warned = Some(Instant::now());
            tracing::warn!(%from, "{told} (told at most every {} seconds)", WARN.as_secs());
        }
    }
}

/// Connections of a listener as they come, guarded until their callers introduce themselves. On a door that is open to this machine
/// those of functions, which have these users, are closed.
pub fn incoming(listener: TcpListener, functions: Option<Users>) -> ReceiverStream<io::Result<Guarded>> {
    let (ready, connections) = mpsc::channel(64);
    let keeper = Arc::new(Doorkeeper {
        strangers: Arc::new(Semaphore::new(STRANGERS)),
        by_address: Mutex::default(),
        functions,
        warned: Mutex::default(),
        ready,
    });
    tokio::spawn(async move {
        let all = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepting = async { (all.clone().acquire_owned().await, listener.accept().await) };
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = keeper.ready.closed() => return,
            };
            let (Ok(connection), Ok((stream, from))) = accepted else {
                // Out of open files, perhaps: for a moment.
                tokio::time::sleep(PATIENCE / 100).await;
                continue;
            };
            tokio::spawn(keeper.clone().let_in(stream, from, connection));
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
    async fn of_one_address_some_have_a_turn_more_wait_and_the_rest_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = incoming(listener, None);
        let mut clients = Vec::new();
        for _ in 0..STRANGERS_OF_ONE + 2 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let mut served = Vec::new();
        for _ in 0..STRANGERS_OF_ONE {
            served.push(connections.next().await.unwrap().unwrap());
        }
        let next = |connections: &mut ReceiverStream<io::Result<Guarded>>| {
            let polled = std::pin::pin!(connections.next()).poll(&mut Context::from_waker(std::task::Waker::noop()));
            matches!(polled, Poll::Ready(Some(Ok(_))))
        };
        tokio::task::yield_now().await;
        assert!(!next(&mut connections), "one more than have a turn");
        // One has said who it is: its turn is another's.
        served[0].caller.introduce();
        served.push(connections.next().await.unwrap().unwrap());
        // The last one waits in vain.
        tokio::time::sleep(2 * PATIENCE).await;
        assert!(!next(&mut connections), "one that has waited too long");
        let ended = futures_util::future::join_all(clients.iter_mut().map(|client| async move {
            let mut byte = [0];
            tokio::time::timeout(Duration::from_millis(1), client.read(&mut byte))
                .await
                .is_ok_and(|read| read.is_ok_and(|n| n == 0))
        }));
        assert_eq!(ended.await.into_iter().filter(|ended| *ended).count(), 1);
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
