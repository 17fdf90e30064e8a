//! Models: what Prometheus would say of them.

use crate::function::DecidedBy;
use capstan_common::id::FunctionKey;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A PromQL query about models (the guide's).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// The expression.
    pub query: String,
    /// For when; the present, if it is not said.
    #[serde(default)]
    pub time: Option<String>,
}

/// Gauges of models, under both names (decision D12).
pub const GAUGES: [&str; 6] = [
    "inferno_desired_replicas",
    "wva_desired_replicas",
    "inferno_current_replicas",
    "wva_current_replicas",
    "inferno_desired_ratio",
    "wva_desired_ratio",
];

/// The scale-to-zero configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleToZero {}

/// Replaces the scale-to-zero configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetScaleToZero {
    /// Entries by key, each an object or a text block.
    pub data: Map<String, Value>,
}

/// What the scale-to-zero configuration says of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// Which model.
    pub model_id: String,
    /// In which namespace.
    pub namespace: String,
}

/// The scale-to-zero configuration in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScaleToZero)]
pub struct ScaleToZeroView {
    /// As it was put.
    pub data: Map<String, Value>,
    /// What of it does not hold, by entry.
    pub warnings: Vec<String>,
}

/// What holds for one model, and which entry decided each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Effective)]
pub struct EffectiveView {
    /// Whether it may be scaled to zero.
    pub enable_scale_to_zero: bool,
    /// How long after the last request, as it was written.
    pub retention_period: String,
    /// Which entry decided.
    pub decided_by: DecidedBy,
}

/// The function that serves a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// In which namespace.
    pub namespace: String,
    /// Which model.
    pub model_id: String,
}

/// A function that serves a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Serving)]
pub struct ServingView {
    /// Which.
    pub key: FunctionKey,
}

/// The gauges of a namespace's models: how many replicas each wants and has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Which namespace.
    pub namespace: String,
}

/// Gauges, one for each name and set of labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Gauges)]
pub struct GaugesView {
    /// All of them.
    pub gauges: Vec<Gauge>,
}

/// A gauge of now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gauge {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Gauges {
    /// Those of all schedulers; while a model's function changes hands two may tell of it, and ours counts.
    pub(crate) fn gather(&self, answers: Vec<GaugesView>) -> Option<GaugesView> {
        let mut gauges = Vec::<Gauge>::new();
        for gauge in answers.into_iter().flat_map(|answer| answer.gauges) {
            if !gauges.iter().any(|known| known.name == gauge.name && known.labels == gauge.labels) {
                gauges.push(gauge);
            }
        }
        Some(GaugesView { gauges })
    }
}

/// What a query finds: an instant vector.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vector {
    /// One for each set of labels.
    pub samples: Vec<Sample>,
}

/// A sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    /// Its labels.
    pub metric: BTreeMap<String, String>,
    /// When it was taken, in seconds since 1970.
    pub at: f64,
    /// Its value.
    pub value: f64,
}

impl Query {
    /// What has the same labels at several schedulers is one series, and its values add up.
    pub(crate) fn gather(&self, answers: Vec<Vector>) -> Option<Vector> {
        let mut samples: Vec<Sample> = Vec::new();
        for sample in answers.into_iter().flat_map(|answer| answer.samples) {
            match samples.iter_mut().find(|sum| sum.metric == sample.metric) {
                Some(sum) => sum.value += sample.value,
                None => samples.push(sample),
            }
        }
        Some(Vector { samples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_the_same_labels_add_up() {
        let sample = |model: &str, value| Sample { metric: [("model".into(), model.into())].into(), at: 1.5, value };
        let (ours, theirs) = (vec![sample("a", 1.0), sample("b", 2.0)], vec![sample("b", 3.5), sample("c", 0.0)]);
        let query = Query { query: "a".into(), time: None };
        let all = query.gather(vec![Vector { samples: ours }, Vector { samples: theirs }]).unwrap();
        assert_eq!(all.samples, [sample("a", 1.0), sample("b", 5.5), sample("c", 0.0)]);
    }
}
