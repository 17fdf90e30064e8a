//! What etcd does to its users: leases run out, members die, room ends, others write (RELIABILITY §3.2 to §3.4).

use bytes::Bytes;
use capstan_scheduler::store::{
    Change, Store, StoreError,
    etcd::{Etcd, EtcdConfig, EtcdLog, FORMAT, Format, Opened, Session},
};
use capstan_tests::etcd::EtcdServers;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A scheduler's hold on one shard.
pub struct Owner {
    pub etcd: Arc<Etcd>,
    pub session: Arc<Session>,
    pub log: Arc<EtcdLog>,
    pub opened: Opened,
}

impl Owner {
    pub fn connect(config: &EtcdConfig) -> Arc<Etcd> {
        Arc::new(Etcd::connect(config).unwrap())
    }

    pub fn take(config: &EtcdConfig, shard: u16) -> Result<Self, StoreError> {
        let etcd = Self::connect(config);
        let session = Arc::new(Session::begin(&etcd, config)?);
        let (log, opened) = EtcdLog::open(etcd.clone(), session.clone(), shard, "test")?;
        Ok(Self { etcd, session, log: Arc::new(log), opened })
    }

    /// Tries until the owner before is gone.
    fn take_over(config: &EtcdConfig, shard: u16) -> Self {
        let begun = Instant::now();
        loop {
            match Self::take(config, shard) {
                Ok(owner) => return owner,
                Err(StoreError::InUse(_)) => assert!(begun.elapsed() < Duration::from_secs(20), "its lease never ends"),
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn put(key: &str, value: impl Into<Bytes>) -> Change {
    Change::Put(key.as_bytes().into(), value.into())
}

fn waits(what: &str, most: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < most, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_shard_has_one_owner_and_one_that_lost_it_writes_nothing_more() {
    // RELIABILITY I4 F13 F14
    let servers = EtcdServers::start(1, &[]).unwrap();
    let config = servers.config();
    let first = Owner::take(&config, 1).unwrap();
    first.log.commit(&[put("key", "first")]).unwrap();
    assert!(matches!(Owner::take(&config, 1), Err(StoreError::InUse(_))));
    assert!(Owner::take(&config, 2).is_ok(), "another shard is free");
    // etcd revokes the lease under an owner that knows nothing of it.
    servers.ctl(&["lease", "revoke", &format!("{:x}", first.session.lease())]).unwrap();
    let second = Owner::take_over(&config, 1);
    assert!(second.log.epoch() > first.log.epoch());
    assert!(matches!(first.log.commit(&[put("key", "late")]), Err(StoreError::Lost)));
    assert_eq!(second.log.get(b"key").unwrap().unwrap(), "first");
    second.log.commit(&[put("key", "second")]).unwrap();
    waits("the loss", Duration::from_secs(10), || first.session.is_lost());
    assert!(!first.session.is_sure());
}

#[test]
fn an_owner_that_gives_its_shard_up_is_not_waited_for() {
    let servers = EtcdServers::start(1, &[]).unwrap();
    let first = Owner::take(&servers.config(), 1).unwrap();
    first.log.commit(&[put("key", "1")]).unwrap();
    first.log.release();
    let second = Owner::take(&servers.config(), 1).unwrap();
    assert_eq!(second.log.get(b"key").unwrap().unwrap(), "1");
    assert!(matches!(first.log.commit(&[put("key", "2")]), Err(StoreError::Lost)));
}

#[test]
fn a_batch_that_was_not_finished_never_was() {
    // RELIABILITY F25, as a log of parts has it.
    let servers = EtcdServers::start(1, &[]).unwrap();
    let config = servers.config();
    let first = Owner::take(&config, 1).unwrap();
    first.log.commit(&[put("before", "1")]).unwrap();
    let batch: Vec<Change> = (0..40).map(|n| put(&format!("part-{n}"), vec![1; 100_000])).collect();
    first.log.commit(&batch).unwrap();
    let keys = servers.ctl(&["get", "--prefix", "--keys-only", "/capstan/log/0001/"]).unwrap();
    let last = keys.split_whitespace().next_back().unwrap().to_owned();
    // As if its owner had died before the last part.
    servers.ctl(&["del", &last]).unwrap();
    first.session.end(&first.etcd);
    let second = Owner::take(&config, 1).unwrap();
    assert!(second.opened.cut > 0);
    assert!(second.log.keys(b"part-", None, 1, false).is_empty());
    second.log.commit(&[put("after", "1")]).unwrap();
    second.session.end(&second.etcd);
    let third = Owner::take(&config, 1).unwrap();
    assert_eq!(third.opened.cut, 0);
    assert_eq!(third.log.keys(b"", None, 9, false).len(), 2);
}

#[test]
fn writes_wait_out_a_leader_that_dies_or_stops_and_none_is_lost_or_done_twice() {
    // RELIABILITY F6 F7
    let mut servers = EtcdServers::start(3, &[]).unwrap();
    let owner = Owner::take(&EtcdConfig { lease_s: 5, ..servers.config() }, 1).unwrap();
    for (round, kill) in [true, false].into_iter().enumerate() {
        let leader = servers.leader().unwrap();
        owner.log.commit(&[put(&format!("before-{round}"), "1")]).unwrap();
        if kill {
            servers.kill(leader).unwrap()
        } else {
            servers.pause(leader, true).unwrap()
        }
        for n in 0..20 {
            owner.log.commit(&[put(&format!("during-{round}-{n}"), "1")]).unwrap();
        }
        if kill {
            servers.run(leader).unwrap()
        } else {
            servers.pause(leader, false).unwrap()
        }
        servers.wait().unwrap();
    }
    assert!(!owner.session.is_lost(), "a leader's end is nobody else's");
    owner.session.end(&owner.etcd);
    let next = Owner::take_over(&servers.config(), 1);
    assert_eq!(next.log.keys(b"", None, 99, false).len(), 42);
}

#[test]
fn without_a_quorum_nothing_is_acknowledged_and_afterwards_nothing_is_missing() {
    // RELIABILITY F9
    let servers = EtcdServers::start(3, &[]).unwrap();
    let owner = Owner::take(&EtcdConfig { lease_s: 30, request_ms: 500, ..servers.config() }, 1).unwrap();
    owner.log.commit(&[put("before", "1")]).unwrap();
    let leader = servers.leader().unwrap();
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|n| servers.pause(*n, true).unwrap());
    let (log, (tell, told)) = (owner.log.clone(), std::sync::mpsc::channel());
    let writing = std::thread::spawn(move || {
        let done = log.commit(&[put("during", "1")]);
        tell.send(()).unwrap();
        done
    });
    waits("the silence", Duration::from_secs(10), || !owner.log.answers());
    assert!(told.try_recv().is_err(), "it was acknowledged without a quorum");
    others.iter().for_each(|n| servers.pause(*n, false).unwrap());
    writing.join().unwrap().unwrap();
    assert_eq!(owner.log.get(b"during").unwrap().unwrap(), "1");
    assert!(owner.log.answers());
}

#[test]
fn a_full_etcd_takes_nothing_and_goes_on_when_there_is_room() {
    // RELIABILITY F10
    let servers = EtcdServers::start(1, &["--quota-backend-bytes", "25165824"]).unwrap();
    let owner = Owner::take(&servers.config(), 1).unwrap();
    let mut held = 0;
    let refused = loop {
        match owner.log.commit(&[put(&format!("fill-{held}"), vec![7; 1 << 20])]) {
            Ok(()) => held += 1,
            Err(error) => break error,
        }
        // etcd counts what lies in its file, and writes there ten times a second: a fast disk takes far more than the quota.
        assert!(held < 1000, "it is never full");
    };
    assert!(matches!(refused, StoreError::Full), "{refused}");
    assert!(owner.log.get(b"fill-0").unwrap().is_some(), "reading goes on");
    // The operator makes room: old revisions go, the file shrinks, the alarm ends.
    let entry = |n: usize| format!("/capstan/log/0001/{n:016x}");
    servers.ctl(&["del", &entry(1), &entry(held)]).unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&servers.ctl(&["endpoint", "status", "-w", "json"]).unwrap()).unwrap();
    servers.ctl(&["compact", &status[0]["Status"]["header"]["revision"].to_string()]).unwrap();
    servers.ctl(&["defrag"]).unwrap();
    servers.ctl(&["alarm", "disarm"]).unwrap();
    owner.log.commit(&[put("after", "1")]).unwrap();
}

#[test]
fn a_store_of_others_and_one_of_a_newer_version_are_refused_by_name() {
    // RELIABILITY F36
    let servers = EtcdServers::start(1, &[]).unwrap();
    let config = servers.config();
    let etcd = Owner::connect(&config);
    servers.ctl(&["put", "/capstan/foreign", "x"]).unwrap();
    let refused = Format::settle(&etcd, &config).unwrap_err().to_string();
    assert!(refused.contains("/capstan/foreign") && refused.contains("another etcd.prefix"), "{refused}");
    servers.ctl(&["del", "/capstan/foreign"]).unwrap();
    let made = Format::settle(&etcd, &config).unwrap();
    let other = EtcdConfig { shards: 4, ..config.clone() };
    assert_eq!(Format::settle(&etcd, &other).unwrap(), made, "the number of shards is fixed when the store is made");
    servers.ctl(&["put", "/capstan/format", r#"{"format":9,"shards":4}"#]).unwrap();
    assert!(matches!(Format::settle(&etcd, &config), Err(StoreError::Newer(_, 9, FORMAT))));
}

#[test]
fn the_stores_format_rises_when_every_scheduler_knows_the_newer_one() {
    // DESIGN law 15
    let servers = EtcdServers::start(1, &[]).unwrap();
    let config = servers.config();
    let etcd = Owner::connect(&config);
    let mark = || Format::read(&etcd, &config).unwrap().unwrap().format;
    Format::settle(&etcd, &config).unwrap();
    servers.ctl(&["put", "/capstan/format", r#"{"format":1,"shards":16}"#]).unwrap();
    let newest = |value: &[u8]| value == b"newest";
    assert!(!Format::raise(&etcd, &config, newest).unwrap(), "nobody is there");
    servers.ctl(&["put", "/capstan/members/a", "newest"]).unwrap();
    servers.ctl(&["put", "/capstan/members/b", "older"]).unwrap();
    assert!(!Format::raise(&etcd, &config, newest).unwrap() && mark() == 1, "one does not know it");
    servers.ctl(&["put", "/capstan/members/b", "newest"]).unwrap();
    // One that comes between the look and the raise stops it.
    let came = std::cell::Cell::new(false);
    let meanwhile = |value: &[u8]| {
        if !came.replace(true) {
            servers.ctl(&["put", "/capstan/members/c", "older"]).unwrap();
        }
        newest(value)
    };
    assert!(!Format::raise(&etcd, &config, meanwhile).unwrap() && mark() == 1);
    servers.ctl(&["del", "/capstan/members/c"]).unwrap();
    assert!(Format::raise(&etcd, &config, newest).unwrap() && mark() == FORMAT);
    assert!(Format::raise(&etcd, &config, |_| false).unwrap(), "it is the newest already");
}

#[test]
fn damage_is_found_and_named() {
    // RELIABILITY F26 I10
    let servers = EtcdServers::start(1, &[]).unwrap();
    let first = Owner::take(&servers.config(), 1).unwrap();
    first.log.commit(&[put("key", "1")]).unwrap();
    first.session.end(&first.etcd);
    servers.ctl(&["put", "/capstan/log/0001/0000000000000001", "\u{1}nonsense of a kind"]).unwrap();
    let refused = Owner::take(&servers.config(), 1).err().unwrap();
    assert!(matches!(&refused, StoreError::Damaged(what) if what.contains("entry 1 of shard 1")), "{refused}");
}

#[test]
fn an_etcd_with_tls_and_users_is_used_and_whoever_may_not_is_told_why() {
    let mut servers = EtcdServers::start_secured("capstan", "a long password").unwrap();
    let config = servers.config();
    let owner = Owner::take(&config, 0).unwrap();
    owner.log.commit(&[put("a", "1")]).unwrap();
    let refused = |config: EtcdConfig| match Owner::take(&config, 1) {
        Ok(_) => panic!("it was let in"),
        Err(error) => {
            format!("{error}: {}", std::error::Error::source(&error).map_or(String::new(), |e| e.to_string()))
        }
    };
    let wrong = refused(EtcdConfig { password: "wrong".into(), ..config.clone() });
    assert!(wrong.contains("authentication failed"), "{wrong}");
    let nobody = refused(EtcdConfig { user: String::new(), ..config.clone() });
    assert!(nobody.contains("permission denied"), "{nobody}");
    let plain = EtcdConfig { cert_file: Default::default(), key_file: Default::default(), ..config.clone() };
    let plain = refused(plain);
    assert!(plain.contains("etcd does not answer"), "{plain}");
    let strange = EtcdConfig { ca_file: "/dev/null".into(), ..config.clone() };
    let strange = refused(strange);
    assert!(strange.contains("invalid peer certificate"), "{strange}");
    // A member that was started again knows no token of before.
    servers.kill(0).unwrap();
    servers.run(0).unwrap();
    servers.wait().unwrap();
    waits("the next commit", Duration::from_secs(20), || owner.log.commit(&[put("b", "2")]).is_ok());
    assert_eq!(owner.log.get(b"a").unwrap().unwrap(), "1");
    // A right that is taken away and given back: what was to be written waits for it.
    servers.ctl(&["user", "revoke-role", "capstan", "capstan"]).unwrap();
    let log = owner.log.clone();
    let writing = std::thread::spawn(move || log.commit(&[put("c", "3")]));
    waits("the silence", Duration::from_secs(20), || !owner.log.answers());
    assert!(!writing.is_finished(), "it was given up");
    servers.ctl(&["user", "grant-role", "capstan", "capstan"]).unwrap();
    writing.join().unwrap().unwrap();
    assert_eq!(owner.log.get(b"c").unwrap().unwrap(), "3");
}
