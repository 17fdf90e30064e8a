//! The inputs of a call: listed, and summed up.

use super::Api;
use crate::{
    clock,
    route::{Granted, Run},
    store::layout::StoredCall,
};
use capstan_common::{
    id::{CallId, ContainerId},
    input::Outcome,
    refusal::Refusal,
};
use capstan_scheduler_core::record::Entry;
use capstan_verb::{
    access::Subject,
    call::{
        BucketView, FailuresView, InputState, InputView, Inputs, InputsView, SpreadView, Summarize, SummaryView,
        error_json,
    },
};
use std::{
    collections::{BTreeMap, btree_map::Entry as Slot},
    sync::Arc,
};

/// Inputs in a page, at most.
const PAGE: usize = 1000;
/// Inputs that are looked at for one page.
const LOOKS: u64 = 50_000;
/// Kinds of failures that are told one by one.
const KINDS: usize = 20;
/// Kinds of failures that are told apart at all.
const KINDS_APART: usize = 1000;
/// Characters of a failure's message.
const MESSAGE_CHARS: usize = 300;

/// What a call's inputs did that have not ended: where they run, by index.
type Running = BTreeMap<u64, (ContainerId, u32)>;

impl Api {
    async fn inputs(self: &Arc<Self>, who: &Subject, asked: Inputs) -> Result<InputsView, Refusal> {
        let stored = self.seen_call(who, asked.call).await?;
        // In this order: what ends between two looks is seen as ended, and what begins as waiting, which it was.
        let (running, total) = if stored.record.finished.is_some() {
            (Running::new(), stored.record.counts.total)
        } else {
            let call = asked.call;
            let live = self.ask_any(&stored.function, move |core| (core.call(call), core.running_of(call))).await;
            self.flush().await;
            match live {
                Ok((Some((_, counts, _)), running)) => (running, counts.total),
                // It has just ended, or its function is gone.
                _ => (Running::new(), self.stored_call(call).await?.record.counts.total),
            }
        };
        let has_ended = stored.record.finished.is_some();
        self.reading(move |api| api.page_of_inputs(&asked, total, &running, has_ended)).await
    }

    fn page_of_inputs(
        &self,
        asked: &Inputs,
        total: u64,
        running: &Running,
        has_ended: bool,
    ) -> Result<InputsView, Refusal> {
        let limit = asked.limit.clamp(1, PAGE);
        let first = asked.after.map_or(0, |after| after.saturating_add(1));
        let end = total.min(first.saturating_add(LOOKS));
        let mut last: Option<(u64, Vec<Entry>)> = None;
        let mut inputs = Vec::new();
        for index in first..end {
            let entry = self.entry_at(asked.call, index, &mut last)?;
            let input = match (entry, running.get(&index)) {
                (Some(entry), _) => ended(index, entry),
                (None, Some((container, attempts))) => InputView {
                    container: Some(*container),
                    attempts: Some(*attempts),
                    ..of(index, InputState::Running)
                },
                // A call that ended has no record of inputs that never came: they were cancelled with it.
                (None, None) if has_ended => of(index, InputState::Cancelled),
                (None, None) => of(index, InputState::Pending),
            };
            if asked.state.is_none_or(|state| state == input.state) {
                inputs.push(input);
            }
            if inputs.len() == limit {
                return Ok(InputsView { next: (index + 1 < total).then_some(index), inputs });
            }
        }
        Ok(InputsView { inputs, next: (end < total).then(|| end.saturating_sub(1)) })
    }

    /// How an input ended; `last` is the record that was read last.
    fn entry_at<'a>(
        &self,
        call: CallId,
        index: u64,
        last: &'a mut Option<(u64, Vec<Entry>)>,
    ) -> Result<Option<&'a Entry>, Refusal> {
        let Some((sequence, position)) = self.place(call, index)? else { return Ok(None) };
        if last.as_ref().is_none_or(|(read, _)| *read != sequence) {
            *last = self.record(call, sequence)?.map(|entries| (sequence, entries));
        }
        Ok(last.as_ref().and_then(|(_, entries)| entries.get(position)))
    }

    async fn summarize(self: &Arc<Self>, who: &Subject, call: CallId) -> Result<SummaryView, Refusal> {
        let stored = self.seen_call(who, call).await?;
        if stored.record.finished.is_none() {
            self.flush().await;
        }
        let inputs = self.call(who, call).await?.inputs;
        let mut summary = self.reading(move |api| api.sum_up(&stored)).await?;
        summary.inputs = inputs;
        Ok(summary)
    }

    fn sum_up(&self, stored: &StoredCall) -> Result<SummaryView, Refusal> {
        let (mut queue, mut run) = (Spread::default(), Spread::default());
        let mut kinds = BTreeMap::<(String, String, String), (u64, u64)>::new();
        let mut others = 0;
        self.each_outcome(stored.record.id, |entry| {
            if entry.attempts > 0 {
                queue.add(entry.leased.since_us(entry.submitted), entry.count);
                run.add(entry.run_us, entry.count);
            }
            if let Outcome::Failed(failure) = &entry.outcome {
                let cut = |text: &str| text.chars().take(MESSAGE_CHARS).collect::<String>();
                let kind = (failure.kind.code().to_owned(), cut(&failure.error_type), cut(&failure.message));
                let is_full = kinds.len() >= KINDS_APART;
                match kinds.entry(kind) {
                    Slot::Occupied(mut known) => known.get_mut().0 += entry.count,
                    Slot::Vacant(_) if is_full => others += entry.count,
                    Slot::Vacant(new) => drop(new.insert((entry.count, entry.index))),
                }
            }
        })?;
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, (count, first))| (std::cmp::Reverse(*count), *first));
        others += kinds.iter().skip(KINDS).map(|(_, (count, _))| count).sum::<u64>();
        let failures = kinds.into_iter().take(KINDS).map(|((code, error_type, message), (count, example_index))| {
            FailuresView { code, error_type, message, count, example_index }
        });
        Ok(SummaryView {
            inputs: stored.record.counts,
            queue: queue.view(),
            run: run.view(),
            failures: failures.collect(),
            other_failures: others,
        })
    }
}

