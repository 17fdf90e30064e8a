//! What a trigger asks for, by its metadata:
//!
//! | key | |
//! |---|---|
//! | `function`, or `model` | whose numbers; a model by the `model_id` of the function that serves it; neither with `required_nodes` means all |
//! | `namespace` | theirs, `default` without it |
//! | `metric` | `desired_replicas` (without it), `backlog`, `running`, `required_nodes` |
//! | `target` | a number above zero, 1 without it |
//! | `nodeCpu`, `nodeMemoryMib`, `nodeGpus` | how large a node is, for `required_nodes`; as the largest worker without them |

use super::{proto::ScaledObjectRef, status};
use capstan_common::{id::FunctionKey, resource::Amount, validate};
use std::str::FromStr;
use tonic::Status;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Containers that a function wants.
    DesiredReplicas,
    /// Its inputs that wait.
    Backlog,
    /// Its inputs that run.
    Running,
    /// Nodes that hold what is wanted.
    RequiredNodes,
}

impl Metric {
    const ALL: [Self; 4] = [Self::DesiredReplicas, Self::Backlog, Self::Running, Self::RequiredNodes];

    /// By its name.
    ///
    /// # Errors
    /// There is none of it.
    pub fn read(name: &str) -> Result<Self, Status> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|metric| metric.name() == name);
        found.ok_or_else(|| wrong(format!("metadata `metric` is `{name}`, must be one of {}", names())))
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::DesiredReplicas => "desired_replicas",
            Self::Backlog => "backlog",
            Self::Running => "running",
            Self::RequiredNodes => "required_nodes",
        }
    }
}

/// Whose numbers are asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// A function's.
    Function(FunctionKey),
    /// Those of whichever function serves a model.
    Model {
        /// Its namespace.
        namespace: String,
        /// The model's id.
        model: String,
    },
    /// All functions'.
    All,
}

/// One trigger.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// Whose numbers.
    pub asked: Asked,
    /// Which.
    pub metric: Metric,
    /// How much of it each replica is for.
    pub target: f64,
    /// How large a node is, where that is said.
    pub node: Option<Amount>,
}

fn wrong(what: String) -> Status {
    Status::invalid_argument(what)
}

/// The metric is one of a function.
pub fn needs_function(metric: Metric) -> Status {
    let metric = metric.name();
    wrong(format!("metadata `function` must name a function, or `model` a model: `{metric}` is a number of one"))
}

impl Trigger {
    /// Reads a trigger's metadata.
    ///
    /// # Errors
    /// What is missing or wrong of it.
    pub fn read(object: &ScaledObjectRef) -> Result<Self, Status> {
        let given = |name: &str| object.scaler_metadata.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let namespace = given("namespace").unwrap_or("default");
        let metric = given("metric").map_or(Ok(Metric::DesiredReplicas), Metric::read)?;
        let asked = match (given("function"), given("model")) {
            (Some(_), Some(_)) => {
                return Err(wrong("metadata has both `function` and `model`; give one of them".into()));
            }
            (Some(function), None) => Asked::Function(validate::instance_key(namespace, function).map_err(status)?),
            (None, Some(model)) => {
                validate::function_key(namespace, "any").map_err(status)?;
                Asked::Model { namespace: namespace.into(), model: model.into() }
            }
            (None, None) if metric == Metric::RequiredNodes => Asked::All,
            (None, None) => return Err(needs_function(metric)),
        };
        let target = number(given("target"), "target")?.unwrap_or(1.0);
        let (cpu, memory) = (number(given("nodeCpu"), "nodeCpu")?, number(given("nodeMemoryMib"), "nodeMemoryMib")?);
        let gpus: Option<u64> = whole(given("nodeGpus"), "nodeGpus")?;
        let node = match (cpu, memory) {
            (Some(cpu), Some(memory)) => {
                let cpu_milli = (cpu * 1000.0) as u64;
                Some(Amount { cpu_milli, memory_mib: memory as u64, gpus: gpus.unwrap_or(0) })
            }
            (None, None) if gpus.is_none() => None,
            _ => return Err(wrong("a node's size needs both nodeCpu and nodeMemoryMib".into())),
        };
        Ok(Self { asked, metric, target, node })
    }
}

fn number(text: Option<&str>, name: &str) -> Result<Option<f64>, Status> {
    let read = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    text.map(|text| {
        read(text).ok_or_else(|| wrong(format!("metadata `{name}` is `{text}`, must be a number above zero")))
    })
    .transpose()
}

fn whole<T: FromStr>(text: Option<&str>, name: &str) -> Result<Option<T>, Status> {
    text.map(|text| text.parse().map_err(|_| wrong(format!("metadata `{name}` is `{text}`, must be a whole number"))))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &[(&str, &str)]) -> Result<Trigger, String> {
        let scaler_metadata = metadata.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let object = ScaledObjectRef { name: "n".into(), namespace: "n".into(), scaler_metadata };
        Trigger::read(&object).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_trigger_is_read_or_told_what_is_wrong() {
        // SPEC section 3.9
        let all = read(&[("metric", "required_nodes"), ("nodeCpu", "2.5"), ("nodeMemoryMib", "4096")]).unwrap();
        let node = Amount { cpu_milli: 2_500, memory_mib: 4_096, gpus: 0 };
        assert_eq!((all.asked, all.node, all.target), (Asked::All, Some(node), 1.0));
        let model = read(&[("model", "meta/llama"), ("namespace", "prod"), ("target", "0.5")]).unwrap();
        assert_eq!(model.asked, Asked::Model { namespace: "prod".into(), model: "meta/llama".into() });
        assert_eq!((model.metric, model.target, model.node), (Metric::DesiredReplicas, 0.5, None));
        for (metadata, part) in [
            (&[][..], "must name a function"),
            (&[("metric", "backlog")], "must name a function"),
            (&[("function", "f"), ("model", "m")], "give one of them"),
            (&[("function", "a b")], "a b"),
            (&[("function", "f"), ("metric", "speed")], "required_nodes"),
            (&[("function", "f"), ("target", "-1")], "above zero"),
            (&[("metric", "required_nodes"), ("nodeCpu", "2")], "both nodeCpu and nodeMemoryMib"),
            (&[("metric", "required_nodes"), ("nodeGpus", "1.5")], "a whole number"),
        ] {
            let error = read(metadata).unwrap_err();
            assert!(error.contains(part), "{metadata:?}: {error}");
        }
    }
}
