//! One shard's log in etcd: each batch a key, its keys in memory, and every write behind the fence of ownership.

use super::{Etcd, Session, Trouble, ownership::Ownership};
use crate::store::{
    Change, Store, StoreError, frame,
    places::{Place, Places},
};
use bytes::Bytes;
use capstan_common::id::Epoch;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use lru::LruCache;
use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

/// Bytes of changes in one entry: with its surroundings below etcd's limit of 1.5 MiB a request.
const PART_BYTES: usize = 1 << 20;
/// Before an entry's frame: the format, whether more of the batch follows, and the writer's epoch.
const HEAD: usize = 10;
const FORMAT: u8 = 1;
/// Entries that are kept in memory as they are: what was just written is read soon.
const CACHED: NonZeroUsize = NonZeroUsize::new(16).unwrap();
/// Entries of one page when a log is read back.
const PAGE: u64 = 16;
/// Dead bytes that are not worth reclaiming.
const SLACK: u64 = 16 << 20;
/// Live bytes that one round of housekeeping moves.
const MOVE_BYTES: usize = 512 << 10;
/// The pause before an unanswered request is sent again.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Index {
    places: Places,
    /// Bytes of each entry.
    entries: BTreeMap<u64, u32>,
    total: u64,
}

/// What taking a shard found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Entries read back.
    pub entries: u64,
    /// Live keys.
    pub keys: usize,
    /// Entries of a batch that was never finished, and so never acknowledged.
    pub cut: u64,
}

/// A shard's log, owned.
pub struct EtcdLog {
    etcd: Arc<Etcd>,
    session: Arc<Session>,
    shard: u16,
    ownership: Ownership,
    index: RwLock<Index>,
    /// The number of the next entry.
    next: Mutex<u64>,
    cache: Mutex<LruCache<u64, Bytes>>,
}

/// A transaction's answer.
enum Written {
    Done,
    /// The shard is somebody else's.
    Lost,
    /// Under this number lies something else.
    Taken(Bytes),
}

impl EtcdLog {
    /// Whose it is.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Takes a shard that nobody owns, and reads it back. `InUse` while it has an owner.
    pub fn open(etcd: Arc<Etcd>, session: Arc<Session>, shard: u16, owner: &str) -> Result<(Self, Opened), StoreError> {
        let ownership = Ownership::take(&etcd, &session, shard, owner)?;
        let mut store = Self {
            etcd,
            session,
            shard,
            ownership,
            index: RwLock::default(),
            next: Mutex::new(1),
            cache: Mutex::new(LruCache::new(CACHED)),
        };
        let opened = store.read_back();
        if opened.is_err() {
            store.release();
        }
        Ok((store, opened?))
    }

    /// Gives the shard up: the next owner need not wait for the lease's end. Nothing may be under way.
    pub fn release(&self) {
        self.ownership.release();
    }

    fn read_back(&mut self) -> Result<Opened, StoreError> {
        let prefix = log_prefix(self.shard);
        let end = |order| {
            let options = GetOptions::new().with_prefix().with_keys_only().with_limit(1);
            let found = self.etcd.get(&prefix, Some(options.with_sort(SortTarget::Key, order)))?;
            Ok::<_, StoreError>(found.first().map(|kv| number_of(kv.key())))
        };
        let (Some(first), Some(last)) = (end(SortOrder::Ascend)?, end(SortOrder::Descend)?) else {
            return Ok(Opened::default());
        };
        let (mut opened, mut batch) = (Opened::default(), Vec::new());
        let (pages, coming) = flume::bounded(2);
        // The next page travels while this one is taken apart.
        let (etcd, shard) = (self.etcd.clone(), self.shard);
        std::thread::spawn(move || {
            for from in (first..=last).step_by(PAGE as usize) {
                let options = GetOptions::new().with_range(etcd.key(&log_key(shard, from + PAGE)));
                let page = patiently(|| etcd.get(&log_key(shard, from), Some(options.clone())));
                if pages.send(page).is_err() {
                    return;
                }
            }
        });
        let mut expected = first;
        while let Ok(page) = coming.recv() {
            for kv in page? {
                let number = number_of(kv.key());
                if number != expected {
                    return Err(self.damaged(expected, "is missing"));
                }
                expected += 1;
                let more = self.check(number, kv.value())?;
                batch.push((number, Bytes::copy_from_slice(kv.value())));
                if !more {
                    opened.entries += batch.len() as u64;
                    batch.drain(..).for_each(|(number, value)| self.take_in(number, value));
                }
            }
        }
        if expected != last + 1 {
            return Err(self.damaged(expected, "is missing"));
        }
        let next = expected - batch.len() as u64;
        if !batch.is_empty() {
            opened.cut = batch.len() as u64;
            self.cut(next)?;
        }
        *self.next() = next;
        opened.keys = self.index.get_mut().unwrap_or_else(PoisonError::into_inner).places.count();
        Ok(opened)
    }

