//! Which worker gets a container: filter, score, take; ties by id.

use crate::decision::Choice;
use capstan_common::{
    gpu::GpuRequest,
    id::WorkerId,
    isolation::{Ground, Needs},
    resource::Amount,
    worker::WorkerState,
};
use std::{cmp::Reverse, collections::BTreeMap};

/// A worker as placement sees it.
#[derive(Clone)]
pub struct Candidate<'a> {
    /// Its name.
    pub id: &'a WorkerId,
    /// All that it has.
    pub capacity: Amount,
    /// The model of its GPUs; empty if it has none.
    pub gpu: &'a str,
    /// What of it is free.
    pub free: Amount,
    /// Whether it takes containers.
    pub state: WorkerState,
    /// Whether what becomes free there is kept for somebody else.
    pub reserved: bool,
    /// Whether it is passed over while a steady worker has room.
    pub flaps: bool,
    /// What its isolation is good for.
    pub ground: Ground,
}

/// What one container asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// CPU and memory, and the fewest GPUs that it would be content with.
    pub amount: Amount,
    /// GPUs by preference: the first that can be placed is taken.
    pub gpus: &'a [GpuRequest],
    /// What it needs of a worker's isolation.
    pub needs: Needs,
}

impl Asked<'_> {
    /// What it takes by one of its preferences.
    pub fn by(&self, request: &GpuRequest) -> Amount {
        self.amount.with_gpus(request.count)
    }

    /// What it would take of a worker that has `capacity` and GPUs of this model, by each of its preferences that this could
    /// ever hold.
    pub fn on(&self, capacity: Amount, gpu: &str) -> Vec<Amount> {
        let plain = Some(self.amount).filter(|_| self.gpus.is_empty());
        let fitting = self.gpus.iter().filter(|request| request.takes(gpu)).map(|request| self.by(request));
        plain.into_iter().chain(fitting).filter(|amount| capacity.covers(*amount)).collect()
    }
}

/// Where a container goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The worker.
    pub worker: WorkerId,
    /// What it takes there.
    pub amount: Amount,
    /// Which of its preferences that answers.
    pub gpu: Option<GpuRequest>,
    /// Why there.
    pub chosen: Choice,
}

/// Why a container cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing that any worker has could ever hold it.
    Impossible(String),
    /// No worker takes containers now.
    NoWorker,
    /// There is room for it on this worker once others leave.
    Full(WorkerId),
    /// There is room for it on this worker, and that is kept for a container that asks for more and has waited longer.
    Kept(WorkerId),
}

impl Obstacle {
    /// What an operator reads.
    pub fn sentence(&self, asked: Asked) -> String {
        match self {
            Self::Impossible(why) => why.clone(),
            Self::NoWorker => "no worker is ready".into(),
            Self::Full(_) => format!(
                "every worker is full: none has {} free; it starts when others end, or add a worker",
                in_words(asked)
            ),
            Self::Kept(worker) => format!(
                "worker {worker} has {} free, and keeps it for a container that asks for more and waits there; it starts when that one has its room or others end, or add a worker",
                in_words(asked)
            ),
        }
    }
}

fn in_words(asked: Asked) -> String {
    let cores = asked.amount.cpu_milli as f64 / 1000.0;
    let plain = format!("{cores} cores and {} MiB", asked.amount.memory_mib);
    let gpus: Vec<String> = asked.gpus.iter().map(|r| format!("{} × {}", r.count, r.model)).collect();
    if gpus.is_empty() { plain } else { format!("{plain} and {}", gpus.join(" or ")) }
}

/// The best of some workers so far. Without GPUs: one that has none, then the one with the most free CPU. With GPUs: the very
/// card that is named, then the fewest left over, so that whole machines stay free for who asks for many; where none has
/// enough, the one that lacks the fewest. Ties by name.
type Best<'a> = Option<((bool, u64, Reverse<u64>), &'a WorkerId)>;

/// The best ready worker that fits, or why none does. Those that flap count only where no steady one has room. GPUs are tried
/// in the order of preference.
pub fn place<'a>(asked: Asked, workers: impl Iterator<Item = Candidate<'a>> + Clone) -> Result<Placed, Obstacle> {
    if asked.gpus.is_empty() {
        let (worker, chosen) = place_by(asked, None, workers)?;
        return Ok(Placed { worker, amount: asked.amount, gpu: None, chosen });
    }
    let mut obstacle = None;
    for (n, request) in asked.gpus.iter().enumerate() {
        match place_by(asked, Some(request), workers.clone()) {
            Ok((worker, chosen)) => {
                let chosen = if n > 0 { Choice::LaterPreference } else { chosen };
                return Ok(Placed { worker, amount: asked.by(request), gpu: Some(request.clone()), chosen });
            }
            // What is full may become free; what is impossible does not change.
            Err(full @ (Obstacle::Full(_) | Obstacle::Kept(_)))
                if !matches!(obstacle, Some(Obstacle::Full(_) | Obstacle::Kept(_))) =>
            {
                obstacle = Some(full);
            }
            Err(other) => drop(obstacle.get_or_insert(other)),
        }
    }
    Err(obstacle.unwrap_or(Obstacle::NoWorker))
}

