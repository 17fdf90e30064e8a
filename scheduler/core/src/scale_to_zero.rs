//! Scaling models to zero: the configuration of the WVA guide (seed 004), and what of it holds for one model.
//!
//! An entry is found by model and namespace, then by model, then under `default`; each field is taken from the first that
//! has it; then come `WVA_SCALE_TO_ZERO` (for the flag alone) and the system's own defaults (SPEC S01–S11, decisions D10, D17).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The key of the entry that holds for all models.
pub const DEFAULT: &str = "default";
/// The environment variable that sets the system-wide flag.
pub const VARIABLE: &str = "WVA_SCALE_TO_ZERO";
/// How long a model is kept after its last request where nothing says otherwise (SPEC S04).
pub const RETENTION_MS: u64 = 10 * 60 * 1000;

/// What an entry may have.
const FIELDS: [&str; 4] = ["model_id", "namespace", "enable_scale_to_zero", "retention_period"];
/// A retention above this is remarked on (SPEC §3.1).
const LONG_MS: u64 = 24 * 60 * 60 * 1000;

/// One entry, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Which model; needed in all but `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// In which namespace; without it in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Whether the model may be scaled to zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_scale_to_zero: Option<bool>,
    /// How long after the last request: a Go duration like `5m` or `1h30m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_period: Option<String>,
}

/// Something that an operator should mend; the rest of the configuration holds all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The entry's key.
    pub entry: String,
    /// What is wrong with it.
    pub detail: String,
}

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    entries: BTreeMap<String, Entry>,
}

/// What holds for one model, and which entry decided each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// Whether it may be scaled to zero.
    pub enable_scale_to_zero: bool,
    /// How long after the last request, as it was written.
    pub retention_period: String,
    /// Which entry decided.
    pub decided_by: DecidedBy,
    /// The same in milliseconds.
    #[serde(skip)]
    pub retention_ms: u64,
}

/// An entry's key, `default`, `WVA_SCALE_TO_ZERO` or `system`, for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecidedBy {
    /// Of the flag.
    pub enable_scale_to_zero: String,
    /// Of the retention.
    pub retention_period: String,
}

/// A Go duration in milliseconds; it must be positive. Days are no unit of Go's.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || {
        let shown: String = text.chars().take(DURATION_BYTES).collect();
        format!("`{shown}` is not a duration above zero; write it like 30s, 5m or 1h30m")
    };
    let nanos = go_nanos(text.trim()).ok_or_else(wrong)?;
    Some((nanos / 1_000_000) as u64).filter(|ms| *ms > 0).ok_or_else(wrong)
}

/// The longest text that is taken for a duration.
const DURATION_BYTES: usize = 64;
/// Go's units, in nanoseconds. The micro sign has two code points.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration as Go's `time.ParseDuration` does: decimal numbers, each with a unit, with a sign before all of them. What
/// is not above zero, or more than Go's 64 bits of nanoseconds hold, is none here.
fn go_nanos(text: &str) -> Option<u128> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() || rest.len() > DURATION_BYTES {
        return None;
    }
    let mut all: u128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, behind) = rest.split_at(digits(rest));
        let (fraction, behind) = match behind.strip_prefix('.') {
            Some(behind) => behind.split_at(digits(behind)),
            None => ("", behind),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
        all = all.checked_add(number(whole)?.checked_mul(*length)?)?;
        // Digits behind the twelfth are less than a nanosecond of any unit.
        let fraction = &fraction[..fraction.len().min(12)];
        all = all.checked_add(number(fraction)?.checked_mul(*length)? / 10u128.pow(fraction.len() as u32))?;
        rest = behind;
    }
    (all > 0 && all <= i64::MAX as u128).then_some(all)
}

