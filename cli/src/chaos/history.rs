//! What clients were told, and whether it came true.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A call that was accepted.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its inputs, by index.
    pub inputs: Vec<Value>,
}

/// All that clients were told.
#[derive(Debug, Default)]
pub struct History {
    /// Accepted calls by id.
    pub calls: BTreeMap<String, Accepted>,
    /// The call that an idempotency key made.
    keys: BTreeMap<String, String>,
    /// Answers that were given while the clients waited.
    pub answers: u64,
    /// Requests that were refused or broke off.
    pub refused: u64,
    /// Promises that were broken.
    pub broken: Vec<String>,
}

impl History {
    /// A call was accepted, by this key.
    pub fn accepted(&mut self, key: &str, call: &str, inputs: Vec<Value>) {
        if let Some(before) = self.keys.insert(key.into(), call.into())
            && before != call
        {
            self.broken.push(format!("the key {key} made the call {before}, and later {call}"));
        }
        self.calls.insert(call.into(), Accepted { inputs });
    }

    /// A client got an output for its input.
    pub fn answered(&mut self, what: &str, input: &Value, output: &Value) {
        self.answers += 1;
        if input != output {
            self.broken.push(format!("{what}: {input} was answered with {output}"));
        }
    }

    /// How an accepted call ended, as its results tell: each input once, with its own output.
    pub fn ended(&mut self, call: &str, lines: &[Value]) {
        let Some(accepted) = self.calls.get(call) else { return };
        let mut seen = BTreeSet::new();
        for line in lines {
            let Some(index) = line["index"].as_u64() else {
                self.broken.push(format!("{call}: a result has no index: {line}"));
                continue;
            };
            if !seen.insert(index) {
                self.broken.push(format!("{call}: input {index} has two outcomes"));
            }
            match accepted.inputs.get(index as usize) {
                Some(input) if line["output"] == *input => {}
                Some(input) => self.broken.push(format!("{call}: input {index} was {input}, its result is {line}")),
                None => self.broken.push(format!("{call}: there was no input {index}")),
            }
        }
        let lost = (0..accepted.inputs.len() as u64).filter(|index| !seen.contains(index)).count();
        if lost > 0 {
            self.broken.push(format!("{call}: {lost} of {} inputs have no outcome", accepted.inputs.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn broken(lines: &[Value]) -> usize {
        let mut history = History::default();
        history.accepted("k", "ca-1", vec![json!(1), json!(2)]);
        history.ended("ca-1", lines);
        history.broken.len()
    }

    #[test]
    fn what_is_lost_doubled_or_wrong_is_found() {
        let (first, second) = (json!({"index": 0, "output": 1}), json!({"index": 1, "output": 2}));
        assert_eq!(broken(&[second.clone(), first.clone()]), 0);
        assert_eq!(broken(std::slice::from_ref(&first)), 1, "lost");
        assert_eq!(broken(&[first.clone(), first.clone(), second.clone()]), 1, "two outcomes");
        assert_eq!(broken(&[first.clone(), json!({"index": 1, "output": 9})]), 1, "wrong");
        assert_eq!(broken(&[first.clone(), json!({"index": 1, "error": {}})]), 1, "failed");
        assert_eq!(broken(&[first, second, json!({"index": 2, "output": 3})]), 1, "never sent");
    }

    #[test]
    fn a_key_that_made_two_calls_is_found() {
        let mut history = History::default();
        history.accepted("k", "ca-1", Vec::new());
        history.accepted("k", "ca-1", Vec::new());
        assert!(history.broken.is_empty());
        history.accepted("k", "ca-2", Vec::new());
        assert_eq!(history.broken.len(), 1);
    }
}
