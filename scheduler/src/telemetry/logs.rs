//! The last output of each container, kept in rings of bounded size, also for a while after its end.

use crate::clock;
use bytes::Bytes;
use capstan_common::{
    id::{ContainerId, FunctionKey},
    time::Time,
};
use capstan_verb::log::Chunk;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Bytes kept of one container.
const RING_BYTES: usize = 256 << 10;
/// How long the output of a container that has ended is kept, as long as there is room.
const KEPT_MS: u64 = 600_000;
/// Ended containers whose output is kept longer than that.
const KEPT_ENDED: usize = 200;
/// Bytes of output of ended containers, at most.
const ENDED_BYTES: usize = 64 << 20;
/// Bytes in one page.
const PAGE_BYTES: usize = 4 << 20;

struct Ring {
    /// Whose output it is.
    function: FunctionKey,
    chunks: VecDeque<Piece>,
    bytes: usize,
    ended: bool,
}

struct Piece {
    number: u64,
    at: Time,
    bytes: Bytes,
}

/// Output of containers, by id.
pub struct Logs {
    table: Mutex<Table>,
    /// The number of the last chunk of all; changes also when a container ends.
    last: watch::Sender<u64>,
}

impl Default for Logs {
    fn default() -> Self {
        // Chunks are numbered by time, so that a reader's place means something to the next process too.
        let table = Table { number: clock::now().0, ..Table::default() };
        Self { table: Mutex::new(table), last: watch::channel(0).0 }
    }
}

#[derive(Default)]
struct Table {
    rings: BTreeMap<ContainerId, Ring>,
    ended: VecDeque<(Time, ContainerId)>,
    ended_bytes: usize,
    number: u64,
}

/// Whose output is read.
#[derive(Debug, Clone)]
pub enum Of {
    /// One container's.
    Container(ContainerId),
    /// That of all containers of a function.
    Function(FunctionKey),
}

/// What a reader gets.
pub struct Page {
    /// In the order in which they came.
    pub chunks: Vec<Chunk>,
    /// Where the next page begins.
    pub next: u64,
    /// Whether there is more already.
    pub has_more: bool,
    /// Whether nothing more will come.
    pub ended: bool,
}

impl Logs {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when there is more.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// A container is there, and may write.
    pub fn open(&self, container: ContainerId, function: &FunctionKey) {
        self.table().ring(container, function);
    }

    /// Whose function's output is kept of a container, if any is.
    pub fn namespace(&self, container: ContainerId) -> Option<Arc<str>> {
        self.table().rings.get(&container).map(|ring| ring.function.namespace.clone())
    }

    /// Adds output; `dropped` bytes before it were left out.
    pub fn add(&self, container: ContainerId, function: &FunctionKey, chunk: Bytes, dropped: u64) {
        let mut table = self.table();
        if dropped > 0 {
            let told = format!("[capstan: {dropped} bytes of output were left out here]\n");
            table.push(container, function, told.into());
        }
        let number = table.push(container, function, chunk);
        drop(table);
        self.last.send_replace(number);
    }

    /// The container writes nothing more.
    pub fn end(&self, container: ContainerId, function: &FunctionKey) {
        let mut table = self.table();
        let ring = table.ring(container, function);
        if std::mem::replace(&mut ring.ended, true) {
            return;
        }
        let (bytes, now) = (ring.bytes, clock::now());
        table.ended_bytes += bytes;
        table.ended.push_back((now, container));
        table.forget_old(now);
        drop(table);
        self.last.send_modify(|_| {});
    }

    /// Output from behind a place on, and from a time on; `None` if nothing is known of the container.
    pub fn read(&self, of: &Of, after: u64, since: Time) -> Option<Page> {
        let table = self.table();
        let mut found: Vec<(&Piece, ContainerId)> = Vec::new();
        let rings: Vec<(ContainerId, &Ring)> = match of {
            Of::Container(id) => vec![(*id, table.rings.get(id)?)],
            Of::Function(key) => {
                table.rings.iter().filter(|(_, r)| r.function == *key).map(|(id, r)| (*id, r)).collect()
            }
        };
        for (id, ring) in &rings {
            // Their numbers rise: what is behind the place lies at the end.
            let from = ring.chunks.partition_point(|piece| piece.number <= after);
            found.extend(ring.chunks.range(from..).filter(|piece| piece.at >= since).map(|piece| (piece, *id)));
        }
        found.sort_unstable_by_key(|(piece, _)| piece.number);
        let (mut chunks, mut bytes, mut next) = (Vec::new(), 0, after);
        let all = found.len();
        for (piece, container) in found {
            if bytes > PAGE_BYTES {
                break;
            }
            (bytes, next) = (bytes + piece.bytes.len(), piece.number);
            chunks.push(Chunk { container, at_ms: piece.at.0 / 1000, bytes: piece.bytes.clone() });
        }
        let has_more = chunks.len() < all;
        let ended = matches!(of, Of::Container(_)) && rings.iter().all(|(_, ring)| ring.ended);
        Some(Page { chunks, next, has_more, ended })
    }
}

