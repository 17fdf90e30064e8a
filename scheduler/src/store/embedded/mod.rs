//! The embedded engine: an append-only log of checksummed batches in a folder, with its keys in memory.
//!
//! Values are packed segments, so keys are few; memory holds keys and places, the disk holds values. Space comes back from
//! the front: the oldest file's live values are appended again, then the file goes, so that a removal never has to outlive
//! what it removed. See `docs/adr/0001-store-engine.md`.

mod disk;
mod file;
#[cfg(test)]
mod power;
mod replay;

use super::{
    Change, Store, StoreError, frame, layout,
    places::{Place, Places},
};
use crate::folder;
use bytes::Bytes;
use capstan_common::id::Epoch;
use disk::Disk;
use file::{FILE_BYTES, FILE_HEAD, LogFile};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// The part of the current file that new work may not take: outcomes of accepted work need it on a full disk.
const RESERVE: u64 = 8;
/// The part that is left for the ends of what runs, and for cancels: nothing more is given out.
const TIGHT: u64 = 16;
/// Files' worth of dead bytes that is not worth reclaiming.
const SLACK: u64 = 4;
/// The file that says that the last life ended in order: every sync had succeeded, up to the batch that it names.
const CLEAN: &str = "clean";
/// How long the folder's lock is waited for, and the pause between two looks.
const LOCK_WAIT: Duration = Duration::from_millis(1500);
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// Bytes of the oldest file that one round of housekeeping moves.
const MOVE_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Index {
    places: Places,
    files: BTreeMap<u64, Arc<Disk>>,
}

struct Log {
    files: VecDeque<LogFile>,
    end: u64,
    /// How large the last file is: smaller than others where the disk had no room for one of the usual size.
    size: u64,
    /// Whether the last file has its end frame already: the last life ended between that and the next file's first frame.
    ended: bool,
    sequence: u64,
    /// How far the oldest file has been moved.
    moved: u64,
    buffer: Vec<u8>,
}

/// The embedded engine, open.
pub struct Embedded {
    folder: PathBuf,
    file_bytes: u64,
    epoch: AtomicU64,
    index: RwLock<Index>,
    log: Mutex<Log>,
    preparing: Arc<AtomicBool>,
    /// Held by whoever makes or takes the prepared file: two at once would mix their files up.
    spare: Arc<Mutex<()>>,
    no_spare: Arc<AtomicBool>,
    /// The thread that prepares the next file.
    preparer: Mutex<Option<std::thread::JoinHandle<()>>>,
    _lock: File,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Batches read back.
    pub batches: u64,
    /// Live keys.
    pub keys: usize,
    /// Bytes of a torn record that were cut off the end.
    pub cut: u64,
    /// Bytes that were written once more, because the last life did not end in order.
    pub rewritten: u64,
}

impl Drop for Embedded {
    /// Whoever opens the folder next has it alone.
    fn drop(&mut self) {
        let preparer = self.preparer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // One that panicked has left a draft, which the next one overwrites.
        let _ = preparer.map(std::thread::JoinHandle::join);
    }
}

impl Embedded {
    /// Opens a folder, making it if it is not there; only one process may have it open.
    pub fn open(folder: &Path) -> Result<(Self, Opened), StoreError> {
        Self::open_with(folder, FILE_BYTES)
    }

