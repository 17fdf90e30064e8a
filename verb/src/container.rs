//! Containers: what runs where, and why there.

use crate::log::Part;
use capstan_common::{
    container::ContainerState,
    id::{ContainerId, Revision, WorkerId},
};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, sync::Arc};
use utoipa::ToSchema;

/// Containers; what is not named lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Of functions of this namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Of functions of this name.
    #[serde(default)]
    pub function: Option<String>,
    /// On this worker.
    #[serde(default)]
    pub worker: Option<String>,
}

/// What a container wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Which.
    pub container: ContainerId,
    /// Which part of it.
    #[serde(default)]
    pub part: Part,
}

/// Stops a container; what it holds runs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Which.
    pub container: ContainerId,
}

/// A container that was told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Stopping)]
pub struct StoppingView {
    /// Which.
    #[schema(value_type = String, example = "ct-0000010000000001")]
    pub id: ContainerId,
    /// `stopping`.
    pub state: Cow<'static, str>,
}

/// All containers that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Containers)]
pub struct ContainersView {
    /// By function, then by id.
    pub containers: Vec<ContainerView>,
}

/// A container as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Container)]
pub struct ContainerView {
    /// Its id.
    #[schema(value_type = String, example = "ct-0000010000000001")]
    pub id: ContainerId,
    /// Its function's namespace.
    pub namespace: Arc<str>,
    /// Its function.
    pub function: Arc<str>,
    /// Of which revision.
    pub revision: Revision,
    /// Where it is.
    pub worker: WorkerId,
    /// Its state.
    pub state: ContainerState,
    /// Inputs and web requests that it holds.
    pub inputs: u32,
    /// When its start was decided.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// Where its server listens, if it has one that is ready.
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// Why it is where it is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementView>,
    /// Whether it runs as its worker's user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
}

/// Why a container is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Placement)]
pub struct PlacementView {
    /// The stable code.
    pub reason: Cow<'static, str>,
    /// What an operator reads.
    pub detail: Cow<'static, str>,
}

impl List {
    /// What all schedulers have. While a function changes hands two may tell of its containers: the one before does not know yet
    /// that it is not the owner any more. Ours counts before others'.
    pub(crate) fn gather(&self, answers: Vec<ContainersView>) -> Option<ContainersView> {
        let mut by_id = BTreeMap::new();
        for container in answers.into_iter().flat_map(|answer| answer.containers) {
            let of = (container.namespace.clone(), container.function.clone(), container.id);
            by_id.entry(of).or_insert(container);
        }
        Some(ContainersView { containers: by_id.into_values().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_two_schedulers_tell_of_is_one_container() {
        let container = |id, function: &str, inputs| ContainerView {
            id: ContainerId(id),
            namespace: "n".into(),
            function: function.into(),
            revision: Revision(1),
            worker: WorkerId("w".into()),
            state: ContainerState::Busy,
            inputs,
            started_at: String::new(),
            address: None,
            placement: None,
            trusted: false,
        };
        let ours = ContainersView { containers: vec![container(2, "f", 7), container(1, "g", 0)] };
        let theirs = ContainersView { containers: vec![container(2, "f", 3), container(9, "f", 1)] };
        let all = List::default().gather(vec![ours, theirs]).unwrap().containers;
        let told: Vec<_> = all.iter().map(|c| (&*c.function, c.id.0, c.inputs)).collect();
        assert_eq!(told, [("f", 2, 7), ("f", 9, 1), ("g", 1, 0)]);
    }
}
