//! What the interface offers. Each operation is described once, in Rust: the router serves only what stands here, the guard reads
//! the rights and the parameters, and the OpenAPI document is written from it.

mod calls;
mod cluster;
mod document;
mod functions;
mod models;
mod operation;
mod shape;
mod shapes;

pub use document::{document, home, swagger, write};
pub use operation::{Operation, Scope};

use std::{collections::BTreeMap, sync::LazyLock};

/// The operations of one path, by method.
pub type Operations = BTreeMap<&'static str, Operation>;

/// All operations in the order of the document, by tag.
fn all() -> Vec<Operation> {
    let parts = [functions::operations(), calls::operations(), cluster::operations(), models::operations()];
    parts.into_iter().flatten().collect()
}

/// Operations under one tag.
fn tagged(tag: &'static str, operations: impl IntoIterator<Item = Operation>) -> Vec<Operation> {
    operations.into_iter().map(|operation| Operation { tag, ..operation }).collect()
}

/// What a path offers, by method.
pub fn operations(path: &str) -> Option<&'static Operations> {
    static ALL: LazyLock<BTreeMap<&'static str, Operations>> = LazyLock::new(|| {
        let mut by_path = BTreeMap::<_, Operations>::new();
        for operation in all() {
            by_path.entry(operation.path).or_default().insert(operation.method, operation);
        }
        by_path
    });
    ALL.get(path)
}
