//! A scheduler among others: it takes the shards that should be its own, gives up those that should not, and knows who has the
//! rest.

mod keeper;
mod spaces;
mod view;

pub use keeper::{Cluster, Ready, Sessions};
pub use view::{Peer, View};
