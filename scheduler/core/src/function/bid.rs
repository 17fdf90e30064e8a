//! What the autoscaler was told of a function's demand, compared whole, and when it is told of the next.

use crate::decision::Waiting;
use capstan_common::{id::Revision, time::Time};

/// That more or fewer containers could give way is told so long after it began: each input that ends may leave one more, and each
/// that begins one less.
const TELL_SPARE_MS: u64 = 100;

/// The numbers of a demand. What one container asks for goes with the revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Containers that it lacks.
    pub missing: u32,
    /// Grants that it has seen so far.
    pub grants_seen: u64,
    /// Idle containers above the minimum, which could give way.
    pub spare: u32,
    /// Containers that take nothing new and will leave.
    pub leaving: u32,
    /// Containers that are never taken away.
    pub min: u32,
}

/// What the autoscaler was told.
#[derive(Debug, Clone)]
pub struct Bid {
    /// Nothing that still holds: what comes next is told, whatever it is.
    told: Option<(Revision, Numbers)>,
    /// When another number of spare containers is told.
    spare_due: Option<Time>,
    /// When more containers were last asked for.
    asked_at: Time,
    /// Grants that the function has seen so far.
    grants_seen: u64,
    /// Why the next container has no place.
    unplaced: Option<Waiting>,
}

impl Default for Bid {
    /// Who has told nothing is taken for one that wants nothing.
    fn default() -> Self {
        Self {
            told: Some((Revision(0), Numbers::default())),
            spare_due: None,
            asked_at: Time(0),
            grants_seen: 0,
            unplaced: None,
        }
    }
}

impl Bid {
    /// Tells the next demand, whatever it is: the autoscaler waits for an answer, or knows containers whose function it does not.
    pub fn again(&mut self) {
        self.told = None;
    }

    /// Whether the autoscaler must hear of these numbers now; they are told then.
    pub fn tells(&mut self, now: Time, revision: Revision, numbers: Numbers) -> bool {
        if let Some((of, before)) = self.told {
            let but_spare = |numbers: Numbers| Numbers { spare: u32::from(numbers.spare > 0), ..numbers };
            // Who wants and has nothing says the same with every revision.
            let same = (of == revision || numbers == Numbers::default()) && but_spare(before) == but_spare(numbers);
            if same && before.spare == numbers.spare {
                self.spare_due = None;
                return false;
            }
            if same && *self.spare_due.get_or_insert(now.plus_ms(TELL_SPARE_MS)) > now {
                return false;
            }
        }
        if self.told.is_none_or(|(_, before)| numbers.missing > before.missing) {
            self.asked_at = now;
        }
        if numbers.missing == 0 {
            self.unplaced = None;
        }
        (self.told, self.spare_due) = (Some((revision, numbers)), None);
        true
    }

    /// The autoscaler has granted a container.
    pub fn granted(&mut self) {
        self.grants_seen += 1;
        self.unplaced = None;
    }

    /// Grants that the function has seen so far.
    pub fn grants_seen(&self) -> u64 {
        self.grants_seen
    }

    /// The autoscaler, or the worker that it chose, had no room.
    pub fn refused(&mut self, why: Waiting) {
        self.unplaced = Some(why);
    }

    /// What had no place may have one now: that is asked once more.
    pub fn look_again(&mut self) {
        self.unplaced = None;
        self.again();
    }

    /// Why the next container has no place, if it has none.
    pub fn unplaced(&self) -> Option<&Waiting> {
        self.unplaced.as_ref()
    }

    /// When the next alarm is due, if any.
    pub fn due(&self) -> Option<Time> {
        self.spare_due
    }

    /// When more containers were last asked for.
    pub fn asked_at(&self) -> Time {
        self.asked_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_told_when_it_changes_and_spare_ones_a_moment_later() {
        let (mut bid, now) = (Bid::default(), Time(1_000_000));
        let all = Numbers { missing: 1, grants_seen: 1, spare: 1, leaving: 1, min: 1 };
        assert!(!bid.tells(now, Revision(7), Numbers::default()), "who wants nothing says nothing");
        for (n, numbers) in [
            Numbers { missing: 1, ..Numbers::default() },
            Numbers { grants_seen: 1, ..Numbers::default() },
            Numbers { spare: 1, ..Numbers::default() },
            Numbers { leaving: 1, ..Numbers::default() },
            Numbers { min: 1, ..Numbers::default() },
            all,
        ]
        .into_iter()
        .enumerate()
        {
            assert!(bid.tells(now, Revision(1), numbers), "number {n}");
            assert!(!bid.tells(now, Revision(1), numbers), "number {n} twice");
        }
        assert!(bid.tells(now, Revision(2), all), "another revision asks for something else");
        bid.again();
        assert!(bid.tells(now, Revision(2), all), "an answer");
        for spare in [3, 2] {
            let other = Numbers { spare, ..all };
            assert!(!bid.tells(now, Revision(2), other));
            assert_eq!(bid.due(), Some(now.plus_ms(TELL_SPARE_MS)));
        }
        assert!(!bid.tells(now, Revision(2), all), "as it was");
        assert_eq!(bid.due(), None);
        assert!(!bid.tells(now, Revision(2), Numbers { spare: 2, ..all }));
        assert!(bid.tells(now.plus_ms(TELL_SPARE_MS), Revision(2), Numbers { spare: 2, ..all }));
        assert!(bid.tells(now, Revision(2), Numbers { spare: 0, ..all }), "none any more is told at once");
    }
}
