use super::*;
use capstan_common::{
    id::{CallId, FunctionKey, Revision},
    order::Assignment,
};

fn spec(json: &str) -> Arc<ContainerSpec> {
    Arc::new(ContainerSpec::of(&serde_json::from_str(json).unwrap()))
}

fn start(n: u64, extra: &str) -> Order {
    let json = format!(r#"{{"runtime":{{"process":{{"command":["true"]}}}},"resources":{{"cpu":1}}{extra}}}"#);
    Order::Start(Start {
        container: ContainerId(n),
        function: FunctionKey::new("default", "f"),
        revision: Revision(1),
        spec: spec(&json),
        gpus: 0,
        env: Default::default(),
    })
}

fn feed(n: u64, leases: impl IntoIterator<Item = u64>) -> Order {
    let groups = leases
        .into_iter()
        .map(|lease| Group {
            batch: false,
            assignments: vec![Assignment {
                lease: LeaseId(lease),
                call: CallId(1),
                index: lease,
                attempt: 1,
                payload: Payload::json(&b"1"[..]),
                traceparent: "".into(),
            }],
        })
        .collect();
    Order::Feed { container: ContainerId(n), groups }
}

const LINK: LinkId = LinkId(1);
const OTHER: LinkId = LinkId(2);

struct Bench {
    node: Node,
    now: Time,
}

impl Bench {
    fn new() -> Self {
        let capacity = Amount { cpu_milli: 2000, memory_mib: 4096, gpus: 0 };
        let mut bench = Self { node: Node::new(capacity, vec!["GPU-a".into(), "GPU-b".into()]), now: Time(0) };
        bench.owned(1);
        bench
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.node.step(self.now, event, &mut out);
        self.node.check().unwrap();
        out
    }

    fn order(&mut self, order: Order) -> Vec<Effect> {
        self.step(Event::Ordered { link: LINK, order })
    }

    /// A scheduler with this number owns everything.
    fn owned(&mut self, epoch: u64) -> Vec<Effect> {
        self.order(Order::Own { shard: Shard(0), shards: 1, epoch: Epoch(epoch) })
    }

    fn parted(&mut self) {
        self.step(Event::Parted { link: LINK });
    }

    fn ready(&mut self, n: u64, extra: &str) {
        self.order(start(n, extra));
        self.step(Event::Ready { container: ContainerId(n), phases: Vec::new(), port: 0 });
    }

    fn worked(&mut self, lease: u64, result: Result<Payload, Failure>) -> Vec<Effect> {
        let group = LeaseId(lease);
        let results = vec![(group, result)];
        self.step(Event::Worked { container: ContainerId(1), group, results, run_us: 5 })
    }
}

fn output() -> Result<Payload, Failure> {
    Ok(Payload::json(&b"2"[..]))
}

fn begun(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Run { group, .. } => Some(group.0),
            _ => None,
        })
        .collect()
}

#[test]
fn a_container_that_does_not_fit_is_refused() {
    // RELIABILITY P1
    let mut bench = Bench::new();
    for n in 1..=2 {
        assert!(matches!(bench.order(start(n, ""))[..], [Effect::Launch { .. }]));
    }
    assert!(matches!(&bench.order(start(3, ""))[..], [Effect::Tell(_, Report::Refused { .. })]));
    bench.step(Event::Exited { container: ContainerId(1), ending: Ending::default() });
    assert!(matches!(bench.order(start(4, ""))[..], [Effect::Launch { .. }]));
}

