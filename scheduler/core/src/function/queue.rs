//! The order in which waiting inputs leave: calls take turns, so that a small call never waits for a big one to end.

use crate::record::Tries;
use capstan_common::{id::CallId, input::Payload, time::Time};
use std::collections::{BTreeMap, VecDeque};

/// Inputs that one call may send in one turn.
const QUANTUM: usize = 16;
/// Turns of interactive calls before a background call has one.
const INTERACTIVE_TURNS: u32 = 7;

/// One input that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its call.
    pub call: CallId,
    /// Its place in the call.
    pub index: u64,
    /// The input itself.
    pub payload: Payload,
    /// When it arrived.
    pub submitted: Time,
    /// Its attempts so far, where there were any.
    pub tries: Option<Box<Tries>>,
}

impl Queued {
    /// Attempts that failed by the function's fault.
    pub fn failures(&self) -> u32 {
        self.tries.as_ref().map_or(0, |t| t.failures)
    }

    /// Attempts so far, failed or lost.
    pub fn attempts(&self) -> u32 {
        self.tries.as_ref().map_or(0, |t| t.count())
    }
}

/// One call's waiting inputs.
#[derive(Debug, Clone)]
struct Lane {
    interactive: bool,
    ready: VecDeque<Queued>,
    running: u32,
    running_max: u32,
    in_ring: bool,
}

impl Lane {
    fn is_held_back(&self) -> bool {
        !self.ready.is_empty() && self.running >= self.running_max
    }
}

/// The waiting inputs of a function whose payloads are in memory.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    lanes: BTreeMap<CallId, Lane>,
    interactive: VecDeque<CallId>,
    background: VecDeque<CallId>,
    turns: u32,
    /// Inputs in lanes that are in a ring.
    ready: usize,
    /// Bytes of all inputs in lanes.
    bytes: u64,
}

impl Queue {
    /// Bytes of payloads that wait in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Background calls with inputs that could leave now.
    pub fn background_calls(&self) -> usize {
        self.background.len()
    }

    /// Opens a call's lane; at most `running_max` of its inputs leave before others of it end.
    pub fn open(&mut self, call: CallId, interactive: bool, running_max: u32) {
        self.lanes.insert(call, Lane { interactive, ready: VecDeque::new(), running: 0, running_max, in_ring: false });
    }

    /// Closes a call's lane and gives back what waited in it.
    pub fn close(&mut self, call: CallId) -> VecDeque<Queued> {
        self.leave_ring(call);
        let ready = self.lanes.remove(&call).map_or_else(VecDeque::new, |lane| lane.ready);
        if self.lanes.is_empty() {
            // An empty map keeps its memory: ten thousand idle functions would keep much.
            self.lanes = BTreeMap::new();
        }
        self.bytes -= bytes_of(&ready);
        ready
    }

    /// Takes out what waits in a call's lane; the lane stays.
    pub fn drain(&mut self, call: CallId) -> VecDeque<Queued> {
        self.leave_ring(call);
        let ready = self.lanes.get_mut(&call).map_or_else(VecDeque::new, |lane| std::mem::take(&mut lane.ready));
        self.bytes -= bytes_of(&ready);
        ready
    }

    /// Adds an input at the end of its call's lane.
    pub fn push_back(&mut self, input: Queued) {
        self.push(input, false);
    }

    /// Adds an input that had its turn before, at the front of its call's lane.
    pub fn push_front(&mut self, input: Queued) {
        self.push(input, true);
    }

    fn push(&mut self, input: Queued, front: bool) {
        let call = input.call;
        let Some(lane) = self.lanes.get_mut(&call) else {
            return;
        };
        self.bytes += input.payload.held();
        if front {
            lane.ready.push_front(input);
        } else {
            lane.ready.push_back(input);
        }
        if lane.in_ring {
            self.ready += 1;
        } else {
            self.enter_ring(call);
        }
    }

    /// Looks at one input that waits in memory.
    pub fn find(&self, call: CallId, index: u64) -> Option<&Queued> {
        self.lanes.get(&call)?.ready.iter().find(|q| q.index == index)
    }

    /// Whether a call has inputs that wait for others of it to end.
    pub fn is_call_held_back(&self, call: CallId) -> bool {
        self.lanes.get(&call).is_some_and(Lane::is_held_back)
    }

    /// Whether any has.
    pub fn is_held_back(&self) -> bool {
        self.lanes.values().any(Lane::is_held_back)
    }

    /// Removes one input wherever it waits.
    pub fn remove(&mut self, call: CallId, index: u64) -> Option<Queued> {
        let lane = self.lanes.get_mut(&call)?;
        let position = lane.ready.iter().position(|q| q.index == index)?;
        let taken = lane.ready.remove(position);
        self.bytes -= taken.as_ref().map_or(0, |input| input.payload.held());
        if lane.in_ring {
            self.ready -= 1;
            if lane.ready.is_empty() {
                self.leave_ring(call);
            }
        }
        taken
    }

    /// An attempt of a call ended or came back.
    pub fn release(&mut self, call: CallId, count: u32) {
        if let Some(lane) = self.lanes.get_mut(&call) {
            lane.running -= count;
            self.enter_ring(call);
        }
    }

    /// An attempt of a call is held without having left through the queue (adopted after a restart).
    pub fn adopt(&mut self, call: CallId) {
        if let Some(lane) = self.lanes.get_mut(&call) {
            lane.running += 1;
            if lane.running >= lane.running_max {
                self.leave_ring(call);
            }
        }
    }

    fn enter_ring(&mut self, call: CallId) {
        let Some(lane) = self.lanes.get_mut(&call) else {
            return;
        };
        if lane.in_ring || lane.ready.is_empty() || lane.running >= lane.running_max {
            return;
        }
        lane.in_ring = true;
        self.ready += lane.ready.len();
        if lane.interactive {
            self.interactive.push_back(call);
        } else {
            self.background.push_back(call);
        }
    }

