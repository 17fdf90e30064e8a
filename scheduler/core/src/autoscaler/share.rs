//! Who is next: namespaces by what they hold against their weight, then functions by the same. What is held is measured by
//! the resource that is scarcest for it (dominant resource fairness, Ghodsi et al., NSDI 2011).

use capstan_common::{gpu::GpuRequest, id::FunctionKey, isolation::Needs, resource::Amount};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Shares are counted in millionths of everything, for a weight of one.
const WHOLE: u64 = 1_000_000;

/// What a namespace may take, and how it weighs against others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Its part of a full cluster, against other namespaces' weights.
    pub weight: u32,
    /// Bounds that hold also where there is room.
    pub quota: Quota,
}

impl Default for Policy {
    fn default() -> Self {
        Self { weight: 1, quota: Quota::default() }
    }
}

/// The most that all containers of a namespace may take; an absent field is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Containers.
    pub containers: Option<u32>,
    /// Thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Mebibytes of memory.
    pub memory_mib: Option<u64>,
    /// GPUs.
    pub gpus: Option<u32>,
}

impl Quota {
    /// How many more containers of `amount` it allows.
    pub fn room(&self, held: u32, used: Amount, amount: Amount) -> u32 {
        let parts = |bound: Option<u64>, used: u64, one: u64| {
            bound.map_or(u64::MAX, |bound| bound.saturating_sub(used).checked_div(one).unwrap_or(u64::MAX))
        };
        let containers = parts(self.containers.map(u64::from), u64::from(held), 1);
        let cpu = parts(self.cpu_milli, used.cpu_milli, amount.cpu_milli);
        let memory = parts(self.memory_mib, used.memory_mib, amount.memory_mib);
        let gpus = parts(self.gpus.map(u64::from), used.gpus, amount.gpus);
        u32::try_from(containers.min(cpu).min(memory).min(gpus)).unwrap_or(u32::MAX)
    }

    /// What must leave of so many containers that take so much, for all bounds to hold.
    pub fn excess(&self, held: u32, used: Amount) -> (u32, Amount) {
        let over = |bound: Option<u64>, value: u64| bound.map_or(0, |bound| value.saturating_sub(bound));
        let containers = self.containers.map_or(0, |bound| held.saturating_sub(bound));
        let amount = Amount {
            cpu_milli: over(self.cpu_milli, used.cpu_milli),
            memory_mib: over(self.memory_mib, used.memory_mib),
            gpus: over(self.gpus.map(u64::from), used.gpus),
        };
        (containers, amount)
    }

    /// Which bound one more container of `amount` would pass, in words.
    pub fn passed(&self, held: u32, used: Amount, amount: Amount) -> Option<String> {
        let after = used.plus(amount);
        let over = |bound: Option<u64>, value: u64| bound.filter(|bound| value > *bound);
        if let Some(bound) = over(self.containers.map(u64::from), u64::from(held) + 1) {
            return Some(format!("{bound} container{}", if bound == 1 { "" } else { "s" }));
        }
        if let Some(bound) = over(self.cpu_milli, after.cpu_milli) {
            return Some(format!("{} cores", bound as f64 / 1000.0));
        }
        if let Some(bound) = over(self.memory_mib, after.memory_mib) {
            return Some(format!("{bound} MiB of memory"));
        }
        // Who asks for none takes none of it, also where the bound was lowered below what is held.
        let bound = over(self.gpus.map(u64::from), after.gpus).filter(|_| amount.gpus > 0)?;
        Some(format!("{bound} GPU{}", if bound == 1 { "" } else { "s" }))
    }
}

/// The part of `total` that `used` is, by the scarcest resource, against a weight.
pub fn share(used: Amount, total: Amount, weight: u32) -> u64 {
    let part = |used: u64, total: u64| used.saturating_mul(WHOLE).checked_div(total).unwrap_or(0);
    let plain = part(used.cpu_milli, total.cpu_milli).max(part(used.memory_mib, total.memory_mib));
    let dominant = plain.max(part(used.gpus, total.gpus));
    dominant / u64::from(weight.max(1))
}

/// What one container asks for: functions that ask for the same can be placed or not alike.
pub type Class = (u64, u64, Vec<GpuRequest>, Needs);

/// Functions by share, by what they ask for.
type Classes = BTreeMap<Class, BTreeSet<(u64, FunctionKey)>>;

