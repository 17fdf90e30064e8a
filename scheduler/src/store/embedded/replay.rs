//! Reading the log back: every frame is checked; a torn tail is cut, damage in the middle is refused.

use super::file::{FILE_HEAD, LogFile};
use crate::store::{
    StoreError,
    frame::{self, FRAME_HEAD, Read},
};
/// Bytes that are written again at once.
const REWRITE_BYTES: usize = 1 << 20;

/// Where a file's good frames end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// The first byte after the last good frame.
    pub end: u64,
    /// The last good frame's sequence.
    pub sequence: u64,
    /// Whether the file was ended on purpose.
    pub ended: bool,
    /// Bytes of a torn frame that were cut off.
    pub cut: u64,
}

/// Reads one file's frames in order. In the last file a torn tail is cut; anywhere else damage is an error. A file ends where
/// nothing but zeros follows: zeros with something behind them are a hole that a disk left.
pub fn replay(
    log: &LogFile,
    mut sequence: u64,
    last: bool,
    mut each: impl FnMut(u64, &[u8], Read<'_>),
) -> Result<Replayed, StoreError> {
    let bytes = std::fs::read(&log.path).map_err(StoreError::Read)?;
    let mut at = FILE_HEAD as usize;
    let mut ended = false;
    while let Some((frame, found)) = frame::read(log.salt, &bytes[at.min(bytes.len())..]) {
        if found != sequence + 1 {
            break;
        }
        sequence = found;
        for change in frame::changes(frame) {
            each(at as u64, frame, change);
        }
        at += frame.len();
        if frame.len() == FRAME_HEAD {
            ended = true;
            break;
        }
    }
    let rest = &bytes[at.min(bytes.len())..];
    let clean = ended || rest.iter().all(|b| *b == 0);
    let mut cut = 0;
    if !clean || (!last && !ended) {
        if !last || good_frame_after(log.salt, rest, sequence) {
            return Err(StoreError::Damaged(format!(
                "{} is damaged at byte {at}, and good records follow: records would be lost. Restore the folder from a backup",
                log.path.display()
            )));
        }
        cut = rest.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1);
        let zeros = vec![0u8; cut as usize];
        let file = &log.file;
        file.write_all_at(&zeros, at as u64).and_then(|()| file.sync_data()).map_err(StoreError::Unknown)?;
    }
    Ok(Replayed { end: at as u64, sequence, ended, cut })
}

/// Writes the frames of the last file once more as they were read, and has the disk take them. After an unclean end the kernel
/// may show pages that never reached the disk, and that it would never write: what is read then is not durable because it is
/// read. The bytes are the same, so that a power cut in the middle leaves no more damage than there was.
pub fn rewrite(log: &LogFile, end: u64) -> std::io::Result<()> {
    let mut bytes = vec![0u8; REWRITE_BYTES];
    let mut at = 0;
    while at < end {
        let count = bytes.len().min((end - at) as usize);
        log.file.read_exact_at(&mut bytes[..count], at)?;
        log.file.write_all_at(&bytes[..count], at)?;
        at += count as u64;
    }
    log.file.sync_data()
}

/// Whether an undamaged later frame lies somewhere in `bytes`: then what is before it was not a torn write.
fn good_frame_after(salt: u32, bytes: &[u8], sequence: u64) -> bool {
    let plausible = sequence + 1..sequence + (1 << 24);
    (1..bytes.len().saturating_sub(FRAME_HEAD)).any(|at| {
        let head = &bytes[at..at + FRAME_HEAD];
        let found = u64::from_le_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]);
        plausible.contains(&found) && frame::read(salt, &bytes[at..]).is_some()
    })
}
