use super::*;
use capstan_common::gpu::GpuRequest;

/// A worker that has GPUs beside eight cores.
fn with_gpus(table: &mut Table, id: u32, gpu: &str, gpus: u64) {
    let capacity = Amount { cpu_milli: WORKER_CPU, memory_mib: 1_000, gpus };
    let (worker, gpu) = (worker(id), gpu.into());
    table.step(Event::Joined {
        worker,
        capacity,
        gpu,
        ground: Ground::default(),
        state: WorkerState::Ready,
        flaps: false,
    });
}

fn asks(function: &FunctionKey, missing: u32, gpus: &[&str]) -> Demand {
    let gpus: Vec<GpuRequest> = gpus.iter().map(|gpu| gpu.parse().unwrap()).collect();
    let fewest = gpus.iter().map(|gpu| gpu.count).min().unwrap_or(0);
    Demand { amount: amount(1_000).with_gpus(fewest), gpus, ..demand(function, missing, 1_000) }
}

impl Table {
    /// Where a function's containers are, and what they got there.
    fn got(&self, function: &FunctionKey) -> Vec<(WorkerId, &str)> {
        let held = self.held.get(function).into_iter().flatten();
        held.map(|(id, worker)| (worker.clone(), self.gpus.get(id).map_or("", String::as_str))).collect()
    }
}

#[test]
fn a_gpu_is_placed_on_a_worker_that_has_it_and_each_is_given_once() {
    // SPEC L01, RELIABILITY P1
    let mut table = Table::new(1);
    with_gpus(&mut table, 1, "H100", 2);
    with_gpus(&mut table, 2, "L40S", 1);
    let (h, l, a) = (key("a", "h"), key("a", "l"), key("a", "a"));
    table.want(asks(&h, 3, &["H100"]));
    table.want(asks(&l, 1, &["L40S"]));
    table.want(asks(&a, 1, &["A10G"]));
    assert_eq!(table.got(&h), [(worker(1), "H100"), (worker(1), "H100")]);
    assert_eq!(table.got(&l), [(worker(2), "L40S")]);
    let full = table.reason(&h).unwrap();
    assert!(full.code == "no_capacity" && full.detail.contains("1 × H100"), "{full:?}");
    let never = table.reason(&a).unwrap().detail;
    assert!(never.contains("1 × A10G") && never.contains("2 × H100, 1 × L40S"), "{never}");
    // A container that ends gives its GPU back.
    let (container, _) = table.held[&h][0];
    table.step(Event::Released(container));
    assert_eq!(table.got(&h).len(), 3);
}

#[test]
fn preferences_are_tried_in_their_order_with_the_count_of_each() {
    let mut table = Table::new(0);
    with_gpus(&mut table, 1, "A100-80GB", 4);
    with_gpus(&mut table, 2, "H100", 1);
    let f = key("a", "f");
    table.want(asks(&f, 4, &["H100", "A100:2"]));
    assert_eq!(table.got(&f), [(worker(2), "H100"), (worker(1), "A100:2"), (worker(1), "A100:2")]);
    assert_eq!(table.core.worker(&worker(1)).unwrap().1.gpus, 4);
}

#[test]
fn gpus_are_packed_so_that_whole_machines_stay_free_and_other_work_stays_off_them() {
    let mut table = Table::new(1);
    (1..=2).for_each(|n| with_gpus(&mut table, n, "H100", 4));
    let (one, four, plain) = (key("a", "one"), key("a", "four"), key("a", "plain"));
    table.want(asks(&one, 2, &["H100"]));
    assert_eq!(table.got(&one), [(worker(1), "H100"), (worker(1), "H100")]);
    table.want(asks(&four, 1, &["H100:4"]));
    assert_eq!(table.got(&four), [(worker(2), "H100:4")]);
    // Eight cores without GPUs come before those beside them.
    table.want(demand(&plain, 9, 1_000));
    let beside = table.held[&plain].iter().filter(|(_, at)| *at != worker(0)).count();
    assert_eq!((table.count(&plain), beside), (9, 1));
}

#[test]
fn a_better_card_of_the_family_serves_where_the_very_one_is_not_free() {
    let mut table = Table::new(0);
    with_gpus(&mut table, 0, "H200", 1);
    with_gpus(&mut table, 1, "H100", 1);
    let (f, exact) = (key("a", "f"), key("a", "exact"));
    table.want(Demand { min: 2, ..asks(&f, 2, &["H100"]) });
    assert_eq!(table.got(&f), [(worker(1), "H100"), (worker(0), "H100")]);
    table.want(asks(&exact, 1, &["H100!"]));
    assert_eq!(table.count(&exact), 0);
}

#[test]
fn a_quota_of_gpus_holds_also_where_there_is_room_and_leaves_smaller_wishes_open() {
    let mut table = Table::new(1);
    with_gpus(&mut table, 1, "H100", 8);
    let (f, big, plain) = (key("a", "f"), key("a", "big"), key("a", "plain"));
    let quota = Quota { gpus: Some(3), ..Quota::default() };
    table.step(Event::Governed { namespace: "a".into(), policy: Policy { quota, ..Policy::default() } });
    table.want(asks(&big, 1, &["H100:4"]));
    let why = table.reason(&big).unwrap();
    assert!(why.code == "tenant_limit" && why.detail.contains("at most 3 GPUs"), "{why:?}");
    // What is too much is passed over, what is left is taken.
    table.want(asks(&f, 5, &["H100:2", "H100"]));
    assert_eq!(table.got(&f), [(worker(1), "H100:2"), (worker(1), "H100")]);
    assert_eq!(table.reason(&f).unwrap().code, "tenant_limit");
    // Who asks for none is not held back by it.
    table.want(demand(&plain, 2, 1_000));
    assert_eq!(table.count(&plain), 2);
    table.step(Event::Governed { namespace: "a".into(), policy: Policy::default() });
    assert_eq!((table.count(&big), table.core.worker(&worker(1)).unwrap().1.gpus), (1, 8));
}

