//! The link's wire form: generated messages, their conversions, and the version handshake.

use crate::{
    container::{Ending, Phase},
    id::{CallId, ContainerId, Epoch, FunctionKey, LeaseId, Revision, Shard},
    input::{Blob, Body, Failure, FailureKind, Format, Payload},
    order::{Assignment, Group, Order},
    report::{Done, Held, HeldAttempt, Report},
    resource::Amount,
};
use bytes::Bytes;

/// The newest version of the link's protocol that is spoken here.
pub const PROTOCOL: u32 = 4;
/// The oldest. A version may only add to the one before it: fields, kinds of orders and reports.
pub const OLDEST_PROTOCOL: u32 = 4;

mod hello;
mod pages;
mod start;

pub use hello::agreed;
use hello::{hello_in, hello_out};
pub use pages::{REPORTS_BYTES, REPORTS_MAX, pages};
use start::{start_in, start_out};

/// Generated from `proto/link.proto`.
#[allow(missing_docs, clippy::all)]
pub mod link {
    tonic::include_proto!("capstan.link.v1");
}

/// A message that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A part that must be there is not.
    #[error("the message lacks `{0}`")]
    Missing(&'static str),
    /// A call id is not 16 bytes.
    #[error("a call id has {0} bytes, not 16")]
    CallId(usize),
    /// A port is none.
    #[error("{0} is not a port")]
    Port(u32),
    /// A shard is none.
    #[error("{0} is not a shard")]
    Shard(u32),
    /// A payload is written in a way that this version does not know.
    #[error("a payload has format {0}, which this version does not know")]
    Format(u32),
    /// A number stands for something that this version does not know.
    #[error("{0} {1} is none that this version knows")]
    Unknown(&'static str, i32),
}

fn call_bytes(call: CallId) -> Bytes {
    Bytes::copy_from_slice(&call.0.to_be_bytes())
}

fn call_id(bytes: &[u8]) -> Result<CallId, WireError> {
    let array = bytes.try_into().map_err(|_| WireError::CallId(bytes.len()))?;
    Ok(CallId(u128::from_be_bytes(array)))
}

fn port_in(number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::Port(number))
}

fn shard_in(number: u32) -> Result<Shard, WireError> {
    u16::try_from(number).map(Shard).map_err(|_| WireError::Shard(number))
}

fn numbers(leases: &[LeaseId]) -> Vec<u64> {
    leases.iter().map(|l| l.0).collect()
}

fn leases(numbers: Vec<u64>) -> Vec<LeaseId> {
    numbers.into_iter().map(LeaseId).collect()
}

fn payload_out(payload: Payload) -> link::Payload {
    let kind = match payload.body {
        Body::Inline(bytes) => link::payload::Kind::Inline(bytes),
        Body::Blob(blob) => {
            link::payload::Kind::Blob(link::Blob { name: blob.name.to_string(), len: blob.len, crc32c: blob.crc32c })
        }
    };
    link::Payload { kind: Some(kind), format: payload.format as u32 }
}

fn format_in(number: u32) -> Result<Format, WireError> {
    Format::from_number(number).ok_or(WireError::Format(number))
}

fn payload_in(payload: Option<link::Payload>) -> Result<Payload, WireError> {
    let payload = payload.ok_or(WireError::Missing("payload"))?;
    let format = format_in(payload.format)?;
    let body = match payload.kind.ok_or(WireError::Missing("payload"))? {
        link::payload::Kind::Inline(bytes) => Body::Inline(bytes),
        link::payload::Kind::Blob(blob) => {
            Body::Blob(Blob { name: blob.name.into(), len: blob.len, crc32c: blob.crc32c })
        }
    };
    Ok(Payload { format, body })
}

