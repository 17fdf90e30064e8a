//! Loading back: what a scheduler reads when it takes over, without the payloads of what waits.

use super::{
    Change, Store, StoreError,
    layout::{self, StoredCall, StoredFunction},
    stored::{self, Stored},
};
use capstan_common::{
    call::{CallKind, CallState, Counts},
    id::{CallId, ContainerId, FunctionKey},
    input::Outcome,
    time::Time,
};
use capstan_scheduler_core::{
    event::Fetched,
    function::{RecoveredCall, Recovery, Runs},
    record::{Entry, UsedKey},
};
use std::collections::BTreeMap;

/// Keys read at once.
const PAGE: usize = 1024;

/// Calls `each` for every key with the prefix.
pub fn each_key(
    store: &dyn Store,
    prefix: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after: Option<Box<[u8]>> = None;
    loop {
        let page = store.keys(prefix, after.as_deref(), PAGE, false);
        for key in &page {
            each(key)?;
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.clone()),
            _ => return Ok(()),
        }
    }
}

fn value<T: Stored>(store: &dyn Store, key: &[u8]) -> Result<Option<T>, StoreError> {
    store.get(key)?.map(|bytes| stored::decode(&bytes)).transpose()
}

/// Reads functions and live calls. Of each function's single calls behind the first `head` only the ids are kept.
/// Input segments of calls that were never accepted are removed, and calls whose function is gone end.
pub fn load(store: &dyn Store, head: usize, now: Time) -> Result<Vec<Recovery>, StoreError> {
    let mut functions = BTreeMap::new();
    each_key(store, layout::FUNCTIONS, |key| {
        let Some(name) = layout::function_of(key) else { return Ok(()) };
        let Some(stored) = value::<StoredFunction>(store, key)? else { return Ok(()) };
        let (deployed, overrides) = stored.read()?;
        let keys = load_keys(store, &name)?;
        let decisions = value(store, &layout::decisions(&name))?.unwrap_or_default();
        let schedule = value(store, &layout::schedule(&name))?.unwrap_or_default();
        let serving = value::<StoredFunction>(store, &layout::serving(&name))?;
        let serving = serving.map(|stored| stored.read()).transpose()?.map(|(before, _)| before);
        let (calls, parked) = (Vec::new(), Vec::new());
        let recovery =
            Recovery { key: name.clone(), deployed, serving, overrides, calls, parked, keys, schedule, decisions };
        functions.insert(name, recovery);
        Ok(())
    })?;
    let mut orphans = Vec::new();
    each_key(store, layout::LIVE, |key| {
        let Some(stored) = value::<StoredCall>(store, key)? else { return Ok(()) };
        let Some(recovery) = functions.get_mut(&stored.function) else {
            orphans.extend(end_orphan(store, stored, now)?);
            return Ok(());
        };
        let id = stored.record.id;
        let single = stored.record.kind == CallKind::Spawn && recovery.calls.len() >= head;
        if single && store.keys(&layout::of_call(b'A', id), None, 1, false).is_empty() {
            recovery.parked.push(id);
        } else {
            recovery.calls.push(load_call(store, stored)?);
        }
        Ok(())
    })?;
    if !orphans.is_empty() {
        store.commit(&orphans)?;
    }
    drop_unaccepted(store)?;
    Ok(functions.into_values().collect())
}

fn load_keys(store: &dyn Store, function: &FunctionKey) -> Result<Vec<(String, UsedKey)>, StoreError> {
    let prefix = layout::used_keys(function);
    let mut keys = Vec::new();
    each_key(store, &prefix, |key| {
        let text = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        keys.extend(value::<UsedKey>(store, key)?.map(|used| (text, used)));
        Ok(())
    })?;
    Ok(keys)
}