    /// The same with log files of another size.
    pub fn open_with(folder: &Path, file_bytes: u64) -> Result<(Self, Opened), StoreError> {
        let unopened = |error: std::io::Error| {
            StoreError::Read(std::io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
        };
        folder::make(folder).map_err(unopened)?;
        let lock = File::create(folder.join("lock")).map_err(unopened)?;
        take(&lock).map_err(|()| StoreError::InUse(folder.display().to_string()))?;
        let mut index = Index::default();
        let (log, mut opened) = read_back(folder, file_bytes, &mut index)?;
        let clean = folder.join(CLEAN);
        let ended = std::fs::read_to_string(&clean).ok().and_then(|text| text.trim().parse().ok());
        if let Some(known) = ended.filter(|known| *known > log.sequence) {
            return Err(StoreError::Damaged(format!(
                "{} has {} records, and {known} when it was closed: some are missing. Restore the folder from a backup",
                folder.display(),
                log.sequence
            )));
        }
        if let Some(last) = log.files.back().filter(|_| ended != Some(log.sequence)) {
            opened.rewritten = log.end;
            replay::rewrite(last, log.end.min(last.file.len().map_err(StoreError::Read)?))
                .map_err(StoreError::Unknown)?;
        }
        if ended.is_some() {
            std::fs::remove_file(&clean).and_then(|()| folder::sync(folder)).map_err(written)?;
        }
        let store = Self {
            folder: folder.into(),
            file_bytes,
            epoch: AtomicU64::new(0),
            index: RwLock::new(index),
            log: Mutex::new(log),
            preparing: Arc::new(AtomicBool::new(false)),
            spare: Arc::default(),
            no_spare: Arc::new(AtomicBool::new(false)),
            preparer: Mutex::default(),
            _lock: lock,
        };
        store.renew()?;
        Ok((store, opened))
    }

    /// Bytes that can still be written, as far as that is known to matter.
    fn left(&self) -> u64 {
        if !self.no_spare.load(Ordering::Acquire) || file::has_spare(&self.folder) {
            return u64::MAX;
        }
        let log = self.log();
        log.size.saturating_sub(log.end)
    }

    /// Takes a fencing number that nobody had before.
    ///
    /// # Errors
    /// The store's.
    pub fn renew(&self) -> Result<(), StoreError> {
        let read = |value: Bytes| value.as_ref().try_into().map_or(0, u64::from_le_bytes);
        let epoch = self.get(layout::EPOCH)?.map_or(0, read) + 1;
        self.commit(&[Change::Put(layout::EPOCH.into(), Bytes::copy_from_slice(&epoch.to_le_bytes()))])?;
        self.epoch.store(epoch, Ordering::Release);
        Ok(())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the next file: the old one gets an end frame, so that later damage in it is told from a torn tail.
    fn roll(&self, log: &mut Log) -> Result<(), StoreError> {
        let number = log.files.back().map_or(1, |f| f.number + 1);
        let next = {
            let _taking = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            LogFile::create(&self.folder, number, self.file_bytes).map_err(written)?
        };
        if let Some(current) = log.files.back().filter(|_| !log.ended) {
            let mut end = Vec::new();
            frame::write(current.salt, log.sequence + 1, frame::END, &mut end);
            current.file.write_all_at(&end, log.end).map_err(written)?;
            current.file.sync_data().map_err(StoreError::Unknown)?;
            log.sequence += 1;
        }
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.files.insert(u64::from(number), next.file.clone());
        log.size = next.file.len().map_err(StoreError::Read)?;
        log.files.push_back(next);
        log.end = FILE_HEAD;
        log.ended = false;
        self.prepare_next();
        Ok(())
    }

    /// Has the next file prepared by a thread of its own.
    fn prepare_next(&self) {
        if self.preparing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (folder, bytes) = (self.folder.clone(), self.file_bytes);
        let (preparing, no_spare, spare) = (self.preparing.clone(), self.no_spare.clone(), self.spare.clone());
        let preparer = std::thread::spawn(move || {
            let _making = spare.lock().unwrap_or_else(PoisonError::into_inner);
            let failed = file::prepare_spare(&folder, bytes).is_err();
            no_spare.store(failed, Ordering::Release);
            preparing.store(false, Ordering::Release);
        });
        *self.preparer.lock().unwrap_or_else(PoisonError::into_inner) = Some(preparer);
    }

    fn append(&self, log: &mut Log, changes: &[Change]) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut log.buffer);
        buffer.clear();
        let result = self.append_with(log, changes, &mut buffer);
        if buffer.capacity() <= 8 << 20 {
            log.buffer = buffer;
        }
        result
    }

    fn append_with(&self, log: &mut Log, changes: &[Change], buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let size: u64 = changes
            .iter()
            .map(|c| match c {
                Change::Put(k, v) => (k.len() + v.len() + 11) as u64,
                Change::Delete(k) => k.len() as u64 + 11,
            })
            .sum();
        let room = log.size.saturating_sub(log.end + 2 * frame::FRAME_HEAD as u64);
        if log.files.is_empty() || (size > room && log.end > FILE_HEAD) {
            self.roll(log)?;
        }
        let Some(current) = log.files.back().cloned() else {
            return Err(StoreError::Full);
        };
        let values = frame::write(current.salt, log.sequence + 1, changes, buffer);
        current.file.write_all_at(buffer, log.end).map_err(written)?;
        current.file.sync_data().map_err(StoreError::Unknown)?;
        let start = log.end;
        log.sequence += 1;
        log.end += buffer.len() as u64;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for (change, value) in changes.iter().zip(values) {
            match change {
                Change::Put(key, bytes) => {
                    let place = Place {
                        part: u64::from(current.number),
                        len: bytes.len() as u32,
                        at: start + value as u64,
                        crc: crc32c::crc32c(bytes),
                    };
                    index.places.set(key, Some(place));
                }
                Change::Delete(key) => index.places.set(key, None),
            }
        }
        Ok(())
    }

