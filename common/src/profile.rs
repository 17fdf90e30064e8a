//! Autoscaler settings that hold between two set times, and what follows where several hold at once.

use crate::{
    function::FunctionSpec,
    schedule::Times,
    settings::{AutoscalerSettings, Overrides, OverridesPatch},
    time::Time,
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize};

/// Autoscaler settings that hold between two set times (SPEC E06, E07).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name, for `explain`.
    #[cfg_attr(feature = "schema", schema(min_length = 1))]
    pub name: String,
    /// When it begins: a cron expression.
    #[cfg_attr(feature = "schema", schema(example = "0 8 * * 1-5"))]
    pub start: String,
    /// When it ends: a cron expression.
    #[cfg_attr(feature = "schema", schema(example = "0 20 * * 1-5"))]
    pub end: String,
    /// The time zone of both, by its IANA name; UTC without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What it lays over the deployed settings, and over profiles before it that hold too.
    #[serde(deserialize_with = "under_older_names")]
    pub autoscaler: Overrides,
}

fn under_older_names<'de, D: Deserializer<'de>>(d: D) -> Result<Overrides, D::Error> {
    OverridesPatch::deserialize(d).map(|patch| patch.apply(&Overrides::default()))
}

/// Some profiles, and which of them hold.
#[derive(Debug, Clone, Default)]
pub struct Profiles(Vec<Course>);

/// One of them through time.
#[derive(Debug, Clone)]
struct Course {
    start: Times,
    end: Times,
    holds: bool,
    /// When it is to be looked at again; never, if that does not come.
    next: Time,
}

const NEVER: Time = Time(u64::MAX);

impl Course {
    fn of(profile: &Profile) -> Option<Self> {
        let read = |of: &str| Times::read(of, profile.timezone.as_deref()).ok();
        Some(Self { start: read(&profile.start)?, end: read(&profile.end)?, holds: false, next: Time(0) })
    }

    /// Whether it holds from now on and did not, or the other way round. It holds if its last start is later than its last end.
    fn turn(&mut self, now: Time) -> bool {
        if self.next > now {
            return false;
        }
        let held = self.holds;
        self.holds = match (self.start.until(now), self.end.until(now)) {
            (Some(start), Some(end)) => start > end,
            (started, _) => started.is_some(),
        };
        self.next = [self.start.after(now), self.end.after(now)].into_iter().flatten().min().unwrap_or(NEVER);
        self.holds != held
    }
}

impl Profiles {
    /// Reads profiles; what cannot be read was refused.
    pub fn of<'a>(profiles: impl IntoIterator<Item = &'a Profile>) -> Self {
        Self(profiles.into_iter().filter_map(Course::of).collect())
    }

    /// Whether the set of those that hold changes by `now`.
    pub fn turn(&mut self, now: Time) -> bool {
        let turned = self.0.iter_mut().filter_map(|course| course.turn(now).then_some(()));
        turned.count() > 0
    }

    /// When that is to be looked at again.
    pub fn next(&self) -> Option<Time> {
        self.0.iter().map(|course| course.next).min().filter(|next| *next < NEVER)
    }

    /// Which of them hold, in their order.
    pub fn active(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter(|(_, course)| course.holds).map(|(n, _)| n)
    }
}

/// Profiles that a function may have.
pub const MOST: usize = 16;

/// Where contradictions are looked for: a leap year, so that every day of a cron expression comes.
const FROM: Time = Time(1_830_297_600_000_000);
const DAYS: u64 = 366;
/// Changes that are looked at: those of a year for two profiles that begin and end every hour.
const CHANGES: usize = 40_000;

/// Two profiles that contradict each other while both hold: one's minimum is above the other's maximum.
#[derive(Debug, PartialEq, Eq)]
pub struct Clash {
    /// Whose minimum, by its place in the spec.
    pub min: usize,
    /// What a user reads.
    pub detail: String,
}

/// The first contradiction between profiles that hold at the same time at some moment of a year, if there is one.
pub fn clash(spec: &FunctionSpec) -> Option<Clash> {
    let min_of = |n: usize| spec.profiles[n].autoscaler.min_containers;
    let max_of = |n: usize| spec.profiles[n].autoscaler.max_containers;
    let all = 0..spec.profiles.len();
    let may_clash = all.clone().any(|a| all.clone().any(|b| a != b && min_of(a) > max_of(b) && max_of(b).is_some()));
    if !may_clash {
        return None;
    }
    let says: Vec<usize> = all.filter(|n| min_of(*n).or(max_of(*n)).is_some()).collect();
    let mut profiles = Profiles::of(says.iter().map(|n| &spec.profiles[*n]));
    let mut now = FROM;
    for _ in 0..CHANGES {
        profiles.turn(now);
        let holding = || profiles.active().map(|n| says[n]);
        let settings = holding().fold(spec.autoscaler.clone(), |s, n| spec.profiles[n].autoscaler.over(&s));
        let by = |sets: &dyn Fn(usize) -> Option<u32>| holding().filter(|n| sets(*n).is_some()).last();
        if let (true, Some(min), Some(max)) = (contradicts(&settings), by(&min_of), by(&max_of)) {
            let name = |n: usize| &spec.profiles[n].name;
            let detail = format!(
                "must not be above max_containers ({} of profile `{}` > {} of profile `{}`): both hold at {}",
                settings.min_containers,
                name(min),
                settings.max_containers.unwrap_or_default(),
                name(max),
                moment(now)
            );
            return Some(Clash { min, detail });
        }
        now = profiles.next().filter(|next| next.since_ms(FROM) < DAYS * 86_400_000)?;
    }
    None
}