impl Table {
    fn ring(&mut self, container: ContainerId, function: &FunctionKey) -> &mut Ring {
        let new = || Ring { function: function.clone(), chunks: VecDeque::new(), bytes: 0, ended: false };
        self.rings.entry(container).or_insert_with(new)
    }

    /// Adds a chunk; copied, for a slice of a link's message keeps all of that message. Answers its number.
    fn push(&mut self, container: ContainerId, function: &FunctionKey, chunk: Bytes) -> u64 {
        let at = clock::now();
        self.number = at.0.max(self.number + 1);
        let number = self.number;
        let ring = self.ring(container, function);
        let before = ring.bytes;
        let bytes = Bytes::copy_from_slice(&chunk[chunk.len().saturating_sub(RING_BYTES)..]);
        ring.bytes += bytes.len();
        ring.chunks.push_back(Piece { number, at, bytes });
        while ring.bytes > RING_BYTES && ring.chunks.len() > 1 {
            if let Some(oldest) = ring.chunks.pop_front() {
                ring.bytes -= oldest.bytes.len();
            }
        }
        // The last words of one that has ended come after its end.
        if ring.ended {
            let (now, ended) = (ring.bytes, self.ended_bytes);
            self.ended_bytes = (ended + now).saturating_sub(before);
        }
        number
    }

    /// Forgets what has ended long ago, and more if that is too much.
    fn forget_old(&mut self, now: Time) {
        while let Some((ended, container)) = self.ended.front().copied() {
            let is_old = now.since_ms(ended) > KEPT_MS && self.ended.len() > KEPT_ENDED;
            if !is_old && self.ended_bytes <= ENDED_BYTES {
                return;
            }
            self.ended.pop_front();
            if let Some(ring) = self.rings.remove(&container) {
                self.ended_bytes = self.ended_bytes.saturating_sub(ring.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(page: &Page) -> usize {
        page.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    #[test]
    fn a_flood_of_output_stays_in_its_bound_and_says_what_is_missing() {
        // RELIABILITY F22 B1
        let (logs, id, key) = (Logs::default(), ContainerId(1), FunctionKey::new("ns", "f"));
        for _ in 0..100 {
            logs.add(id, &key, Bytes::from(vec![b'x'; 16 << 10]), 0);
        }
        logs.add(id, &key, Bytes::from_static(b"end\n"), 7);
        let page = logs.read(&Of::Container(id), 0, Time(0)).unwrap();
        assert!(bytes(&page) <= RING_BYTES);
        assert!(page.chunks[page.chunks.len() - 2].bytes.starts_with(b"[capstan: 7 bytes"));
        assert!(logs.read(&Of::Container(id), page.next, Time(0)).unwrap().chunks.is_empty());
    }

    #[test]
    fn a_functions_output_is_that_of_all_its_containers_in_order_also_of_those_that_have_ended() {
        let (logs, key, other) = (Logs::default(), FunctionKey::new("ns", "f"), FunctionKey::new("ns", "g"));
        for (container, of, text) in [(1, &key, "a"), (2, &key, "b"), (3, &other, "x"), (1, &key, "c")] {
            logs.add(ContainerId(container), of, Bytes::from(text), 0);
        }
        logs.end(ContainerId(1), &key);
        let page = logs.read(&Of::Function(key.clone()), 0, Time(0)).unwrap();
        let told: Vec<_> = page.chunks.iter().map(|chunk| (chunk.container.0, chunk.bytes.clone())).collect();
        assert_eq!(told, [(1, Bytes::from("a")), (2, Bytes::from("b")), (1, Bytes::from("c"))]);
        assert!(!page.ended && logs.read(&Of::Container(ContainerId(1)), 0, Time(0)).unwrap().ended);
    }

    #[test]
    fn what_many_ended_containers_wrote_stays_in_its_bound() {
        let (logs, key) = (Logs::default(), FunctionKey::new("ns", "f"));
        for n in 0..400 {
            logs.add(ContainerId(n), &key, Bytes::from(vec![b'x'; RING_BYTES]), 0);
            logs.end(ContainerId(n), &key);
        }
        let table = logs.table();
        let held: usize = table.rings.values().map(|ring| ring.bytes).sum();
        assert!(held <= ENDED_BYTES && held == table.ended_bytes, "{held} {}", table.ended_bytes);
        assert!(table.rings.contains_key(&ContainerId(399)) && !table.rings.contains_key(&ContainerId(0)));
    }
}
