//! Orders on their way down a link: many in one message, held back in doubt, and a beat where there are none.

use crate::shard::Shared;
use capstan_common::{order::Order, wire::link};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// The pause between two looks whether orders may be sent.
const HELD: Duration = Duration::from_millis(20);
/// Orders that travel in one message.
const ORDERS_AT_ONCE: usize = 512;

/// Packs all orders that wait into one message. Ends, and closes the way for orders, as soon as the stream has.
pub async fn send_orders(
    shared: Arc<Shared>,
    welcome: link::Welcome,
    mut orders: mpsc::Receiver<Order>,
    batches: mpsc::Sender<Result<link::Orders, Status>>,
    cut: CancellationToken,
) {
    let beat = Duration::from_millis(u64::from(welcome.beat_ms));
    let welcome = link::Order { kind: Some(link::order::Kind::Welcome(welcome)) };
    let mut next = vec![welcome];
    let mut waiting = Vec::with_capacity(ORDERS_AT_ONCE);
    loop {
        // One whose lease is in doubt may not be the owner any more: its orders wait.
        let mut told = Instant::now();
        while !shared.may_act() && !cut.is_cancelled() {
            tokio::time::sleep(HELD).await;
            if told.elapsed() >= beat {
                told = Instant::now();
                // A worker that hears nothing takes the scheduler for dead. One that is full has enough to hear.
                let _ = batches.try_send(Ok(link::Orders::default()));
            }
        }
        let sent = tokio::select! {
            sent = batches.send(Ok(link::Orders { orders: next })) => sent.is_ok(),
            () = cut.cancelled() => false,
        };
        if !sent {
            return;
        }
        let received = tokio::select! {
            received = orders.recv_many(&mut waiting, ORDERS_AT_ONCE) => Some(received),
            () = batches.closed() => Some(0),
            () = cut.cancelled() => Some(0),
            // Nothing to say is said too (RELIABILITY F5).
            () = tokio::time::sleep(beat) => None,
        };
        if received == Some(0) {
            return;
        }
        next = waiting.drain(..).map(link::Order::from).collect();
    }
}