impl From<Order> for link::Order {
    fn from(order: Order) -> Self {
        use link::order::Kind;
        let kind = match order {
            Order::Own { shard, shards, epoch } => {
                Kind::Own(link::Own { shard: u32::from(shard.0), shards: u32::from(shards), epoch: epoch.0 })
            }
            Order::Peers { links } => Kind::Peers(link::Peers { links }),
            Order::Start(start) => Kind::Start(start_out(start)),
            Order::Feed { container, groups } => {
                Kind::Feed(link::Feed { container: container.0, groups: groups.into_iter().map(group_out).collect() })
            }
            Order::Abort { container, leases } => {
                Kind::Abort(link::Abort { container: container.0, leases: numbers(&leases) })
            }
            Order::Stop { container, grace_ms, reason } => {
                Kind::Stop(link::Stop { container: container.0, grace_ms, reason })
            }
            Order::Recorded { container, leases } => {
                Kind::Recorded(link::Recorded { container: container.0, leases: numbers(&leases) })
            }
        };
        Self { kind: Some(kind) }
    }
}

fn group_out(group: Group) -> link::Group {
    link::Group {
        batch: group.batch,
        assignments: group
            .assignments
            .into_iter()
            .map(|a| link::Assignment {
                lease: a.lease.0,
                call: call_bytes(a.call),
                index: a.index,
                attempt: a.attempt,
                payload: Some(payload_out(a.payload)),
                traceparent: a.traceparent.to_string(),
            })
            .collect(),
    }
}

fn group_in(group: link::Group) -> Result<Group, WireError> {
    let assignments = group
        .assignments
        .into_iter()
        .map(|a| {
            Ok(Assignment {
                lease: LeaseId(a.lease),
                call: call_id(&a.call)?,
                index: a.index,
                attempt: a.attempt,
                payload: payload_in(a.payload)?,
                traceparent: a.traceparent.into(),
            })
        })
        .collect::<Result<_, WireError>>()?;
    Ok(Group { assignments, batch: group.batch })
}

/// An order that cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable {
    /// Why.
    pub error: WireError,
    /// What a worker answers: it concerns one container, and never ends the link. None where not even that can be read.
    pub answer: Option<Report>,
}

/// Reads an order; the handshake's `Welcome` is not one and gives `None`.
pub fn order_in(order: link::Order) -> Result<Option<Order>, Box<Unreadable>> {
    use link::order::Kind;
    let container = match &order.kind {
        Some(Kind::Start(start)) => Some(ContainerId(start.container)),
        Some(Kind::Feed(feed)) => {
            feed_is_readable(feed)?;
            None
        }
        _ => None,
    };
    read_order(order).map_err(|error| {
        let answer = container.map(|container| Report::Refused { container, reason: older(&error) });
        Box::new(Unreadable { error, answer })
    })
}

fn older(error: &WireError) -> String {
    format!("this worker cannot read the order ({error}): is it older than the scheduler?")
}

/// Looks at what could not be read once inputs are taken apart. If there is anything, the attempts fail and say so.
fn feed_is_readable(feed: &link::Feed) -> Result<(), Box<Unreadable>> {
    let all = || feed.groups.iter().flat_map(|group| &group.assignments);
    let readable = |a: &link::Assignment| {
        call_id(&a.call)?;
        let payload = a.payload.as_ref().ok_or(WireError::Missing("payload"))?;
        format_in(payload.format)?;
        payload.kind.as_ref().map(drop).ok_or(WireError::Missing("payload"))
    };
    let Err(error) = all().try_for_each(readable) else { return Ok(()) };
    let done = all().filter_map(|a| {
        let call = call_id(&a.call).ok()?;
        let held = HeldAttempt { lease: LeaseId(a.lease), call, index: a.index, attempt: a.attempt };
        let failure = Failure::new(FailureKind::Lost, "InputNotReadable", older(&error));
        Some(Done { held, waited_us: 0, run_us: 0, result: Err(failure) })
    });
    let answer = Report::Finished { container: ContainerId(feed.container), done: done.collect() };
    Err(Box::new(Unreadable { error, answer: Some(answer) }))
}

fn read_order(order: link::Order) -> Result<Option<Order>, WireError> {
    use link::order::Kind;
    Ok(Some(match order.kind.ok_or(WireError::Missing("order"))? {
        Kind::Welcome(_) => return Ok(None),
        Kind::Own(own) => {
            Order::Own { shard: shard_in(own.shard)?, shards: shard_in(own.shards)?.0, epoch: Epoch(own.epoch) }
        }
        Kind::Peers(peers) => Order::Peers { links: peers.links },
        Kind::Start(start) => Order::Start(start_in(start)?),
        Kind::Feed(feed) => Order::Feed {
            container: ContainerId(feed.container),
            groups: feed.groups.into_iter().map(group_in).collect::<Result<_, _>>()?,
        },
        Kind::Abort(abort) => Order::Abort { container: ContainerId(abort.container), leases: leases(abort.leases) },
        Kind::Stop(stop) => {
            Order::Stop { container: ContainerId(stop.container), grace_ms: stop.grace_ms, reason: stop.reason }
        }
        Kind::Recorded(recorded) => {
            Order::Recorded { container: ContainerId(recorded.container), leases: leases(recorded.leases) }
        }
    }))
}

