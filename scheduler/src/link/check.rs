//! What a worker may say (RELIABILITY §4.1 A4): each report is looked at where it arrives, before anybody acts on it. A worker
//! is one of ours and may still be stolen or broken; what is too long is cut, what cannot be is left out or told as a failure.

use bytes::Bytes;
use capstan_common::{
    container::{Ending, Phase},
    gpu::Gpu,
    id::CallId,
    input::{Body, FAILURE_BYTES, Failure, FailureKind, Format, Payload, end_of},
    report::{Done, Held, HeldAttempt, Hello, Report},
    resource::Amount,
    worker::{PORTS, is_name},
};
use ipnet::IpNet;
use serde_json::value::RawValue;
use std::{collections::BTreeSet, net::IpAddr};

/// Bytes of a word: a version, an id.
const WORD: usize = 128;
/// Bytes of a sentence.
const SENTENCE: usize = 4 << 10;
/// Things that a worker may say it does not keep apart.
const NOT_KEPT_APART: usize = 16;
/// Bytes of one chunk of output.
const CHUNK: usize = 256 << 10;
/// GPUs of a worker.
const GPUS: usize = 256;
/// Leases in one list.
const LEASES: usize = 1 << 16;
/// More than any machine has; sums over thousands of them do not overflow.
const MOST: Amount = Amount { cpu_milli: 1 << 24, memory_mib: 1 << 31, gpus: GPUS as u64 };
/// The longest time that a part of a start or an attempt is taken for: half a year, in microseconds.
const LONGEST_US: u64 = 1 << 44;
/// The parts of a start that a worker times.
const PHASES: [&str; 2] = ["spawn", "ready"];

/// What arrivals are held against.
pub struct Check {
    /// The largest output of one input.
    pub output_max: u64,
}

fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        *text = end_of(text, most).to_owned();
    }
}

fn bounded(amount: Amount) -> Amount {
    Amount {
        cpu_milli: amount.cpu_milli.min(MOST.cpu_milli),
        memory_mib: amount.memory_mib.min(MOST.memory_mib),
        gpus: amount.gpus.min(MOST.gpus),
    }
}

/// A worker's introduction.
///
/// # Errors
/// Its name is none, or its GPUs are not told apart.
pub fn hello(mut hello: Hello) -> Result<Hello, String> {
    if !is_name(&hello.worker) {
        let shown: String = hello.worker.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(format!(
            "`{shown}` cannot be a worker's name: it has 1 to 128 letters, digits, dots, dashes and underscores"
        ));
    }
    let ids: BTreeSet<&str> = hello.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    let fits = |Gpu { uuid, model, .. }: &Gpu| uuid.len() <= WORD && model.len() <= WORD;
    if hello.gpus.len() > GPUS || ids.len() < hello.gpus.len() || !hello.gpus.iter().all(fits) {
        return Err(format!("a worker has at most {GPUS} GPUs, each with an id of its own of at most {WORD} bytes"));
    }
    for word in [&mut hello.version, &mut hello.instance] {
        cut(word, WORD);
    }
    if let Some(store) = &mut hello.store {
        cut(store, WORD);
    }
    cut(&mut hello.limits, SENTENCE);
    hello.isolation.not_kept_apart.truncate(NOT_KEPT_APART);
    hello.isolation.not_kept_apart.iter_mut().for_each(|what| cut(what, SENTENCE));
    hello.capacity = bounded(hello.capacity);
    Ok(hello)
}

/// Where a worker's containers are reached: where its link comes from, or where it says, if that is the same or an operator has
/// named the network. Else a worker could send clients' requests to whatever this scheduler reaches.
pub fn host(told: Option<IpAddr>, link: IpAddr, networks: &[IpNet]) -> Result<IpAddr, IpAddr> {
    match told {
        Some(told) if told == link || networks.iter().any(|network| network.contains(&told)) => Ok(told),
        Some(told) => Err(told),
        None => Ok(link),
    }
}

