//! Faults: crashes, pauses, cut links, lost leases, and ends in order.

use super::{
    engine::{Action, World},
    links::SILENCE_MS,
    workers::Worker,
};
use capstan_common::time::Time;
use capstan_scheduler_core::event::Event;
use rand::Rng;

impl World {
    /// One fault, chosen by chance.
    pub(super) fn fault(&mut self) -> Result<(), String> {
        self.report.faults += 1;
        let w = self.rng.random_range(0..self.workers.len());
        let s = self.rng.random_range(0..self.schedulers.len());
        if self.is_clustered() && self.chance(60) {
            return self.fault_of_cluster(s, w);
        }
        match self.rng.random_range(0..10) {
            0..=2 => self.kill(s),
            3..=4 => self.crash_worker(w),
            5..=7 => self.cut(w),
            8 => self.deploy_something_again(),
            _ => self.stop_some_container(),
        }
    }

    fn fault_of_cluster(&mut self, s: usize, w: usize) -> Result<(), String> {
        let brief = self.chance(50);
        let most = if brief { 2_000_000 } else { 12_000_000 };
        let until = self.after(10_000, most);
        match self.rng.random_range(0..13) {
            0..=1 => self.kill(s)?,
            2..=3 => self.pause(s, until),
            4..=5 => {
                self.note(&format!("scheduler {s} is cut off from etcd until {}", until.0));
                self.schedulers[s].cut_off_until = until;
                if self.schedulers[s].runs {
                    let life = self.schedulers[s].life;
                    self.plan(until, Action::Look { scheduler: s, life });
                }
            }
            6 => {
                // etcd has revoked leases that were kept (RELIABILITY F13).
                self.note(&format!("the lease of scheduler {s} is revoked"));
                self.keys.revoke(s);
            }
            7 => {
                if self.schedulers[s].runs {
                    self.note(&format!("scheduler {s} is told to end"));
                    self.schedulers[s].leaves = true;
                    self.keys.members.remove(&s);
                }
            }
            8 => self.partition(s, w, until),
            9 => {
                self.note(&format!("etcd is slow for scheduler {s} until {}", until.0));
                self.schedulers[s].slow_until = until;
            }
            10 => {
                self.note(&format!("the links of worker {w} are slow until {}", until.0));
                self.links.values_mut().filter(|link| link.worker == w).for_each(|link| link.slow_until = until);
            }
            11 => {
                self.note(&format!("etcd is full until {}", until.0));
                self.keys.full_until = until;
            }
            _ => {
                let all: Vec<usize> = (0..self.workers.len()).collect();
                all.into_iter().for_each(|w| self.partition(s, w, until));
            }
        }
        Ok(())
    }

    /// Everything that was not durable is forgotten.
    fn kill(&mut self, s: usize) -> Result<(), String> {
        if !self.schedulers[s].runs {
            return Ok(());
        }
        self.note(&format!("scheduler {s} crashes"));
        self.end_process(s)
    }

    /// It stands still, and knows nothing of it: what comes meanwhile it finds when it wakes (RELIABILITY F2).
    fn pause(&mut self, s: usize, until: Time) {
        if !self.schedulers[s].runs || self.schedulers[s].stopped_until.is_some() {
            return;
        }
        self.note(&format!("scheduler {s} stands still until {}", until.0));
        self.schedulers[s].stopped_until = Some(until);
        self.plan(until, Action::Wake { scheduler: s });
        if until.since_ms(self.now) > SILENCE_MS {
            for link in self.links_of(s) {
                let at = self.now.plus_ms(SILENCE_MS);
                self.plan(at, Action::Silent { link });
            }
        }
    }

    /// Nothing passes between the two until then: a short cut delays what is under way, a long one breaks the link.
    fn partition(&mut self, s: usize, w: usize, until: Time) {
        let ids: Vec<_> = self.links_of(s).into_iter().filter(|id| self.links[id].worker == w).collect();
        for id in ids {
            self.note(&format!("nothing passes between scheduler {s} and worker {w} until {}", until.0));
            let (up, down) = [(true, true), (true, false), (false, true)][self.rng.random_range(0..3)];
            if let Some(link) = self.links.get_mut(&id) {
                link.up_cut_until = if up { until } else { link.up_cut_until };
                link.down_cut_until = if down { until } else { link.down_cut_until };
            }
            if until.since_ms(self.now) > SILENCE_MS {
                let at = self.now.plus_ms(SILENCE_MS);
                self.plan(at, Action::Silent { link: id });
            }
        }
    }

    fn crash_worker(&mut self, w: usize) -> Result<(), String> {
        self.note(&format!("worker {w} crashes"));
        for link in self.links_with(w) {
            self.break_link(link)?;
        }
        let life = self.workers[w].life + 1;
        self.workers[w] = Worker { life, ..Worker::new(w) };
        // Sometimes it is away for longer than schedulers wait.
        let most = if self.chance(30) { 30_000_000 } else { 2_000_000 };
        let back = self.after(10_000, most);
        for s in 0..self.schedulers.len() {
            let at = Time(back.0 + self.rng.random_range(0..200_000));
            self.plan(at, Action::Join { worker: w, life, scheduler: s });
        }
        Ok(())
    }

    /// A worker's links break, or one of them.
    fn cut(&mut self, w: usize) -> Result<(), String> {
        let links = self.links_with(w);
        let all = self.chance(50);
        let long = self.chance(20);
        for link in links {
            if all || self.chance(50) {
                self.note(&format!("a link of worker {w} breaks"));
                self.break_link(link)?;
            }
        }
        if long {
            // It finds nobody for longer than schedulers wait.
            self.workers[w].dials_from = self.after(1_000_000, 30_000_000);
        }
        Ok(())
    }

    /// Another revision of the same spec: it takes over when its first container is ready, or at once.
    fn deploy_something_again(&mut self) -> Result<(), String> {
        let f = self.rng.random_range(0..self.functions.len());
        let at_once = self.chance(20);
        let Some(at) = self.owner(f) else { return Ok(()) };
        self.note(&format!("function {f} is deployed again"));
        let spec = self.functions[f].spec.clone();
        self.step_function(at, Event::Deploy { spec, at_once })
    }

    fn stop_some_container(&mut self) -> Result<(), String> {
        let f = self.rng.random_range(0..self.functions.len());
        let Some(at) = self.owner(f) else { return Ok(()) };
        let core = self.host(at).and_then(|host| host.core.as_ref());
        let ids: Vec<_> = core.map_or_else(Vec::new, |core| core.containers().map(|c| c.id).collect());
        if ids.is_empty() {
            return Ok(());
        }
        let container = ids[self.rng.random_range(0..ids.len())];
        self.note(&format!("an operator stops {container}"));
        self.stoppable.insert(container);
        self.step_function(at, Event::StopContainer { container })
    }
}