#[test]
fn freed_gpus_go_to_whoever_waits_for_them_and_holders_of_other_things_are_not_asked() {
    // SPEC P07
    let mut table = Table::new(0);
    with_gpus(&mut table, 1, "H100", 2);
    let (idle, plain, new) = (key("a", "idle"), key("a", "plain"), key("b", "new"));
    table.want(asks(&idle, 2, &["H100"]));
    table.want(demand(&plain, 2, 1_000));
    table.want(Demand { spare: 2, ..demand(&plain, 0, 1_000) });
    // Both GPUs are in use, and there are cores enough: nobody is asked who has no GPU to give.
    table.want(asks(&new, 1, &["H100:2"]));
    assert_eq!((table.count(&new), table.count(&plain)), (0, 2));
    table.want(Demand { spare: 2, ..asks(&idle, 0, &["H100"]) });
    assert_eq!((table.got(&new), table.count(&idle), table.count(&plain)), (vec![(worker(1), "H100:2")], 0, 2));
}

#[test]
fn a_full_set_of_gpus_is_shared_between_namespaces() {
    let mut table = Table::new(0);
    with_gpus(&mut table, 1, "H100", 4);
    with_gpus(&mut table, 2, "H100", 4);
    let (a, b) = (key("a", "f"), key("b", "f"));
    table.want(asks(&a, 100, &["H100"]));
    assert_eq!(table.count(&a), 8);
    table.want(asks(&b, 100, &["H100"]));
    assert_eq!((table.count(&a), table.count(&b)), (4, 4));
}

#[test]
fn who_wants_many_gpus_gets_them_although_small_work_takes_each_that_becomes_free() {
    let mut table = Table::new(0);
    (0..2).for_each(|n| with_gpus(&mut table, n, "H100", 2));
    let (small, big) = (key("a", "small"), key("a", "big"));
    table.want(Demand { min: 4, ..asks(&small, 4, &["H100"]) });
    table.want(asks(&big, 1, &["H100:2"]));
    // Containers end one after the other, now here and now there; the small function wants a new one each time.
    for round in 0..8 {
        if table.count(&big) > 0 {
            break;
        }
        let held = &table.held[&small];
        let (container, _) = held.iter().rev().find(|(_, at)| *at == worker(round % 2)).unwrap_or(&held[0]).clone();
        table.held.get_mut(&small).unwrap().retain(|(id, _)| *id != container);
        table.step(Event::Released(container));
        table.want(Demand { min: 4, ..asks(&small, 4 - table.count(&small) as u32, &["H100"]) });
    }
    assert_eq!(table.count(&big), 1);
}

#[test]
fn room_is_made_by_whichever_preference_it_can_be_made_for_and_no_more_than_the_quota_leaves() {
    let mut table = Table::new(0);
    with_gpus(&mut table, 1, "H100", 8);
    let (kept, idle, f) = (key("b", "kept"), key("b", "idle"), key("a", "f"));
    let quota = Quota { gpus: Some(3), ..Quota::default() };
    table.step(Event::Governed { namespace: "a".into(), policy: Policy { quota, ..Policy::default() } });
    table.want(Demand { min: 4, ..asks(&kept, 4, &["H100"]) });
    table.want(asks(&idle, 4, &["H100"]));
    table.want(Demand { spare: 4, ..asks(&idle, 0, &["H100"]) });
    // Eight cannot be freed, four would pass the quota: one is asked for.
    table.want(asks(&f, 1, &["H100:8", "H100:4", "H100"]));
    assert_eq!((table.got(&f), table.count(&idle)), (vec![(worker(1), "H100")], 3));
}

#[test]
fn a_holder_counts_by_what_its_containers_have_and_not_by_what_it_would_be_content_with() {
    let mut table = Table::new(0);
    with_gpus(&mut table, 1, "H100", 4);
    let (wide, f) = (key("b", "wide"), key("a", "f"));
    table.want(asks(&wide, 2, &["H100:2", "L4"]));
    table.want(Demand { spare: 2, ..asks(&wide, 0, &["H100:2", "L4"]) });
    table.want(asks(&f, 1, &["H100:2"]));
    assert_eq!((table.count(&f), table.count(&wide)), (1, 1), "one of two GPUs is enough");
}

#[test]
fn why_it_waits_is_told_anew_when_it_asks_for_something_else() {
    let mut table = Table::new(0);
    with_gpus(&mut table, 1, "H100", 1);
    let (holds, f) = (key("a", "holds"), key("a", "f"));
    table.want(Demand { min: 1, ..asks(&holds, 1, &["H100"]) });
    table.want(asks(&f, 1, &["A10G"]));
    assert!(table.reason(&f).unwrap().detail.contains("A10G"));
    table.want(asks(&f, 1, &["H100"]));
    assert!(table.reason(&f).unwrap().detail.contains("every worker is full"));
}
