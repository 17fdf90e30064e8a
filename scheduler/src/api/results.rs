//! Results: read from the store, in the order of their ends or of their inputs.

use super::{Api, Refusal};
use crate::{
    actor::{
        function::Watch,
        watch::{Update, WATCH_BACKLOG},
    },
    store::{
        layout::{self, StoredCall},
        store_refusal, stored,
    },
};
use capstan_common::{id::CallId, input::Outcome};
use capstan_scheduler_core::record::Entry;
use capstan_verb::{access::Subject, call::Line, cursor::Cursor};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;

/// Location tables that are kept for ordered reading.
const TABLES: usize = 4;
/// No place: the input has not ended.
const NOWHERE: u64 = u64::MAX;
/// Bytes of outputs that one page holds, about.
const PAGE_BYTES: u64 = 8 << 20;
/// Bits of a place that count entries within a record.
const ENTRY_BITS: u32 = 24;

/// Lines of one page, which is full when they hold much, however few they are.
#[derive(Default)]
struct Lines {
    page: Vec<Line>,
    bytes: u64,
}

impl Lines {
    fn push(&mut self, line: Line) {
        self.bytes += match &line.outcome {
            Outcome::Succeeded(payload) => payload.held(),
            Outcome::Failed(failure) => (failure.message.len() + failure.traceback.len()) as u64,
            Outcome::Cancelled => 0,
        };
        self.page.push(line);
    }

    fn is_full(&self) -> bool {
        self.bytes >= PAGE_BYTES
    }
}

/// Where each input's end lies, for ordered reading.
#[derive(Default)]
struct Table {
    /// The record that was read last, and how many entries it had then: it may have got more.
    record: u64,
    entries: usize,
    places: Vec<u64>,
}

/// Tables of the calls that were read last.
#[derive(Default)]
pub struct Tables(Mutex<VecDeque<(CallId, Arc<Mutex<Table>>)>>);

impl Tables {
    fn of(&self, call: CallId) -> Arc<Mutex<Table>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tables.iter().position(|(id, _)| *id == call).and_then(|at| tables.remove(at));
        let entry = known.unwrap_or_else(|| (call, Arc::default()));
        let table = entry.1.clone();
        tables.push_back(entry);
        if tables.len() > TABLES {
            tables.pop_front();
        }
        table
    }
}

impl Api {
    pub(super) fn record(&self, call: CallId, sequence: u64) -> Result<Option<Vec<Entry>>, Refusal> {
        let store = &self.home(call.place())?.store;
        let read = || {
            if let Some(bytes) = store.get(&layout::outcomes(call, sequence))? {
                return stored::decode(&bytes).map(Some);
            }
            // The few outcomes of an ended call lie with it.
            let ended = if sequence == 0 { store.get(&layout::ended(call))? } else { None };
            ended.map_or(Ok(None), |bytes| layout::outcomes_within(&bytes))
        };
        read().map_err(store_refusal)
    }

    /// Shows every outcome of an ended call.
    pub(super) fn each_outcome(&self, call: CallId, mut each: impl FnMut(&Entry)) -> Result<(), Refusal> {
        let mut sequence = 0;
        while let Some(entries) = self.record(call, sequence)? {
            entries.iter().for_each(&mut each);
            sequence += 1;
        }
        Ok(())
    }

    /// Whether a record exists. The one before it is then full: only the last one gets more entries, so this is looked at
    /// before that one is read.
    fn has_record(&self, call: CallId, sequence: u64) -> bool {
        let here = self.home(call.place());
        here.is_ok_and(|env| !env.store.keys(&layout::outcomes(call, sequence), None, 1, false).is_empty())
    }

    /// How one input ended, if it has.
    pub async fn outcome_of(self: &Arc<Self>, stored: &StoredCall, index: u64) -> Result<Option<Entry>, Refusal> {
        let id = stored.record.id;
        let read = move |api: &Self| {
            let Some((sequence, entry)) = api.place(id, index)? else { return Ok(None) };
            Ok(api.record(id, sequence)?.and_then(|entries| entries.into_iter().nth(entry)))
        };
        self.reading(read).await
    }

    /// Brings a call's table up to date and reads from it.
    pub(super) fn place(&self, call: CallId, index: u64) -> Result<Option<(u64, usize)>, Refusal> {
        let table = self.tables.of(call);
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |table: &Table| table.places.get(index as usize).copied().filter(|p| *p != NOWHERE);
        while known(&table).is_none() {
            let sequence = table.record;
            let full = self.has_record(call, sequence + 1);
            let Some(entries) = self.record(call, sequence)? else { break };
            if entries.len() == table.entries {
                if !full {
                    break;
                }
                (table.record, table.entries) = (sequence + 1, 0);
                continue;
            }
            for (position, entry) in entries.iter().enumerate().skip(table.entries) {
                let (first, end) = (entry.index as usize, (entry.index + entry.count) as usize);
                if table.places.len() < end {
                    table.places.resize(end, NOWHERE);
                }
                table.places[first..end].fill((sequence << ENTRY_BITS) | position as u64);
            }
            table.entries = entries.len();
        }
        Ok(known(&table).map(|place| (place >> ENTRY_BITS, (place & ((1 << ENTRY_BITS) - 1)) as usize)))
    }

