//! One contract for both engines, kept against a plain map of what was acknowledged; and what only a cluster's store can suffer.

mod contract;
mod etcd;
