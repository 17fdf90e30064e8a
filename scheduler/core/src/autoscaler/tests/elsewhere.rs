//! Several schedulers over the same workers, each with functions of its own.

use super::*;
use crate::ownership::Member;

struct Cluster {
    tables: Vec<Table>,
    now: u64,
}

impl Cluster {
    fn new(schedulers: u32, workers: u32) -> Self {
        Self { tables: (0..schedulers).map(|_| Table::new(workers)).collect(), now: 0 }
    }

    fn wants(&mut self, scheduler: usize, demand: Demand) {
        self.beat(scheduler);
        self.tables[scheduler].want(demand);
    }

    /// A scheduler hears what the others take on each worker.
    fn beat(&mut self, scheduler: usize) {
        let workers: Vec<WorkerId> = self.tables[scheduler].core.workers.keys().cloned().collect();
        for worker in workers {
            let others = self.tables.iter().enumerate().filter(|(n, _)| *n != scheduler);
            let used = others.map(|(_, table)| table.core.held.on(&worker));
            let amount = used.fold(Amount::default(), Amount::plus);
            self.tables[scheduler].step(Event::Others { worker, amount });
        }
    }

    /// Everybody tells everybody, one after the other, until nothing changes.
    fn talk(&mut self) {
        for _ in 0..60 {
            let before = self.held();
            for n in 0..self.tables.len() {
                self.now += 200_000;
                self.beat(n);
                let others = self.tables.iter().enumerate().filter(|(other, _)| *other != n);
                let told = others.map(|(other, table)| (member(other), table.core.summary())).collect();
                self.tables[n].step(Event::Elsewhere { me: member(n), now: Time(self.now), told });
            }
            if self.held() == before && self.now > 4_000_000 {
                return;
            }
        }
    }

    fn held(&self) -> Vec<usize> {
        self.tables.iter().map(|table| table.core.held.iter().count()).collect()
    }

    /// Nothing is promised twice, whoever promised it.
    fn check(&self) {
        for (id, worker) in &self.tables[0].core.workers {
            let used = self.tables.iter().map(|table| table.core.held.on(id));
            let used = used.fold(Amount::default(), Amount::plus);
            assert!(worker.capacity.covers(used), "{id}: {used:?} of {:?}", worker.capacity);
        }
    }
}

fn member(n: usize) -> Member {
    Arc::from(format!("s{n}"))
}

#[test]
fn two_namespaces_share_a_full_cluster_wherever_their_functions_live() {
    let mut cluster = Cluster::new(2, 2);
    let (a, b) = (key("a", "f"), key("b", "f"));
    cluster.wants(0, demand(&a, 100, 1_000));
    assert_eq!(cluster.tables[0].count(&a), 16);
    cluster.wants(1, demand(&b, 100, 1_000));
    assert_eq!(cluster.tables[1].count(&b), 0);
    cluster.talk();
    cluster.check();
    assert_eq!((cluster.tables[0].count(&a), cluster.tables[1].count(&b)), (8, 8));
}

#[test]
fn weights_hold_between_schedulers_and_a_third_one_gets_its_part_of_both() {
    let mut cluster = Cluster::new(3, 3);
    let (a, b, c) = (key("a", "f"), key("b", "f"), key("c", "f"));
    for table in &mut cluster.tables {
        table.step(Event::Governed { namespace: "a".into(), policy: Policy { weight: 2, ..Policy::default() } });
    }
    cluster.wants(0, demand(&a, 100, 1_000));
    cluster.wants(1, demand(&b, 100, 1_000));
    cluster.wants(2, demand(&c, 100, 1_000));
    cluster.talk();
    cluster.check();
    let counts = [cluster.tables[0].count(&a), cluster.tables[1].count(&b), cluster.tables[2].count(&c)];
    assert_eq!(counts, [12, 6, 6]);
}

#[test]
fn idle_containers_of_another_scheduler_give_way() {
    let mut cluster = Cluster::new(2, 1);
    let (idle, new) = (key("a", "idle"), key("b", "new"));
    cluster.wants(0, demand(&idle, 8, 1_000));
    cluster.wants(0, Demand { spare: 8, ..demand(&idle, 0, 1_000) });
    cluster.wants(1, demand(&new, 2, 1_000));
    cluster.talk();
    cluster.check();
    assert_eq!((cluster.tables[0].count(&idle), cluster.tables[1].count(&new)), (6, 2));
}

#[test]
fn a_quota_counts_containers_of_all_schedulers() {
    let mut cluster = Cluster::new(2, 2);
    let quota = Quota { containers: Some(5), ..Quota::default() };
    for table in &mut cluster.tables {
        table.step(Event::Governed { namespace: "a".into(), policy: Policy { quota, ..Policy::default() } });
    }
    let (f, g) = (key("a", "f"), key("a", "g"));
    cluster.wants(0, demand(&f, 3, 1_000));
    cluster.talk();
    cluster.wants(1, demand(&g, 10, 1_000));
    cluster.talk();
    assert_eq!((cluster.tables[0].count(&f), cluster.tables[1].count(&g)), (3, 2));
    assert_eq!(cluster.tables[1].reason(&g).unwrap().code, "tenant_limit");
}

