//! The last output of each container, kept in rings of bounded size.

use bytes::Bytes;
use capstan_common::id::ContainerId;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// Bytes kept of one container.
const RING_BYTES: usize = 256 << 10;
/// Ended containers whose output is kept.
const KEPT_ENDED: usize = 200;

struct Ring {
    /// Whose function's output it is.
    namespace: Arc<str>,
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// Number of the first chunk.
    first: u64,
    next: watch::Sender<u64>,
    ended: bool,
}

/// Output of containers, by id.
#[derive(Default)]
pub struct Logs(Mutex<Table>);

#[derive(Default)]
struct Table {
    rings: BTreeMap<ContainerId, Ring>,
    ended: VecDeque<ContainerId>,
}

/// What a reader gets.
pub struct Page {
    /// The chunks since the last page.
    pub chunks: Vec<Bytes>,
    /// Where the next page begins.
    pub next: u64,
    /// Whether the container has ended and all was read.
    pub ended: bool,
    /// Tells when there is more.
    pub more: watch::Receiver<u64>,
}

impl Logs {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container is there, and may write.
    pub fn open(&self, container: ContainerId, namespace: &Arc<str>) {
        self.table().ring(container, namespace);
    }

    /// Whose function's output is kept of a container, if any is.
    pub fn namespace(&self, container: ContainerId) -> Option<Arc<str>> {
        self.table().rings.get(&container).map(|ring| ring.namespace.clone())
    }

    /// Adds output; `dropped` bytes before it were left out.
    pub fn add(&self, container: ContainerId, namespace: &Arc<str>, chunk: Bytes, dropped: u64) {
        let mut table = self.table();
        let ring = table.ring(container, namespace);
        if dropped > 0 {
            ring.push(format!("[capstan: {dropped} bytes of output were left out here]\n").into());
        }
        ring.push(chunk);
    }

    /// The container writes nothing more.
    pub fn end(&self, container: ContainerId, namespace: &Arc<str>) {
        let mut table = self.table();
        let ring = table.ring(container, namespace);
        if std::mem::replace(&mut ring.ended, true) {
            return;
        }
        ring.next.send_modify(|_| {});
        table.ended.push_back(container);
        if table.ended.len() > KEPT_ENDED
            && let Some(oldest) = table.ended.pop_front()
        {
            table.rings.remove(&oldest);
        }
    }

    /// Output from chunk `from` on; `None` if nothing is known of the container.
    pub fn read(&self, container: ContainerId, from: u64) -> Option<Page> {
        let table = self.table();
        let ring = table.rings.get(&container)?;
        let skip = from.saturating_sub(ring.first) as usize;
        Some(Page {
            chunks: ring.chunks.iter().skip(skip).cloned().collect(),
            next: ring.first + ring.chunks.len() as u64,
            ended: ring.ended,
            more: ring.next.subscribe(),
        })
    }
}

impl Table {
    fn ring(&mut self, container: ContainerId, namespace: &Arc<str>) -> &mut Ring {
        self.rings.entry(container).or_insert_with(|| Ring::of(namespace.clone()))
    }
}

impl Ring {
    fn of(namespace: Arc<str>) -> Self {
        let next = watch::channel(0).0;
        Self { namespace, chunks: VecDeque::new(), bytes: 0, first: 0, next, ended: false }
    }

    /// Adds a chunk; copied, for a slice of a link's message keeps all of that message.
    fn push(&mut self, chunk: Bytes) {
        let chunk = Bytes::copy_from_slice(&chunk[chunk.len().saturating_sub(RING_BYTES)..]);
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
        while self.bytes > RING_BYTES && self.chunks.len() > 1 {
            if let Some(oldest) = self.chunks.pop_front() {
                self.bytes -= oldest.len();
                self.first += 1;
            }
        }
        self.next.send_replace(self.first + self.chunks.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_output_stays_in_its_bound_and_says_what_is_missing() {
        // RELIABILITY F22 B1
        let logs = Logs::default();
        let id = ContainerId(1);
        for _ in 0..100 {
            logs.add(id, &"ns".into(), Bytes::from(vec![b'x'; 16 << 10]), 0);
        }
        logs.add(id, &"ns".into(), Bytes::from_static(b"end\n"), 7);
        let page = logs.read(id, 0).unwrap();
        assert!(page.chunks.iter().map(Bytes::len).sum::<usize>() <= RING_BYTES);
        assert!(page.chunks[page.chunks.len() - 2].starts_with(b"[capstan: 7 bytes"));
        assert!(logs.read(id, page.next).unwrap().chunks.is_empty());
    }
}
