use super::*;
use crate::ownership::Member;
use capstan_common::isolation::Needs;

const WORKER_CPU: u64 = 8_000;

fn key(namespace: &str, name: &str) -> FunctionKey {
    FunctionKey::new(namespace, name)
}

fn worker(n: u32) -> WorkerId {
    WorkerId(format!("w{n}").as_str().into())
}

fn amount(cpu_milli: u64) -> Amount {
    Amount { cpu_milli, memory_mib: 1, gpus: 0 }
}

fn demand(function: &FunctionKey, missing: u32, cpu_milli: u64) -> Demand {
    Demand {
        function: function.clone(),
        missing,
        grants_seen: 0,
        amount: amount(cpu_milli),
        gpus: Vec::new(),
        needs: Needs::Nothing,
        spare: 0,
        leaving: 0,
        min: 0,
        weight: 1,
    }
}

/// An autoscaler with workers, and pools that take every grant and give way as they are asked.
struct Table {
    core: Autoscaler,
    held: BTreeMap<FunctionKey, Vec<(ContainerId, WorkerId)>>,
    /// Which of its preferences each container got.
    gpus: BTreeMap<ContainerId, String>,
    demands: BTreeMap<FunctionKey, Demand>,
    told: Vec<Effect>,
}

impl Table {
    fn new(workers: u32) -> Self {
        let mut table = Self {
            core: Autoscaler::new(Epoch(1)),
            held: BTreeMap::new(),
            gpus: BTreeMap::new(),
            demands: BTreeMap::new(),
            told: Vec::new(),
        };
        for n in 0..workers {
            let capacity = Amount { cpu_milli: WORKER_CPU, memory_mib: 1_000, gpus: 0 };
            table.step(Event::Joined {
                worker: worker(n),
                capacity,
                gpu: "".into(),
                ground: Ground::default(),
                state: WorkerState::Ready,
                flaps: false,
            });
        }
        table
    }

    /// Takes an event and lets the pools answer until nothing more is said.
    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut out = Vec::new();
            self.core.step(event, &mut out);
            self.core.check().unwrap();
            for effect in out {
                match &effect {
                    Effect::Grant { function, container, worker, gpu, .. } => {
                        self.gpus.extend(gpu.as_ref().map(|gpu| (*container, gpu.to_string())));
                        self.held.entry(function.clone()).or_default().push((*container, worker.clone()));
                        let demand = self.demands.get_mut(function).unwrap();
                        demand.grants_seen += 1;
                        demand.missing = demand.missing.saturating_sub(1);
                        events.push(Event::Wanted(demand.clone()));
                    }
                    Effect::GiveWay { function, worker, count, .. } => {
                        let held = self.held.entry(function.clone()).or_default();
                        let demand = self.demands.get_mut(function).unwrap();
                        let mut leaving = Vec::new();
                        for _ in 0..*count {
                            let there = |w: &WorkerId| worker.as_ref().is_none_or(|worker| w == worker);
                            let Some(at) = held.iter().position(|(_, w)| there(w)) else { break };
                            leaving.push(held.remove(at).0);
                            // What was busy still has work for a container, and asks for one again.
                            demand.missing += u32::from(demand.spare == 0);
                            demand.spare = demand.spare.saturating_sub(1);
                        }
                        // The answer, and then one after the other leaves.
                        demand.leaving = leaving.len() as u32;
                        let mut answers = vec![Event::Wanted(demand.clone())];
                        for container in leaving {
                            demand.leaving -= 1;
                            answers.extend([Event::Released(container), Event::Wanted(demand.clone())]);
                        }
                        events.extend(answers.into_iter().rev());
                    }
                    Effect::Unplaced { .. } => {}
                }
                self.told.push(effect);
            }
        }
    }

    fn want(&mut self, demand: Demand) {
        let before = self.demands.get(&demand.function).map_or(0, |d| d.grants_seen);
        let demand = Demand { grants_seen: before, ..demand };
        self.demands.insert(demand.function.clone(), demand.clone());
        self.step(Event::Wanted(demand));
    }

    fn count(&self, function: &FunctionKey) -> usize {
        self.held.get(function).map_or(0, Vec::len)
    }

    fn reason(&self, of: &FunctionKey) -> Option<Waiting> {
        self.told.iter().rev().find_map(|effect| match effect {
            Effect::Unplaced { function, why } if function == of => Some(why.clone()),
            _ => None,
        })
    }
}

