//! Runs at set times: each due time makes one call, whose id follows from the function and the time, so that no restart can
//! make it twice (SPEC E).

use super::Function;
use crate::{
    effect::Output,
    event::{FailFast, Inputs, Opening},
    record::{Record, ScheduleState},
};
use capstan_common::{
    call::CallKind,
    id::{CallId, FunctionKey},
    input::Payload,
    refusal::{Code, Refusal},
    schedule::{Missed, Overlap, Schedule, Times},
    time::Time,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// The pause before a run that the function's limits refused is tried again.
const REFUSED_PAUSE_MS: u64 = 1_000;
/// Runs that may wait for an earlier one.
const WAITING_MAX: usize = 1_000;
/// Coming runs that are listed.
const LISTED: usize = 5;

#[derive(Debug, Clone)]
enum Rhythm {
    Cron(Box<Times>),
    Period(u64),
}

impl Rhythm {
    fn of(schedule: &Schedule) -> Option<Self> {
        match (&schedule.cron, schedule.period_s) {
            // A spec whose expression cannot be read was refused.
            (Some(cron), _) => Times::read(cron, schedule.timezone.as_deref()).ok().map(Box::new).map(Self::Cron),
            (None, Some(period)) => Some(Self::Period(period.ms)),
            (None, None) => None,
        }
    }

    fn after(&self, at: Time) -> Option<Time> {
        match self {
            Self::Cron(times) => times.after(at),
            Self::Period(ms) => Some(at.plus_ms(*ms)),
        }
    }

    /// The last due time at or before `now`, counted on from `due`.
    fn latest(&self, due: Time, now: Time) -> Time {
        match self {
            Self::Cron(times) => times.until(now).unwrap_or(due),
            Self::Period(ms) => due.plus_ms(now.since_ms(due) / ms * ms),
        }
    }
}

/// A function's schedule at work.
#[derive(Debug, Clone, Default)]
pub struct Timer {
    rhythm: Option<Rhythm>,
    due: Option<Time>,
    state: ScheduleState,
    /// Calls that it made and that have not ended.
    running: BTreeSet<CallId>,
    /// No run that waits is tried before then.
    not_before: Time,
}

/// A schedule as users see it.
#[derive(Debug, Clone, Serialize)]
pub struct ScheduleView {
    /// As deployed.
    pub schedule: Schedule,
    /// Whether it is paused.
    pub paused: bool,
    /// The last due time that was seen to.
    pub last: Option<Time>,
    /// The next due times; none while it is paused.
    pub next: Vec<Time>,
    /// Runs that wait for an earlier one to end.
    pub waiting: usize,
    /// Calls that it made and that have not ended.
    pub running: Vec<CallId>,
}

/// The id of the call that a due time, or the time of an order to run at once, makes.
pub fn call_of(function: &FunctionKey, due: Time) -> CallId {
    // FNV-1a (Fowler, Noll, Vo): the same on every machine and in every version.
    let text = function.namespace.bytes().chain([0]).chain(function.name.bytes());
    let hash = text.fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let (ms, us) = (due.0 / 1000, due.0 % 1000);
    let low = (0b10u128 << 62) | u128::from(hash >> 2);
    CallId((u128::from(ms) << 80) | (7 << 76) | (u128::from(us) << 64) | low).placed(function.place())
}

/// Whether the call is one that a schedule made, or was asked to make.
fn is_run(function: &FunctionKey, call: CallId) -> bool {
    let (ms, us) = ((call.0 >> 80) as u64, (call.0 >> 64) as u64 & 0xfff);
    call_of(function, Time(ms.saturating_mul(1000).saturating_add(us))) == call
}

/// How far a last run may lie in the future, in milliseconds: clocks differ.
const FUTURE_MS: u64 = 3_600_000;

impl Function {
    fn schedule(&self) -> Option<&Schedule> {
        self.deployed.spec.schedule.as_ref()
    }

    /// A revision was deployed: a period begins anew, a cron expression goes on (SPEC §2.6). A pause holds, and runs that were due
    /// and wait are made, as long as there is a schedule.
    pub(super) fn set_timer(&mut self, now: Time, out: &mut Output) {
        let had = self.timer.rhythm.is_some();
        let rhythm = self.schedule().and_then(Rhythm::of);
        self.timer.due = rhythm.as_ref().and_then(|rhythm| rhythm.after(now));
        self.timer.rhythm = rhythm;
        if self.timer.rhythm.is_some() || had {
            let before = std::mem::take(&mut self.timer.state);
            let kept = if self.timer.rhythm.is_some() { before } else { ScheduleState::default() };
            self.timer.state = ScheduleState { last: Some(now), ..kept };
            out.records.push(Record::Scheduled(self.timer.state.clone()));
        }
    }

    /// After a restart: what was due meanwhile is missed, and the policy says what becomes of it.
    pub(super) fn recover_timer(&mut self, now: Time, state: ScheduleState) {
        let Some(rhythm) = self.schedule().and_then(Rhythm::of) else { return };
        // A last run in the future is of a clock that was wrong: to wait for it would be to run no more.
        let last = state.last.filter(|last| last.since_ms(now) < FUTURE_MS);
        let from = last.unwrap_or(self.deployed.at).min(now);
        let due = rhythm.after(from);
        let skips = self.schedule().is_some_and(|s| s.missed == Missed::Skip);
        self.timer.due = match due.filter(|due| *due <= now) {
            Some(due) if skips => rhythm.after(rhythm.latest(due, now)),
            Some(due) => Some(rhythm.latest(due, now)),
            None => due,
        };
        let live = self.calls.keys().copied().chain(self.parked.ids());
        self.timer.running = live.filter(|call| is_run(&self.key, *call)).collect();
        self.timer.rhythm = Some(rhythm);
        self.timer.state = state;
    }

    /// Makes the runs that are due.
    pub(super) fn run_due(&mut self, now: Time, out: &mut Output) {
        if self.removed || self.holding {
            return;
        }
        let overlap = self.schedule().map_or(Overlap::Allow, |s| s.overlap);
        if let (Some(due), Some(rhythm)) = (self.timer.due.filter(|due| *due <= now), self.timer.rhythm.clone()) {
            // An alarm that comes very late, after a pause of the whole process, makes up for the latest time only.
            let due = rhythm.latest(due, now);
            self.timer.due = rhythm.after(due);
            self.timer.state.last = Some(due);
            let busy = overlap != Overlap::Allow && !self.timer.running.is_empty();
            let waits = self.timer.state.waiting.len() < WAITING_MAX;
            if !self.timer.state.paused && waits && !(busy && overlap == Overlap::Skip) {
                self.timer.state.waiting.push_back(due);
            }
            out.records.push(Record::Scheduled(self.timer.state.clone()));
            out.urgent = true;
        }
        self.run_waiting(now, overlap, out);
    }

    /// Whether a run waits for nothing any more.
    pub(super) fn may_run_next(&self) -> bool {
        let Timer { state, running, .. } = &self.timer;
        !state.waiting.is_empty() && !state.paused && running.is_empty()
    }

    fn run_waiting(&mut self, now: Time, overlap: Overlap, out: &mut Output) {
        while let Some(due) = self.timer.state.waiting.front().copied() {
            let busy = overlap != Overlap::Allow && !self.timer.running.is_empty();
            if self.timer.state.paused || busy || now < self.timer.not_before {
                return;
            }
            let call = call_of(&self.key, due);
            let known = self.calls.contains_key(&call) || self.parked.has(call);
            if !known && self.open_run(now, call, out).is_err() {
                self.timer.not_before = now.plus_ms(REFUSED_PAUSE_MS);
                return;
            }
            self.timer.state.waiting.pop_front();
            out.records.push(Record::Scheduled(self.timer.state.clone()));
        }
    }

    fn open_run(&mut self, now: Time, call: CallId, out: &mut Output) -> Result<CallId, Refusal> {
        let input = self.schedule().map(|s| s.input.line()).unwrap_or_default();
        let opening = Opening {
            call,
            kind: CallKind::Spawn,
            inputs: Inputs::Here(vec![Payload::json(input)]),
            traceparent: "".into(),
            key: None,
            fail_fast: FailFast::No,
            discard_outputs: false,
        };
        self.open(now, opening, out)
    }

    /// A call was opened: if the schedule made it, runs that are due wait for it.
    pub(super) fn run_opened(&mut self, call: CallId) -> Result<(), Refusal> {
        if self.timer.rhythm.is_some() && is_run(&self.key, call) && !self.timer.running.insert(call) {
            return Err(Refusal::new(Code::Conflict, format!("call {call} runs already; try again")));
        }
        Ok(())
    }

    /// A call has ended; one that waited for it may run with the next step.
    pub(super) fn run_ended(&mut self, call: CallId) {
        self.timer.running.remove(&call);
    }

    /// Pauses the schedule, or lets it go on; what was due meanwhile is left out, and what waited before waits on.
    pub(super) fn pause(&mut self, now: Time, paused: bool, out: &mut Output) -> Result<(), Refusal> {
        self.must_exist()?;
        let Some(rhythm) = self.timer.rhythm.clone() else {
            let detail = format!("function `{}` has no schedule; deploy it with one", self.key);
            return Err(Refusal::new(Code::NotFound, detail));
        };
        if self.timer.state.paused && !paused {
            self.timer.due = rhythm.after(now);
            self.timer.state.last = Some(now);
        }
        self.timer.state.paused = paused;
        out.records.push(Record::Scheduled(self.timer.state.clone()));
        out.urgent = true;
        Ok(())
    }

    /// When the schedule wants an alarm.
    pub(super) fn timer_due(&self) -> Option<Time> {
        let waits = !self.timer.state.waiting.is_empty() && self.timer.not_before > self.now;
        let again = waits.then_some(self.timer.not_before);
        self.timer.due.into_iter().chain(again).min()
    }

    /// The schedule, if it has one.
    pub fn schedule_view(&self) -> Option<ScheduleView> {
        let (schedule, rhythm) = (self.schedule()?.clone(), self.timer.rhythm.as_ref()?);
        let first = self.timer.due.filter(|_| !self.timer.state.paused);
        let next = std::iter::successors(first, |at| rhythm.after(*at)).take(LISTED).collect();
        Some(ScheduleView {
            schedule,
            paused: self.timer.state.paused,
            last: self.timer.state.last,
            next,
            waiting: self.timer.state.waiting.len(),
            running: self.timer.running.iter().copied().collect(),
        })
    }
}
