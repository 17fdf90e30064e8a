//! The worker's side of the link: it dials, says Hello, carries orders in and reports out, and dials again.

use super::node::{Introduce, NodeActor, Orders, Parted, Pulse};
use crate::tls::{self, Tls};
use actix::Addr;
use capstan_common::{
    id::LinkId,
    order::Order,
    report::Report,
    wire::{self, OLDEST_PROTOCOL, PROTOCOL, Unreadable, link},
};
use hyper_util::rt::TokioIo;
use prost::Message;
use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::DuplexStream,
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

/// Reports that travel in one message.
const REPORTS_AT_ONCE: usize = 512;
/// Reports that may wait for the link.
pub const BACKLOG: usize = 1 << 16;
/// Bytes under way within one process.
const DUPLEX_BYTES: usize = 1 << 20;
/// The first pause before dialling again; it doubles.
const REDIAL_MS: u64 = 50;
/// The longest such pause.
const REDIAL_MAX_MS: u64 = 2000;
/// How long a scheduler may take to let a worker in.
const JOIN: Duration = Duration::from_secs(10);
/// Beats of the scheduler that may fail to come before it is taken for dead: more than it grants a worker, for one that thousands
/// join at once is late, and all of them dialling again would not help it.
const BEATS: u32 = 20;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Where the scheduler is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// Behind a unix socket.
    Unix(PathBuf),
    /// On another machine, or this one: a host and a port.
    Tcp(String),
}

/// How the scheduler is reached.
#[derive(Clone)]
pub enum Dial {
    /// In this process.
    InProcess(mpsc::Sender<DuplexStream>),
    /// Elsewhere.
    At(Address),
}

/// A pause between half and all of its length: thousands that lost the same scheduler do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    pause / 2 + (pause / 2).mul_f64(random as f64 / u64::MAX as f64)
}