    /// Removes the entries of a batch that was never finished.
    fn cut(&self, from: u64) -> Result<(), StoreError> {
        let end = self.etcd.key(&log_key(self.shard, u64::MAX));
        let range = DeleteOptions::new().with_range(end);
        let delete = TxnOp::delete(self.etcd.key(&log_key(self.shard, from)), Some(range));
        let answer = patiently(|| self.etcd.txn(Txn::new().when([self.ownership.holds()]).and_then([delete.clone()])))?;
        if answer.succeeded() { Ok(()) } else { Err(StoreError::Lost) }
    }

    /// Whether an entry is undamaged, and more of its batch follows.
    fn check(&self, number: u64, value: &[u8]) -> Result<bool, StoreError> {
        match value.first() {
            Some(&FORMAT) => {}
            Some(version) => {
                let what = format!("entry {number} of shard {} in etcd", self.shard);
                return Err(StoreError::Newer(what, u32::from(*version), u32::from(FORMAT)));
            }
            None => return Err(self.damaged(number, "is empty")),
        }
        let whole = value.get(HEAD..).and_then(|frame| frame::read(u32::from(self.shard), frame));
        match whole {
            Some((frame, sequence)) if sequence == number && frame.len() + HEAD == value.len() => Ok(value[1] == 1),
            _ => Err(self.damaged(number, "is damaged")),
        }
    }

    fn damaged(&self, number: u64, how: &str) -> StoreError {
        StoreError::Damaged(format!("entry {number} of shard {} in etcd {how}; restore etcd from a backup", self.shard))
    }