    /// Moves some of the oldest file's live values to the end; removes the file when none is left.
    fn move_oldest(&self, log: &mut Log) -> Result<(), StoreError> {
        let Some(oldest) = log.files.front().cloned() else { return Ok(()) };
        let from = log.moved.max(FILE_HEAD);
        let mut bytes = vec![0u8; MOVE_BYTES];
        let got = oldest.file.read_some_at(&mut bytes, from).map_err(StoreError::Read)?;
        let mut chunk = &bytes[..got];
        let whole;
        if frame::read(oldest.salt, chunk).is_none() && got >= frame::FRAME_HEAD {
            // A frame larger than the round.
            let len = u64::from(u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
            let left = oldest.file.len().map_err(StoreError::Read)?.saturating_sub(from);
            let mut large = vec![0u8; len.min(left) as usize];
            let got = oldest.file.read_some_at(&mut large, from).map_err(StoreError::Read)?;
            large.truncate(got);
            whole = large;
            chunk = &whole;
        }
        let (mut live, mut at, mut ended) = (Vec::new(), 0, false);
        while let Some((frame, _)) = frame::read(oldest.salt, &chunk[at..]) {
            ended = frame.len() == frame::FRAME_HEAD;
            live.extend(self.live_in(oldest.number, from + at as u64, frame));
            at += frame.len();
            if ended {
                break;
            }
        }
        if at == 0 {
            // Every file but the last has an end frame: what cannot be read here is damage, and the file must stay.
            let what = format!("{} is damaged at byte {from}; restore the folder from a backup", oldest.path.display());
            return Err(StoreError::Damaged(what));
        }
        if !live.is_empty() {
            self.append(log, &live)?;
        }
        log.moved = from + at as u64;
        if ended {
            log.files.pop_front();
            log.moved = 0;
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.files.remove(&u64::from(oldest.number));
            std::fs::remove_file(&oldest.path).map_err(StoreError::Unknown)?;
        }
        Ok(())
    }

    fn live_in(&self, file: u32, frame_at: u64, frame: &[u8]) -> Vec<Change> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        frame::changes(frame)
            .filter_map(|change| {
                let (value, len, _) = change.value?;
                let place = index.places.get(change.key)?;
                let same = place.part == u64::from(file) && place.at == frame_at + value as u64;
                let bytes = &frame[value..value + len as usize];
                same.then(|| Change::Put(change.key.into(), Bytes::copy_from_slice(bytes)))
            })
            .collect()
    }
}

fn read_back(folder: &Path, file_bytes: u64, index: &mut Index) -> Result<(Log, Opened), StoreError> {
    let mut paths = LogFile::list(folder).map_err(StoreError::Read)?;
    drop_unbegun(&mut paths)?;
    let mut log = Log {
        files: VecDeque::new(),
        end: FILE_HEAD,
        size: file_bytes,
        ended: false,
        sequence: 0,
        moved: 0,
        buffer: Vec::new(),
    };
    let mut opened = Opened::default();
    let mut first = true;
    let count = paths.len();
    for (position, path) in paths.into_iter().enumerate() {
        let shown = path.display().to_string();
        let file = LogFile::open(path)
            .map_err(|e| StoreError::Damaged(e.to_string()))?
            .map_err(|format| StoreError::Newer(shown, format, file::FORMAT))?;
        let last = position + 1 == count;
        if std::mem::take(&mut first) {
            log.sequence = first_sequence(&file).map_err(StoreError::Read)?;
        }
        let before = log.sequence;
        let replayed = replay::replay(&file, before, last, |frame_at, _, change| {
            let place = change.value.map(|(at, len, crc)| Place {
                part: u64::from(file.number),
                len,
                at: frame_at + at as u64,
                crc,
            });
            index.places.set(change.key, place);
        })?;
        opened.batches += replayed.sequence - before;
        opened.cut += replayed.cut;
        log.sequence = replayed.sequence;
        log.ended = replayed.ended;
        log.size = file.file.len().map_err(StoreError::Read)?;
        log.end = if replayed.ended { log.size } else { replayed.end };
        index.files.insert(u64::from(file.number), file.file.clone());
        log.files.push_back(file);
    }
    opened.keys = index.places.count();
    Ok((log, opened))
}

