//! What every store promises.

use bytes::Bytes;
use capstan_scheduler::store::{Change, Store, StoreError, embedded::Embedded, layout};
use capstan_tests::etcd::EtcdServers;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{collections::BTreeMap, sync::Arc};

use super::etcd::Owner;

/// Opens the same store again and again, as a scheduler that starts anew does.
trait Engine {
    fn open(&mut self) -> Arc<dyn Store>;
    /// The process is gone without a word.
    fn crash(&mut self, store: Arc<dyn Store>);
}

struct Folder(tempfile::TempDir);

impl Engine for Folder {
    fn open(&mut self) -> Arc<dyn Store> {
        Arc::new(Embedded::open_with(self.0.path(), 4 << 20).unwrap().0)
    }

    fn crash(&mut self, store: Arc<dyn Store>) {
        drop(store);
    }
}

struct Cluster {
    servers: EtcdServers,
    owner: Option<Owner>,
}

impl Engine for Cluster {
    fn open(&mut self) -> Arc<dyn Store> {
        let owner = Owner::take(&self.servers.config(), 3).unwrap();
        let store = owner.log.clone();
        self.owner = Some(owner);
        store
    }

    fn crash(&mut self, store: Arc<dyn Store>) {
        drop(store);
        // Its lease would run out; that is not waited for here.
        self.owner.take().unwrap().session.end(&Owner::connect(&self.servers.config()));
    }
}

fn put(key: &str, value: impl Into<Bytes>) -> Change {
    Change::Put(key.as_bytes().into(), value.into())
}

type Model = BTreeMap<Vec<u8>, Bytes>;

fn apply(model: &mut Model, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(key, value) => drop(model.insert(key.to_vec(), value.clone())),
            Change::Delete(key) => drop(model.remove(&key[..])),
        }
    }
}

/// All but the embedded engine's own key.
fn all_keys(store: &dyn Store) -> Vec<Vec<u8>> {
    let keys = store.keys(b"", None, usize::MAX, false).into_iter().map(Vec::from);
    keys.filter(|key| key != layout::EPOCH).collect()
}

/// The store holds exactly what was acknowledged.
fn same(store: &dyn Store, model: &Model) {
    let keys: Vec<_> = model.keys().cloned().collect();
    assert_eq!(all_keys(store), keys);
    for (key, value) in model {
        assert_eq!(store.get(key).unwrap().as_ref(), Some(value));
    }
}

fn keeps_what_it_acknowledges(engine: &mut impl Engine) {
    let store = engine.open();
    store.commit(&[put("a", "1"), put("b", "2")]).unwrap();
    store.commit(&[put("a", "3"), Change::Delete(b"b"[..].into()), Change::Delete(b"never"[..].into())]).unwrap();
    assert_eq!(store.get(b"a").unwrap().unwrap(), "3");
    assert_eq!(store.get(b"b").unwrap(), None);
    let epoch = store.epoch();
    engine.crash(store);
    let store = engine.open();
    assert!(store.epoch() > epoch, "an owner's numbers are its own");
    assert_eq!((store.get(b"a").unwrap().unwrap(), store.get(b"b").unwrap()), ("3".into(), None));
    engine.crash(store);
}

fn lists_by_prefix_in_both_directions(engine: &mut impl Engine) {
    let store = engine.open();
    store.commit(&["pa1", "pa2", "pa3", "pb1"].map(|key| put(key, ""))).unwrap();
    let keys = |after: Option<&str>, limit, reverse| {
        let found = store.keys(b"pa", after.map(str::as_bytes), limit, reverse);
        found.into_iter().map(|k| String::from_utf8(k.into()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(keys(None, 9, false), ["pa1", "pa2", "pa3"]);
    assert_eq!(keys(Some("pa1"), 1, false), ["pa2"]);
    assert_eq!(keys(None, 2, true), ["pa3", "pa2"]);
    assert_eq!(keys(Some("pa2"), 9, true), ["pa1"]);
    engine.crash(store);
}

fn takes_a_batch_larger_than_any_request_as_a_whole(engine: &mut impl Engine) {
    let store = engine.open();
    let large: Vec<Change> = (0..3_000).map(|n| put(&format!("large-{n:04}"), vec![n as u8; 1_000])).collect();
    store.commit(&large).unwrap();
    engine.crash(store);
    let store = engine.open();
    assert_eq!(store.keys(b"large-", None, usize::MAX, false).len(), 3_000);
    assert_eq!(store.get(b"large-2999").unwrap().unwrap(), vec![2999u32 as u8; 1_000]);
    engine.crash(store);
}

/// A seeded history of batches, housekeeping and crashes, checked against a map.
fn holds_a_random_history(engine: &mut impl Engine, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut store = engine.open();
    let mut model = Model::default();
    for key in all_keys(&*store) {
        let value = store.get(&key).unwrap().unwrap();
        model.insert(key, value);
    }
    for step in 0..120 {
        let batch: Vec<Change> = (0..random.random_range(1..40))
            .map(|_| {
                let key = format!("k{}", random.random_range(0..60));
                match random.random_range(0..4) {
                    0 => Change::Delete(key.as_bytes().into()),
                    _ => put(&key, vec![step as u8; random.random_range(0..60_000)]),
                }
            })
            .collect();
        store.commit(&batch).unwrap();
        apply(&mut model, &batch);
        while random.random_ratio(1, 3) && store.maintain().unwrap() {}
        if random.random_ratio(1, 30) {
            engine.crash(store);
            store = engine.open();
            same(&*store, &model);
        }
    }
    while store.maintain().unwrap() {}
    same(&*store, &model);
    let (total, live) = store.size();
    assert!(total <= 2 * live + (32 << 20), "{total} bytes for {live} live ones");
    engine.crash(store);
}

fn whole(engine: &mut impl Engine) {
    keeps_what_it_acknowledges(engine);
    lists_by_prefix_in_both_directions(engine);
    takes_a_batch_larger_than_any_request_as_a_whole(engine);
    for seed in 0..4 {
        holds_a_random_history(engine, seed);
    }
}

#[test]
fn the_embedded_store_keeps_the_contract() {
    // RELIABILITY I1 I4
    whole(&mut Folder(tempfile::tempdir().unwrap()));
}

#[test]
fn etcd_with_one_member_keeps_the_contract() {
    // RELIABILITY I1 I4
    whole(&mut Cluster { servers: EtcdServers::start(1, &[]).unwrap(), owner: None });
}

#[test]
fn etcd_with_three_members_keeps_the_contract() {
    // RELIABILITY I1 I4
    let mut cluster = Cluster { servers: EtcdServers::start(3, &[]).unwrap(), owner: None };
    keeps_what_it_acknowledges(&mut cluster);
    takes_a_batch_larger_than_any_request_as_a_whole(&mut cluster);
    holds_a_random_history(&mut cluster, 7);
}

#[test]
fn what_is_too_large_for_etcd_is_refused_and_nothing_of_its_batch_is_there() {
    let servers = EtcdServers::start(1, &[]).unwrap();
    let owner = Owner::take(&servers.config(), 0).unwrap();
    let refused = owner.log.commit(&[put("small", "1"), put("huge", vec![0; 2 << 20])]);
    assert!(matches!(refused, Err(StoreError::TooLarge(_))));
    assert_eq!(owner.log.get(b"small").unwrap(), None);
    owner.log.commit(&[put("after", "1")]).unwrap();
}
