//! What a function's step asks for: told, and passed on to the autoscaler and the containers.

use super::Cluster;
use crate::{
    containers::{Act, Containers},
    tell,
};
use capstan_common::{
    id::{CallId, ContainerId, FunctionKey},
    input::Payload,
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler,
    decision::Decision,
    effect::{Effect, Notice, Output, Promise},
    event::{Event, Fetched},
};

impl Cluster {
    pub(super) fn perform(&mut self, key: &FunctionKey, out: Output) {
        self.tell_decisions(key);
        for effect in out.effects {
            match effect {
                Effect::Order(worker, order) => {
                    let said = self.containers.order(self.now, &worker, order);
                    said.iter().for_each(|said| self.say(&Self::name(key), said));
                }
                Effect::Demand(demand) => self.acts.push_back(Act::Autoscaler(autoscaler::Event::Wanted(demand))),
                Effect::Release(container) => {
                    self.acts.push_back(Act::Autoscaler(autoscaler::Event::Released(container)));
                }
                Effect::Hold { container, worker, amount } => {
                    let function = key.clone();
                    let held = autoscaler::Event::Held { container, function, worker, amount };
                    self.acts.push_back(Act::Autoscaler(held));
                }
                Effect::Admit { request, container, .. } => {
                    let number = self.containers.number(container, key);
                    self.say(&Self::name(key), &format!("request {} goes to #{number}", request.0));
                    self.containers.visit(self.now, key, request);
                }
                Effect::Expel { request, why } => {
                    self.say(&Self::name(key), &format!("request {} is turned away: {}", request.0, why.detail));
                }
                Effect::Notice(notice) => self.notice(key, notice),
                Effect::Load { .. } => panic!("scripts bring no inputs that lie in the store"),
                Effect::Credit { .. } | Effect::AskRequests { .. } | Effect::Started { .. } => {}
            }
        }
        out.promises.into_iter().for_each(|promise| self.keep(key, promise));
    }

    fn tell_decisions(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get(key) else { return };
        let told = self.decided.entry(key.clone()).or_default();
        let since = told.last().map_or(Time(0), |last| last.at);
        let new = |decision: &&Decision| decision.at >= since && !told.contains(decision);
        let mut new: Vec<Decision> = function.decisions().filter(new).cloned().collect();
        new.reverse();
        let mut before = Vec::new();
        for decision in new {
            told.retain(|told| told.at == decision.at);
            told.push(decision.clone());
            let same = |(of, latest): &(FunctionKey, Decision)| {
                of == key && (latest.at, latest.from) == (decision.at, decision.from)
            };
            if !self.latest.as_ref().is_some_and(same) {
                before.extend(self.latest.take());
            }
            self.latest = Some((key.clone(), decision));
        }
        for (key, decision) in before {
            self.write(&Self::name(&key), &tell::decision(&decision));
        }
    }

    pub(super) fn tell_latest(&mut self) {
        if let Some((key, decision)) = self.latest.take() {
            self.write(&Self::name(&key), &tell::decision(&decision));
        }
    }

    fn notice(&mut self, key: &FunctionKey, notice: Notice) {
        let number = |containers: &mut Containers, container: ContainerId| containers.number(container, key);
        match notice {
            Notice::StartFailed { container, detail } => {
                let number = number(&mut self.containers, container);
                self.say(&Self::name(key), &format!("#{number} does not start: {detail}"));
            }
            Notice::ContainerEnded { container, detail } => {
                let number = number(&mut self.containers, container);
                self.say(&Self::name(key), &format!("#{number} has ended: {detail}"));
            }
            Notice::LateOutcome { .. } => self.say(&Self::name(key), "an outcome came too late and is dropped"),
            // Told with its numbers.
            Notice::Scaled { .. } => {}
        }
    }

    fn keep(&mut self, key: &FunctionKey, promise: Promise) {
        let numbered =
            |calls: &[(CallId, FunctionKey)], call| calls.iter().position(|(id, _)| *id == call).map_or(0, |at| at + 1);
        match promise {
            Promise::Fetch { calls } => {
                let fetched = |call| Fetched {
                    call,
                    created: self.now,
                    traceparent: "".into(),
                    payload: Ok(Payload::json(&b"1"[..])),
                };
                let fetched = calls.into_iter().map(fetched).collect();
                self.acts.push_back(Act::Function(key.clone(), Event::Fetched(fetched)));
            }
            Promise::Settled { call, entries } => {
                let number = numbered(&self.calls, call);
                for told in entries.iter().filter_map(tell::entry) {
                    self.say(&Self::name(key), &format!("call {number}, {told}"));
                }
            }
            Promise::Closed { call, state } => {
                let number = numbered(&self.calls, call);
                self.say(
                    &Self::name(key),
                    &format!("call {number} has ended: {}", format!("{state:?}").to_lowercase()),
                );
            }
            Promise::Accepted { .. } | Promise::Recorded { .. } => {}
        }
    }
}