#[test]
fn each_gpu_is_one_containers_alone_until_that_has_ended() {
    // RELIABILITY P1
    let mut bench = Bench::new();
    let with = |n, gpus| match start(n, r#","autoscaler":{}"#) {
        Order::Start(start) => {
            Order::Start(Start { spec: spec(r#"{"runtime":{"process":{"command":["true"]}}}"#), gpus, ..start })
        }
        other => other,
    };
    let given = |effects: Vec<Effect>| match &effects[..] {
        [Effect::Launch { gpus, .. }] => gpus.iter().map(ToString::to_string).collect::<Vec<_>>(),
        _ => vec!["refused".into()],
    };
    assert_eq!(given(bench.order(with(1, 1))), ["GPU-a"]);
    assert_eq!(given(bench.order(with(2, 2))), ["refused"]);
    assert!(given(bench.order(with(3, 0))).is_empty());
    assert_eq!(given(bench.order(with(4, 1))), ["GPU-b"]);
    assert!(bench.node.idle_gpus().is_empty());
    bench.step(Event::Exited { container: ContainerId(1), ending: Ending::default() });
    assert_eq!(bench.node.idle_gpus(), ["GPU-a".into()]);
    assert_eq!(given(bench.order(with(5, 1))), ["GPU-a"]);
    let held: Vec<u32> = bench.node.inventory(Shard(0)).iter().map(|held| held.gpus).collect();
    assert_eq!(held, [0, 1, 1]);
}

#[test]
fn a_container_works_on_no_more_than_it_may_and_goes_on_with_what_waits() {
    // SPEC I01 I02
    let mut bench = Bench::new();
    bench.ready(1, r#","concurrency":{"max_inputs":2}"#);
    assert_eq!(begun(&bench.order(feed(1, 1..=4))), [1, 2]);
    assert_eq!(begun(&bench.worked(1, output())), [3]);
}

#[test]
fn an_outcome_is_kept_until_it_is_recorded_even_after_its_container_ended() {
    let mut bench = Bench::new();
    bench.ready(1, "");
    bench.order(feed(1, [1]));
    bench.worked(1, output());
    bench.parted();
    bench.step(Event::Exited { container: ContainerId(1), ending: Ending::default() });
    assert_eq!(bench.node.inventory(Shard(0))[0].finished.len(), 1);
    assert_eq!(bench.node.live(), 0);
    let told = bench.owned(2);
    assert!(matches!(&told[..], [Effect::Tell(_, Report::Inventory { .. }), Effect::Tell(_, Report::Ended { .. })]));
    bench.order(Order::Recorded { container: ContainerId(1), leases: vec![LeaseId(1)] });
    assert!(bench.node.inventory(Shard(0)).is_empty());
}

#[test]
fn inputs_fed_ahead_go_back_when_they_wait_behind_a_long_one() {
    let mut bench = Bench::new();
    bench.ready(1, "");
    bench.order(feed(1, 1..=3));
    assert_eq!(bench.node.next_alarm(), Some(Time(0).plus_ms(AHEAD_MS)));
    bench.now = Time(0).plus_ms(AHEAD_MS);
    let told = bench.step(Event::Alarm);
    let returned = vec![LeaseId(2), LeaseId(3)];
    assert!(matches!(&told[..], [Effect::Tell(_, Report::Returned { leases, .. })] if *leases == returned));
    assert_eq!(bench.node.next_alarm(), None);
}

#[test]
fn a_server_whose_input_timed_out_is_stopped_and_gives_back_the_rest() {
    // SPEC G12, RELIABILITY F20
    let mut bench = Bench::new();
    bench.ready(1, "");
    bench.order(feed(1, 1..=2));
    let failure = Failure::new(FailureKind::Timeout, "Timeout", "");
    let told = bench.worked(1, Err(failure));
    assert!(told.iter().any(|e| matches!(e, Effect::Terminate { .. })));
    assert!(
        told.iter()
            .any(|e| matches!(e, Effect::Tell(_, Report::Returned { leases, .. }) if leases[..] == [LeaseId(2)]))
    );
    assert!(matches!(&bench.order(feed(1, [3]))[..], [Effect::Tell(_, Report::Returned { .. })]));
}

const TWO_SLOTS: &str = r#","protocol":"http","concurrency":{"max_inputs":2}"#;

fn closed(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Tell(_, Report::Returned { closed: true, .. })))
}

fn grace(effects: &[Effect]) -> Option<u32> {
    effects.iter().find_map(|e| match e {
        Effect::Terminate { grace_ms, .. } => Some(*grace_ms),
        _ => None,
    })
}

#[test]
fn a_server_with_several_slots_is_left_to_its_owner_who_knows_of_web_requests() {
    let mut bench = Bench::new();
    bench.ready(1, TWO_SLOTS);
    bench.order(feed(1, 1..=2));
    let told = bench.worked(1, Err(Failure::new(FailureKind::Timeout, "Timeout", "")));
    assert!(closed(&told) && grace(&told).is_none());
    assert!(grace(&bench.worked(2, output())).is_none(), "a web request may be in it");
    // Who joins anew hears of it again.
    bench.parted();
    assert!(closed(&bench.owned(2)));
    let stop = Order::Stop { container: ContainerId(1), grace_ms: 5_000, reason: "drained".into() };
    assert_eq!(grace(&bench.order(stop)), Some(SPOILT_GRACE_MS));
}

#[test]
fn a_worker_that_ends_lets_owners_stop_servers_and_stops_them_itself_when_it_is_alone() {
    let mut bench = Bench::new();
    bench.ready(1, TWO_SLOTS);
    bench.ready(2, r#","protocol":"exec""#);
    let told = bench.step(Event::Drain);
    let stopped: Vec<_> = told.iter().filter(|e| matches!(e, Effect::Terminate { .. })).collect();
    assert!(closed(&told));
    assert!(matches!(stopped[..], [Effect::Terminate { container: ContainerId(2), .. }]));
    let mut alone = Bench::new();
    alone.ready(1, TWO_SLOTS);
    alone.parted();
    assert_eq!(grace(&alone.step(Event::Drain)), Some(1000));
}

#[test]
fn an_exec_container_survives_a_cancelled_input() {
    // RELIABILITY I9
    let mut bench = Bench::new();
    bench.ready(1, r#","protocol":"exec""#);
    bench.order(feed(1, 1..=2));
    let told = bench.order(Order::Abort { container: ContainerId(1), leases: vec![LeaseId(1)] });
    assert_eq!(told, [Effect::Interrupt { container: ContainerId(1), group: LeaseId(1) }]);
    let told = bench.worked(1, output());
    assert_eq!(begun(&told), [2]);
    assert!(!told.iter().any(|e| matches!(e, Effect::Tell(_, Report::Finished { .. }))));
}

fn own(link: LinkId, shard: u16, epoch: u64) -> Event {
    Event::Ordered { link, order: Order::Own { shard: Shard(shard), shards: 2, epoch: Epoch(epoch) } }
}

#[test]
fn a_scheduler_with_a_lower_epoch_is_not_obeyed() {
    // RELIABILITY I5
    let mut bench = Bench::new();
    bench.ready(1, "");
    bench.step(own(OTHER, 0, 5));
    bench.step(own(OTHER, 1, 5));
    let told = bench.step(own(LINK, 0, 4));
    assert_eq!(told, [Effect::Tell(LINK, Report::Outranked { shard: Shard(0), epoch: Epoch(5) })]);
    bench.step(own(LINK, 1, 4));
    let stop = || Order::Stop { container: ContainerId(1), grace_ms: 5, reason: "late".into() };
    assert!(bench.order(stop()).is_empty() && bench.order(start(2, "")).is_empty(), "its orders are nobody's");
    assert_eq!(grace(&bench.step(Event::Ordered { link: OTHER, order: stop() })), Some(5));
}

#[test]
fn a_shard_that_changes_hands_takes_its_reports_along_and_no_other_shards() {
    let mut bench = Bench::new();
    bench.ready(1, "");
    bench.order(feed(1, [1]));
    let (here, there) = (FunctionKey::new("default", "f").shard(2).0, 1 - FunctionKey::new("default", "f").shard(2).0);
    assert!(
        matches!(&bench.step(own(LINK, here, 2))[..], [Effect::Tell(LINK, Report::Inventory { held, .. })] if held.len() == 1)
    );
    let other = bench.step(own(OTHER, there, 9));
    assert!(matches!(&other[..], [Effect::Tell(OTHER, Report::Inventory { held, .. })] if held.is_empty()));
    let amount = Amount { cpu_milli: 1000, memory_mib: 128, gpus: 0 };
    assert_eq!((bench.node.others(LINK), bench.node.others(OTHER)), (Amount::default(), amount));
    let told = bench.step(own(OTHER, here, 3));
    assert!(
        matches!(&told[..], [Effect::Tell(OTHER, Report::Inventory { held, .. })] if held[0].running.len() == 1),
        "what runs is adopted"
    );
    assert!(matches!(&bench.worked(1, output())[..], [Effect::Tell(OTHER, Report::Finished { .. })]));
}