/// A retention in the form that PromQL takes: whole days, hours or minutes, else seconds, at least one (SPEC §3.1).
pub fn prometheus_duration(ms: u64) -> String {
    let seconds = (ms / 1000).max(1);
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

impl Config {
    /// Reads entries whose values are objects; what cannot be read is left out with a warning, the others hold (SPEC R05).
    /// Keys are taken in their order, so that of two entries for the same model and namespace the first holds.
    pub fn read(data: &Map<String, Value>) -> (Self, Vec<Warning>) {
        let mut config = Self::default();
        let mut warnings = Vec::new();
        let sorted: BTreeMap<_, _> = data.iter().collect();
        for (key, value) in sorted {
            match config.entry(key, value) {
                Ok(odd) => warnings.extend(odd.into_iter().map(|detail| Warning { entry: key.clone(), detail })),
                Err(detail) => warnings.push(Warning { entry: key.clone(), detail }),
            }
        }
        (config, warnings)
    }

    /// Takes one entry; answers what is odd about it, though it holds.
    fn entry(&mut self, key: &str, value: &Value) -> Result<Vec<String>, String> {
        let (entry, odd) = read(value)?;
        if key != DEFAULT {
            let Some(model) = entry.model_id.as_deref().filter(|model| !model.is_empty()) else {
                return Err("is left out: it has no model_id".into());
            };
            let same = |other: &Entry| other.model_id.as_deref() == Some(model) && other.namespace == entry.namespace;
            if let Some((first, _)) = self.entries.iter().find(|(k, other)| *k != DEFAULT && same(other)) {
                return Err(format!("is left out: `{first}` is for the same model and namespace"));
            }
        }
        self.entries.insert(key.into(), entry);
        Ok(odd)
    }

    /// The entries that hold.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// What holds for a model in a namespace; `environment` is the value of [`VARIABLE`].
    pub fn effective(&self, model: &str, namespace: &str, environment: Option<&str>) -> Effective {
        let of_model = |wanted: Option<&str>| {
            let mut found = self.entries.iter().filter(|(key, entry)| {
                *key != DEFAULT && entry.model_id.as_deref() == Some(model) && entry.namespace.as_deref() == wanted
            });
            found.next()
        };
        let levels: Vec<(&String, &Entry)> =
            [of_model(Some(namespace)), of_model(None), self.entries.get_key_value(DEFAULT)]
                .into_iter()
                .flatten()
                .collect();
        let flag = levels.iter().find_map(|(key, entry)| Some((entry.enable_scale_to_zero?, (*key).clone())));
        let by_environment = || {
            let set = environment.filter(|value| value.eq_ignore_ascii_case("true"));
            set.map_or((false, "system".to_owned()), |_| (true, VARIABLE.to_owned()))
        };
        let (enable_scale_to_zero, flag_by) = flag.unwrap_or_else(by_environment);
        let retention = levels.iter().find_map(|(key, entry)| {
            let text = entry.retention_period.as_ref()?;
            // One that is wrong falls to the next level (SPEC §3.1).
            Some((text.clone(), duration_ms(text).ok()?, (*key).clone()))
        });
        let (retention_period, retention_ms, retention_by) =
            retention.unwrap_or_else(|| ("10m".into(), RETENTION_MS, "system".into()));
        Effective {
            enable_scale_to_zero,
            retention_period,
            retention_ms,
            decided_by: DecidedBy { enable_scale_to_zero: flag_by, retention_period: retention_by },
        }
    }
}

/// Reads one entry, with what is odd about it.
fn read(value: &Value) -> Result<(Entry, Vec<String>), String> {
    let Some(written) = value.as_object() else {
        let what = if value.is_null() { "empty".into() } else { value.to_string() };
        return Err(format!("is left out: it must be an object with {}, and is {what}", FIELDS.join(", ")));
    };
    let mut written = written.clone();
    let unknown = written.keys().filter(|field| !FIELDS.contains(&field.as_str()));
    let mut odd: Vec<String> = unknown
        .map(|field| format!("its `{field}` is not known and does nothing; there are {}", FIELDS.join(", ")))
        .collect();
    // YAML reads `retention_period: 300` as a number; it is a text that is no duration (SPEC §3.1: the rest of the entry holds).
    if let Some(retention) = written.get_mut("retention_period")
        && matches!(retention, Value::Number(_) | Value::Bool(_))
    {
        *retention = retention.to_string().into();
    }
    let mut entry: Entry =
        serde_json::from_value(written.into()).map_err(|error| format!("is left out: it cannot be read: {error}"))?;
    entry.namespace = entry.namespace.filter(|namespace| !namespace.is_empty());
    match entry.retention_period.as_deref().map(duration_ms) {
        Some(Err(wrong)) => odd.push(format!("its retention_period does not hold: {wrong}")),
        Some(Ok(ms)) if ms > LONG_MS => {
            odd.push(
                "its retention_period is longer than 24h: a model is kept for all that time after a single request"
                    .into(),
            );
        }
        _ => {}
    }
    Ok((entry, odd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ms) in [
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("+1.5h", 5_400_000),
            ("0.5s", 500),
            (".5s", 500),
            ("1.s", 1_000),
            ("5000µs", 5),
            ("5000μs", 5),
            ("5000us", 5),
            ("1500000ns", 1),
            ("1m0.000000000000000001s", 60_000),
            ("2540400h10m10.000000000s", 9_145_440_610_000),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        let long = "9".repeat(400);
        let many = "1s".repeat(100);
        for text in [
            "",
            "5",
            "-5m",
            "0",
            "0s",
            "5µ",
            "5 m",
            "m",
            ".s",
            "1d",
            "1h-5m",
            "5µs",
            "999999999h",
            &long,
            &many,
            "µ",
            "1µµs",
            "٣s",
        ] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }
    use serde_json::json;

    fn config(data: Value) -> (Config, Vec<Warning>) {
        Config::read(data.as_object().unwrap())
    }

    fn of(data: Value, model: &str, namespace: &str, environment: Option<&str>) -> (bool, String, String, String) {
        let found = config(data).0.effective(model, namespace, environment);
        let by = found.decided_by;
        (found.enable_scale_to_zero, found.retention_period, by.enable_scale_to_zero, by.retention_period)
    }

    fn told(enable: bool, retention: &str, flag_by: &str, retention_by: &str) -> (bool, String, String, String) {
        (enable, retention.into(), flag_by.into(), retention_by.into())
    }

    #[test]
    fn without_entries_the_environment_and_then_the_system_decide() {
        // SPEC Q03 S03 S04 S06 S11 V10, decision D17
        assert_eq!(of(json!({}), "m", "n", None), told(false, "10m", "system", "system"));
        assert_eq!(of(json!({}), "m", "n", Some("True")), told(true, "10m", VARIABLE, "system"));
        for no in ["1", "yes", "", "false"] {
            assert_eq!(of(json!({}), "m", "n", Some(no)), told(false, "10m", "system", "system"));
        }
    }

    #[test]
    fn each_field_is_taken_from_the_most_specific_entry_that_has_it() {
        // SPEC P04 R01 R02 R07 R08 R09 R10 R11 R12 S01 S02 S07 S08 S09
        let data = json!({
            "default": {"enable_scale_to_zero": true, "retention_period": "15m"},
            "fast-scaling-model": {"model_id": "meta/llama-3.1-8b", "retention_period": "5m"},
            "no-scale-model": {"model_id": "meta/llama-3.1-70b", "enable_scale_to_zero": false},
        });
        assert_eq!(of(data.clone(), "meta/llama-3.1-8b", "x", None), told(true, "5m", "default", "fast-scaling-model"));
        assert_eq!(of(data.clone(), "meta/llama-3.1-70b", "x", None), told(false, "15m", "no-scale-model", "default"));
        assert_eq!(of(data, "other", "x", None), told(true, "15m", "default", "default"));
        let only = json!({"default": {"enable_scale_to_zero": true, "retention_period": "20m"}});
        assert_eq!(of(only, "m", "n", None), told(true, "20m", "default", "default"));
    }

    #[test]
    fn the_same_model_has_its_own_retention_in_each_namespace() {
        // SPEC R06 R13 R14 S05 S10 X02, decision D10: Example 4 of the guide.
        let data = json!({
            "llama-prod": {"model_id": "meta/llama-3.1-8b", "namespace": "production", "retention_period": "30m"},
            "llama-dev": {"model_id": "meta/llama-3.1-8b", "namespace": "development", "retention_period": "2m"},
        });
        assert_eq!(
            of(data.clone(), "meta/llama-3.1-8b", "production", None),
            told(false, "30m", "system", "llama-prod")
        );
        assert_eq!(
            of(data.clone(), "meta/llama-3.1-8b", "development", None),
            told(false, "2m", "system", "llama-dev")
        );
        assert_eq!(of(data, "meta/llama-3.1-8b", "staging", Some("true")), told(true, "10m", VARIABLE, "system"));
        let both = json!({
            "llama-8b": {"model_id": "m", "retention_period": "5m"},
            "llama-production": {"model_id": "m", "namespace": "production", "enable_scale_to_zero": true, "retention_period": "30m"},
        });
        assert_eq!(
            of(both.clone(), "m", "production", None),
            told(true, "30m", "llama-production", "llama-production")
        );
        assert_eq!(of(both, "m", "elsewhere", None), told(false, "5m", "system", "llama-8b"));
    }

    #[test]
    fn entries_that_cannot_hold_are_left_out_with_a_warning_and_the_others_hold() {
        // SPEC R04 R05
        let (config, warnings) = config(json!({
            "a": {"model_id": "m", "retention_period": "1h"},
            "b": {"model_id": "m", "retention_period": "2h"},
            "c": {"retention_period": "3h"},
            "d": {"model_id": "n", "enable_scale_to_zero": "perhaps"},
            "e": {"model_id": "o", "retention_period": "1d"},
            "f": "text",
            "g": null,
            "h": {"model_id": "p", "enable_scale_to_zero": false, "retention_period": 300},
            "i": {"model_id": "q", "namespace": "", "retention_perod": "5m"},
            "j": {"model_id": "r", "retention_period": "25h"},
        }));
        let named: Vec<_> = warnings.iter().map(|w| w.entry.as_str()).collect();
        assert_eq!(named, ["b", "c", "d", "e", "f", "g", "h", "i", "j"]);
        // A retention that is no text does not take the flag along.
        assert_eq!(config.effective("p", "x", Some("true")).decided_by.enable_scale_to_zero, "h");
        // No namespace is every namespace.
        assert!(config.entries()["i"].namespace.is_none() && warnings[7].detail.contains("retention_perod"));
        assert_eq!(config.effective("r", "x", None).retention_period, "25h");
        assert_eq!(config.effective("m", "x", None).retention_period, "1h");
        // A retention that is wrong falls to the next level, the rest of its entry holds.
        assert_eq!(config.effective("o", "x", None).decided_by.retention_period, "system");
    }

    #[test]
    fn durations_are_go_s_own() {
        for (text, ms) in [
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("30s", 30_000),
            ("90m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for wrong in ["0s", "-5m", "10", "d", "1d", "", "abc"] {
            assert!(duration_ms(wrong).is_err(), "{wrong}");
        }
        for (ms, text) in
            [(86_400_000, "1d"), (5_400_000, "90m"), (7_200_000, "2h"), (1_500, "1s"), (10, "1s"), (61_000, "61s")]
        {
            assert_eq!(prometheus_duration(ms), text);
        }
    }
}
