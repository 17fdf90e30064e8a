//! Why inputs wait: where each lies, and at what `dispatch` stopped. Read from the state, never guessed (DESIGN law 3, RELIABILITY L2).

use super::Function;
use crate::decision::Waiting;
use capstan_common::{id::CallId, time::Time};

/// At what `dispatch` stopped: one value for a function, never stored for an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stop {
    /// Nothing could leave: the queue is empty, or each call in it runs as many inputs as it may.
    #[default]
    Empty,
    /// A batch is being collected.
    Batch,
    /// No container takes another input.
    Slots,
}

/// Why an input waits.
#[derive(Debug, Clone, PartialEq)]
pub enum Waits {
    /// Workers have yet to tell what they hold.
    Recovering,
    /// The store has no room for new work.
    StoreFull,
    /// Nothing is before it, and its payload is still to come from the store.
    Stored,
    /// It pauses before its next attempt, until then; after so many that failed.
    Retry(Time, u32),
    /// Its call runs as many inputs as it may.
    CallLimit(u32),
    /// A batch is being collected.
    Batch,
    /// So many starts in a row failed, the next follows at most so many seconds after the last, which told this.
    Backoff(u32, u64, String),
    /// A container of it has no place.
    Unplaced(Waiting),
    /// Its containers are starting: how many, and what was last seen of them.
    Starting(u32, Option<String>),
    /// There are as many containers as there may be, and all are busy.
    MaxContainers(u32),
    /// All containers are busy: how many.
    Busy(u32),
}

impl Waits {
    /// The stable code and the sentence that an operator reads; `now` is when it is read.
    pub fn told(self, now: Time) -> Waiting {
        match self {
            Self::Recovering => {
                Waiting::new("recovering", "after a restart, known workers are asked what they still hold")
            }
            Self::StoreFull => Waiting::new(
                "store",
                "the store has room for the ends of what runs, and for nothing more: free some space on its disk, or cancel calls",
            ),
            Self::Stored => Waiting::new("store", "the store is asked for it, and has not answered yet"),
            Self::Retry(due, failures) => {
                let wait_s = due.since_ms(now) as f64 / 1000.0;
                Waiting::new("retry_backoff", format!("attempt {failures} failed, the next begins in {wait_s} s"))
            }
            Self::CallLimit(most) => Waiting::new("map_limit", format!("a map runs at most {most} inputs at once")),
            Self::Batch => {
                Waiting::new("batch", "a batch is being collected and leaves when it is full or its wait_ms has passed")
            }
            Self::Backoff(failed, max_s, last) => Waiting::new(
                "image_backoff",
                format!(
                    "{failed} starts in a row failed, the next is tried at most {max_s} s after the last; last: {last}"
                ),
            ),
            Self::Unplaced(why) => why,
            Self::Starting(count, looked) => {
                let count = match count {
                    1 => "a container is starting".to_owned(),
                    more => format!("{more} containers are starting"),
                };
                Waiting::new("starting", count + &looked.map_or_else(String::new, |looked| format!(": {looked}")))
            }
            Self::MaxContainers(max) => {
                Waiting::new("max_containers", format!("max_containers is {max} and all containers are busy"))
            }
            Self::Busy(live) => Waiting::new("busy", format!("all {live} containers are busy")),
        }
    }
}

impl Function {
    /// Why inputs wait, or why there are fewer containers than wanted, if that is so.
    pub fn waiting(&self) -> Option<Waiting> {
        let facts = self.facts();
        (facts.pending > 0 || facts.live < self.sizing.wanted()).then(|| self.waits().told(self.now))
    }

    /// Of all that waits, why the first does that could leave.
    fn waits(&self) -> Waits {
        if let Some(all) = self.all_wait() {
            return all;
        }
        if self.queue.ready() > 0 || self.web.waits() || self.facts().pending == 0 {
            return self.next_waits();
        }
        if self.queue.is_held_back() {
            return Waits::CallLimit(self.limits.map_running);
        }
        let loading = self.calls.values().filter_map(|call| call.bulk.as_ref()).any(|bulk| !bulk.loading.is_empty());
        match self.delayed.first().filter(|_| !loading && !self.parked.is_asked_for()) {
            Some((due, input)) => Waits::Retry(due, input.failures()),
            None => Waits::Stored,
        }
    }

    /// Why one input waits that lies in the queue, with a retry's pause before it, or in the store.
    pub(super) fn input_waits(&self, call: CallId, index: u64) -> Waits {
        if let Some(all) = self.all_wait() {
            return all;
        }
        if let Some((due, input)) = self.delayed.find(call, index) {
            return Waits::Retry(due, input.failures());
        }
        if self.queue.find(call, index).is_some() {
            let held_back = self.queue.is_call_held_back(call);
            return if held_back { Waits::CallLimit(self.limits.map_running) } else { self.next_waits() };
        }
        // It lies in the store, and what is before it leaves first.
        if self.queue.ready() > 0 || self.web.waits() { self.next_waits() } else { Waits::Stored }
    }

    /// What holds up everything.
    fn all_wait(&self) -> Option<Waits> {
        if self.holding {
            return Some(Waits::Recovering);
        }
        self.store_full.then_some(Waits::StoreFull)
    }

    /// Why the next input of the queue has not left, or a container that is wanted is not there.
    fn next_waits(&self) -> Waits {
        if self.stopped == Stop::Batch && self.queue.ready() > 0 {
            return Waits::Batch;
        }
        let facts = self.facts();
        if self.starts.failed > 0 {
            let max_s = self.limits.start_backoff_max_ms / 1000;
            return Waits::Backoff(self.starts.failed, max_s, self.starts.last.to_string());
        }
        if let Some(why) = self.sizing.bid.unplaced() {
            return Waits::Unplaced(why.clone());
        }
        if facts.starting > 0 && facts.starting == facts.live {
            return Waits::Starting(facts.starting, self.starts.looked.as_ref().map(ToString::to_string));
        }
        if facts.live >= facts.max { Waits::MaxContainers(facts.max) } else { Waits::Busy(facts.live) }
    }
}
