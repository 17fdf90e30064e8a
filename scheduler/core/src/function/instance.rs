//! Instances: a function with values for its parameters is a function of its own, made on first use. It goes when it has
//! nothing, nobody has changed its settings, and nobody has asked for it for a while.

use super::Function;
use crate::effect::Output;
use capstan_common::{function::Overrides, parameter, refusal::Refusal, time::Time};

impl Function {
    /// Somebody is about to use it: it stays for a while.
    pub(super) fn touch(&mut self, now: Time) -> Result<(), Refusal> {
        self.must_exist()?;
        self.unused_since = Some(now);
        Ok(())
    }

    fn is_used(&self) -> bool {
        let (waiting, inside) = self.web.counts();
        let works = !self.pool.is_empty() || !self.calls.is_empty() || self.parked.len() + waiting + inside > 0;
        let referenced = !self.keys.is_empty() || self.overrides != Overrides::default();
        works || referenced || self.sizing.wanted() > 0 || self.holding
    }

    /// An instance that has been unused for long enough goes.
    pub(super) fn go_if_unused(&mut self, now: Time, out: &mut Output) {
        if self.removed || !parameter::is_instance(&self.key) {
            return;
        }
        if self.is_used() {
            self.unused_since = None;
            return;
        }
        let since = *self.unused_since.get_or_insert(now);
        if since.plus_ms(self.limits.instance_idle_ms) <= now {
            self.remove(now, out);
        }
    }

    /// When that would be.
    pub(super) fn unused_due(&self) -> Option<Time> {
        let since = self.unused_since.filter(|_| !self.removed)?;
        Some(since.plus_ms(self.limits.instance_idle_ms))
    }
}
