//! One file of the log: preallocated, written from the front, with a header that names it.

use super::disk::Disk;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The size that a file is given beforehand, by default.
pub const FILE_BYTES: u64 = 64 << 20;
/// Bytes before the first frame.
pub const FILE_HEAD: u64 = 32;
/// The format that this version writes; it reads no newer one.
pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"CAPSTAN\n";
const SPARE: &str = "spare";

/// A file of the log, open for reading and writing.
#[derive(Debug, Clone)]
pub struct LogFile {
    /// Counts up; gives the order of the files.
    pub number: u32,
    /// Enters each frame's checksum.
    pub salt: u32,
    /// The open file.
    pub file: Arc<Disk>,
    /// Where it is.
    pub path: PathBuf,
}

/// Writes zeros where a log file will be, so that later synced writes touch no metadata.
pub fn prepare_spare(folder: &Path, bytes: u64) -> io::Result<()> {
    let path = folder.join(SPARE);
    if path.exists() {
        return Ok(());
    }
    let draft = folder.join("spare.draft");
    let result = write_zeros(&draft, bytes).and_then(|()| std::fs::rename(&draft, &path));
    if result.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    result
}

fn write_zeros(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let zeros = vec![0u8; bytes.min(1 << 20) as usize];
    for _ in 0..bytes / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}

/// Whether a disk has no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a prepared file waits.
pub fn has_spare(folder: &Path) -> bool {
    folder.join(SPARE).exists()
}

impl LogFile {
    fn path_of(folder: &Path, number: u32) -> PathBuf {
        folder.join(format!("{number:010}.log"))
    }

    /// Makes the next file, from the spare one if there is one; a smaller one where the disk has no room for that.
    pub fn create(folder: &Path, number: u32, bytes: u64) -> io::Result<Self> {
        let mut sizes = [1, 4, 16, 64].into_iter().map(|part| prepare_spare(folder, bytes / part));
        let made = sizes.next().unwrap_or(Ok(()));
        made.or_else(
            |error| if is_full(&error) { sizes.find(Result::is_ok).unwrap_or(Err(error)) } else { Err(error) },
        )?;
        let path = Self::path_of(folder, number);
        let salt = crc32c::crc32c_append(number, format!("{number}").as_bytes());
        let spare = Disk::of(OpenOptions::new().read(true).write(true).open(folder.join(SPARE))?);
        let mut head = [0u8; FILE_HEAD as usize];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        head[12..16].copy_from_slice(&number.to_le_bytes());
        head[16..20].copy_from_slice(&salt.to_le_bytes());
        let crc = crc32c::crc32c(&head[..20]);
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        spare.write_all_at(&head, 0)?;
        spare.sync_data()?;
        std::fs::rename(folder.join(SPARE), &path)?;
        File::open(folder)?.sync_all()?;
        Ok(Self { number, salt, file: Arc::new(spare), path })
    }

    /// Opens a file that is there. `Ok(Err(format))`: a newer version wrote it.
    pub fn open(path: PathBuf) -> io::Result<Result<Self, u32>> {
        let file = Disk::of(OpenOptions::new().read(true).write(true).open(&path)?);
        let mut head = [0u8; FILE_HEAD as usize];
        file.read_exact_at(&mut head, 0).map_err(|error| {
            io::Error::new(error.kind(), format!("{} has no whole header ({error})", path.display()))
        })?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if &head[..8] != MAGIC || crc32c::crc32c(&head[..20]) != word(20) {
            let what = format!("{} is not a log file of Capstan, or its header is damaged", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if word(8) > FORMAT {
            return Ok(Err(word(8)));
        }
        Ok(Ok(Self { number: word(12), salt: word(16), file: Arc::new(file), path }))
    }

    /// The log files of a folder, in order.
    pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".log"));
            // Whatever else lies there is none of ours.
            if number.is_some_and(|number| number.len() == 10 && number.bytes().all(|digit| digit.is_ascii_digit())) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}