/// Takes the folder's lock. A process that was killed may have just forked a child, which holds what it inherited until it
/// becomes its program: that is waited for, a moment only.
fn take(lock: &File) -> Result<(), ()> {
    let looks = LOCK_WAIT.as_millis() / LOCK_LOOK.as_millis();
    for _ in 0..looks {
        if lock.try_lock().is_ok() {
            return Ok(());
        }
        std::thread::sleep(LOCK_LOOK);
    }
    lock.try_lock().map_err(|_| ())
}

/// A crash in the middle of rolling leaves a last file that nothing was written to, and perhaps a file before it without an
/// end: that one is then the last.
fn drop_unbegun(paths: &mut Vec<PathBuf>) -> Result<(), StoreError> {
    let Some(last) = paths.last().filter(|_| paths.len() > 1) else { return Ok(()) };
    let bytes = std::fs::read(last).map_err(StoreError::Read)?;
    if bytes.iter().skip(FILE_HEAD as usize).all(|b| *b == 0) {
        std::fs::remove_file(last).map_err(StoreError::Unknown)?;
        paths.pop();
    }
    Ok(())
}

/// One below the sequence of the file's first frame: older files may be gone.
fn first_sequence(file: &LogFile) -> io::Result<u64> {
    let mut head = [0u8; frame::FRAME_HEAD];
    file.file.read_exact_at(&mut head, FILE_HEAD)?;
    let mut sequence = [0u8; 8];
    sequence.copy_from_slice(&head[8..]);
    Ok(u64::from_le_bytes(sequence).saturating_sub(1))
}

/// A failed write is either a full disk, with nothing changed that counts, or of unknown effect.
fn written(error: io::Error) -> StoreError {
    if file::is_full(&error) { StoreError::Full } else { StoreError::Unknown(error) }
}

impl Store for Embedded {
    fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        frame::fits(changes)?;
        self.append(&mut self.log(), changes)
    }

    fn finish(&self) {
        let sequence = self.log().sequence.to_string();
        // Without it the next start writes the last file once more.
        let _ = std::fs::write(self.folder.join(CLEAN), sequence);
    }

    fn maintain(&self) -> Result<bool, StoreError> {
        let mut log = self.log();
        if self.no_spare.load(Ordering::Acquire) {
            self.prepare_next();
        }
        let live = self.index.read().unwrap_or_else(PoisonError::into_inner).places.live();
        let total = log.files.len() as u64 * self.file_bytes;
        let moving = log.moved > 0;
        if log.files.len() < 3 || (!moving && total < 2 * live + SLACK * self.file_bytes) {
            return Ok(false);
        }
        self.move_oldest(&mut log)?;
        Ok(true)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let (place, file) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let Some(place) = index.places.get(key) else {
                return Ok(None);
            };
            let Some(file) = index.files.get(&place.part).cloned() else {
                return Err(StoreError::Damaged(format!("log file {} is missing", place.part)));
            };
            (place, file)
        };
        let mut bytes = vec![0u8; place.len as usize];
        file.read_exact_at(&mut bytes, place.at).map_err(StoreError::Read)?;
        if crc32c::crc32c(&bytes) != place.crc {
            let what = format!("a value of log file {} at byte {} is damaged", place.part, place.at);
            return Err(StoreError::Damaged(what));
        }
        Ok(Some(bytes.into()))
    }

    fn keys(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, reverse: bool) -> Vec<Box<[u8]>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).places.keys(prefix, after, limit, reverse)
    }

    fn has_room(&self) -> bool {
        self.left() > self.file_bytes / RESERVE
    }

    fn is_tight(&self) -> bool {
        self.left() < self.file_bytes / TIGHT
    }

    fn room(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let disk = rustix::fs::statvfs(&self.folder);
        let free =
            disk.map_or_else(|_| "little".to_owned(), |disk| format!("{} MiB", mib(disk.f_bavail * disk.f_frsize)));
        let needs = mib(self.file_bytes);
        format!("the disk of {} has {free} free, and the log needs {needs} MiB at a time", self.folder.display())
    }

    fn size(&self) -> (u64, u64) {
        let files = self.log().files.len() as u64;
        let live = self.index.read().unwrap_or_else(PoisonError::into_inner).places.live();
        (files * self.file_bytes, live)
    }
}

#[cfg(test)]
mod tests;