fn held_attempt_out(held: HeldAttempt) -> link::HeldAttempt {
    link::HeldAttempt { lease: held.lease.0, call: call_bytes(held.call), index: held.index, attempt: held.attempt }
}

fn done_out(done: Done) -> link::Done {
    let outcome = match done.result {
        Ok(output) => link::done::Outcome::Output(payload_out(output)),
        Err(failure) => link::done::Outcome::Failure(link::Failure {
            kind: failure.kind as u32,
            r#type: failure.error_type,
            message: failure.message,
            traceback: failure.traceback,
        }),
    };
    link::Done {
        lease: done.held.lease.0,
        call: call_bytes(done.held.call),
        index: done.held.index,
        attempt: done.held.attempt,
        waited_us: done.waited_us,
        run_us: done.run_us,
        outcome: Some(outcome),
    }
}

fn done_in(done: link::Done) -> Result<Done, WireError> {
    let result = match done.outcome.ok_or(WireError::Missing("outcome"))? {
        link::done::Outcome::Output(output) => Ok(payload_in(Some(output))?),
        link::done::Outcome::Failure(failure) => Err(Failure {
            kind: FailureKind::from_number(failure.kind),
            error_type: failure.r#type,
            message: failure.message,
            traceback: failure.traceback,
        }),
    };
    Ok(Done {
        held: HeldAttempt {
            lease: LeaseId(done.lease),
            call: call_id(&done.call)?,
            index: done.index,
            attempt: done.attempt,
        },
        waited_us: done.waited_us,
        run_us: done.run_us,
        result,
    })
}

fn held_out(held: Held) -> link::Held {
    link::Held {
        container: held.container.0,
        namespace: held.function.namespace.to_string(),
        function: held.function.name.to_string(),
        revision: held.revision.0,
        ready: held.ready,
        gone: held.gone,
        port: u32::from(held.port),
        gpus: held.gpus,
        running: held.running.into_iter().map(held_attempt_out).collect(),
        finished: held.finished.into_iter().map(done_out).collect(),
    }
}

fn held_in(held: link::Held) -> Result<Held, WireError> {
    let running = held
        .running
        .into_iter()
        .map(|a| {
            Ok(HeldAttempt { lease: LeaseId(a.lease), call: call_id(&a.call)?, index: a.index, attempt: a.attempt })
        })
        .collect::<Result<_, WireError>>()?;
    Ok(Held {
        container: ContainerId(held.container),
        function: FunctionKey::new(&held.namespace, &held.function),
        revision: Revision(held.revision),
        ready: held.ready,
        gone: held.gone,
        port: port_in(held.port)?,
        gpus: held.gpus,
        running,
        finished: held.finished.into_iter().map(done_in).collect::<Result<_, _>>()?,
    })
}

