//! The one actor that owns timers: a busy actor's own timers can starve behind its mailbox.

use super::function::{FunctionActor, Ring};
use crate::clock;
use actix::prelude::*;
use capstan_common::{id::FunctionKey, time::Time};
use std::{collections::BTreeMap, time::Duration};

/// Rings functions at the times that they asked for: one alarm a function, the earliest.
#[derive(Default)]
pub struct AlarmActor {
    due: BTreeMap<(Time, FunctionKey), Addr<FunctionActor>>,
    set: BTreeMap<FunctionKey, Time>,
    armed: Option<(Time, SpawnHandle)>,
}

/// Ring this function then.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Set {
    /// When.
    pub at: Time,
    /// Whom, by name.
    pub key: FunctionKey,
    /// Whom.
    pub function: Addr<FunctionActor>,
}

impl Actor for AlarmActor {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1 << 16);
    }
}

impl Handler<Set> for AlarmActor {
    type Result = ();
    fn handle(&mut self, set: Set, ctx: &mut Context<Self>) {
        // The actor asks only for what is earlier than what it has asked for.
        if let Some(before) = self.set.insert(set.key.clone(), set.at) {
            self.due.remove(&(before, set.key.clone()));
        }
        self.due.insert((set.at, set.key), set.function);
        self.arm(ctx);
    }
}

impl AlarmActor {
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let Some((first, _)) = self.due.first_key_value() else { return };
        let at = first.0;
        if let Some((armed, handle)) = self.armed {
            if armed <= at {
                return;
            }
            ctx.cancel_future(handle);
        }
        let wait = Duration::from_micros(at.since_us(clock::now()));
        let handle = ctx.run_later(wait, |actor, ctx| {
            actor.armed = None;
            actor.ring(ctx);
            actor.arm(ctx);
        });
        self.armed = Some((at, handle));
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        let now = clock::now();
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let ((_, key), function) = entry.remove_entry();
            self.set.remove(&key);
            // Waits where the mailbox is full; an actor that is gone needs no alarm.
            ctx.spawn(
                async move {
                    let _ = function.send(Ring).await;
                }
                .into_actor(self),
            );
        }
    }
}
