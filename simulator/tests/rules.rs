//! The scaling rules of the specification in virtual time, on the real decision code: exact on small traces, as properties
//! on generated ones.

use capstan_common::{
    function::{AutoscalerSettings, FunctionSpec},
    time::Time,
};
use capstan_scheduler_core::function::ZeroRule;
use capstan_simulator::{
    Arrival, Machine, Outcome, Scenario, Trace, advice::advise, look_equally_long, replay, trace::Shape,
};
use serde_json::{Value, json};

fn spec(more: Value) -> FunctionSpec {
    let mut spec = json!({"runtime": {"process": {"command": ["true"]}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn settings(more: Value) -> FunctionSpec {
    spec(json!({"autoscaler": more}))
}

/// Inputs at these seconds, each with a run of so many milliseconds.
fn at(seconds: &[f64], run_ms: u64) -> Trace {
    let arrival = |s: &f64| Arrival { at: Time((s * 1e6) as u64), run_us: run_ms * 1000 };
    Trace::of(seconds.iter().map(arrival).collect())
}

fn play(spec: &FunctionSpec, trace: &Trace) -> Outcome {
    let outcome = replay(&Scenario::of(spec.clone()), trace, &Machine::default()).unwrap();
    assert_eq!(outcome.inputs, trace.arrivals.len() as u64, "every input ends");
    assert_eq!(outcome.cut_off, 0, "scaling never stops work");
    outcome
}

/// The count that held at a time.
fn count_at(outcome: &Outcome, seconds: f64) -> u32 {
    let at = Time((seconds * 1e6) as u64);
    outcome.containers.iter().take_while(|(from, _)| *from <= at).last().map_or(0, |(_, count)| *count)
}

#[test]
fn a_burst_starts_a_container_for_each_input_up_to_the_maximum() {
    // SPEC A03 A06 A11 B04
    let burst = at(&[0.0; 50], 1_000);
    assert_eq!(play(&settings(json!({})), &burst).peak, 50);
    let capped = play(&settings(json!({"max_containers": 7})), &burst);
    assert_eq!((capped.peak, capped.cold_starts), (7, 7));
}

#[test]
fn a_pool_grows_to_thousands_and_shrinks_to_nothing() {
    // SPEC A04 A05 A07 A10
    let outcome = play(&settings(json!({"scaledown_window": 10})), &at(&[0.0; 3_000], 60_000));
    assert_eq!(outcome.peak, 3_000);
    assert_eq!(outcome.containers.last().map(|(_, count)| *count), Some(0));
}

#[test]
fn a_minimum_is_kept_before_between_and_after() {
    // SPEC B01 B03
    let outcome = play(&settings(json!({"min_containers": 2, "scaledown_window": 5})), &at(&[100.0, 200.0], 100));
    for seconds in [100.0, 150.0, 199.0, 230.0] {
        assert_eq!(count_at(&outcome, seconds), 2, "at {seconds} s");
    }
}

#[test]
fn a_buffer_is_kept_while_the_function_is_active_and_not_longer() {
    // SPEC B06 B08 B09 B21
    let with = settings(json!({"buffer_containers": 5, "scaledown_window": 10}));
    let outcome = play(&with, &at(&[0.0, 1.0, 2.0], 5_000));
    assert_eq!(count_at(&outcome, 3.0), 3 + 5);
    assert_eq!(outcome.containers.last().map(|(_, count)| *count), Some(0));
    // The spare ones take a burst without a cold start.
    let calm = at(&[0.0, 2.0, 2.0, 2.0, 2.0, 2.0], 3_000);
    assert_eq!(play(&with, &calm).waits_us.iter().filter(|us| **us > 0).count(), 1);
}

#[test]
fn each_container_leaves_when_it_has_idled_its_own_window() {
    // SPEC B10 B12 B13 B15 B16
    for window in [10, 60, 300, 600, 1800] {
        let run_s = 1.0;
        let outcome = play(&settings(json!({"scaledown_window": window})), &at(&[0.0], 1_000));
        let last = outcome.containers.last().unwrap();
        let idle_from = 0.1 + run_s;
        assert_eq!((last.1, last.0), (0, Time(((idle_from + f64::from(window)) * 1e6) as u64)), "window {window}");
    }
    // An input within the window begins it anew; the other container's goes on.
    let outcome = play(&settings(json!({"scaledown_window": 10})), &at(&[0.0, 0.0, 8.0], 100));
    assert_eq!((count_at(&outcome, 11.0), count_at(&outcome, 17.0), count_at(&outcome, 19.0)), (1, 1, 0));
}

#[test]
fn a_pool_that_is_far_too_large_does_not_wait_out_its_window() {
    // SPEC B14: twenty containers, and then work for one.
    let mut seconds = vec![0.0; 20];
    seconds.extend((1..400).map(|n| f64::from(n) * 0.5));
    let outcome = play(&settings(json!({"scaledown_window": 3_000})), &at(&seconds, 400));
    assert!(count_at(&outcome, 20.0) == 20 && count_at(&outcome, 60.0) < 10, "{:?}", outcome.containers);
    // While nothing comes at all the window means what it says.
    let idle = play(&settings(json!({"scaledown_window": 3_000})), &at(&[0.0; 20], 400));
    assert_eq!(count_at(&idle, 2_900.0), 20);
}

#[test]
fn concurrency_needs_a_container_for_each_target_and_never_passes_the_maximum() {
    // SPEC I02 I03 I07
    for (concurrency, containers) in [
        (json!({"max_inputs": 10}), 10),
        (json!({"max_inputs": 100}), 1),
        (json!({"max_inputs": 100, "target_inputs": 80}), 2),
    ] {
        let outcome = play(&spec(json!({"concurrency": concurrency})), &at(&[0.0; 100], 1_000));
        assert_eq!(outcome.peak, containers, "{concurrency}");
    }
}

#[test]
fn waiting_for_a_batch_keeps_the_latency_that_was_aimed_at() {
    // SPEC J02 J10: with a run of 40 ms and 100 ms aimed at, wait_ms is 60.
    let with = spec(json!({
        "batching": {"max_batch_size": 32, "wait_ms": 60}, "autoscaler": {"min_containers": 4},
    }));
    let arrivals = Shape::Steady.generate(5, 20.0, 60.0, 40.0);
    // A first input long before the others: by then the minimum is ready, as it is wherever somebody aims at a latency.
    let early = Arrival { at: Time(0), run_us: 40_000 };
    let later = arrivals.arrivals.iter().map(|a| Arrival { at: a.at.plus_ms(60_000), run_us: 40_000 });
    let outcome = play(&with, &Trace::of(std::iter::once(early).chain(later).collect()));
    assert!(outcome.wait_ms(0.99) + 40.0 <= 100.0, "{}", outcome.wait_ms(0.99));
}

#[test]
fn arrivals_within_the_window_never_start_a_second_container() {
    // SPEC C05
    let seconds: Vec<f64> = (0..100).map(|n| f64::from(n) * 50.0).collect();
    assert_eq!(play(&settings(json!({"scaledown_window": 60})), &at(&seconds, 500)).cold_starts, 1);
    assert_eq!(play(&settings(json!({"scaledown_window": 40})), &at(&seconds, 500)).cold_starts, 100);
}

#[test]
fn a_minimum_costs_for_as_long_as_any_setting_is_looked_at() {
    let two = at(&[0.0, 1.0], 500);
    let (mut live, mut kept) = (play(&settings(json!({})), &two), play(&settings(json!({"min_containers": 5})), &two));
    look_equally_long(&mut [&mut live, &mut kept]);
    assert_eq!(live.span, kept.span);
    let seconds = |outcome: &Outcome| outcome.summary().container_s;
    assert!(seconds(&kept) > 4.9 * seconds(&live), "{} and {}", seconds(&kept), seconds(&live));
    // So nobody is told that a container for ever is cheaper than one for a minute.
    let scenario = Scenario::of(settings(json!({})));
    let advice = advise(&scenario, &two, &Machine::default(), 200.0).unwrap();
    let proposed = advice.proposed.unwrap();
    assert_eq!((proposed.settings.min_containers, proposed.settings.scaledown_window), (0, 5));
}

/// Traces of all shapes, several of each.
fn traces() -> impl Iterator<Item = Trace> {
    let seeded =
        |(n, shape): (usize, Shape)| (0..4).map(move |seed| shape.generate(seed * 100 + n as u64, 2.0, 300.0, 800.0));
    Shape::ALL.into_iter().enumerate().flat_map(seeded)
}

/// One trace with one setting in several values, the others fixed, looked at equally long.
fn along(trace: &Trace, start_us: u64, values: &[u32], vary: impl Fn(u32) -> Value) -> Vec<Outcome> {
    let machine = Machine { start_us, ..Machine::default() };
    let played = values.iter().map(|value| replay(&Scenario::of(settings(vary(*value))), trace, &machine).unwrap());
    let mut outcomes: Vec<Outcome> = played.collect();
    look_equally_long(&mut outcomes.iter_mut().collect::<Vec<_>>());
    outcomes
}

/// Whether a number never falls by more than a part of it from one outcome to the next.
fn rises(outcomes: &[Outcome], number: impl Fn(&Outcome) -> f64, slack: f64) -> bool {
    outcomes.windows(2).all(|pair| number(&pair[1]) >= number(&pair[0]) * (1.0 - slack))
}

fn falls(outcomes: &[Outcome], number: impl Fn(&Outcome) -> f64) -> bool {
    outcomes.windows(2).all(|pair| number(&pair[1]) <= number(&pair[0]) * 1.001)
}

fn wait(outcome: &Outcome) -> f64 {
    outcome.waits_us.iter().sum::<u64>() as f64
}

fn cost(outcome: &Outcome) -> f64 {
    outcome.container_us as f64
}

#[test]
fn each_setting_trades_waiting_against_cost_one_way_only() {
    // SPEC C01 C02 C03 C04 W05 W06: on each trace by itself, with starts from ten milliseconds to five seconds.
    let starts = |outcome: &Outcome| outcome.cold_starts as f64;
    for trace in traces() {
        for start_us in [10_000, 100_000, 1_000_000, 5_000_000] {
            let min = along(&trace, start_us, &[0, 1, 4, 8], |n| json!({"min_containers": n, "scaledown_window": 20}));
            assert!(falls(&min, wait));
            // What waits for a slow start is counted as so many containers more: a minimum may save some of those.
            let saved = if start_us <= 100_000 { 0.02 } else { 0.25 };
            assert!(rises(&min, cost, saved));
            let buffer =
                along(&trace, start_us, &[0, 1, 3, 6], |n| json!({"buffer_containers": n, "scaledown_window": 20}));
            assert!(falls(&buffer, wait) && rises(&buffer, cost, 0.01));
            let window = along(&trace, start_us, &[2, 10, 60, 300], |n| json!({"scaledown_window": n}));
            assert!(falls(&window, starts) && falls(&window, wait) && rises(&window, cost, 0.001));
        }
    }
}

#[test]
fn with_starts_of_a_minute_more_is_still_never_more_starts_and_on_the_whole_less_waiting() {
    // SPEC C01 C03 C04: single traces may turn round by some hundredths, as what waits then comes in other waves.
    let sum = |of: &[Vec<Outcome>], value: usize| of.iter().map(|outcomes| wait(&outcomes[value])).sum::<f64>();
    let min: Vec<_> = traces()
        .map(|t| along(&t, 60_000_000, &[0, 1, 4, 8], |n| json!({"min_containers": n, "scaledown_window": 20})))
        .collect();
    let window: Vec<_> =
        traces().map(|t| along(&t, 60_000_000, &[2, 10, 60, 300], |n| json!({"scaledown_window": n}))).collect();
    for of in [&min, &window] {
        assert!((1..4).all(|value| sum(of, value) <= sum(of, value - 1) * 1.02));
        assert!(sum(of, 3) <= sum(of, 0));
        assert!(of.iter().all(|outcomes| falls(outcomes, |o| o.cold_starts as f64)));
    }
}

#[test]
fn where_starts_cost_more_than_waiting_slow_ones_do_not_run_away() {
    // SPEC A09 C02 and section 2.2: twenty inputs a second of half a second are ten containers' work.
    let steady = at(&(0..6_000).map(|n| f64::from(n) * 0.05).collect::<Vec<_>>(), 500);
    let played = |policy: &str, start_us| {
        let machine = Machine { start_us, ..Machine::default() };
        let with = settings(json!({"scaleup_policy": policy, "scaledown_window": 60}));
        let outcome = replay(&Scenario::of(with), &steady, &machine).unwrap();
        assert_eq!((outcome.inputs, outcome.cut_off), (6_000, 0), "{policy}");
        outcome
    };
    for start_us in [5_000_000, 30_000_000, 60_000_000, 120_000_000] {
        let (latency, spared) = (played("latency", start_us), played("cost", start_us));
        assert!(spared.peak <= 25, "{start_us}: {} at most", spared.peak);
        assert!(spared.container_us < latency.container_us, "{start_us}");
        assert!(latency.peak as u64 >= start_us / 50_000, "{start_us}: {}", latency.peak);
    }
    // Where starts are fast, hardly anything is spared.
    let (latency, spared) = (played("latency", 10_000), played("cost", 10_000));
    assert!(spared.wait_ms(0.99) <= latency.wait_ms(0.99) + 20.0, "{} ms", spared.wait_ms(0.99));
}

#[test]
fn no_traffic_makes_a_pool_pass_its_bounds_run_away_or_swing() {
    // SPEC A09 A12, with fast and with slow starts.
    for (n, shape) in Shape::ALL.into_iter().enumerate() {
        for start_us in [10_000, 20_000_000] {
            let with = settings(json!({"min_containers": 1, "max_containers": 12, "scaledown_window": 30}));
            let machine = Machine { start_us, ..Machine::default() };
            let outcome =
                replay(&Scenario::of(with), &shape.generate(n as u64, 6.0, 300.0, 1_000.0), &machine).unwrap();
            assert!(outcome.peak <= 12, "{shape:?}: {}", outcome.peak);
            assert_eq!(outcome.cut_off, 0);
            let begun = outcome.containers.iter().skip_while(|(_, count)| *count == 0);
            assert!(begun.map(|(_, count)| *count).all(|count| count >= 1), "{shape:?} fell below its minimum");
        }
    }
    // Slow starts do not make it order more than there is work for.
    let slow = Machine { start_us: 60_000_000, ..Machine::default() };
    let outcome = replay(&Scenario::of(settings(json!({}))), &at(&[0.0; 30], 1_000), &slow).unwrap();
    assert_eq!((outcome.peak, outcome.cold_starts), (30, 30));
    // Steady traffic: once it has grown, it hardly starts anything more.
    let steady = at(&(0..6_000).map(|n| f64::from(n) * 0.05).collect::<Vec<_>>(), 500);
    let outcome = play(&settings(json!({"scaledown_window": 60})), &steady);
    assert!(
        outcome.cold_starts <= u64::from(outcome.peak) + 3,
        "{} starts, {} at most",
        outcome.cold_starts,
        outcome.peak
    );
}

#[test]
fn what_is_decided_follows_from_the_trace_alone() {
    let trace = Shape::Bursty.generate(9, 20.0, 120.0, 300.0);
    let with = settings(json!({"buffer_containers": 2}));
    assert_eq!(play(&with, &trace).containers, play(&with, &trace).containers);
}

#[test]
fn advice_keeps_its_bound_and_is_never_dearer_than_others_that_do() {
    let trace = Shape::Bursty.generate(4, 2.0, 120.0, 500.0);
    let advice =
        capstan_simulator::advice::advise(&Scenario::of(settings(json!({}))), &trace, &Machine::default(), 50.0)
            .unwrap();
    let proposed = advice.proposed.unwrap();
    assert!(proposed.summary.wait_p95_ms <= 50.0);
    let others = advice.others.iter().filter(|t| t.summary.wait_p95_ms <= 50.0);
    assert!(
        others.clone().count() > 0 && others.clone().all(|t| t.summary.container_s >= proposed.summary.container_s)
    );
    let _: AutoscalerSettings = proposed.settings;
}

#[test]
fn what_has_a_say_on_a_live_function_has_it_in_a_replay() {
    // A schedule's runs are in the traffic already; an operator's settings hold over profiles; a model may have to stay.
    let trace = at(&[3_600.0, 3_660.0], 100);
    let always =
        json!([{"name": "always", "start": "* * * * *", "end": "0 0 31 12 *", "autoscaler": {"min_containers": 5}}]);
    let mut scenario = Scenario::of(settings(json!({"scaledown_window": 5})));
    scenario.spec.schedule = serde_json::from_value(json!({"period_s": 1})).unwrap();
    scenario.spec.profiles = serde_json::from_value(always).unwrap();
    let played = |scenario: &Scenario| replay(scenario, &trace, &Machine::default()).unwrap();
    assert_eq!((played(&scenario).inputs, played(&scenario).peak), (2, 5));
    scenario.overrides.min_containers = Some(1);
    assert_eq!(played(&scenario).peak, 1);
    scenario.overrides.min_containers = Some(0);
    let to_zero = played(&scenario);
    assert_eq!(to_zero.cold_starts, 2);
    let by: std::sync::Arc<str> = "default".into();
    scenario.spec.model_id = Some("m".into());
    scenario.rule = Some(ZeroRule { enabled: false, retention_ms: 1, flag_by: by.clone(), retention_by: by });
    let kept = played(&scenario);
    assert_eq!(kept.cold_starts, 1);
    assert!(kept.container_us > to_zero.container_us);
}

#[test]
fn a_replay_goes_on_until_all_is_done_and_tells_what_nobody_served() {
    let one = settings(json!({"max_containers": 1, "scaledown_window": 1}));
    let outcome = play(&one, &at(&[0.0; 500], 60_000));
    assert_eq!((outcome.inputs, outcome.unserved), (500, 0));
    assert!(outcome.container_us >= 500 * 60_000_000, "{}", outcome.container_us);
    let nowhere = Machine { places: 0, ..Machine::default() };
    let outcome = replay(&Scenario::of(one), &at(&[0.0; 10], 100), &nowhere).unwrap();
    assert_eq!((outcome.inputs, outcome.unserved), (0, 10));
    let trace = at(&[0.0; 10], 100);
    let advice = capstan_simulator::advice::advise(&Scenario::of(settings(json!({}))), &trace, &nowhere, 1e9).unwrap();
    assert_eq!(advice.proposed, None, "nothing keeps a bound for inputs that nobody serves");
}

#[test]
fn a_wrong_first_line_is_told_and_a_head_is_not_data() {
    assert_eq!(Trace::read("at,run_ms\n1,2\n").unwrap().arrivals.len(), 1);
    for wrong in ["1e12,3\n1,2\n", "1;2\n", "-1,5\n", "1,5,9\n"] {
        assert!(Trace::read(wrong).unwrap_err().starts_with("line 1:"), "{wrong}");
    }
}
