//! Planted protocol faults, one number each, for checking the simulator's checker. Only there with the feature `mutants`.

macro_rules! planted {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $($(#[$doc])* pub const $name: u8 = $number;)*
    };
}

planted! {
    /// An outcome counts without the current lease.
    LATE_OUTCOME_ACCEPTED = 1;
    /// A failure uses up two attempts.
    ATTEMPT_COUNTED_TWICE = 2;
    /// One retry more than allowed.
    ONE_RETRY_TOO_MANY = 3;
    /// A lost container takes an input with it.
    INPUT_DROPPED_WITH_CONTAINER = 4;
    /// An input that comes back unbegun is dropped.
    INPUT_DROPPED_WHEN_RETURNED = 5;
    /// A batch has one input too many.
    BATCH_TOO_LARGE = 6;
    /// An ended container's place stays taken.
    CAPACITY_NOT_RETURNED = 7;
    /// A worker is promised more than it has.
    CAPACITY_PROMISED_TWICE = 8;
    /// An outcome is told and not recorded.
    OUTCOME_NOT_RECORDED = 9;
    /// Scaling in stops whatever comes first.
    BUSY_CONTAINER_STOPPED = 10;
    /// A closed map keeps its credit.
    CREDIT_NOT_RETURNED = 11;
    /// Recovery runs ended inputs again.
    ENDED_FORGOTTEN = 12;
    /// Recovery forgets idempotency keys.
    KEY_FORGOTTEN = 13;
    /// Loading a segment loses its last input.
    SEGMENT_CUT_SHORT = 14;
    /// The maximum is not looked at.
    MAXIMUM_EXCEEDED = 15;
    /// A cancel leaves what waits in memory.
    CANCEL_LEAVES_WAITING = 16;
    /// What comes back of a call that nobody waits for runs again.
    UNWANTED_RUNS_AGAIN = 17;
    /// A single call that is read back from the store is dropped.
    FETCHED_DROPPED = 18;
    /// A web request that is over keeps its slot.
    REQUEST_KEEPS_SLOT = 19;
}
