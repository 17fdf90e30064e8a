//! How many nodes all containers need: for autoscalers that add and remove the machines of the workers (SPEC §3.9).

use super::Autoscaler;
use capstan_common::resource::Amount;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Different amounts of a namespace that are told; those of which there are most.
const TOLD: usize = 32;

/// Containers that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What each takes.
    pub amount: Amount,
    /// How many.
    pub count: u64,
}

impl Autoscaler {
    /// What each namespace has at this scheduler and what it lacks within its quota.
    pub(super) fn wanted_by_each(&self) -> BTreeMap<Arc<str>, Vec<Wanted>> {
        let mut spaces: BTreeMap<Arc<str>, BTreeMap<Amount, u64>> = BTreeMap::new();
        let mut filled: BTreeMap<&str, (u32, Amount)> = BTreeMap::new();
        for (function, want) in &self.wants {
            let (namespace, one) = (&function.namespace, want.demand.amount);
            let (held, used) = filled.entry(namespace).or_insert_with(|| self.everywhere(namespace));
            let room = self.policies.get(namespace).map(|policy| policy.quota.room(*held, *used, one));
            let more = want.outstanding().min(room.unwrap_or(u32::MAX));
            (*held, *used) = (held.saturating_add(more), used.plus(one.times(more)));
            let here = self.held.of(function);
            for (amount, count) in [(want.each(here), here.count), (one, more)] {
                if count > 0 {
                    *spaces.entry(namespace.clone()).or_default().entry(amount).or_default() += u64::from(count);
                }
            }
        }
        // Containers whose function has not said yet what it wants.
        for (function, sum) in self.held.functions().filter(|(function, _)| !self.wants.contains_key(*function)) {
            *spaces.entry(function.namespace.clone()).or_default().entry(sum.each()).or_default() +=
                u64::from(sum.count);
        }
        let most = |amounts: BTreeMap<Amount, u64>| {
            let mut wanted: Vec<_> = amounts.into_iter().map(|(amount, count)| Wanted { amount, count }).collect();
            wanted.sort_by_key(|wanted| std::cmp::Reverse(wanted.count));
            wanted.truncate(TOLD);
            wanted
        };
        spaces.into_iter().map(|(name, amounts)| (name, most(amounts))).collect()
    }

    /// Nodes of that size that hold what all functions of the cluster have and want. What none could hold is left out: no number
    /// of them would help.
    pub fn nodes(&self, node: Amount) -> u64 {
        nodes(node, self.wanted_by_each().into_values().flatten().chain(self.elsewhere.wanted()))
    }
}

/// How many nodes hold these containers, the largest placed first, each where there is room already (first fit, decreasing).
/// Nodes that are equally full are counted together.
fn nodes(node: Amount, wanted: impl Iterator<Item = Wanted>) -> u64 {
    let mut amounts: BTreeMap<Amount, u64> = BTreeMap::new();
    for Wanted { amount, count } in wanted.filter(|wanted| node.holds(wanted.amount) > 0) {
        *amounts.entry(amount).or_default() += count;
    }
    let mut wanted: Vec<_> = amounts.into_iter().collect();
    wanted.sort_by_key(|(amount, _)| node.holds(*amount));
    // What is left of nodes, and how many of them are left so.
    let mut open: Vec<(Amount, u64)> = Vec::new();
    for (amount, mut count) in wanted {
        let mut after = Vec::with_capacity(open.len() + 2);
        // As many fresh ones as could be needed close the list; those that stay untouched are dropped again.
        for (left, alike) in open.into_iter().chain([(node, u64::MAX)]) {
            let each = u64::from(left.holds(amount));
            let full = count.checked_div(each).unwrap_or(0).min(alike);
            count -= full * each;
            let last = if each > 0 && full < alike { count.min(each) } else { 0 };
            count -= last;
            let less = |n: u64| left.minus(amount.times(n as u32));
            after.extend([(less(each), full), (less(last), u64::from(last > 0))].into_iter().filter(|(_, n)| *n > 0));
            let untouched = alike - full - u64::from(last > 0);
            if untouched > 0 && alike != u64::MAX {
                after.push((left, untouched));
            }
        }
        open = after;
    }
    open.iter().map(|(_, alike)| alike).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount(cpu_milli: u64, gpus: u64) -> Amount {
        Amount { cpu_milli, memory_mib: 1, gpus }
    }

    fn needed(node: Amount, wanted: &[(Amount, u64)]) -> u64 {
        nodes(node, wanted.iter().map(|(amount, count)| Wanted { amount: *amount, count: *count }))
    }

    const NODE: Amount = Amount { cpu_milli: 4_000, memory_mib: 1_000, gpus: 2 };

    #[test]
    fn containers_are_not_cut_and_share_nodes_where_they_fit() {
        assert_eq!(needed(NODE, &[]), 0);
        // Three of two and a half cores: one a node, though seven and a half would go on two.
        assert_eq!(needed(NODE, &[(amount(2_500, 0), 3)]), 3);
        // Beside each there is room for one of one and a half.
        assert_eq!(needed(NODE, &[(amount(2_500, 0), 3), (amount(1_500, 0), 3)]), 3);
        assert_eq!(needed(NODE, &[(amount(2_500, 0), 3), (amount(1_500, 0), 4)]), 4);
        assert_eq!(needed(NODE, &[(amount(100, 1), 3), (amount(1_000, 0), 4)]), 2);
        assert_eq!(needed(NODE, &[(amount(1_000, 0), 1_000_000)]), 250_000);
    }

    #[test]
    fn what_no_node_holds_asks_for_none() {
        assert_eq!(needed(NODE, &[(amount(5_000, 0), 9), (amount(1_000, 3), 9), (amount(1_000, 0), 1)]), 1);
        assert_eq!(needed(NODE.with_gpus(0), &[(amount(1_000, 1), 9)]), 0);
    }

    proptest! {
        #[test]
        fn as_many_as_one_after_the_other_would_need(
            wanted in prop::collection::vec((1_u64..4_000, 0_u64..3, 1_u64..6), 0..8),
        ) {
            let wanted: Vec<(Amount, u64)> = wanted.into_iter().map(|(cpu, gpus, n)| (amount(cpu, gpus), n)).collect();
            // The same rule, container by container and node by node.
            let mut sorted = wanted.clone();
            sorted.sort_by_key(|(amount, _)| (NODE.holds(*amount), *amount));
            let mut left: Vec<Amount> = Vec::new();
            for (amount, count) in sorted {
                for _ in 0..count {
                    match left.iter_mut().find(|left| left.covers(amount)) {
                        Some(node) => *node = node.minus(amount),
                        None => left.push(NODE.minus(amount)),
                    }
                }
            }
            let needed = needed(NODE, &wanted);
            // Equal nodes are counted together and so in another order: nearly as many, and never fewer than what is asked for.
            let sum = wanted.iter().fold(Amount::default(), |sum, (amount, n)| sum.plus(amount.times(*n as u32)));
            prop_assert!(NODE.times(needed as u32).covers(sum));
            prop_assert!(needed <= left.len() as u64 + 2, "{needed} for {}", left.len());
        }
    }
}