#[test]
fn a_full_cluster_is_shared_between_namespaces_and_then_functions() {
    let mut table = Table::new(2);
    let (a1, a2, b) = (key("a", "1"), key("a", "2"), key("b", "1"));
    table.want(demand(&a1, 100, 1_000));
    assert_eq!(table.count(&a1), 16);
    // Whoever comes later gets its part all the same: busy containers finish what they have and leave.
    table.want(demand(&b, 100, 1_000));
    assert_eq!((table.count(&a1), table.count(&b)), (8, 8));
    table.want(demand(&a2, 100, 1_000));
    assert_eq!((table.count(&a1), table.count(&a2), table.count(&b)), (4, 4, 8));
}

#[test]
fn weights_are_the_parts_that_are_given() {
    let mut table = Table::new(2);
    let (a, b) = (key("a", "f"), key("b", "f"));
    table.step(Event::Governed { namespace: "a".into(), policy: Policy { weight: 3, ..Policy::default() } });
    table.want(demand(&a, 100, 1_000));
    table.want(demand(&b, 100, 1_000));
    assert_eq!((table.count(&a), table.count(&b)), (12, 4));
}

#[test]
fn a_quota_holds_also_where_there_is_room_and_says_so() {
    let mut table = Table::new(1);
    let a = key("a", "f");
    let quota = Quota { containers: Some(3), ..Quota::default() };
    table.step(Event::Governed { namespace: "a".into(), policy: Policy { quota, ..Policy::default() } });
    table.want(demand(&a, 5, 1_000));
    assert_eq!(table.count(&a), 3);
    let why = table.reason(&a).unwrap();
    assert!(why.code == "tenant_limit" && why.detail.contains("at most 3 containers"), "{why:?}");
    table.step(Event::Governed { namespace: "a".into(), policy: Policy::default() });
    assert_eq!(table.count(&a), 5);
}

#[test]
fn idle_containers_of_a_namespace_make_room_in_its_quota() {
    let mut table = Table::new(1);
    let (idle, new, big, kept) = (key("a", "idle"), key("a", "new"), key("a", "big"), key("b", "f"));
    let bound = |table: &mut Table, containers, cpu_milli| {
        let quota = Quota { containers, cpu_milli, ..Quota::default() };
        table.step(Event::Governed { namespace: "a".into(), policy: Policy { quota, ..Policy::default() } });
    };
    bound(&mut table, Some(4), Some(4_000));
    table.want(demand(&idle, 4, 1_000));
    table.want(demand(&kept, 2, 1_000));
    table.want(Demand { spare: 2, ..demand(&kept, 0, 1_000) });
    // Busy ones stay, and nobody leaves for what would still not fit.
    table.want(demand(&new, 1, 1_000));
    assert_eq!((table.count(&idle), table.count(&new)), (4, 0));
    table.want(demand(&new, 0, 1_000));
    table.want(Demand { spare: 2, ..demand(&idle, 0, 1_000) });
    table.want(demand(&big, 1, 3_000));
    assert_eq!((table.count(&idle), table.count(&big)), (4, 0));
    table.want(demand(&big, 0, 3_000));
    table.want(demand(&new, 1, 1_000));
    assert_eq!((table.count(&idle), table.count(&new), table.count(&kept)), (3, 1, 2));
    // A bound that is lowered takes the idle ones, as many as there are.
    table.want(Demand { spare: 2, ..demand(&idle, 0, 1_000) });
    bound(&mut table, Some(1), None);
    assert_eq!((table.count(&idle), table.count(&new), table.count(&kept)), (1, 1, 2));
    table.want(demand(&big, 1, 9_000));
    bound(&mut table, None, Some(4_000));
    assert!(table.reason(&big).unwrap().detail.contains("one container of it asks for more"));
}

#[test]
fn nodes_are_asked_for_what_runs_and_what_lacks_within_quotas_here_and_elsewhere() {
    // SPEC section 3.9
    let mut table = Table::new(1);
    let (a, b, gpu) = (key("a", "f"), key("b", "f"), key("b", "gpu"));
    let quota = Quota { containers: Some(4), ..Quota::default() };
    table.step(Event::Governed { namespace: "a".into(), policy: Policy { quota, ..Policy::default() } });
    table.want(demand(&a, 10, 1_000));
    let node = Amount { cpu_milli: 4_000, memory_mib: 100, gpus: 0 };
    assert_eq!(table.core.nodes(node), 1, "four within the quota");
    table.want(Demand { min: 10, ..demand(&b, 10, 1_000) });
    assert_eq!(table.core.nodes(node), 4, "fourteen");
    // Who waits for what such a node does not have asks for no more of them.
    table.want(Demand {
        gpus: vec!["H100".parse().unwrap()],
        amount: amount(1_000).with_gpus(1),
        ..demand(&gpu, 5, 1_000)
    });
    assert_eq!(table.core.nodes(node), 4);
    // Another scheduler hears of it also where no worker is, and counts the same.
    let mut other = Table::new(0);
    let (me, told) = (Member::from("other"), BTreeMap::from([("first".into(), table.core.summary())]));
    other.step(Event::Elsewhere { me, now: Time(0), told });
    assert_eq!(other.core.nodes(node), 4);
}