    /// Adds an entry's changes to the index.
    fn take_in(&self, number: u64, value: Bytes) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.entries.insert(number, value.len() as u32);
        index.total += value.len() as u64;
        for change in frame::changes(&value[HEAD..]) {
            let place = change.value.map(|(at, len, crc)| Place { part: number, at: (HEAD + at) as u64, len, crc });
            index.places.set(change.key, place);
        }
        drop(index);
        self.cache().put(number, value);
    }

    fn cache(&self) -> MutexGuard<'_, LruCache<u64, Bytes>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> MutexGuard<'_, u64> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, number: u64, changes: &[Change], more: bool) -> Vec<u8> {
        let mut value = vec![FORMAT, u8::from(more)];
        value.extend_from_slice(&self.ownership.epoch.0.to_le_bytes());
        frame::write(u32::from(self.shard), number, changes, &mut value);
        value
    }

    /// Writes one entry, again and again with the same bytes until it is known to be there, and removes those before `keep`.
    fn write(&self, number: u64, value: &Bytes, keep: Option<u64>) -> Result<Written, StoreError> {
        let key = self.etcd.key(&log_key(self.shard, number));
        let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
        let mut then = vec![TxnOp::put(key.clone(), value.to_vec(), None)];
        if let Some(keep) = keep {
            let range = DeleteOptions::new().with_range(self.etcd.key(&log_key(self.shard, keep)));
            then.push(TxnOp::delete(self.etcd.key(&log_key(self.shard, 0)), Some(range)));
        }
        let otherwise = [self.ownership.look(), TxnOp::get(key, None)];
        let txn = Txn::new().when([self.ownership.holds(), free]).and_then(then).or_else(otherwise);
        loop {
            if self.session.is_lost() {
                return Ok(Written::Lost);
            }
            match self.etcd.txn(txn.clone()) {
                Ok(answer) if answer.succeeded() => return Ok(Written::Done),
                Ok(answer) => return Ok(self.refused(&answer.op_responses(), value)),
                Err(Trouble::Unknown(why)) => {
                    tracing::warn!(shard = self.shard, why, "a write to etcd was not answered: it is sent again");
                    std::thread::sleep(PAUSE);
                }
                Err(trouble) => return Err(trouble.into()),
            }
        }
    }

    /// Why a transaction was not done: another owner, or the number is taken, perhaps by this very write.
    fn refused(&self, found: &[TxnOpResponse], value: &Bytes) -> Written {
        let first = |n: usize| match found.get(n) {
            Some(TxnOpResponse::Get(got)) => got.kvs().first().cloned(),
            _ => None,
        };
        if !self.ownership.is_ours(first(0).as_ref()) {
            return Written::Lost;
        }
        match first(1) {
            Some(there) if there.value() == &value[..] => Written::Done,
            Some(there) => Written::Taken(Bytes::copy_from_slice(there.value())),
            None => Written::Lost,
        }
    }

    /// Appends a batch in as many entries as it needs. The last one makes the others count.
    fn append(&self, changes: &[Change], keep: Option<u64>) -> Result<(), StoreError> {
        let mut next = self.next();
        let parts = parts(changes)?;
        let mut written = Vec::with_capacity(parts.len());
        for (position, part) in parts.iter().enumerate() {
            let more = position + 1 < parts.len();
            loop {
                let number = *next + written.len() as u64;
                let value = Bytes::from(self.entry(number, part, more));
                match self.write(number, &value, keep.filter(|_| !more)) {
                    Ok(Written::Done) => {
                        written.push((number, value));
                        break;
                    }
                    Ok(Written::Lost) => {
                        tracing::warn!(shard = self.shard, "the shard has another owner: nothing more is written");
                        return Err(StoreError::Lost);
                    }
                    Ok(Written::Taken(there)) => self.skip(&mut next, &there, &written)?,
                    Err(error) => {
                        if !written.is_empty() {
                            self.cut(*next)?;
                        }
                        return Err(error);
                    }
                }
            }
        }
        *next += written.len() as u64;
        written.into_iter().for_each(|(number, value)| self.take_in(number, value));
        Ok(())
    }

    /// An entry of ours that was believed to be refused got in after all: it counts.
    fn skip(&self, next: &mut u64, there: &Bytes, written: &[(u64, Bytes)]) -> Result<(), StoreError> {
        let number = *next + written.len() as u64;
        let ours = there.get(2..HEAD) == Some(&self.ownership.epoch.0.to_le_bytes()[..]);
        if !ours || !written.is_empty() || self.check(number, there)? {
            return Err(self.damaged(number, "was written by somebody else"));
        }
        self.take_in(number, there.clone());
        *next += 1;
        Ok(())
    }

    fn fetch(&self, number: u64) -> Result<Bytes, StoreError> {
        if let Some(value) = self.cache().get(&number) {
            return Ok(value.clone());
        }
        let found = self.etcd.get(&log_key(self.shard, number), None)?;
        let value = found.first().map(KeyValue::value).ok_or_else(|| self.damaged(number, "is missing"))?;
        let value = Bytes::copy_from_slice(value);
        self.check(number, &value)?;
        self.cache().put(number, value.clone());
        Ok(value)
    }

    fn place(&self, key: &[u8]) -> Option<Place> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).places.get(key)
    }

    fn value(&self, place: Place) -> Result<Bytes, StoreError> {
        let entry = self.fetch(place.part)?;
        let at = place.at as usize;
        let bytes = entry.slice(at..at + place.len as usize);
        if crc32c::crc32c(&bytes) != place.crc {
            return Err(self.damaged(place.part, "is damaged"));
        }
        Ok(bytes)
    }

    /// The live values of the oldest entries, and the first entry that stays.
    fn oldest(&self) -> Result<(Vec<Change>, u64), StoreError> {
        let numbers: Vec<u64> = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.entries.keys().copied().take(64).collect()
        };
        let (mut live, mut bytes, mut keep) = (Vec::new(), 0, numbers.first().copied().unwrap_or(0));
        for number in numbers {
            let entry = self.fetch(number)?;
            for change in frame::changes(&entry[HEAD..]) {
                let Some((at, len, _)) = change.value else { continue };
                let at = HEAD + at;
                if self.place(change.key).is_some_and(|p| p.part == number && p.at == at as u64) {
                    bytes += len as usize;
                    live.push(Change::Put(change.key.into(), entry.slice(at..at + len as usize)));
                }
            }
            keep = number + 1;
            if bytes >= MOVE_BYTES {
                break;
            }
        }
        Ok((live, keep))
    }
}

