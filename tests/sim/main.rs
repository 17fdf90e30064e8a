//! The cores in virtual time: seeds full of faults, the same log twice, and a checker that is itself checked.

use capstan_tests::world::{Plan, run};

#[cfg(not(feature = "mutants"))]
mod healthy {
    use super::*;

    /// Seeds in one run; CAPSTAN_SEEDS sets another number for a long run.
    fn seeds() -> u64 {
        std::env::var("CAPSTAN_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(500)
    }

    #[test]
    fn no_seed_breaks_a_promise() {
        // RELIABILITY I1 I2 I3 I5 I6 I7 L2, F1 F4 F15 F29
        for seed in 0..seeds() {
            if let Err(broken) = run(&Plan::small(seed)) {
                panic!("{}\nreplay: cargo run -p capstan-tests -- sim --seed {seed}", broken.what);
            }
        }
    }

    #[test]
    fn no_seed_breaks_a_promise_of_a_cluster() {
        // RELIABILITY I1 I2 I3 I4 I5 I6 I7 L1 L2, F1 F2 F3 F4 F5 F13 F15 F29
        for seed in 0..seeds() {
            if let Err(broken) = run(&Plan::cluster(seed)) {
                panic!("{}\nreplay: cargo run -p capstan-tests -- sim --schedulers 3 --seed {seed}", broken.what);
            }
        }
    }

    #[test]
    fn a_larger_cluster_keeps_its_promises_too() {
        let small = Plan::cluster(5);
        let plan =
            Plan { schedulers: 5, functions: 60, workers: 40, inputs: 30_000, faults: 60, check_all: false, ..small };
        let report = run(&plan).unwrap();
        assert!(report.ended >= 10_000, "{report:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_log_byte_for_byte() {
        let plan = Plan { log: true, ..Plan::small(7) };
        let (first, second) = (run(&plan).unwrap(), run(&plan).unwrap());
        assert!(first.log.len() > 100_000);
        assert!(first.log == second.log);
        assert!(first.log != run(&Plan { seed: 8, ..plan }).unwrap().log);
        let plan = Plan { log: true, ..Plan::cluster(7) };
        assert!(run(&plan).unwrap().log == run(&plan).unwrap().log);
    }

    #[test]
    fn a_larger_world_keeps_its_promises_too() {
        let plan = Plan { functions: 60, workers: 80, inputs: 30_000, faults: 40, check_all: false, ..Plan::small(3) };
        let report = run(&plan).unwrap();
        assert!(report.ended >= 10_000, "{report:?}");
    }
}

#[cfg(feature = "mutants")]
mod planted {
    use super::*;
    use capstan_tests::world::shell_mutant;

    /// Seeds in which a planted fault must be found.
    const SEEDS: u64 = 200;

    fn found_in(mutant: u8, world: fn(u64) -> Plan) -> Option<(u64, String)> {
        (0..SEEDS).find_map(|seed| run(&Plan { mutant, ..world(seed) }).err().map(|broken| (seed, broken.what)))
    }

    #[test]
    fn a_fence_that_is_not_compared_is_found() {
        let (seed, broken) = found_in(shell_mutant::FENCE_NOT_COMPARED, Plan::cluster).expect("not found");
        println!("found with seed {seed}: {broken}");
    }

    #[test]
    fn a_new_owner_that_does_not_wait_for_workers_is_found() {
        let (seed, broken) = found_in(shell_mutant::SETTLES_UNTOLD, Plan::cluster).expect("not found");
        println!("found with seed {seed}: {broken}");
    }

    macro_rules! planted {
        ($($name:ident = $mutant:ident;)*) => {$(
            #[test]
            fn $name() {
                let mutant = capstan_scheduler_core::mutant::$mutant;
                let (seed, broken) = found_in(mutant, Plan::small).expect("the planted fault was not found");
                println!("found with seed {seed}: {broken}");
            }
        )*};
    }

    planted! {
        a_late_outcome_that_is_accepted_is_found = LATE_OUTCOME_ACCEPTED;
        an_attempt_that_is_counted_twice_is_found = ATTEMPT_COUNTED_TWICE;
        a_retry_too_many_is_found = ONE_RETRY_TOO_MANY;
        an_input_dropped_with_its_container_is_found = INPUT_DROPPED_WITH_CONTAINER;
        an_input_dropped_when_returned_is_found = INPUT_DROPPED_WHEN_RETURNED;
        a_batch_that_is_too_large_is_found = BATCH_TOO_LARGE;
        capacity_that_is_not_returned_is_found = CAPACITY_NOT_RETURNED;
        capacity_that_is_promised_twice_is_found = CAPACITY_PROMISED_TWICE;
        an_outcome_that_is_not_recorded_is_found = OUTCOME_NOT_RECORDED;
        a_busy_container_that_is_stopped_is_found = BUSY_CONTAINER_STOPPED;
        credit_that_is_not_returned_is_found = CREDIT_NOT_RETURNED;
        ended_inputs_that_recovery_forgets_are_found = ENDED_FORGOTTEN;
        a_key_that_recovery_forgets_is_found = KEY_FORGOTTEN;
        a_segment_that_loses_its_last_input_is_found = SEGMENT_CUT_SHORT;
        a_maximum_that_is_exceeded_is_found = MAXIMUM_EXCEEDED;
        a_cancel_that_leaves_inputs_waiting_is_found = CANCEL_LEAVES_WAITING;
        unwanted_inputs_that_run_again_are_found = UNWANTED_RUNS_AGAIN;
        a_fetched_call_that_is_dropped_is_found = FETCHED_DROPPED;
        a_web_request_that_keeps_its_slot_is_found = REQUEST_KEEPS_SLOT;
    }
}
