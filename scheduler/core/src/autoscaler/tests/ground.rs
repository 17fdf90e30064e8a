use super::*;

/// A worker whose isolation is good for this.
fn on(table: &mut Table, id: u32, strict: bool, trusts: bool) {
    let capacity = Amount { cpu_milli: WORKER_CPU, memory_mib: 1_000, gpus: 0 };
    let (worker, ground) = (worker(id), Ground { strict, trusts });
    table.step(Event::Joined { worker, capacity, gpu: "".into(), ground, state: WorkerState::Ready, flaps: false });
}

fn needs(function: &FunctionKey, missing: u32, needs: Needs) -> Demand {
    Demand { needs, ..demand(function, missing, 1_000) }
}

#[test]
fn a_function_goes_only_where_the_isolation_that_it_needs_is_kept() {
    let mut table = Table::new(0);
    let (confined, trusted, any) = (key("a", "confined"), key("a", "trusted"), key("a", "any"));
    // The emptiest worker is not the one that will do.
    (0..40).for_each(|n| on(&mut table, n, false, false));
    table.want(needs(&confined, 1, Needs::Strict));
    table.want(needs(&trusted, 1, Needs::Trust));
    assert!(table.reason(&confined).unwrap().detail.contains("keeps functions wholly apart"));
    assert!(table.reason(&trusted).unwrap().detail.contains("worker.trust_functions"));
    table.want(needs(&any, 3, Needs::Nothing));
    assert_eq!(table.held[&any].len(), 3);
    on(&mut table, 50, true, false);
    on(&mut table, 51, false, true);
    assert_eq!(table.held[&confined].iter().map(|(_, at)| at.clone()).collect::<Vec<_>>(), [worker(50)]);
    assert_eq!(table.held[&trusted].iter().map(|(_, at)| at.clone()).collect::<Vec<_>>(), [worker(51)]);
    // Where they fit is full: it is waited for there, and nobody elsewhere gives way for nothing.
    table.want(needs(&confined, 9, Needs::Strict));
    assert!(table.held[&confined].iter().all(|(_, at)| *at == worker(50)));
    assert_eq!(table.reason(&confined).unwrap().code, "no_capacity");
}