impl Check {
    /// A report as it may be acted on.
    ///
    /// # Errors
    /// It says what no worker can have to say: its link is not worth keeping.
    pub fn report(&self, report: Report) -> Result<Report, &'static str> {
        Ok(match report {
            Report::Inventory { shard, held, more } => {
                let held = held.into_iter().map(|held| self.held(held)).collect::<Result<_, _>>()?;
                Report::Inventory { shard, held, more }
            }
            Report::Finished { container, done } => {
                Report::Finished { container, done: done.into_iter().map(|done| self.done(done)).collect() }
            }
            Report::Refused { container, mut reason } => {
                cut(&mut reason, SENTENCE);
                Report::Refused { container, reason }
            }
            Report::Looked { container, mut detail } => {
                cut(&mut detail, SENTENCE);
                Report::Looked { container, detail }
            }
            Report::Spawned { container, pid, spawn_us } => {
                Report::Spawned { container, pid, spawn_us: spawn_us.min(LONGEST_US) }
            }
            Report::Ready { container, phases, port } => {
                Report::Ready { container, phases: known(phases), port: its_own(port)? }
            }
            Report::Returned { container, leases, mut reason, closed } => {
                few(leases.len())?;
                cut(&mut reason, SENTENCE);
                Report::Returned { container, leases, reason, closed }
            }
            Report::Ended { container, ending, begun } => {
                few(begun.len())?;
                Report::Ended { container, ending: end(ending), begun }
            }
            Report::Log { container, stderr, chunk, dropped } => {
                let chunk = chunk.slice(chunk.len().saturating_sub(CHUNK)..);
                Report::Log { container, stderr, chunk, dropped }
            }
            Report::Beat { sequence, others, mut free_gpus } => {
                free_gpus.truncate(GPUS);
                Report::Beat { sequence, others: bounded(others), free_gpus }
            }
            report @ (Report::Hello(_) | Report::Outranked { .. } | Report::Counted { .. }) => report,
        })
    }

    fn held(&self, mut held: Held) -> Result<Held, &'static str> {
        few(held.running.len())?;
        if held.function.namespace.len() > 1024 || held.function.name.len() > 4096 || held.gpus as usize > GPUS {
            return Err("it holds a container of a function that cannot be");
        }
        held.port = its_own(held.port)?;
        held.finished = held.finished.into_iter().map(|done| self.done(done)).collect();
        Ok(held)
    }

    fn done(&self, done: Done) -> Done {
        Done {
            held: done.held,
            waited_us: done.waited_us.min(LONGEST_US),
            run_us: done.run_us.min(LONGEST_US),
            result: match done.result {
                Ok(output) => self.output(&done.held, output),
                Err(failure) => Err(failure.bounded(FAILURE_BYTES)),
            },
        }
    }

    /// An output: one JSON value on one line, for it becomes a line of others' answers; or the blob of this very attempt, for
    /// else it could be anybody's.
    fn output(&self, held: &HeldAttempt, output: Payload) -> Result<Payload, Failure> {
        let wrong = match &output.body {
            _ if output.len() > self.output_max => "is larger than an output may be",
            // The protocols that there are read and write JSON.
            _ if output.format != Format::Json => "is not JSON",
            Body::Inline(bytes) if !is_line(bytes) => "is not one JSON value on one line",
            Body::Blob(blob) if !is_own(held, &blob.name) => "lies where no output of this attempt does",
            _ => return Ok(output),
        };
        Err(Failure::new(FailureKind::BadOutput, "BadOutput", format!("the worker's output {wrong}")))
    }
}

fn is_line(bytes: &Bytes) -> bool {
    memchr::memchr2(b'\n', b'\r', bytes).is_none() && serde_json::from_slice::<&RawValue>(bytes).is_ok()
}

/// Whether a blob's name is that of an attempt's output, as the worker's protocols name it.
fn is_own(HeldAttempt { call, index, lease, .. }: &HeldAttempt, name: &str) -> bool {
    let attempt = output_name(*call, *index, lease.0);
    let hash = name.strip_prefix(&attempt).and_then(|rest| rest.strip_prefix('-'));
    hash.is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn output_name(call: CallId, index: u64, lease: u64) -> String {
    format!("{call}/out-{index}-{lease:x}")
}

fn few(leases: usize) -> Result<(), &'static str> {
    if leases > LEASES { Err("it names more attempts than a container can have") } else { Ok(()) }
}

fn its_own(port: u16) -> Result<u16, &'static str> {
    if port == 0 || PORTS.contains(&port) { Ok(port) } else { Err("it names a port that no container is given") }
}

/// Names become metrics: others than these are left out.
fn known(phases: Vec<Phase>) -> Vec<Phase> {
    let known = phases.into_iter().filter(|phase| PHASES.contains(&phase.name.as_str())).take(PHASES.len());
    known.map(|phase| Phase { us: phase.us.min(LONGEST_US), ..phase }).collect()
}

fn end(mut ending: Ending) -> Ending {
    cut(&mut ending.reason, SENTENCE);
    cut(&mut ending.tail, 2 * SENTENCE);
    ending
}

#[cfg(test)]
mod tests {
    use super::*;
    use capstan_common::{
        id::{ContainerId, LeaseId},
        input::Blob,
    };

    const CHECK: Check = Check { output_max: 1 << 20 };
    const HELD: HeldAttempt = HeldAttempt { lease: LeaseId(0xab), call: CallId(7), index: 3, attempt: 1 };

    fn finished(result: Result<Payload, Failure>) -> Result<Payload, Failure> {
        let done = Done { held: HELD, waited_us: u64::MAX, run_us: u64::MAX, result };
        let report = CHECK.report(Report::Finished { container: ContainerId(1), done: vec![done] }).unwrap();
        let Report::Finished { mut done, .. } = report else { panic!("{report:?}") };
        let done = done.remove(0);
        assert!(done.run_us <= LONGEST_US && done.waited_us <= LONGEST_US);
        done.result
    }