impl From<Report> for link::Report {
    fn from(report: Report) -> Self {
        use link::report::Kind;
        let kind = match report {
            Report::Hello(hello) => Kind::Hello(hello_out(hello)),
            Report::Inventory { shard, held, more } => Kind::Inventory(link::Inventory {
                shard: u32::from(shard.0),
                held: held.into_iter().map(held_out).collect(),
                more,
            }),
            Report::Looked { container, detail } => Kind::Looked(link::Looked { container: container.0, detail }),
            Report::Outranked { shard, epoch } => {
                Kind::Outranked(link::Outranked { shard: u32::from(shard.0), epoch: epoch.0 })
            }
            Report::Refused { container, reason } => Kind::Refused(link::Refused { container: container.0, reason }),
            Report::Spawned { container, pid, spawn_us } => {
                Kind::Spawned(link::Spawned { container: container.0, pid, spawn_us })
            }
            Report::Counted { container, value } => Kind::Counted(link::Counted { container: container.0, value }),
            Report::Ready { container, phases, port } => Kind::Ready(link::Ready {
                container: container.0,
                port: u32::from(port),
                phases: phases.into_iter().map(|p| link::Phase { name: p.name, us: p.us }).collect(),
            }),
            Report::Finished { container, done } => Kind::Finished(link::Finished {
                container: container.0,
                done: done.into_iter().map(done_out).collect(),
            }),
            Report::Returned { container, leases, reason, closed } => {
                Kind::Returned(link::Returned { container: container.0, leases: numbers(&leases), reason, closed })
            }
            Report::Ended { container, ending, begun } => Kind::Ended(link::Ended {
                container: container.0,
                exit_code: ending.exit_code,
                signal: ending.signal,
                oom: ending.oom,
                reason: ending.reason,
                tail: ending.tail,
                begun: numbers(&begun),
                ordered: ending.ordered,
            }),
            Report::Log { container, stderr, chunk, dropped } => {
                Kind::Log(link::Log { container: container.0, stderr, chunk, dropped })
            }
            Report::Beat { sequence, others, free_gpus } => Kind::Beat(link::Beat {
                sequence,
                others_cpu_milli: others.cpu_milli,
                others_memory_mib: others.memory_mib,
                others_gpus: others.gpus,
                free_gpus,
            }),
        };
        Self { kind: Some(kind) }
    }
}

fn ended_in(ended: link::Ended) -> Report {
    Report::Ended {
        container: ContainerId(ended.container),
        begun: leases(ended.begun),
        ending: Ending {
            exit_code: ended.exit_code,
            signal: ended.signal,
            oom: ended.oom,
            reason: ended.reason,
            tail: ended.tail,
            ordered: ended.ordered,
        },
    }
}

/// Reads a report.
pub fn report_in(report: link::Report) -> Result<Report, WireError> {
    use link::report::Kind;
    Ok(match report.kind.ok_or(WireError::Missing("report"))? {
        Kind::Hello(hello) => Report::Hello(hello_in(hello)),
        Kind::Inventory(inventory) => Report::Inventory {
            shard: shard_in(inventory.shard)?,
            held: inventory.held.into_iter().map(held_in).collect::<Result<_, _>>()?,
            more: inventory.more,
        },
        Kind::Looked(looked) => Report::Looked { container: ContainerId(looked.container), detail: looked.detail },
        Kind::Outranked(outranked) => {
            Report::Outranked { shard: shard_in(outranked.shard)?, epoch: Epoch(outranked.epoch) }
        }
        Kind::Refused(refused) => Report::Refused { container: ContainerId(refused.container), reason: refused.reason },
        Kind::Spawned(spawned) => {
            Report::Spawned { container: ContainerId(spawned.container), pid: spawned.pid, spawn_us: spawned.spawn_us }
        }
        Kind::Counted(counted) => Report::Counted { container: ContainerId(counted.container), value: counted.value },
        Kind::Ready(ready) => Report::Ready {
            container: ContainerId(ready.container),
            port: port_in(ready.port)?,
            phases: ready.phases.into_iter().map(|p| Phase { name: p.name, us: p.us }).collect(),
        },
        Kind::Finished(finished) => Report::Finished {
            container: ContainerId(finished.container),
            done: finished.done.into_iter().map(done_in).collect::<Result<_, _>>()?,
        },
        Kind::Returned(returned) => Report::Returned {
            container: ContainerId(returned.container),
            leases: leases(returned.leases),
            reason: returned.reason,
            closed: returned.closed,
        },
        Kind::Ended(ended) => ended_in(ended),
        Kind::Log(log) => Report::Log {
            container: ContainerId(log.container),
            stderr: log.stderr,
            chunk: log.chunk,
            dropped: log.dropped,
        },
        Kind::Beat(beat) => Report::Beat {
            sequence: beat.sequence,
            others: Amount {
                cpu_milli: beat.others_cpu_milli,
                memory_mib: beat.others_memory_mib,
                gpus: beat.others_gpus,
            },
            free_gpus: beat.free_gpus,
        },
    })
}

#[cfg(test)]
mod tests;
