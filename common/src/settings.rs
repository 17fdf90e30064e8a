//! How many containers a function has: as deployed, and what is laid over that while it runs (SPEC B, D).

use crate::function::present;
use serde::{Deserialize, Deserializer, Serialize};

/// How many containers a function has (SPEC B).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = EffectiveSettings))]
pub struct AutoscalerSettings {
    /// Kept warm, even when the function is inactive. Older name: `keep_warm` (SPEC B18).
    pub min_containers: u32,
    /// Never more than this; unset: the cluster's own cap.
    pub max_containers: Option<u32>,
    /// Idle containers kept beyond need while the function is active.
    pub buffer_containers: u32,
    /// Seconds that a container may idle before it is stopped. Older name: `container_idle_timeout` (SPEC B17).
    pub scaledown_window: u32,
    /// Whether starts are spared where they take longer than what waits.
    #[serde(skip_serializing_if = "ScaleupPolicy::is_latency")]
    pub scaleup_policy: ScaleupPolicy,
}

/// When a container is started for what waits (SPEC §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScaleupPolicy {
    /// At once, one for each slot's worth of inputs.
    #[default]
    Latency,
    /// Only if what waits would wait longer for those that are there than a start takes.
    Cost,
}

impl ScaleupPolicy {
    fn is_latency(&self) -> bool {
        *self == Self::Latency
    }
}

/// Settings as they are written: with their older names, absent where they are left out.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = AutoscalerSettings))]
#[serde(deny_unknown_fields, rename = "AutoscalerSettings")]
pub(crate) struct WrittenSettings {
    /// Containers kept warm, even when the function is inactive.
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, default = 0))]
    #[serde(default, deserialize_with = "present")]
    min_containers: Option<Option<u32>>,
    /// Older name of `min_containers`.
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, deprecated, write_only))]
    #[serde(default, deserialize_with = "present")]
    keep_warm: Option<Option<u32>>,
    /// Never more containers than this; null: the cluster's own cap.
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 1))]
    #[serde(default, deserialize_with = "present")]
    max_containers: Option<Option<u32>>,
    /// Idle containers kept beyond need while the function is active.
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, default = 0))]
    #[serde(default, deserialize_with = "present")]
    buffer_containers: Option<Option<u32>>,
    /// Seconds that a container may idle before it is stopped.
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 1, default = 60))]
    #[serde(default, deserialize_with = "present")]
    scaledown_window: Option<Option<u32>>,
    /// Older name of `scaledown_window`.
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 1, deprecated, write_only))]
    #[serde(default, deserialize_with = "present")]
    container_idle_timeout: Option<Option<u32>>,
    /// Whether starts are spared where they take longer than what waits.
    #[serde(default)]
    scaleup_policy: Option<ScaleupPolicy>,
}

/// Names that are still taken, and what they are called now (decisions D2, D3).
pub const OLDER_NAMES: [(&str, &str); 2] =
    [("keep_warm", "min_containers"), ("container_idle_timeout", "scaledown_window")];

impl WrittenSettings {
    /// The same under the names of now; two names with different values contradict each other.
    fn named(self) -> Result<OverridesPatch, String> {
        if self.scaleup_policy.is_some() {
            return Err("scaleup_policy is set by a deployment only".into());
        }
        let one = |now: &str, older: &str, new: Option<Option<u32>>, old: Option<Option<u32>>| match (new, old) {
            (Some(new), Some(old)) if new != old => {
                let shown = |value: Option<u32>| value.map_or("null".into(), |v| v.to_string());
                Err(format!(
                    "{older} ({}) is the older name of {now} ({}): give one of them, or both with the same value",
                    shown(old),
                    shown(new)
                ))
            }
            (new, old) => Ok(new.or(old)),
        };
        Ok(OverridesPatch {
            min_containers: one("min_containers", "keep_warm", self.min_containers, self.keep_warm)?,
            max_containers: self.max_containers,
            buffer_containers: self.buffer_containers,
            scaledown_window: one(
                "scaledown_window",
                "container_idle_timeout",
                self.scaledown_window,
                self.container_idle_timeout,
            )?,
        })
    }
}

impl<'de> Deserialize<'de> for AutoscalerSettings {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut written = WrittenSettings::deserialize(d)?;
        let scaleup_policy = written.scaleup_policy.take().unwrap_or_default();
        let written = written.named().map_err(serde::de::Error::custom)?;
        let defaults = Self::default();
        let or = |value: Option<Option<u32>>, default: u32| value.flatten().unwrap_or(default);
        Ok(Self {
            min_containers: or(written.min_containers, defaults.min_containers),
            max_containers: written.max_containers.flatten(),
            buffer_containers: or(written.buffer_containers, defaults.buffer_containers),
            scaledown_window: or(written.scaledown_window, defaults.scaledown_window),
            scaleup_policy,
        })
    }
}

