//! Values of the last release are still read, and what is written changes only where somebody means it to.
//!
//! `golden/*.txt` has a line a value: the type's name, the number of the sample, its bytes. `now.txt` is what this version writes
//! (`BLESS=1 cargo test -p capstan-scheduler golden` writes it anew, and the difference is what a reviewer reads); the others are
//! `now.txt` of releases, and are never touched again.

use super::{Stored, decode, encode, samples};
use crate::store::layout;
use capstan_common::{input::Payload, time::Time};
use capstan_scheduler_core::{
    autoscaler::Policy,
    decision::Decision,
    record::{Entry, ScheduleState, Tries, UsedKey},
};
use data_encoding::HEXLOWER;
use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

/// How a stored line is read and written again, by a type's name.
type Again = fn(&[u8]) -> Result<bytes::Bytes, crate::store::StoreError>;

struct Golden {
    now: String,
    again: BTreeMap<&'static str, Again>,
}

impl Golden {
    fn add<T: Stored>(&mut self) {
        let again: Again = |bytes| decode::<T>(bytes).map(|value| encode(&value));
        assert!(self.again.insert(T::NAME, again).is_none(), "two types are called {}", T::NAME);
        for (n, sample) in T::samples().iter().enumerate() {
            self.line(T::NAME, n, &encode(sample));
        }
    }

    fn line(&mut self, name: &str, n: usize, bytes: &[u8]) {
        let _ = writeln!(self.now, "{name} | {n} | {}", HEXLOWER.encode(bytes));
    }
}

fn all() -> Golden {
    let mut golden = Golden { now: String::new(), again: BTreeMap::new() };
    golden.add::<Time>();
    golden.add::<Vec<Decision>>();
    golden.add::<ScheduleState>();
    golden.add::<Box<Tries>>();
    golden.add::<UsedKey>();
    golden.add::<Policy>();
    golden.add::<Vec<Payload>>();
    golden.add::<Vec<Entry>>();
    golden.add::<layout::StoredFunction>();
    golden.add::<layout::StoredCall>();
    golden.add::<layout::Tombstone>();
    golden.add::<crate::access::Token>();
    golden.add::<crate::zero_config::ZeroText>();
    golden.add::<crate::function_token::Key>();
    golden.add::<crate::secrets::Stored>();
    golden.add::<crate::tls::StoredAuthority>();
    golden.add::<crate::tls::Join>();
    golden
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/stored/golden"))
}

#[test]
fn what_this_version_writes_is_what_golden_now_says() {
    let now = all().now;
    let file = folder().join("now.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let before = std::fs::read_to_string(&file).unwrap();
    assert_eq!(now, before, "stored values changed: can the version before still read them? Then BLESS=1");
}

#[test]
fn every_value_of_a_release_is_read_and_says_the_same() {
    let golden = all();
    let mut seen = 0;
    for file in std::fs::read_dir(folder()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines() {
            let parts: Vec<&str> = line.split(" | ").collect();
            let [name, n, hex] = parts[..] else { panic!("{line}") };
            let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap();
            let again = golden.again.get(name).unwrap_or_else(|| panic!("nothing reads {name} any more"));
            // What a release could say is written as it wrote it: it could still read what we write.
            assert_eq!(again(&bytes).unwrap(), bytes, "{name} {n}");
            seen += 1;
        }
    }
    assert!(seen > 2 * golden.again.len());
}

#[test]
fn a_newer_value_is_refused_by_its_version_and_named() {
    for (name, again) in all().again {
        let error = again(&[200, 1, 2, 3]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("200"), "{error}");
        assert!(again(&[]).is_err());
    }
}

#[test]
fn what_lies_with_an_ended_call_and_what_a_worker_is_are_read_as_they_were_written() {
    let entries = samples::entries(samples::formats());
    for stored in layout::StoredCall::samples() {
        let value = [encode(&stored), encode(&entries)].concat();
        assert_eq!(layout::outcomes_within(&value).unwrap().as_ref(), Some(&entries));
        assert_eq!(layout::outcomes_within(&encode(&stored)).unwrap(), None);
        // Readers of the record alone leave the outcomes where they are.
        assert_eq!(encode(&decode::<layout::StoredCall>(&value).unwrap()), encode(&stored));
    }
    // Flags in a row: what a later version adds behind them is not in the way of this one.
    for (bytes, drains, gone) in
        [(&[][..], false, false), (&[1], true, false), (&[1, 1], true, true), (&[0, 1, 9], false, true)]
    {
        assert_eq!((layout::worker_drains(bytes), layout::worker_is_gone(bytes)), (drains, gone));
    }
}