fn of(index: u64, state: InputState) -> InputView {
    InputView { index, state, attempts: None, container: None, run_ms: None, finished_at: None, error: None }
}

fn ended(index: u64, entry: &Entry) -> InputView {
    let (state, error) = match &entry.outcome {
        Outcome::Succeeded(_) => (InputState::Succeeded, None),
        Outcome::Failed(failure) => (InputState::Failed, Some(error_json(failure))),
        Outcome::Cancelled => (InputState::Cancelled, None),
    };
    InputView {
        attempts: Some(entry.attempts),
        container: (entry.container.0 != 0).then_some(entry.container),
        run_ms: (entry.attempts > 0).then_some(entry.run_us as f64 / 1000.0),
        finished_at: Some(clock::rfc3339(entry.finished)),
        error,
        ..of(index, state)
    }
}

/// Steps between one power of two and the next: each is less than two per cent wide.
const STEPS: u64 = 64;

/// Durations, counted in steps that grow with them: its size does not grow with their number.
#[derive(Default)]
struct Spread {
    counts: BTreeMap<u64, u64>,
    total: u64,
    max: u64,
}

impl Spread {
    fn add(&mut self, us: u64, count: u64) {
        *self.counts.entry(step_of(us)).or_default() += count;
        self.total += count;
        self.max = self.max.max(us);
    }

    fn quantile_ms(&self, part: f64) -> f64 {
        let wanted = (part * self.total as f64).ceil() as u64;
        let mut seen = 0;
        for (step, count) in &self.counts {
            seen += count;
            if seen >= wanted {
                return end_of(*step).min(self.max) as f64 / 1000.0;
            }
        }
        0.0
    }

    fn view(&self) -> SpreadView {
        const BOUNDS_MS: [u64; 13] = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000];
        let mut buckets: Vec<BucketView> =
            BOUNDS_MS.iter().map(|ms| BucketView { le_ms: Some(*ms as f64), count: 0 }).collect();
        buckets.push(BucketView { le_ms: None, count: 0 });
        for (step, count) in &self.counts {
            let at = BOUNDS_MS.partition_point(|ms| ms * 1000 < end_of(*step));
            buckets[at].count += count;
        }
        SpreadView {
            count: self.total,
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            max_ms: self.max as f64 / 1000.0,
            buckets,
        }
    }
}

fn step_of(us: u64) -> u64 {
    if us < STEPS {
        return us;
    }
    let power = u64::from(us.ilog2());
    let within = (us >> (power - 6)) - STEPS;
    STEPS + (power - 6) * STEPS + within
}

/// The longest duration in a step.
fn end_of(step: u64) -> u64 {
    if step < STEPS {
        return step;
    }
    let (power, within) = ((step - STEPS) / STEPS, (step - STEPS) % STEPS);
    ((STEPS + within + 1) << power).saturating_sub(1)
}

impl Run<Inputs> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<Inputs>) -> Result<InputsView, Refusal> {
        self.inputs(&ask.who, ask.verb.clone()).await
    }
}

impl Run<Summarize> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<Summarize>) -> Result<SummaryView, Refusal> {
        self.summarize(&ask.who, ask.verb.call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_lies_in_a_step_that_ends_within_two_per_cent_of_it(us in 0u64..1 << 50) {
            let end = end_of(step_of(us));
            prop_assert!(end >= us && end as f64 <= us as f64 * 1.02 + 1.0, "{us} {end}");
            prop_assert!(us == 0 || step_of(us - 1) <= step_of(us));
        }
    }

    #[test]
    fn quantiles_and_buckets_are_those_of_what_was_counted() {
        let mut spread = Spread::default();
        for ms in 1..=100 {
            spread.add(ms * 1000, 1);
        }
        spread.add(2_000_000_000, 1);
        let view = spread.view();
        assert!((view.p50_ms - 51.0).abs() < 1.5 && (view.p90_ms - 91.0).abs() < 2.0, "{view:?}");
        assert_eq!((view.count, view.max_ms), (101, 2_000_000.0));
        assert_eq!(view.buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 101);
        assert_eq!(view.buckets.last().unwrap().count, 1);
    }
}
