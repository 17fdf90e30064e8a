//! The one actor that owns timers: a busy actor's own timers can starve behind its mailbox.

use super::function::{FunctionActor, Ring};
use crate::clock;
use actix::prelude::*;
use capstan_common::time::Time;
use std::{collections::BTreeMap, time::Duration};

/// Rings functions at the times that they asked for.
#[derive(Default)]
pub struct AlarmActor {
    due: BTreeMap<(Time, u64), Addr<FunctionActor>>,
    counter: u64,
    armed: Option<(Time, SpawnHandle)>,
}

/// Ring this function then.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Set {
    /// When.
    pub at: Time,
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
        self.counter += 1;
        self.due.insert((set.at, self.counter), set.function);
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
            let function = entry.remove();
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