impl Default for AutoscalerSettings {
    fn default() -> Self {
        Self {
            min_containers: 0,
            max_containers: None,
            buffer_containers: 0,
            scaledown_window: 60,
            scaleup_policy: ScaleupPolicy::Latency,
        }
    }
}

/// Dynamic settings laid over the deployed ones; an absent field is not overridden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// Replaces `min_containers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_containers: Option<u32>,
    /// Replaces `max_containers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_containers: Option<u32>,
    /// Replaces `buffer_containers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_containers: Option<u32>,
    /// Replaces `scaledown_window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaledown_window: Option<u32>,
}

impl Overrides {
    /// Whether a field, by its name, is set here.
    pub fn sets(&self, field: &str) -> bool {
        match field {
            "min_containers" => self.min_containers.is_some(),
            "max_containers" => self.max_containers.is_some(),
            "buffer_containers" => self.buffer_containers.is_some(),
            "scaledown_window" => self.scaledown_window.is_some(),
            _ => false,
        }
    }

    /// The deployed settings with these laid over them.
    pub fn over(&self, deployed: &AutoscalerSettings) -> AutoscalerSettings {
        AutoscalerSettings {
            min_containers: self.min_containers.unwrap_or(deployed.min_containers),
            max_containers: self.max_containers.or(deployed.max_containers),
            buffer_containers: self.buffer_containers.unwrap_or(deployed.buffer_containers),
            scaledown_window: self.scaledown_window.unwrap_or(deployed.scaledown_window),
            scaleup_policy: deployed.scaleup_policy,
        }
    }
}

/// A JSON merge patch of overrides: absent keeps, `null` drops, a value sets (SPEC D07, D08).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OverridesPatch {
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_containers: Option<Option<u32>>,
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_containers: Option<Option<u32>>,
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    buffer_containers: Option<Option<u32>>,
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>, minimum = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    scaledown_window: Option<Option<u32>>,
}

impl<'de> Deserialize<'de> for OverridesPatch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        WrittenSettings::deserialize(d)?.named().map_err(serde::de::Error::custom)
    }
}

impl OverridesPatch {
    /// Whether it says something of a field, by its name.
    pub fn names(&self, field: &str) -> bool {
        match field {
            "min_containers" => self.min_containers.is_some(),
            "max_containers" => self.max_containers.is_some(),
            "buffer_containers" => self.buffer_containers.is_some(),
            "scaledown_window" => self.scaledown_window.is_some(),
            _ => false,
        }
    }

    /// The overrides after this patch.
    pub fn apply(&self, before: &Overrides) -> Overrides {
        Overrides {
            min_containers: self.min_containers.unwrap_or(before.min_containers),
            max_containers: self.max_containers.unwrap_or(before.max_containers),
            buffer_containers: self.buffer_containers.unwrap_or(before.buffer_containers),
            scaledown_window: self.scaledown_window.unwrap_or(before.scaledown_window),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_keeps_what_it_does_not_name_and_null_drops() {
        // SPEC D03 D04 D07 D08
        let patch = |json: &str| serde_json::from_str::<OverridesPatch>(json).expect("a patch");
        let first = patch(r#"{"min_containers":2,"max_containers":10}"#).apply(&Overrides::default());
        let second = patch(r#"{"min_containers":4}"#).apply(&first);
        assert_eq!((second.min_containers, second.max_containers), (Some(4), Some(10)));
        let third = patch(r#"{"max_containers":null}"#).apply(&second);
        assert_eq!((third.min_containers, third.max_containers), (Some(4), None));
    }

    #[test]
    fn older_names_are_taken_and_a_pair_that_differs_is_refused() {
        // SPEC B17 B18, decisions D2 D3
        let read = |json: &str| serde_json::from_str::<AutoscalerSettings>(json).map_err(|e| e.to_string());
        let old = read(r#"{"keep_warm":2,"container_idle_timeout":30}"#).unwrap();
        assert_eq!((old.min_containers, old.scaledown_window), (2, 30));
        assert_eq!(read(r#"{"keep_warm":2,"min_containers":2}"#).unwrap().min_containers, 2);
        let refused = read(r#"{"keep_warm":2,"min_containers":3}"#).unwrap_err();
        assert!(refused.contains("keep_warm (2)") && refused.contains("min_containers (3)"), "{refused}");
        let patch = serde_json::from_str::<OverridesPatch>(r#"{"container_idle_timeout":10}"#).unwrap();
        assert_eq!(patch.apply(&Overrides::default()).scaledown_window, Some(10));
    }
}