#[test]
fn idle_containers_above_the_minimum_give_way_but_only_to_what_would_fit() {
    let mut table = Table::new(1);
    let (idle, new, huge, gpu) = (key("a", "idle"), key("a", "new"), key("b", "huge"), key("b", "gpu"));
    table.want(demand(&idle, 8, 1_000));
    table.want(Demand { spare: 8, ..demand(&idle, 0, 1_000) });
    // What can never fit takes nobody's place.
    table.want(demand(&huge, 1, 9_000));
    table.want(Demand { gpus: vec!["H100".parse().unwrap()], ..demand(&gpu, 1, 1_000) });
    assert_eq!(table.count(&idle), 8);
    assert!(table.reason(&huge).unwrap().detail.contains("no worker is large enough"));
    table.want(demand(&new, 1, 2_000));
    assert_eq!((table.count(&idle), table.count(&new)), (6, 1));
}

#[test]
fn a_minimum_is_never_taken_away() {
    let mut table = Table::new(1);
    let (kept, new) = (key("a", "kept"), key("b", "new"));
    table.want(Demand { min: 8, ..demand(&kept, 8, 1_000) });
    table.want(demand(&new, 1, 1_000));
    assert_eq!((table.count(&kept), table.count(&new)), (8, 0));
    assert_eq!(table.reason(&new).unwrap().code, "no_capacity");
}

#[test]
fn small_work_overtakes_blocked_big_work_only_where_it_cannot_delay_it() {
    let mut table = Table::new(2);
    let (pinned, big, small) = (key("p", "f"), key("b", "big"), key("s", "small"));
    // Each worker holds what never leaves: the big one fits nowhere yet.
    table.want(Demand { min: 6, ..demand(&pinned, 6, 2_000) });
    table.want(demand(&big, 1, 8_000));
    assert_eq!(table.count(&big), 0);
    let before: BTreeMap<_, _> = table.core.workers.keys().map(|id| (id.clone(), table.core.held.on(id))).collect();
    table.want(demand(&small, 20, 1_000));
    let kept: Vec<_> = table.core.workers.keys().filter(|id| table.core.held.on(id) == before[*id]).collect();
    assert_eq!(kept.len(), 1, "one worker takes nothing more: the big one will fit there");
    assert_eq!(table.count(&small), 2);
    let there: Vec<_> = table.held[&pinned].iter().filter(|(_, w)| w == kept[0]).map(|(id, _)| *id).collect();
    let demand = table.demands.get_mut(&pinned).unwrap();
    demand.min = 0;
    for container in there {
        table.step(Event::Released(container));
    }
    assert_eq!(table.count(&big), 1);
}

#[test]
fn a_thousand_hungry_functions_on_a_full_cluster_cost_little_an_event() {
    // Work is counted, not time: what one event makes the core say does not grow with those who wait.
    let mut table = Table::new(1);
    for n in 0..1_000 {
        table.want(demand(&key("a", &format!("f{n:04}")), 1, 1_000));
    }
    let granted = table.told.iter().filter(|e| matches!(e, Effect::Grant { .. })).count();
    assert_eq!(granted, 8);
    table.told.clear();
    let (container, _) = table.held[&key("a", "f0000")][0].clone();
    table.step(Event::Released(container));
    assert_eq!(table.told.len(), 1, "{:?}", table.told);
}

#[test]
fn a_worker_that_flaps_is_passed_over_while_a_steady_one_has_room() {
    let mut table = Table::new(2);
    let f = key("a", "f");
    table.step(Event::Flaps { worker: worker(0), flaps: true });
    table.want(demand(&f, 8, 1_000));
    assert!(table.held[&f].iter().all(|(_, at)| *at == worker(1)));
    // Where no steady one has room, it is better than nothing.
    table.want(demand(&f, 2, 1_000));
    assert_eq!(table.held[&f].iter().filter(|(_, at)| *at == worker(0)).count(), 2);
}

mod elsewhere;
mod gpu;
mod ground;