fn load_call(store: &dyn Store, stored: StoredCall) -> Result<RecoveredCall, StoreError> {
    let id = stored.record.id;
    let mut call = RecoveredCall {
        record: stored.record,
        here: stored.here,
        open: Vec::new(),
        ended: Runs::default(),
        counts: Counts::default(),
        outcome_records: 0,
        attempted: BTreeMap::new(),
    };
    each_key(store, &layout::of_call(b'S', id), |key| {
        call.open.push(layout::number_of(key) as u32);
        Ok(())
    })?;
    each_key(store, &layout::of_call(b'O', id), |key| {
        call.outcome_records = layout::number_of(key) + 1;
        for entry in value::<Vec<Entry>>(store, key)?.unwrap_or_default() {
            call.ended.add(entry.index, entry.count);
            match entry.outcome {
                Outcome::Succeeded(_) => call.counts.succeeded += entry.count,
                Outcome::Failed(_) => call.counts.failed += entry.count,
                Outcome::Cancelled => call.counts.cancelled += entry.count,
            }
        }
        Ok(())
    })?;
    each_key(store, &layout::of_call(b'A', id), |key| {
        if let Some(tries) = value(store, key)? {
            call.attempted.insert(layout::number_of(key), tries);
        }
        Ok(())
    })?;
    Ok(call)
}

/// A call that was running when its function was removed, and had not ended when the scheduler did.
fn end_orphan(store: &dyn Store, stored: StoredCall, now: Time) -> Result<Vec<Change>, StoreError> {
    let loaded = load_call(store, stored.clone())?;
    let (mut record, mut counts) = (stored.record.clone(), loaded.counts);
    let total = if record.kind == CallKind::Map { counts.ended() } else { record.counts.total };
    let gaps = loaded.ended.gaps(0, total).into_iter().map(|(index, count)| Entry {
        index,
        count,
        attempts: 0,
        container: ContainerId(0),
        submitted: record.created,
        leased: now,
        run_us: 0,
        finished: now,
        outcome: Outcome::Cancelled,
        tries: None,
    });
    let gaps: Vec<Entry> = gaps.collect();
    counts.cancelled += gaps.iter().map(|gap| gap.count).sum::<u64>();
    counts.total = total;
    record.counts = counts;
    record.state = CallState::Cancelled;
    record.finished = Some(now);
    record.segments = Vec::new();
    Ok(layout::orphan_ended(StoredCall { record, here: Vec::new(), ..stored }, gaps, loaded.outcome_records))
}

/// Reads a single call that waited in the store.
///
/// # Errors
/// The store does not answer.
pub fn fetch(store: &dyn Store, call: CallId) -> Result<Fetched, StoreError> {
    let unreadable = |why: String| Fetched {
        call,
        created: Time(call.born_ms() * 1000),
        traceparent: "".into(),
        payload: Err(why.into()),
    };
    Ok(match value::<StoredCall>(store, &layout::live(call)) {
        Ok(Some(stored)) => Fetched {
            call,
            created: stored.record.created,
            traceparent: stored.record.traceparent,
            payload: stored.here.into_iter().next().ok_or_else(|| "the stored call has no input".into()),
        },
        Ok(None) => unreadable("the call is not in the store".into()),
        Err(silent @ StoreError::Silent(_)) => return Err(silent),
        Err(error) => {
            tracing::error!(%call, error = &error as &dyn std::error::Error, "a call cannot be read");
            unreadable(format!("the call cannot be read: {error}"))
        }
    })
}

/// A crash in the middle of an upload leaves segments whose call was never accepted.
fn drop_unaccepted(store: &dyn Store) -> Result<(), StoreError> {
    let mut orphans = Vec::new();
    let mut known: Option<(CallId, bool)> = None;
    each_key(store, b"S", |key| {
        let Some(call) = layout::call_of(key) else { return Ok(()) };
        let accepted = match known {
            Some((same, accepted)) if same == call => accepted,
            _ => !store.keys(&layout::live(call), None, 1, false).is_empty(),
        };
        known = Some((call, accepted));
        if !accepted {
            orphans.push(Change::Delete(key.into()));
        }
        Ok(())
    })?;
    if orphans.is_empty() { Ok(()) } else { store.commit(&orphans) }
}
