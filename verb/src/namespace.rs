//! Namespaces: their weights, quotas, and what they use.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Its name.
    pub namespace: String,
}

/// Sets a namespace's weight and quota.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Set {
    /// Its name.
    pub namespace: String,
    /// Its part of a full cluster, against other namespaces' weights.
    pub weight: u32,
    /// Bounds that hold also where there is room.
    pub quota: QuotaView,
}

/// All namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {}

/// Namespaces by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Namespaces)]
pub struct NamespacesView {
    /// Those that are known of.
    pub namespaces: Vec<NamespaceView>,
}

/// A namespace as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Namespace)]
pub struct NamespaceView {
    /// Its name.
    pub name: Arc<str>,
    /// Its part of a full cluster, against other namespaces' weights.
    pub weight: u32,
    /// Bounds that hold also where there is room; null is no bound.
    pub quota: QuotaView,
    /// What its containers take.
    pub used: UsedView,
}

/// The most that all containers of a namespace may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Quota)]
pub struct QuotaView {
    /// Containers.
    pub containers: Option<u32>,
    /// Cores.
    pub cpu: Option<f64>,
    /// Mebibytes of memory.
    pub memory_mib: Option<u64>,
    /// GPUs.
    pub gpus: Option<u32>,
}

/// What all containers of a namespace take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Used)]
pub struct UsedView {
    /// Containers.
    pub containers: u32,
    /// Cores.
    pub cpu: f64,
    /// Mebibytes of memory.
    pub memory_mib: u64,
    /// GPUs.
    pub gpus: u64,
}