    /// Up to `limit` results from a cursor on. With `wait`, waits so long for the first.
    pub async fn results(
        self: &Arc<Self>,
        who: &Subject,
        call: CallId,
        after: Option<Cursor>,
        limit: usize,
        ordered: bool,
        wait: Duration,
    ) -> Result<Vec<Line>, Refusal> {
        let stored = self.seen_call(who, call).await?;
        let from = match (after, ordered) {
            (None, true) => Cursor::Index(0),
            (None, false) => Cursor::Ended(0, 0, 0),
            (Some(cursor @ Cursor::Index(_)), true) | (Some(cursor @ Cursor::Ended(..)), false) => cursor,
            (Some(_), _) => {
                return Err(Refusal::field("after", "belongs to the other order; keep `ordered` as it was"));
            }
        };
        let lines = self.reading(move |api| api.read(call, from, limit)).await?;
        if !lines.is_empty() || wait.is_zero() || stored.record.finished.is_some() {
            return Ok(lines);
        }
        self.await_more(&stored, from, limit, wait).await
    }

    fn read(&self, call: CallId, from: Cursor, limit: usize) -> Result<Vec<Line>, Refusal> {
        match from {
            Cursor::Index(index) => self.read_ordered(call, index, limit),
            Cursor::Ended(record, entry, within) => self.read_ended(call, (record, entry, within), limit),
        }
    }

    fn read_ordered(&self, call: CallId, from: u64, limit: usize) -> Result<Vec<Line>, Refusal> {
        let mut lines = Lines::default();
        let mut last: Option<(u64, Vec<Entry>)> = None;
        for index in from..from.saturating_add(limit as u64) {
            let Some((sequence, position)) = self.place(call, index)? else { break };
            if last.as_ref().is_none_or(|(read, _)| *read != sequence) {
                last = self.record(call, sequence)?.map(|entries| (sequence, entries));
            }
            let entry = last.as_ref().and_then(|(_, entries)| entries.get(position));
            let Some(entry) = entry else { break };
            let cursor = Cursor::Index(index + 1);
            lines.push(Line { index, outcome: entry.outcome.clone(), cursor });
            if lines.is_full() {
                break;
            }
        }
        Ok(lines.page)
    }

    fn read_ended(&self, call: CallId, from: (u64, u32, u64), limit: usize) -> Result<Vec<Line>, Refusal> {
        let (mut record, mut entry, mut within) = from;
        let mut lines = Lines::default();
        while lines.page.len() < limit && !lines.is_full() {
            let full = self.has_record(call, record.saturating_add(1));
            let Some(entries) = self.record(call, record)? else { break };
            for found in entries.iter().skip(entry as usize) {
                while within < found.count && lines.page.len() < limit && !lines.is_full() {
                    let index = found.index + within;
                    within += 1;
                    let cursor = Cursor::Ended(record, entry, within);
                    lines.push(Line { index, outcome: found.outcome.clone(), cursor });
                }
                if within < found.count {
                    return Ok(lines.page);
                }
                within = 0;
                entry += 1;
            }
            if !full {
                break;
            }
            record += 1;
            entry = 0;
        }
        Ok(lines.page)
    }

    async fn await_more(
        self: &Arc<Self>,
        stored: &StoredCall,
        from: Cursor,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<Line>, Refusal> {
        let call = stored.record.id;
        let (watcher, mut updates) = mpsc::channel(WATCH_BACKLOG);
        let watching = self.actor(&stored.function)?.send(Watch { call, watcher }).await == Ok(true);
        let until = tokio::time::Instant::now() + wait;
        loop {
            // What ended before the watch began is read here.
            let lines = self.reading(move |api| api.read(call, from, limit)).await?;
            if !lines.is_empty() || !watching {
                return Ok(lines);
            }
            let news = tokio::select! {
                news = tokio::time::timeout_at(until, updates.recv()) => news,
                () = self.env.stopping.cancelled() => return Ok(lines),
            };
            match news {
                Ok(Some(Update::Closed(_)) | None) => {
                    return self.reading(move |api| api.read(call, from, limit)).await;
                }
                Ok(Some(_)) => {}
                Err(_) => return Ok(lines),
            }
        }
    }
}