fn place_by<'a>(
    asked: Asked,
    request: Option<&GpuRequest>,
    workers: impl Iterator<Item = Candidate<'a>>,
) -> Result<(WorkerId, Choice), Obstacle> {
    let amount = request.map_or(asked.amount, |request| asked.by(request));
    let (mut ready, mut models) = (0, BTreeMap::new());
    // Steady ones, and those that flap: which fits, and which is large enough.
    let mut found: [(Best<'a>, Best<'a>); 2] = Default::default();
    let (mut grounds, mut kept) = (0, None);
    for worker in workers.filter(|w| w.state == WorkerState::Ready) {
        ready += 1;
        if !worker.ground.takes(asked.needs) {
            continue;
        }
        grounds += 1;
        if let Some(request) = request {
            let most: &mut u64 = models.entry(worker.gpu).or_default();
            *most = worker.capacity.gpus.max(*most);
            if !request.takes(worker.gpu) {
                continue;
            }
        }
        let (other, left_over, lacks) = match request {
            None => (worker.capacity.gpus > 0, 0, 0),
            Some(request) => (!request.is_named(worker.gpu), worker.free.gpus, amount.minus(worker.free).gpus),
        };
        let take = |of: &mut Best<'a>, gpus: u64| {
            let rank = ((other, gpus, Reverse(worker.free.cpu_milli)), worker.id);
            if of.as_ref().is_none_or(|best| rank < *best) {
                *of = Some(rank);
            }
        };
        let (best, large) = &mut found[usize::from(worker.flaps)];
        if worker.capacity.covers(amount) {
            take(large, lacks);
        }
        if worker.free.covers(amount) && !worker.reserved {
            take(best, left_over);
        } else if worker.free.covers(amount) {
            kept = Some(worker.id);
        }
    }
    let [steady, flapping] = found;
    let unsteady = steady.0.is_none();
    match (steady.0.or(flapping.0), steady.1.or(flapping.1)) {
        (Some(((other, ..), id)), _) => Ok((id.clone(), choice(request.is_some(), other, unsteady))),
        (None, _) if let Some(id) = kept => Err(Obstacle::Kept(id.clone())),
        (None, Some((_, id))) => Err(Obstacle::Full(id.clone())),
        (None, None) if ready == 0 => Err(Obstacle::NoWorker),
        (None, None) if grounds == 0 => Err(Obstacle::Impossible(asked.needs.lacking().into())),
        (None, None) => Err(Obstacle::Impossible(impossible(asked, &models))),
    }
}

/// Which rule decided. `other`: the worker is of the kind that comes second: with GPUs that are not asked for, or with a better one
/// than is named.
pub fn choice(gpus: bool, other: bool, unsteady: bool) -> Choice {
    match (unsteady, gpus, other) {
        (true, ..) => Choice::Unsteady,
        (_, false, false) => Choice::MostFreeCpu,
        (_, false, true) => Choice::BesideGpus,
        (_, true, false) => Choice::FewestGpus,
        (_, true, true) => Choice::BetterGpu,
    }
}

/// `models` are those that ready workers have, and how many of each the largest has.
fn impossible(asked: Asked, models: &BTreeMap<&str, u64>) -> String {
    let what = in_words(asked);
    if asked.gpus.is_empty() {
        return format!("no worker is large enough for {what}; ask for less, or add a larger worker");
    }
    let found = models.iter().filter(|(model, _)| !model.is_empty());
    let there: Vec<String> = found.map(|(model, most)| format!("{most} × {model}")).collect();
    if asked.gpus.iter().any(|gpu| models.iter().any(|(model, most)| gpu.takes(model) && *most >= u64::from(gpu.count)))
    {
        return format!("no worker that has the GPUs is large enough for {what}; ask for less, or add a larger worker");
    }
    let there = if there.is_empty() { "no GPU".into() } else { format!("at most {}", there.join(", ")) };
    format!("no worker is large enough for {what}: they have {there}; ask for another, or add a worker with it")
}
