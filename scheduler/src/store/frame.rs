//! Frames of a log: one atomic batch of changes each, with a checksum.
//!
//! `len u32 · crc32c u32 · sequence u64 · changes`, all little-endian; the checksum covers sequence and changes and starts
//! from a salt, so that frames of another file or log never pass. A change is
//! `kind u8 · key length u16 · value length u32 · value crc32c u32 · key · value`.

use crate::store::{Change, StoreError};

/// Bytes before a frame's changes.
pub const FRAME_HEAD: usize = 16;
/// Bytes before a change's key.
const CHANGE_HEAD: usize = 11;
const PUT: u8 = 1;
const DELETE: u8 = 2;
/// A frame without changes ends its file.
pub const END: &[Change] = &[];

/// One change as it lies in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Where the value begins, counted from the frame's first byte; `None` for a removal.
    pub value: Option<(usize, u32, u32)>,
    /// Bytes that the change takes.
    pub size: u32,
}

/// The largest value that a frame has room for.
pub const VALUE_MAX: usize = 1 << 30;

/// Whether all changes have room in a frame: a length that does not fit its field is refused, never cut.
///
/// # Errors
/// The length of a key or value, or of all together, that has none.
pub fn fits(changes: &[Change]) -> Result<(), StoreError> {
    let mut all = FRAME_HEAD;
    for change in changes {
        let (key, value) = match change {
            Change::Put(key, value) => (key.len(), value.len()),
            Change::Delete(key) => (key.len(), 0),
        };
        if key > usize::from(u16::MAX) || value > VALUE_MAX {
            return Err(StoreError::TooLarge(key.max(value)));
        }
        all += CHANGE_HEAD + key + value;
    }
    if all > u32::MAX as usize { Err(StoreError::TooLarge(all)) } else { Ok(()) }
}

/// Appends a frame of changes that fit to `out`. Answers where each put's value begins, counted from the frame's first byte.
pub fn write(salt: u32, sequence: u64, changes: &[Change], out: &mut Vec<u8>) -> Vec<usize> {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&sequence.to_le_bytes());
    let mut values = Vec::with_capacity(changes.len());
    for change in changes {
        let (kind, key, value): (u8, &[u8], &[u8]) = match change {
            Change::Put(key, value) => (PUT, key, value),
            Change::Delete(key) => (DELETE, key, &[]),
        };
        out.push(kind);
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(value).to_le_bytes());
        out.extend_from_slice(key);
        values.push(out.len() - start);
        out.extend_from_slice(value);
    }
    let len = (out.len() - start) as u32;
    let crc = crc32c::crc32c_append(salt, &out[start + 8..]);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    values
}

/// The whole frame at the start of `bytes` with its sequence, if one lies there undamaged.
pub fn read(salt: u32, bytes: &[u8]) -> Option<(&[u8], u64)> {
    let head = bytes.get(..FRAME_HEAD)?;
    let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let sequence = u64::from_le_bytes(head[8..].try_into().ok()?);
    if len < FRAME_HEAD {
        return None;
    }
    let frame = bytes.get(..len)?;
    (crc32c::crc32c_append(salt, &frame[8..]) == crc).then_some((frame, sequence))
}

/// The changes of an undamaged frame.
pub fn changes(frame: &[u8]) -> impl Iterator<Item = Read<'_>> {
    let mut at = FRAME_HEAD;
    std::iter::from_fn(move || {
        let head = frame.get(at..at + CHANGE_HEAD)?;
        let key_len = u16::from_le_bytes(head[1..3].try_into().ok()?) as usize;
        let value_len = u32::from_le_bytes(head[3..7].try_into().ok()?);
        let crc = u32::from_le_bytes(head[7..11].try_into().ok()?);
        let key = frame.get(at + CHANGE_HEAD..at + CHANGE_HEAD + key_len)?;
        let value = at + CHANGE_HEAD + key_len;
        let size = (CHANGE_HEAD + key_len) as u32 + value_len;
        at += size as usize;
        Some(Read { key, value: (head[0] == PUT).then_some((value, value_len, crc)), size })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        let key = prop::collection::vec(any::<u8>(), 1..20).prop_map(Vec::into_boxed_slice);
        let value = prop::collection::vec(any::<u8>(), 0..50);
        prop_oneof![
            (key.clone(), value).prop_map(|(k, v)| Change::Put(k, Bytes::from(v))),
            key.prop_map(Change::Delete),
        ]
    }

    #[test]
    fn a_length_that_does_not_fit_its_field_is_refused() {
        let put = |key: usize, value: usize| Change::Put(vec![b'k'; key].into(), vec![0; value].into());
        for key in [1, 65_535, 65_536, 70_000, 131_071] {
            let changes = [put(key, 3), put(2, 1)];
            if fits(&changes).is_err() {
                assert!(key > 65_535);
                continue;
            }
            let mut bytes = Vec::new();
            write(1, 1, &changes, &mut bytes);
            let read: Vec<_> = changes_of(&bytes).collect();
            assert_eq!((read.len(), read[0], key <= 65_535), (2, key, true));
        }
        assert!(fits(&[put(1, VALUE_MAX + 1)]).is_err());
    }

    fn changes_of(bytes: &[u8]) -> impl Iterator<Item = usize> {
        changes(read(1, bytes).unwrap().0).map(|change| change.key.len())
    }

    proptest! {
        #[test]
        fn frames_read_back_and_any_flipped_bit_is_found(batch in prop::collection::vec(change(), 0..6), flip in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = Vec::new();
            write(9, 5, &batch, &mut bytes);
            let (frame, sequence) = read(9, &bytes).unwrap();
            prop_assert_eq!(sequence, 5);
            let back: Vec<_> = changes(frame).map(|r| match r.value {
                Some((at, len, _)) => Change::Put(r.key.into(), Bytes::copy_from_slice(&frame[at..at + len as usize])),
                None => Change::Delete(r.key.into()),
            }).collect();
            prop_assert_eq!(back, batch);
            prop_assert!(read(8, &bytes).is_none());
            let at = flip.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(read(9, &bytes).is_none());
        }
    }
}
