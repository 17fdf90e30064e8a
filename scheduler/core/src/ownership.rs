//! Who should own which shard. Every scheduler computes the same from the same members, so that nobody has to decide for all.

use capstan_common::id::Shard;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A scheduler's name.
pub type Member = Arc<str>;

/// How much a member wants a shard: rendezvous hashing (Thaler and Ravishankar, 1998), by FNV-1a with a final mix.
fn weight(member: &str, shard: Shard) -> u64 {
    let bytes = member.bytes().chain(shard.0.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// The owner that each shard should have: its favourite among those that have room for one more. Nobody has more than its
/// share rounded up, and a member that comes or goes moves little but its own.
pub fn assign(members: &BTreeSet<Member>, shards: u16) -> BTreeMap<Shard, Member> {
    let most = (shards as usize).div_ceil(members.len().max(1));
    let mut held: BTreeMap<&Member, usize> = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for shard in (0..shards).map(Shard) {
        let free = members.iter().filter(|member| held.get(*member).copied().unwrap_or(0) < most);
        let Some(owner) = free.max_by_key(|member| weight(member, shard)) else { continue };
        *held.entry(owner).or_default() += 1;
        owners.insert(shard, owner.clone());
    }
    owners
}

/// What a scheduler should do about shards now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// Nobody owns them, and they should be ours.
    pub take: Vec<Shard>,
    /// They are ours, and should be another's that is there.
    pub give: Vec<Shard>,
}

/// What `me` should do: `owned` says who owns what now, `mine` what is open here. Nothing is given by one that is not a member
/// itself: it knows too little.
pub fn moves(
    me: &Member,
    members: &BTreeSet<Member>,
    owned: &BTreeMap<Shard, Member>,
    mine: &BTreeSet<Shard>,
    shards: u16,
) -> Moves {
    let mut moves = Moves::default();
    if !members.contains(me) {
        return moves;
    }
    for (shard, owner) in assign(members, shards) {
        if owner == *me && !owned.contains_key(&shard) && !mine.contains(&shard) {
            moves.take.push(shard);
        }
        if owner != *me && mine.contains(&shard) {
            moves.give.push(shard);
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(names: impl IntoIterator<Item = u8>) -> BTreeSet<Member> {
        names.into_iter().map(|n| Arc::from(format!("scheduler-{n}"))).collect()
    }

    #[test]
    fn one_takes_all_and_two_share() {
        let one = members([1]);
        assert!(assign(&one, 16).values().all(|owner| one.contains(owner)));
        let two = assign(&members([1, 2]), 16);
        for member in members([1, 2]) {
            assert_eq!(two.values().filter(|owner| **owner == member).count(), 8);
        }
        assert!(assign(&members([]), 16).is_empty());
    }

    proptest! {
        #[test]
        fn every_shard_has_one_owner_and_none_has_too_many(names in prop::collection::btree_set(any::<u8>(), 1..9), shards in 1..200u16) {
            let members = members(names);
            let owners = assign(&members, shards);
            prop_assert_eq!(owners.len(), shards as usize);
            let most = (shards as usize).div_ceil(members.len());
            for member in &members {
                prop_assert!(owners.values().filter(|owner| *owner == member).count() <= most);
            }
        }

        #[test]
        fn whoever_looks_at_the_same_moves_towards_it_and_stops(names in prop::collection::btree_set(any::<u8>(), 1..6), gone in any::<prop::sample::Index>(), shards in 1..64u16) {
            // From any ownership by members of before, some rounds of everybody's moves lead to the assignment, and no further.
            let before: Vec<_> = members(names.clone()).into_iter().collect();
            let left = &before[gone.index(before.len())];
            let now: BTreeSet<Member> = before.iter().filter(|m| *m != left).cloned().chain([Arc::from("new")]).collect();
            let mut owned = assign(&before.iter().cloned().collect(), shards);
            owned.retain(|_, owner| owner != left);
            for _ in 0..2 {
                for me in &now {
                    let mine = owned.iter().filter(|(_, o)| *o == me).map(|(s, _)| *s).collect();
                    let moves = moves(me, &now, &owned, &mine, shards);
                    moves.give.iter().for_each(|shard| drop(owned.remove(shard)));
                    owned.extend(moves.take.into_iter().map(|shard| (shard, me.clone())));
                }
            }
            prop_assert_eq!(&owned, &assign(&now, shards));
            for me in &now {
                let mine = owned.iter().filter(|(_, o)| *o == me).map(|(s, _)| *s).collect();
                prop_assert_eq!(moves(me, &now, &owned, &mine, shards), Moves::default());
            }
        }
    }
}