async fn connect(dial: Dial, tls: Option<Arc<Tls>>) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_static("http://scheduler")
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20);
    endpoint
        .connect_with_connector(service_fn(move |_| {
            let (dial, tls) = (dial.clone(), tls.clone());
            async move {
                let stream: Box<dyn Stream> = match dial {
                    Dial::InProcess(listener) => {
                        let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
                        listener.send(theirs).await.map_err(|_| io::Error::other("the scheduler has stopped"))?;
                        Box::new(ours)
                    }
                    Dial::At(Address::Unix(path)) => Box::new(UnixStream::connect(path).await?),
                    Dial::At(Address::Tcp(address)) => {
                        let stream = reach(&address).await?;
                        match tls {
                            Some(tls) => Box::new(tls.connect(stream).await?),
                            None => Box::new(stream),
                        }
                    }
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        }))
        .await
}

async fn reach(address: &str) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT, connecting).await.map_err(io::Error::other)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to the first of these schedulers that answers, for enrolling.
pub async fn door(addresses: Vec<Address>, config: Arc<rustls::ClientConfig>) -> anyhow::Result<Channel> {
    let mut last = anyhow::anyhow!("worker.schedulers is empty");
    for address in addresses {
        let Address::Tcp(address) = address else { continue };
        let (named, config) = (address.clone(), config.clone());
        let connector = service_fn(move |_| {
            let (address, config) = (address.clone(), config.clone());
            async move { Ok::<_, io::Error>(TokioIo::new(tls::handshake(config, reach(&address).await?).await?)) }
        });
        match Endpoint::from_static("http://scheduler").connect_with_connector(connector).await {
            Ok(channel) => return Ok(channel),
            Err(error) => {
                last = anyhow::Error::new(error).context(format!("the scheduler at {named} cannot be reached"))
            }
        }
    }
    Err(last)
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

/// The number of the next link.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The links of a worker: one to each scheduler that it was told of, by its operator or by another scheduler.
pub struct Links {
    node: Addr<NodeActor>,
    tls: Option<Arc<Tls>>,
    /// Those that its operator named are dialled for ever.
    named: BTreeSet<Address>,
    /// Those that schedulers told of last.
    told: Mutex<BTreeSet<Address>>,
    /// Those that are being dialled or linked.
    kept: Mutex<BTreeSet<Address>>,
}

impl Links {
    /// Links to these, kept on the arbiter that runs this.
    pub fn keep(node: Addr<NodeActor>, dials: Vec<Dial>, tls: Option<Arc<Tls>>) {
        let named = dials.iter().filter_map(|dial| match dial {
            Dial::At(address) => Some(address.clone()),
            Dial::InProcess(_) => None,
        });
        let named: BTreeSet<Address> = named.collect();
        let links = Arc::new(Self { node, tls, kept: Mutex::new(named.clone()), named, told: Mutex::default() });
        for dial in dials {
            actix::spawn(links.clone().keep_linked(dial));
        }
    }

    /// Links to schedulers that are new; those that are gone are not dialled again.
    fn tell(self: &Arc<Self>, links: Vec<String>) {
        let told: BTreeSet<Address> = links.into_iter().map(Address::Tcp).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for address in told.difference(&kept.clone()) {
            kept.insert(address.clone());
            actix::spawn(self.clone().keep_linked(Dial::At(address.clone())));
        }
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// Whether a scheduler that cannot be reached is still to be dialled.
    fn is_wanted(&self, dial: &Dial) -> bool {
        let Dial::At(address) = dial else { return true };
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.named.contains(address) || told.contains(address)
    }

    /// Keeps a link to one scheduler for as long as the node lives.
    async fn keep_linked(self: Arc<Self>, dial: Dial) {
        let mut pause = REDIAL_MS;
        while self.node.connected() {
            let link = LinkId(NEXT.fetch_add(1, Ordering::Relaxed));
            let before = std::time::Instant::now();
            match self.session(link, dial.clone()).await {
                Ok(()) => pause = REDIAL_MS,
                Err(error) => {
                    tracing::warn!(error, "the link to the scheduler broke; dialling again");
                    let lasted = before.elapsed() > Duration::from_millis(REDIAL_MAX_MS);
                    pause = if lasted { REDIAL_MS } else { (pause * 2).min(REDIAL_MAX_MS) };
                }
            }
            // A node that is gone needs no telling.
            let _ = self.node.send(Parted(link)).await;
            if !self.is_wanted(&dial) {
                if let Dial::At(address) = &dial {
                    self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
                }
                return;
            }
            tokio::time::sleep(jittered(Duration::from_millis(pause))).await;
        }
    }

    /// Answers an order that cannot be read: a newer scheduler's, most likely. The link lives on.
    async fn refuse(&self, unreadable: Unreadable, outbox: &mpsc::Sender<Report>) {
        tracing::warn!(error = %unreadable.error, "an order of the scheduler cannot be read");
        if let Some(answer) = unreadable.answer {
            // One whose link has ended meanwhile is told by its inventory.
            let _ = outbox.send(answer).await;
        }
    }

    /// What a connection that does not carry may be about.
    fn hint(&self) -> &'static str {
        match self.tls {
            Some(_) => " (worker.link_tls is set: do the schedulers have link_tls too, and the same authority?)",
            None => " (worker.link_tls is not set: do the schedulers have link_tls?)",
        }
    }

    async fn session(self: &Arc<Self>, link: LinkId, dial: Dial) -> Result<(), String> {
        let node = &self.node;
        let channel = tokio::time::timeout(JOIN, connect(dial, self.tls.clone())).await;
        let channel = channel
            .map_err(|_| "the scheduler does not answer".to_owned())?
            .map_err(|e| format!("{}{}", whole(&e), self.hint()))?;
        let mut client = link::link_client::LinkClient::new(channel)
            .max_decoding_message_size(256 << 20)
            .max_encoding_message_size(wire::REPORTS_MAX);
        let (outbox, reports) = mpsc::channel(BACKLOG);
        let cut = CancellationToken::new();
        let introduce = Introduce { link, outbox: outbox.clone(), cut: cut.clone() };
        let hello = node.send(introduce).await.map_err(|e| e.to_string())?;
        let (batches, stream) = mpsc::channel(16);
        actix::spawn(send_reports(Report::Hello(hello), reports, batches));
        // One that refuses our certificate closes the connection, and the channel would try again without a word.
        let joining = tokio::time::timeout(JOIN, client.join(ReceiverStream::new(stream))).await;
        let joined = joining.map_err(|_| "the scheduler does not let us in, or does not answer".to_owned())?;
        let joined = joined.map_err(|status| match status.code() {
            // Nobody refused us: the connection did not carry.
            Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled => {
                format!("{}{}", status.message(), self.hint())
            }
            _ => status.message().to_owned(),
        })?;
        let mut inbound = joined.into_inner();
        let mut silence = JOIN;
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(silence, inbound.message()) => {
                    let heard = message.map_err(|_| format!("the scheduler was silent for {silence:?}"))?;
                    heard.map_err(|status| status.to_string())?
                }
                () = cut.cancelled() => return Err("too many reports waited".into()),
            };
            let Some(message) = message else { return Ok(()) };
            for order in &message.orders {
                if let Some(link::order::Kind::Welcome(welcome)) = &order.kind {
                    silence = Duration::from_millis(u64::from(welcome.beat_ms.max(10))) * BEATS;
                    welcomed(welcome, link, node, &outbox)?;
                }
            }
            let mut orders = Vec::with_capacity(message.orders.len());
            for order in message.orders {
                match wire::order_in(order) {
                    Ok(order) => orders.extend(order),
                    Err(unreadable) => self.refuse(*unreadable, &outbox).await,
                }
            }
            for order in &orders {
                if let Order::Peers { links } = order {
                    self.tell(links.clone());
                }
            }
            if !node.send(Orders { link, orders }).await.map_err(|e| e.to_string())? {
                return Err("too many reports waited".into());
            }
        }
    }
}

