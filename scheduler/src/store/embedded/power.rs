//! Power cuts on real files, for tests: which pages a disk would have kept of what was written.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

const PAGE: u64 = 4096;

thread_local! {
    /// Syncs that succeed before one fails; none fails without it.
    static FAILS_AFTER: Cell<Option<u32>> = const { Cell::new(None) };
    /// Pages by their files' numbers and births: the kernel keeps them over the life of a process, and gives a number again.
    static KERNEL: RefCell<BTreeMap<(u64, SystemTime), Shared>> = const { RefCell::new(BTreeMap::new()) };
}

/// Pages of a file that all who have it open share.
pub type Shared = Arc<Mutex<Pages>>;

/// The pages of an open file.
pub fn pages_of(file: &File) -> Shared {
    let found = file.metadata().unwrap();
    let number = (found.ino(), found.created().unwrap());
    KERNEL.with_borrow_mut(|files| files.entry(number).or_default().clone())
}

/// Forgets all files: their folder is gone, and its numbers are given again.
pub fn forget() {
    KERNEL.with_borrow_mut(BTreeMap::clear);
}

/// Has a sync of this thread fail after so many that succeed.
pub fn fail_after(syncs: Option<u32>) {
    FAILS_AFTER.set(syncs);
}

/// Pages of one file whose content on the disk is older than what was written.
#[derive(Debug, Default)]
pub struct Pages {
    /// The disk may have taken them, or not.
    dirty: BTreeMap<u64, Vec<u8>>,
    /// A sync failed over them: the kernel has forgotten that they are dirty, and never writes them.
    lost: BTreeMap<u64, Vec<u8>>,
}

impl Pages {
    /// Pages are about to be written: what the disk has of them is remembered.
    pub fn write(&mut self, file: &File, len: u64, at: u64) -> io::Result<()> {
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            // Written again, a page is dirty again: the next sync takes it along.
            let before = match self.lost.remove(&page) {
                Some(before) => before,
                None => {
                    let mut before = vec![0; PAGE as usize];
                    let got = file.read_at(&mut before, page * PAGE)?;
                    before.truncate(got);
                    before
                }
            };
            self.dirty.entry(page).or_insert(before);
        }
        Ok(())
    }

    /// The disk takes all dirty pages, unless it fails now.
    pub fn sync(&mut self) -> io::Result<()> {
        if let Some(left) = FAILS_AFTER.get() {
            FAILS_AFTER.set(left.checked_sub(1));
            if left == 0 {
                self.lost.append(&mut self.dirty);
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        self.dirty.clear();
        Ok(())
    }

    /// Leaves of a file what a power cut leaves: of dirty pages any, of lost ones none.
    pub fn cut(&mut self, path: &Path, mut keeps: impl FnMut() -> bool) -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        let dirty = std::mem::take(&mut self.dirty).into_iter().filter(|_| !keeps());
        let gone: Vec<_> = dirty.chain(std::mem::take(&mut self.lost)).collect();
        for (page, before) in gone {
            file.write_all_at(&before, page * PAGE)?;
        }
        Ok(())
    }
}