/// Functions that lack containers, in the order of their shares, by namespace and by what they ask for.
#[derive(Debug, Clone, Default)]
pub struct Hungry {
    spaces: BTreeMap<Arc<str>, Classes>,
    known: BTreeMap<FunctionKey, (Class, u64)>,
}

impl Hungry {
    /// The function lacks containers of this class, and has this share.
    pub fn set(&mut self, function: &FunctionKey, class: Class, share: u64) {
        if self.known.get(function).is_some_and(|(c, s)| *c == class && *s == share) {
            return;
        }
        self.remove(function);
        let space = self.spaces.entry(function.namespace.clone()).or_default();
        space.entry(class.clone()).or_default().insert((share, function.clone()));
        self.known.insert(function.clone(), (class, share));
    }

    /// The function lacks nothing.
    pub fn remove(&mut self, function: &FunctionKey) {
        let Some((class, share)) = self.known.remove(function) else { return };
        let Some(space) = self.spaces.get_mut(&function.namespace) else { return };
        if let Some(functions) = space.get_mut(&class) {
            functions.remove(&(share, function.clone()));
            if functions.is_empty() {
                space.remove(&class);
            }
        }
        if space.is_empty() {
            self.spaces.remove(&function.namespace);
        }
    }

    /// Whether the function is among them.
    pub fn has(&self, function: &FunctionKey) -> bool {
        self.known.contains_key(function)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Who is next, after classes that were found to be blocked in this round: the namespace with the smallest share, in it
    /// the function with the smallest.
    pub fn next(&self, shares: &dyn Fn(&str) -> u64, blocked: &BTreeSet<(Arc<str>, Class)>) -> Option<FunctionKey> {
        let first = |space: &Arc<str>, classes: &Classes| {
            let open = classes.iter().filter(|(class, _)| !blocked.contains(&(space.clone(), (*class).clone())));
            open.filter_map(|(_, functions)| functions.first()).min().map(|(share, key)| (*share, key.clone()))
        };
        let heads = self.spaces.iter().filter_map(|(space, classes)| {
            let (share, key) = first(space, classes)?;
            Some((shares(space), share, key))
        });
        heads.min().map(|(_, _, key)| key)
    }

    /// All functions of one class of a namespace, which are blocked alike.
    pub fn of(&self, namespace: &str, class: &Class) -> Vec<FunctionKey> {
        let functions = self.spaces.get(namespace).and_then(|classes| classes.get(class));
        functions.map_or_else(Vec::new, |functions| functions.iter().map(|(_, key)| key.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_the_scarcest_resource_says_against_the_weight() {
        let total = Amount { cpu_milli: 4_000, memory_mib: 1_000, gpus: 4 };
        let used = Amount { cpu_milli: 1_000, memory_mib: 500, gpus: 1 };
        assert_eq!((share(used, total, 1), share(used, total, 2)), (500_000, 250_000));
        assert_eq!(share(used, Amount::default(), 1), 0);
        assert_eq!(share(Amount { gpus: 3, ..used }, total, 1), 750_000);
    }

    #[test]
    fn a_quota_names_the_bound_that_is_passed() {
        let amount = Amount { cpu_milli: 500, memory_mib: 100, gpus: 0 };
        let quota = Quota { containers: Some(2), cpu_milli: Some(1_200), ..Quota::default() };
        assert_eq!(quota.passed(1, amount, amount), None);
        assert_eq!(quota.passed(2, amount, amount).as_deref(), Some("2 containers"));
        assert_eq!((quota.room(0, Amount::default(), amount), quota.room(1, amount, amount)), (2, 1));
        assert_eq!(Quota::default().room(9, amount, amount), u32::MAX);
        let two = amount.plus(amount);
        assert_eq!(Quota { containers: None, ..quota }.passed(2, two, amount).as_deref(), Some("1.2 cores"));
        let (gpus, one) = (Quota { gpus: Some(3), ..Quota::default() }, amount.with_gpus(2));
        assert_eq!((gpus.room(0, Amount::default(), one), gpus.room(0, Amount::default(), amount)), (1, u32::MAX));
        assert_eq!(gpus.passed(1, one, one).as_deref(), Some("3 GPUs"));
        // Lowered below what is held, it is no bound for who asks for none.
        assert_eq!(gpus.passed(2, one.plus(one), amount), None);
    }
}
