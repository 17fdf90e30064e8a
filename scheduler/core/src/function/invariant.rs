//! What must hold after every step; checked in tests and in the simulator.

use super::{Function, Side};
use crate::effect::Output;
use std::collections::BTreeSet;

impl Function {
    /// Checks the whole state: accounts add up, no input is in two places, limits hold.
    pub fn check(&self) -> Result<(), String> {
        self.queue.check()?;
        self.delayed.check()?;
        self.pool.check()?;
        self.check_accounts()?;
        self.check_leases()?;
        self.check_web()?;
        self.check_size()
    }

    /// A step says all that follows: concluding it once more says nothing. (It copies the function: for small ones.)
    pub fn check_concluded(&self) -> Result<(), String> {
        let (mut again, mut out) = (self.clone(), Output::default());
        again.conclude(self.now, &mut out);
        if out != Output::default() {
            return Err(format!("a second conclusion of the same step says {out:?}"));
        }
        again.check()
    }

    /// RELIABILITY P3: never more than the maximum, stopping ones included. Adopted ones and those of older revisions may
    /// come on top until they are done; a maximum that was lowered takes nothing away.
    fn check_size(&self) -> Result<(), String> {
        let ours = |c: &&super::pool::Container| !c.adopted && c.revision == self.serving().revision;
        let count = self.pool.iter().map(|(_, c)| c).filter(ours).count() as u32;
        let max = self.facts().max;
        if !self.removed && count > max && self.overrides.max_containers.is_none() {
            return Err(format!("{count} containers, at most {max} allowed"));
        }
        Ok(())
    }

    fn check_accounts(&self) -> Result<(), String> {
        let (mut interactive, mut background, mut credit) = (Side::default(), Side::default(), 0);
        for call in self.calls.values() {
            let counts = call.counts;
            if counts.total != counts.pending + counts.running + counts.ended() {
                return Err(format!("{}: counts do not add up: {counts:?}", call.id));
            }
            if call.is_over() || !call.settling.is_empty() {
                return Err(format!("{}: over or unsettled after a step", call.id));
            }
            let side = if call.kind.is_interactive() { &mut interactive } else { &mut background };
            side.pending += counts.pending;
            side.running += counts.running;
            credit += call.bulk.as_ref().map_or(0, |b| b.credit);
            if call.cancelled && counts.pending > 0 {
                return Err(format!("{}: cancelled with {} pending", call.id, counts.pending));
            }
        }
        background.pending += self.parked.len();
        let (waiting, inside) = self.web.counts();
        interactive.pending += waiting;
        interactive.running += inside;
        if (interactive, background, credit) != (self.interactive, self.background, self.credit) {
            return Err(format!(
                "totals {:?} {:?} {}, calls have {interactive:?} {background:?} {credit}",
                self.interactive, self.background, self.credit
            ));
        }
        Ok(())
    }

    fn check_leases(&self) -> Result<(), String> {
        let mut held = BTreeSet::new();
        let mut running = self.web.counts().1;
        for (id, container) in self.pool.iter() {
            for lease in container.leases.values() {
                running += 1;
                if !held.insert((lease.input.call, lease.input.index)) {
                    return Err(format!("{id}: input {} {} is held twice", lease.input.call, lease.input.index));
                }
            }
        }
        if running != self.interactive.running + self.background.running {
            return Err(format!("{running} leases, accounts say otherwise"));
        }
        match self.delayed.iter().find(|input| held.contains(input)) {
            Some((call, index)) => Err(format!("input {call} {index} waits and runs")),
            None => Ok(()),
        }
    }
}