#[test]
fn a_minimum_elsewhere_is_never_taken_away() {
    let mut cluster = Cluster::new(2, 1);
    let (kept, new) = (key("a", "kept"), key("b", "new"));
    cluster.wants(0, Demand { min: 8, ..demand(&kept, 8, 1_000) });
    cluster.wants(1, demand(&new, 1, 1_000));
    cluster.talk();
    assert_eq!((cluster.tables[0].count(&kept), cluster.tables[1].count(&new)), (8, 0));
}

#[test]
fn room_that_is_left_to_another_and_not_taken_is_taken_after_a_while() {
    // The other scheduler cannot reach the worker: what it lacks is left to it for some seconds, not for ever.
    let mut table = Table::new(1);
    let lack = Lack { amount: amount(1_000), gpus: Vec::new(), needs: Needs::Nothing, count: 8 };
    let told = |held| {
        BTreeMap::from([(
            member(1),
            Summary::from([("b".into(), Told { held, lacks: Some(lack.clone()), ..Told::default() })]),
        )])
    };
    let a = key("a", "f");
    table.step(Event::Elsewhere { me: member(0), now: Time(0), told: told(0) });
    table.want(demand(&a, 8, 1_000));
    // Both lack the same: each gets half.
    assert_eq!(table.count(&a), 4);
    table.step(Event::Elsewhere { me: member(0), now: Time(4_000_000), told: told(0) });
    assert_eq!(table.count(&a), 4);
    table.step(Event::Elsewhere { me: member(0), now: Time(6_000_000), told: told(0) });
    assert_eq!(table.count(&a), 8);
}

/// How many containers the functions of a scheduler were asked for.
fn asked(table: &Table) -> u32 {
    let count = |effect: &Effect| if let Effect::GiveWay { count, .. } = effect { *count } else { 0 };
    table.told.iter().map(count).sum()
}

#[test]
fn no_more_is_asked_for_than_fairness_wants_however_many_functions_hold_it() {
    let mut cluster = Cluster::new(2, 4);
    for n in 0..8 {
        cluster.wants(0, demand(&key("a", &format!("f{n}")), 4, 1_000));
    }
    assert_eq!(cluster.held(), [32, 0]);
    let b = key("b", "f");
    cluster.wants(1, demand(&b, 100, 1_000));
    cluster.talk();
    cluster.check();
    assert_eq!(cluster.held(), [16, 16]);
    let asked = asked(&cluster.tables[0]);
    assert!(asked <= 18, "{asked} were asked for, 16 had to go");
}

#[test]
fn a_spare_container_that_is_too_small_keeps_nobody_from_making_room() {
    let mut cluster = Cluster::new(3, 2);
    let (small, rich, poor) = (key("s", "small"), key("a", "rich"), key("b", "poor"));
    cluster.wants(0, demand(&small, 1, 100));
    cluster.wants(0, Demand { spare: 1, ..demand(&small, 0, 100) });
    cluster.wants(1, demand(&rich, 100, 1_000));
    assert_eq!(cluster.held(), [1, 15, 0]);
    cluster.wants(2, demand(&poor, 100, 1_000));
    cluster.talk();
    cluster.check();
    let (rich, poor) = (cluster.tables[1].count(&rich), cluster.tables[2].count(&poor));
    assert!(poor >= 7 && rich >= 7, "{rich} and {poor}");
}

#[test]
fn nobody_makes_room_for_more_than_a_quota_allows() {
    let mut cluster = Cluster::new(2, 2);
    let quota = Quota { containers: Some(3), ..Quota::default() };
    for table in &mut cluster.tables {
        table.step(Event::Governed { namespace: "b".into(), policy: Policy { quota, ..Policy::default() } });
    }
    let (a, b) = (key("a", "f"), key("b", "f"));
    cluster.wants(0, demand(&a, 100, 1_000));
    cluster.wants(1, demand(&b, 100, 1_000));
    cluster.talk();
    assert_eq!((cluster.tables[0].count(&a), cluster.tables[1].count(&b)), (13, 3));
    assert!(asked(&cluster.tables[0]) <= 4, "{}", asked(&cluster.tables[0]));
}

#[test]
fn what_is_lacked_no_more_is_told_no_more() {
    let mut table = Table::new(1);
    let (f, gpu) = (key("b", "f"), key("c", "gpu"));
    table.step(Event::Elsewhere { me: member(0), now: Time(0), told: BTreeMap::new() });
    table.want(Demand { gpus: vec!["H100".parse().unwrap()], ..demand(&gpu, 1, 1_000) });
    table.want(demand(&f, 10, 1_000));
    assert_eq!(table.core.summary()["b"].lacks.as_ref().map(|lack| lack.count), Some(2));
    table.want(demand(&f, 0, 1_000));
    assert_eq!(table.core.summary()["b"].lacks, None);
}
