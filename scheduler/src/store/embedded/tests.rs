use super::*;
use proptest::prelude::*;

/// Log files of this size keep the tests fast.
const SMALL: u64 = 256 << 10;

fn put(key: &str, value: &str) -> Change {
    Change::Put(key.as_bytes().into(), Bytes::copy_from_slice(value.as_bytes()))
}

fn value(store: &Embedded, key: &str) -> Option<String> {
    let bytes = store.get(key.as_bytes()).unwrap()?;
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

fn open(folder: &Path) -> (Embedded, Opened) {
    Embedded::open_with(folder, SMALL).unwrap()
}

/// The last log file and where its frames end.
fn last_file(folder: &Path) -> (PathBuf, u64) {
    let path = LogFile::list(folder).unwrap().pop().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes.iter().rposition(|b| *b != 0).unwrap() as u64 + 1)
}

#[test]
fn what_was_committed_is_there_after_reopening_and_the_epoch_rises() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    store.commit(&[put("a", "1"), put("b", "2")]).unwrap();
    store.commit(&[put("a", "3"), Change::Delete(b"b"[..].into())]).unwrap();
    assert!(matches!(Embedded::open_with(folder.path(), SMALL), Err(StoreError::InUse(_))));
    let epoch = store.epoch();
    drop(store);
    let (store, opened) = open(folder.path());
    assert_eq!(opened.cut, 0);
    assert!(store.epoch() > epoch);
    assert_eq!((value(&store, "a"), value(&store, "b")), (Some("3".into()), None));
}

#[test]
fn a_torn_tail_is_cut_at_the_last_good_record() {
    // RELIABILITY F25
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    store.commit(&[put("kept", "yes")]).unwrap();
    store.commit(&[put("torn", "never synced")]).unwrap();
    drop(store);
    let (path, end) = last_file(folder.path());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0; 5], end - 5).unwrap();
    let (store, opened) = open(folder.path());
    assert!(opened.cut > 0);
    assert_eq!((value(&store, "kept"), value(&store, "torn")), (Some("yes".into()), None));
    store.commit(&[put("new", "1")]).unwrap();
    drop(store);
    let (store, opened) = open(folder.path());
    assert_eq!((opened.cut, value(&store, "new")), (0, Some("1".into())));
}

#[test]
fn damage_before_good_records_is_refused_and_never_cut() {
    // RELIABILITY F26
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    store.commit(&[put("first", "a value of some length")]).unwrap();
    store.commit(&[put("second", "b")]).unwrap();
    drop(store);
    let (path, _) = last_file(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"first").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Embedded::open_with(folder.path(), SMALL).err().unwrap();
    assert!(matches!(&error, StoreError::Damaged(text) if text.contains("good records follow")), "{error}");
}

#[test]
fn a_bit_that_flips_under_an_open_store_is_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    store.commit(&[put("key", "the right value")]).unwrap();
    let (path, end) = last_file(folder.path());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"X", end - 1).unwrap();
    assert!(matches!(store.get(b"key"), Err(StoreError::Damaged(_))));
}

#[test]
fn a_newer_format_is_refused_by_name() {
    // RELIABILITY F36
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let (path, _) = last_file(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(Embedded::open_with(folder.path(), SMALL), Err(StoreError::Newer(_, 9, _))));
}

#[test]
fn dead_values_are_reclaimed_and_live_ones_survive_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let large = "x".repeat(16 << 10);
    store.commit(&[put("keep", "me"), put("gone", "soon")]).unwrap();
    store.commit(&[Change::Delete(b"gone"[..].into())]).unwrap();
    for round in 0..300 {
        store.commit(&[put("large", &large), put(&format!("small-{round}"), "s")]).unwrap();
        while store.maintain().unwrap() {}
    }
    let (total, live) = store.size();
    assert!(total <= 2 * live + (SLACK + 2) * SMALL, "{total} bytes for {live} live ones");
    drop(store);
    let (store, _) = open(folder.path());
    assert_eq!((value(&store, "keep"), value(&store, "gone")), (Some("me".into()), None));
    assert!((0..300).all(|round| value(&store, &format!("small-{round}")).is_some()));
}

#[test]
fn keys_are_listed_by_prefix_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    store.commit(&["a1", "a2", "a3", "b1"].map(|key| put(key, ""))).unwrap();
    let keys = |after: Option<&str>, limit, reverse| {
        let found = store.keys(b"a", after.map(str::as_bytes), limit, reverse);
        found.into_iter().map(|k| String::from_utf8(k.into()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(keys(None, 9, false), ["a1", "a2", "a3"]);
    assert_eq!(keys(Some("a1"), 1, false), ["a2"]);
    assert_eq!(keys(None, 2, true), ["a3", "a2"]);
    assert_eq!(keys(Some("a2"), 9, true), ["a1"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_log_cut_anywhere_in_its_last_batch_reopens_with_all_earlier_batches(values in prop::collection::vec("[a-z]{1,40}", 2..8), cut in any::<prop::sample::Index>()) {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path());
        let mut before_last = 0;
        for (n, text) in values.iter().enumerate() {
            before_last = store.log().end;
            store.commit(&[put(&format!("key-{n}"), text)]).unwrap();
        }
        let end = store.log().end;
        drop(store);
        let (path, _) = last_file(folder.path());
        let at = before_last + cut.index((end - before_last) as usize) as u64;
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&vec![0; (end - at) as usize], at).unwrap();
        let (store, _) = open(folder.path());
        for (n, text) in values.iter().enumerate().take(values.len() - 1) {
            prop_assert_eq!(value(&store, &format!("key-{n}")), Some(text.clone()));
        }
        prop_assert_eq!(value(&store, &format!("key-{}", values.len() - 1)), None);
    }
}
