//! The worker's side of the link: it dials, says Hello, carries orders in and reports out, and dials again.

use super::node::{Introduce, NodeActor, Orders, Parted, Pulse};
use actix::Addr;
use capstan_common::{
    id::LinkId,
    report::Report,
    wire::{self, PROTOCOL, link},
};
use hyper_util::rt::TokioIo;
use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{io::DuplexStream, net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
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

/// Where the scheduler is.
#[derive(Clone)]
pub enum Dial {
    /// In this process.
    InProcess(mpsc::Sender<DuplexStream>),
    /// Behind a unix socket.
    Unix(PathBuf),
}

async fn connect(dial: Dial) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_static("http://scheduler")
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20);
    endpoint
        .connect_with_connector(service_fn(move |_| {
            let dial = dial.clone();
            async move {
                let stream: Box<dyn Stream> = match dial {
                    Dial::InProcess(listener) => {
                        let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
                        listener.send(theirs).await.map_err(|_| io::Error::other("the scheduler has stopped"))?;
                        Box::new(ours)
                    }
                    Dial::Unix(path) => Box::new(UnixStream::connect(path).await?),
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        }))
        .await
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

/// The number of the next link.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Keeps a link to one scheduler for as long as the node lives.
pub async fn keep_linked(node: Addr<NodeActor>, dial: Dial) {
    let mut pause = REDIAL_MS;
    while node.connected() {
        let link = LinkId(NEXT.fetch_add(1, Ordering::Relaxed));
        match session(&node, link, dial.clone()).await {
            Ok(()) => pause = REDIAL_MS,
            Err(error) => {
                tracing::warn!(error, "the link to the scheduler broke; dialling again");
                pause = (pause * 2).min(REDIAL_MAX_MS);
            }
        }
        // A node that is gone needs no telling.
        let _ = node.send(Parted(link)).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn session(node: &Addr<NodeActor>, link: LinkId, dial: Dial) -> Result<(), String> {
    let channel = connect(dial).await.map_err(|e| e.to_string())?;
    let mut client = link::link_client::LinkClient::new(channel)
        .max_decoding_message_size(256 << 20)
        .max_encoding_message_size(256 << 20);
    let (outbox, reports) = mpsc::channel(BACKLOG);
    let cut = CancellationToken::new();
    let introduce = Introduce { link, outbox: outbox.clone(), cut: cut.clone() };
    let hello = node.send(introduce).await.map_err(|e| e.to_string())?;
    let (batches, stream) = mpsc::channel(16);
    actix::spawn(send_reports(Report::Hello(hello), reports, batches));
    let joined = client.join(ReceiverStream::new(stream)).await.map_err(|status| status.message().to_owned())?;
    let mut inbound = joined.into_inner();
    loop {
        let message = tokio::select! {
            message = inbound.message() => message.map_err(|status| status.to_string())?,
            () = cut.cancelled() => return Err("too many reports waited".into()),
        };
        let Some(message) = message else { return Ok(()) };
        for order in &message.orders {
            if let Some(link::order::Kind::Welcome(welcome)) = &order.kind {
                welcomed(welcome, link, node, &outbox)?;
            }
        }
        let orders = message
            .orders
            .into_iter()
            .filter_map(|order| wire::order_in(order).transpose())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        if !node.send(Orders { link, orders }).await.map_err(|e| e.to_string())? {
            return Err("too many reports waited".into());
        }
    }
}

fn welcomed(
    welcome: &link::Welcome,
    link: LinkId,
    node: &Addr<NodeActor>,
    outbox: &mpsc::Sender<Report>,
) -> Result<(), String> {
    if welcome.protocol != PROTOCOL {
        return Err(format!("the scheduler speaks link protocol {}, this worker {PROTOCOL}", welcome.protocol));
    }
    let (node, outbox) = (node.clone(), outbox.clone());
    let pause = Duration::from_millis(u64::from(welcome.beat_ms.max(10)));
    actix::spawn(async move {
        let mut sequence = 0;
        // A beat comes from the node itself: one that hangs is not alive. Ends with the link.
        while let Ok(others) = node.send(Pulse(link)).await {
            if outbox.send(Report::Beat { sequence, others }).await.is_err() {
                return;
            }
            sequence += 1;
            tokio::time::sleep(pause).await;
        }
    });
    Ok(())
}

/// Packs all reports that wait into one message.
async fn send_reports(hello: Report, mut reports: mpsc::Receiver<Report>, batches: mpsc::Sender<link::Reports>) {
    let mut next = vec![hello.into()];
    let mut waiting = Vec::with_capacity(REPORTS_AT_ONCE);
    loop {
        if batches.send(link::Reports { reports: next }).await.is_err() {
            return;
        }
        if reports.recv_many(&mut waiting, REPORTS_AT_ONCE).await == 0 {
            return;
        }
        next = waiting.drain(..).map(link::Report::from).collect();
    }
}