    fn leave_ring(&mut self, call: CallId) {
        let Some(lane) = self.lanes.get_mut(&call).filter(|lane| lane.in_ring) else {
            return;
        };
        lane.in_ring = false;
        self.ready -= lane.ready.len();
        let ring = if lane.interactive { &mut self.interactive } else { &mut self.background };
        if let Some(position) = ring.iter().position(|c| *c == call) {
            ring.remove(position);
        }
    }

    /// Inputs that could leave now.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Inputs in memory of one call.
    pub fn waiting_of(&self, call: CallId) -> usize {
        self.lanes.get(&call).map_or(0, |lane| lane.ready.len())
    }

    /// When the oldest input that could leave arrived. Walks the calls in turn: meant for less than a batch of inputs.
    pub fn oldest(&self) -> Option<Time> {
        let rings = self.interactive.iter().chain(&self.background);
        rings.filter_map(|call| self.lanes[call].ready.front()).map(|q| q.submitted).min()
    }

    /// Takes the next inputs, at most `count`, into `out`.
    pub fn take(&mut self, count: usize, out: &mut Vec<Queued>) {
        let mut left = count;
        while left > 0 {
            let background_turn = self.turns >= INTERACTIVE_TURNS && !self.background.is_empty();
            let ring = if self.interactive.is_empty() || background_turn {
                self.turns = 0;
                &mut self.background
            } else {
                self.turns += 1;
                &mut self.interactive
            };
            let Some(call) = ring.pop_front() else { return };
            let lane = self.lanes.get_mut(&call).expect("a ring names open lanes");
            lane.in_ring = false;
            self.ready -= lane.ready.len();
            let room = (lane.running_max - lane.running) as usize;
            let turn = left.min(room).min(QUANTUM).min(lane.ready.len());
            let from = out.len();
            out.extend(lane.ready.drain(..turn));
            self.bytes -= out[from..].iter().map(|input| input.payload.held()).sum::<u64>();
            lane.running += turn as u32;
            left -= turn;
            self.enter_ring(call);
        }
    }

    /// Checks what must always hold; for tests and the simulator.
    pub fn check(&self) -> Result<(), String> {
        let in_rings: usize =
            self.interactive.iter().chain(&self.background).map(|call| self.lanes[call].ready.len()).sum();
        if in_rings != self.ready {
            return Err(format!("queue counts {} ready, has {in_rings}", self.ready));
        }
        let bytes: u64 = self.lanes.values().map(|lane| bytes_of(&lane.ready)).sum();
        if bytes != self.bytes {
            return Err(format!("queue counts {} bytes, has {bytes}", self.bytes));
        }
        for (call, lane) in &self.lanes {
            let should = !lane.ready.is_empty() && lane.running < lane.running_max;
            if should != lane.in_ring {
                return Err(format!("{call}: in a ring {}, should be {should}", lane.in_ring));
            }
        }
        Ok(())
    }
}

fn bytes_of(inputs: &VecDeque<Queued>) -> u64 {
    inputs.iter().map(|input| input.payload.held()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn input(call: u128, index: u64) -> Queued {
        Queued { call: CallId(call), index, payload: Payload::json(Bytes::new()), submitted: Time(index), tries: None }
    }

    fn take(queue: &mut Queue, count: usize) -> Vec<(u128, u64)> {
        let mut out = Vec::new();
        queue.take(count, &mut out);
        queue.check().unwrap();
        out.iter().map(|q| (q.call.0, q.index)).collect()
    }

    #[test]
    fn a_small_call_does_not_wait_for_a_big_one() {
        let mut queue = Queue::default();
        queue.open(CallId(1), false, u32::MAX);
        (0..1000).for_each(|i| queue.push_back(input(1, i)));
        queue.open(CallId(2), false, u32::MAX);
        queue.push_back(input(2, 0));
        assert!(take(&mut queue, 2 * QUANTUM).contains(&(2, 0)));
    }

    #[test]
    fn background_calls_have_a_turn_among_interactive_ones() {
        let mut queue = Queue::default();
        queue.open(CallId(1), true, u32::MAX);
        queue.open(CallId(2), false, u32::MAX);
        (0..1000).for_each(|i| queue.push_back(input(1, i)));
        (0..1000).for_each(|i| queue.push_back(input(2, i)));
        let taken = take(&mut queue, 1024);
        let background = taken.iter().filter(|(call, _)| *call == 2).count();
        assert_eq!(background, 1024 / 8);
    }

    #[test]
    fn a_call_at_its_running_limit_waits_until_one_ends() {
        // SPEC F18 M06
        let mut queue = Queue::default();
        queue.open(CallId(1), true, 3);
        (0..5).for_each(|i| queue.push_back(input(1, i)));
        assert_eq!(take(&mut queue, 10).len(), 3);
        assert_eq!(queue.ready(), 0);
        queue.release(CallId(1), 1);
        assert_eq!(take(&mut queue, 10), [(1, 3)]);
    }

    #[test]
    fn what_comes_back_goes_first_and_what_is_removed_is_gone() {
        let mut queue = Queue::default();
        queue.open(CallId(1), true, 9);
        (1..4).for_each(|i| queue.push_back(input(1, i)));
        queue.push_front(input(1, 0));
        assert_eq!(queue.remove(CallId(1), 2).map(|q| q.index), Some(2));
        assert_eq!(queue.oldest(), Some(Time(0)));
        assert_eq!(take(&mut queue, 9), [(1, 0), (1, 1), (1, 3)]);
        assert!(queue.close(CallId(1)).is_empty());
    }
}
