//! What must always hold of the autoscaler's sums.

use super::{Autoscaler, Want};
use capstan_common::{id::FunctionKey, worker::WorkerState};

impl Autoscaler {
    /// Checks what must always hold: no worker is promised more than it has, and all sums are true.
    pub fn check(&self) -> Result<(), String> {
        self.held.check()?;
        for (id, worker) in &self.workers {
            let used = self.held.on(id);
            // While a worker joins, what is lost and what is adopted are told one after the other; nothing is granted there. In a
            // cluster two may have granted the same room: the worker refuses one, and meanwhile a new owner may adopt the other.
            if !self.elsewhere.is_told() && worker.state == WorkerState::Ready && !worker.capacity.covers(used) {
                return Err(format!("worker {id}: {used:?} promised of {:?}", worker.capacity));
            }
        }
        self.check_ranking()?;
        let gives = |(_, want): &(&FunctionKey, &Want)| want.demand.spare > 0 || want.demand.leaving > 0;
        if !self.wants.iter().filter(gives).map(|(function, _)| function).eq(self.giving.iter()) {
            return Err("those that give are remembered wrongly".into());
        }
        Ok(())
    }
}