fn welcomed(
    welcome: &link::Welcome,
    link: LinkId,
    node: &Addr<NodeActor>,
    outbox: &mpsc::Sender<Report>,
) -> Result<(), String> {
    if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&welcome.protocol) {
        return Err(format!(
            "the scheduler speaks link protocol {}, this worker {OLDEST_PROTOCOL} to {PROTOCOL}: run versions that have one in common",
            welcome.protocol
        ));
    }
    let (node, outbox) = (node.clone(), outbox.clone());
    let pause = Duration::from_millis(u64::from(welcome.beat_ms.max(10)));
    actix::spawn(async move {
        let mut sequence = 0;
        // A beat comes from the node itself: one that hangs is not alive. Ends with the link.
        while let Ok((others, free)) = node.send(Pulse(link)).await {
            let free_gpus = free.iter().map(ToString::to_string).collect();
            if outbox.send(Report::Beat { sequence, others, free_gpus }).await.is_err() {
                return;
            }
            sequence += 1;
            tokio::time::sleep(pause).await;
        }
    });
    Ok(())
}

/// An error with its reasons.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        text.push_str(&format!(": {error}"));
        reason = error.source();
    }
    text
}

/// Packs reports that wait into messages, as many into each as have room in it.
async fn send_reports(hello: Report, mut reports: mpsc::Receiver<Report>, batches: mpsc::Sender<link::Reports>) {
    let mut next = vec![link::Report::from(hello)];
    let mut waiting = Vec::with_capacity(REPORTS_AT_ONCE);
    loop {
        let mut bytes = 0;
        let mut message = Vec::new();
        for page in std::mem::take(&mut next) {
            let size = page.encoded_len();
            if bytes + size > wire::REPORTS_BYTES && !message.is_empty() {
                let full = link::Reports { reports: std::mem::take(&mut message) };
                if batches.send(full).await.is_err() {
                    return;
                }
                bytes = 0;
            }
            bytes += size;
            message.push(page);
        }
        if batches.send(link::Reports { reports: message }).await.is_err() {
            return;
        }
        if reports.recv_many(&mut waiting, REPORTS_AT_ONCE).await == 0 {
            return;
        }
        next = waiting.drain(..).flat_map(wire::pages).collect();
    }
}