/// Cuts a batch into parts that each fit a request.
fn parts(changes: &[Change]) -> Result<Vec<&[Change]>, StoreError> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (position, change) in changes.iter().enumerate() {
        let size = match change {
            Change::Put(key, value) => key.len() + value.len() + 11,
            Change::Delete(key) => key.len() + 11,
        };
        if size > PART_BYTES + (PART_BYTES >> 2) {
            return Err(StoreError::TooLarge(size));
        }
        if bytes + size > PART_BYTES && position > begin {
            parts.push(&changes[begin..position]);
            (begin, bytes) = (position, 0);
        }
        bytes += size;
    }
    parts.push(&changes[begin..]);
    Ok(parts)
}

/// Reads are the same however often they are asked: until they are answered, for a while.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, Trouble>) -> Result<T, StoreError> {
    let mut tries = 0;
    loop {
        match ask() {
            Err(Trouble::Unknown(_)) if tries < 5 => tries += 1,
            done => return done.map_err(StoreError::from),
        }
        std::thread::sleep(PAUSE);
    }
}

fn log_prefix(shard: u16) -> String {
    format!("log/{shard:04x}/")
}

fn log_key(shard: u16, number: u64) -> String {
    format!("log/{shard:04x}/{number:016x}")
}

/// The number at the end of an entry's key.
fn number_of(key: &[u8]) -> u64 {
    let digits = key.len().saturating_sub(16);
    std::str::from_utf8(&key[digits..]).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

impl Store for EtcdLog {
    fn epoch(&self) -> Epoch {
        self.ownership.epoch
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.append(changes, None)
    }

    fn maintain(&self) -> Result<bool, StoreError> {
        let (live, total, entries) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            (index.places.live(), index.total, index.entries.len())
        };
        if entries < 2 || total < 2 * live + SLACK {
            return Ok(false);
        }
        let (live, keep) = self.oldest()?;
        self.append(&live, Some(keep))?;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let kept = index.entries.split_off(&keep);
        let gone = std::mem::replace(&mut index.entries, kept);
        index.total -= gone.values().map(|len| u64::from(*len)).sum::<u64>();
        Ok(true)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        // Between the look and the read housekeeping may have moved it.
        for _ in 0..3 {
            let Some(place) = self.place(key) else { return Ok(None) };
            match self.value(place) {
                Err(StoreError::Damaged(_)) if self.place(key) != Some(place) => {}
                found => return found.map(Some),
            }
        }
        Err(StoreError::Damaged("a value moves faster than it can be read".into()))
    }

    fn keys(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, reverse: bool) -> Vec<Box<[u8]>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).places.keys(prefix, after, limit, reverse)
    }

    fn has_room(&self) -> bool {
        self.etcd.has_room()
    }

    fn size(&self) -> (u64, u64) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        (index.total, index.places.live())
    }

    fn answers(&self) -> bool {
        self.etcd.answers() && self.session.is_sure()
    }

    fn group_bytes(&self) -> usize {
        PART_BYTES
    }
}