    #[test]
    fn an_output_is_one_line_of_json_or_its_attempts_own_blob() {
        // RELIABILITY §4.1 A4
        let inline = |text: &str| finished(Ok(Payload::json(Bytes::copy_from_slice(text.as_bytes())))).is_ok();
        assert!(inline("{\"a\": [1]}") && inline("\"\\n\""));
        for bad in ["1\n{\"index\":1,\"output\":\"FORGED\"}", "1 2", "", "[1,\n2]", "NaN", "1\r"] {
            assert!(!inline(bad), "{bad}");
        }
        let pickle = Payload { format: Format::Pickle, ..Payload::json("1") };
        assert!(finished(Ok(pickle)).is_err(), "no protocol writes it");
        let blob = |name: String, len| {
            let body = Body::Blob(Blob { name: name.into(), len, crc32c: 0 });
            finished(Ok(Payload { format: Format::Json, body })).is_ok()
        };
        let (own, hash) = (output_name(CallId(7), 3, 0xab), "0".repeat(64));
        assert!(blob(format!("{own}-{hash}"), 9));
        for (bad, len) in [
            (format!("{own}-{hash}"), 1 << 21),
            (format!("{own}-{}", &hash[1..]), 9),
            (own.clone(), 9),
            (format!("{}-{hash}", output_name(CallId(8), 3, 0xab)), 9),
            (format!("{}-{hash}", output_name(CallId(7), 4, 0xab)), 9),
            (format!("{own}/../x-{hash}"), 9),
            ("../../etc/passwd".into(), 9),
        ] {
            assert!(!blob(bad.clone(), len), "{bad}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_cannot_be_ends_the_link() {
        let long = "x".repeat(1 << 20);
        let failure = finished(Err(Failure::new(FailureKind::Function, &long, &*long))).unwrap_err();
        assert!(failure.error_type.len() <= 256 && failure.message.len() == FAILURE_BYTES);
        let ready = |name: &str, port| {
            let phases = vec![Phase { name: name.into(), us: u64::MAX }; 9];
            CHECK.report(Report::Ready { container: ContainerId(1), phases, port })
        };
        let Ok(Report::Ready { phases, .. }) = ready("spawn", 20_000) else { panic!("it is ready") };
        assert!(phases.len() == 2 && phases.iter().all(|phase| phase.us == LONGEST_US));
        let Ok(Report::Ready { phases, .. }) = ready("made up", 0) else { panic!("it is ready") };
        assert!(phases.is_empty());
        assert!(ready("spawn", 22).is_err() && ready("spawn", 7070).is_err());
        let ending = Ending { tail: long.clone(), reason: long, ..Ending::default() };
        let Ok(Report::Ended { ending, .. }) =
            CHECK.report(Report::Ended { container: ContainerId(1), ending, begun: Vec::new() })
        else {
            panic!("it ended")
        };
        assert!(ending.tail.len() + ending.reason.len() < 16 << 10);
    }

    #[test]
    fn a_worker_is_reached_where_its_link_comes_from_or_where_operators_say() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let networks = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(host(None, ip("192.168.1.5"), &networks), Ok(ip("192.168.1.5")));
        assert_eq!(host(Some(ip("10.1.2.3")), ip("192.168.1.5"), &networks), Ok(ip("10.1.2.3")));
        for elsewhere in ["127.0.0.1", "169.254.169.254", "192.168.1.6"] {
            assert_eq!(host(Some(ip(elsewhere)), ip("192.168.1.5"), &networks), Err(ip(elsewhere)));
        }
        assert!(host(Some(ip("127.0.0.77")), ip("127.0.0.1"), &[]).is_err());
    }

    #[test]
    fn names_and_capacities_are_bounded() {
        let named = |worker: &str| Hello {
            protocols: 4..=4,
            worker: worker.into(),
            capacity: Amount { cpu_milli: u64::MAX, memory_mib: u64::MAX, gpus: 0 },
            gpus: Vec::new(),
            version: "v".repeat(9999),
            limits: String::new(),
            instance: String::new(),
            store: None,
            host: None,
            isolation: Default::default(),
        };
        let known = hello(named("worker-1.example")).unwrap();
        assert!(known.capacity.cpu_milli.checked_mul(1 << 20).is_some() && known.version.len() == WORD);
        for bad in ["", "a/b", "a\0b", "a b", "\u{1b}[2J", &"n".repeat(70_000)] {
            assert!(hello(named(bad)).is_err());
        }
        let twice = Gpu { uuid: "g".into(), model: "H100".into(), memory_mib: 1 };
        assert!(hello(Hello { gpus: vec![twice.clone(), twice], ..named("w") }).is_err());
    }
}