/// What of an operator's settings will not hold in full while a profile does, in sentences.
pub fn overruled(spec: &FunctionSpec, overrides: &Overrides) -> Vec<String> {
    let told = |profile: &Profile| {
        let settings = overrides.over(&profile.autoscaler.over(&spec.autoscaler));
        let max = settings.max_containers.filter(|_| contradicts(&settings))?;
        let min = settings.min_containers;
        Some(format!(
            "while profile `{}` holds, min_containers ({min}) is above max_containers ({max}): {max} are kept then",
            profile.name
        ))
    };
    spec.profiles.iter().filter_map(told).collect()
}

fn contradicts(settings: &AutoscalerSettings) -> bool {
    settings.max_containers.is_some_and(|max| settings.min_containers > max)
}

fn moment(at: Time) -> String {
    let at = i64::try_from(at.0).ok().and_then(DateTime::<Utc>::from_timestamp_micros);
    at.map_or_else(String::new, |at| at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(profiles: Value, autoscaler: Value) -> FunctionSpec {
        let json = json!({
            "runtime": {"process": {"command": ["true"]}}, "profiles": profiles, "autoscaler": autoscaler,
        });
        serde_json::from_value(json).unwrap()
    }

    fn profile(name: &str, (start, end): (&str, &str), autoscaler: Value) -> Value {
        json!({"name": name, "start": start, "end": end, "autoscaler": autoscaler})
    }

    const DAY: (&str, &str) = ("0 6 * * *", "0 22 * * *");
    const NIGHT: (&str, &str) = ("0 22 * * *", "0 6 * * *");
    const SALE: (&str, &str) = ("0 0 29 2 *", "0 0 1 3 *");

    #[test]
    fn profiles_that_never_hold_together_may_say_what_they_like() {
        let night = profile("night", NIGHT, json!({"max_containers": 3}));
        let apart = json!([profile("day", DAY, json!({"min_containers": 5})), night]);
        assert_eq!(clash(&spec(apart, json!({}))), None);
        // Together, and in agreement: the later one has the last word on both.
        let both = json!([
            profile("day", DAY, json!({"min_containers": 5})),
            profile("sale", SALE, json!({"min_containers": 1, "max_containers": 3})),
        ]);
        assert_eq!(clash(&spec(both, json!({}))), None);
    }

    #[test]
    fn a_minimum_above_a_maximum_that_holds_at_the_same_time_is_named_with_both_and_the_moment() {
        // SPEC E07
        for (order, min) in [([0, 1], 0), ([1, 0], 1)] {
            let profiles = [
                profile("day", DAY, json!({"min_containers": 5})),
                profile("sale", SALE, json!({"max_containers": 3})),
            ];
            let ordered: Vec<Value> = order.iter().map(|n| profiles[*n].clone()).collect();
            let found = clash(&spec(json!(ordered), json!({"max_containers": 9}))).unwrap();
            assert_eq!(found.min, min);
            for part in ["5 of profile `day` > 3 of profile `sale`", "2028-02-29T06:00:00Z"] {
                assert!(found.detail.contains(part), "{}", found.detail);
            }
        }
    }

    #[test]
    fn a_few_days_late_in_the_year_are_found_beside_profiles_that_change_every_hour() {
        let hourly = profile("hourly", ("0 * * * *", "30 * * * *"), json!({"max_containers": 50}));
        let christmas = ("0 0 24 12 *", "0 0 27 12 *");
        let profiles = json!([
            hourly,
            profile("buffer", ("* * * * *", "* * * * *"), json!({"buffer_containers": 1})),
            profile("day", DAY, json!({"min_containers": 5})),
            profile("sale", christmas, json!({"max_containers": 3})),
        ]);
        let found = clash(&spec(profiles, json!({}))).unwrap();
        assert!(found.detail.contains("2028-12-24T06:00:00Z"), "{}", found.detail);
    }

    #[test]
    fn an_operator_hears_which_profile_will_cut_a_minimum() {
        let profiles = json!([profile("night", NIGHT, json!({"max_containers": 3}))]);
        let spec = spec(profiles, json!({}));
        let set = |min| Overrides { min_containers: Some(min), ..Overrides::default() };
        assert!(overruled(&spec, &set(3)).is_empty());
        let told = overruled(&spec, &set(5));
        assert!(told.len() == 1 && told[0].contains("`night`") && told[0].contains("3 are kept"), "{told:?}");
    }
}
