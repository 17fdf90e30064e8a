//! The `exec` protocol: one process an input; JSON on standard input, the output on standard output.

use super::{
    attempt::{self, Attempt, Handle, Status},
    one_line, timed_out, too_large,
};
use crate::runtime::{init::Init, output::Output, process::Setting};
use bytes::Bytes;
use capstan_common::{
    id::LeaseId,
    input::{FAILURE_BYTES, Failure, FailureKind, end_of},
    order::Assignment,
    trace,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::Signal,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, ErrorKind, Read, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Bytes that a pipe takes without a reader, also where its user has so many pipes that the kernel gives them one page each.
const PIPE_BYTES: usize = 4 << 10;
/// How long a process that was asked to end may take.
pub const GRACE: Duration = Duration::from_millis(500);
/// Bytes of standard error that an error keeps.
const STDERR_BYTES: usize = 16 << 10;

/// One input for a slot.
pub struct Work {
    /// The attempt.
    pub assignment: Assignment,
    /// Its input.
    pub input: Bytes,
}

/// How it ended.
pub struct Ended {
    /// The attempt.
    pub assignment: Assignment,
    /// Its output as JSON, or its error.
    pub result: Result<Bytes, Failure>,
    /// How long it ran.
    pub run: Duration,
}

/// Where an attempt stands.
#[derive(Debug)]
enum Stage {
    /// Its process runs.
    Runs(Handle),
    /// Its process was told to end.
    Interrupted(Handle),
    /// It will not begin.
    Forbidden,
}

/// Processes that run now, so that they can be interrupted.
#[derive(Debug, Default)]
pub struct Running {
    table: Mutex<Table>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Table {
    attempts: BTreeMap<LeaseId, Stage>,
    /// Nothing begins any more.
    closed: bool,
}

impl Running {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the attempt's processes to end; one that has not begun will not begin. `kill` follows after the grace.
    pub fn interrupt(&self, lease: LeaseId) {
        // Signalled while the table is held: the process is not yet waited for, so its number cannot have been reused.
        let mut table = self.table();
        let stage = table.attempts.entry(lease).or_insert(Stage::Forbidden);
        if let Stage::Runs(handle) = stage {
            handle.terminate();
            *stage = Stage::Interrupted(handle.clone());
        }
    }

    /// Ends the attempt's processes if they were asked to end and have not.
    pub fn kill(&self, lease: LeaseId) {
        if let Some(Stage::Interrupted(handle)) = self.table().attempts.get(&lease) {
            handle.kill();
        }
    }

    /// Asks everything that runs to end; nothing begins any more. Comes back when nothing is left, or after the grace.
    pub async fn interrupt_all(&self, grace: Duration) {
        let leases: Vec<LeaseId> = {
            let mut table = self.table();
            table.closed = true;
            table.attempts.keys().copied().collect()
        };
        leases.into_iter().for_each(|lease| self.interrupt(lease));
        let empty = async {
            loop {
                let emptied = self.emptied.notified();
                if !self.table().attempts.values().any(|stage| matches!(stage, Stage::Interrupted(_))) {
                    return;
                }
                emptied.await;
            }
        };
        // What is left is killed with the container.
        let _ = tokio::time::timeout(grace, empty).await;
    }

    /// The attempt's process was started. Whether it may run.
    fn begin(&self, lease: LeaseId, handle: Handle) -> bool {
        let mut table = self.table();
        let forbidden = table.closed || table.attempts.contains_key(&lease);
        table.attempts.insert(lease, if forbidden { Stage::Interrupted(handle) } else { Stage::Runs(handle) });
        !forbidden
    }

    /// The attempt is over. Whether it was interrupted.
    fn end(&self, lease: LeaseId) -> bool {
        let stage = self.table().attempts.remove(&lease);
        self.emptied.notify_one();
        !matches!(stage, Some(Stage::Runs(_)))
    }
}

/// What all slots of a container share.
pub struct Shared {
    /// How its processes are started.
    pub setting: Setting,
    /// The longest attempt.
    pub timeout_ms: u64,
    /// The largest output.
    pub output_max: usize,
    /// What runs.
    pub running: Running,
    /// Processes that the kernel is known to have ended for want of memory.
    pub oom_kills: AtomicU64,
    /// Its output, for logs.
    pub output: Output,
    /// Told of log chunks.
    pub log: Box<dyn Fn(Bytes, u64) + Send + Sync>,
    /// Told of ends.
    pub ended: flume::Sender<Box<Ended>>,
}

impl Shared {
    /// Whether the kernel has ended more of the container's processes for want of memory than were known.
    fn saw_oom(&self) -> bool {
        let kills = self.setting.cgroup.as_ref().map_or(0, |c| c.oom_kills());
        kills > self.oom_kills.swap(kills, Ordering::Relaxed)
    }
}

/// Works on an input in a slot; `slot` holds its init between two inputs.
pub(super) fn run(
    shared: &Shared,
    slot: &mut Option<Init>,
    assignment: &Assignment,
    input: &[u8],
) -> Result<Bytes, Failure> {
    let Assignment { lease, call, index, attempt, .. } = *assignment;
    // Another worker on this machine counts its leases from one too.
    let mark = format!("{}-{}", shared.setting.instance, lease.0);
    let mut more = BTreeMap::from([
        ("CAPSTAN_CALL_ID", call.to_string()),
        ("CAPSTAN_INPUT_INDEX", index.to_string()),
        ("CAPSTAN_ATTEMPT", attempt.to_string()),
        ("TRACEPARENT", trace::traceparent(&assignment.traceparent, call, index, attempt)),
    ]);
    more.extend(trace::state_of(&assignment.traceparent).map(|state| ("TRACESTATE", state.to_owned())));
    let start_failed = |why: String| Failure::new(FailureKind::Function, "StartFailed", why);
    let failed = |what: &str, error: io::Error| start_failed(format!("{what}: {error}"));
    let stdin = stdin_of(input).map_err(|e| failed("the input cannot be handed over", e))?;
    let mut program = attempt::start(&shared.setting, slot, more, mark, stdin).map_err(start_failed)?;
    let handle = program.handle().ok_or_else(|| start_failed("the program cannot be reached".into()))?;
    if !shared.running.begin(lease, handle.clone()) {
        handle.kill();
    }
    let watched = watch(shared, &mut program, &handle);
    let interrupted = shared.running.end(lease);
    let cut_off = interrupted || watched.as_ref().map_or(true, |seen| seen.timed_out || seen.overflow);
    let ended = program.end(cut_off);
    let watched = watched.map_err(|e| failed("the process cannot be watched", e))?;
    if interrupted {
        return Err(Failure::new(FailureKind::Crashed, "Interrupted", "the attempt was interrupted"));
    }
    let status = ended.map_err(start_failed)?;
    let oom = status.1 == Some(Signal::KILL.as_raw()) && shared.saw_oom();
    judge(shared, watched, status, oom)
}

/// Small inputs fit a pipe; larger ones lie in memory as a file: nobody has to write while the program runs.
fn stdin_of(input: &[u8]) -> io::Result<OwnedFd> {
    if input.len() <= PIPE_BYTES {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(input)?;
        return Ok(reader.into());
    }
    let mut file = File::from(memfd_create("capstan-input", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file.into())
}

struct Watched {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    timed_out: bool,
    overflow: bool,
}

/// Reads both outputs until the process has ended or its time is up.
fn watch(shared: &Shared, program: &mut Attempt<'_>, handle: &Handle) -> io::Result<Watched> {
    let mut stdout = program.stdout.take().map(nonblocking).transpose()?;
    let mut stderr = program.stderr.take().map(nonblocking).transpose()?;
    let mut deadline = Instant::now() + Duration::from_millis(shared.timeout_ms);
    let mut seen = Watched { stdout: Vec::new(), stderr: Vec::new(), timed_out: false, overflow: false };
    let mut buffer = vec![0u8; 16 << 10];
    let mut over = false;
    while !over {
        let exited = program.exited().ok_or(ErrorKind::NotConnected)?;
        over = wait_any(exited, [stdout.as_ref(), stderr.as_ref()], deadline)?;
        if Instant::now() >= deadline && !over {
            if seen.timed_out {
                handle.kill();
                return Ok(seen);
            }
            // Asked first; what does not listen is killed after the grace.
            seen.timed_out = true;
            handle.terminate();
            deadline = Instant::now() + GRACE;
        }
        drain(&mut stdout, &mut buffer, |bytes| {
            let room = shared.output_max.saturating_sub(seen.stdout.len());
            seen.overflow |= bytes.len() > room;
            seen.stdout.extend_from_slice(&bytes[..bytes.len().min(room)]);
            !seen.overflow
        })?;
        drain(&mut stderr, &mut buffer, |bytes| {
            if let Some((chunk, dropped)) = shared.output.take(bytes) {
                (shared.log)(chunk, dropped);
            }
            seen.stderr.extend_from_slice(bytes);
            let surplus = seen.stderr.len().saturating_sub(2 * STDERR_BYTES);
            if surplus > 0 {
                seen.stderr.drain(..surplus);
            }
            true
        })?;
        if seen.overflow {
            handle.kill();
            return Ok(seen);
        }
    }
    Ok(seen)
}

fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(File::from(fd))
}

/// Waits for the end of the process, output, or the deadline. Whether the process has ended.
fn wait_any(exited: BorrowedFd<'_>, pipes: [Option<&File>; 2], deadline: Instant) -> io::Result<bool> {
    let mut fds = vec![PollFd::from_borrowed_fd(exited, PollFlags::IN)];
    fds.extend(pipes.into_iter().flatten().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

/// Reads what is there; a pipe that has ended is closed. Stops when `take` says so.
fn drain(pipe: &mut Option<File>, buffer: &mut [u8], mut take: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    while let Some(file) = pipe.as_mut() {
        match file.read(buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                if !take(&buffer[..n]) {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn judge(shared: &Shared, watched: Watched, status: Status, oom: bool) -> Result<Bytes, Failure> {
    if watched.timed_out {
        return Err(timed_out(shared.timeout_ms));
    }
    if watched.overflow {
        return Err(too_large(shared.output_max));
    }
    let (code, signal) = status;
    if code != Some(0) {
        let how = match (oom, code, signal) {
            (true, _, _) => "was ended by the kernel: out of memory".into(),
            (_, Some(code), _) => format!("ended with exit code {code}"),
            (_, _, Some(signal)) => format!("was ended by signal {signal}"),
            _ => "ended".to_owned(),
        };
        let stderr = end_of(&String::from_utf8_lossy(&watched.stderr), FAILURE_BYTES).to_owned();
        let error_type =
            if oom { "OutOfMemory".into() } else { code.map_or("Signal".into(), |c| format!("ExitCode{c}")) };
        let said = stderr.trim();
        let message = if said.is_empty() { format!("the process {how}") } else { format!("the process {how}: {said}") };
        return Err(Failure { kind: FailureKind::Function, error_type, message, traceback: stderr });
    }
    Ok(output_of(watched.stdout))
}

/// JSON as it is; anything else as a string, without its last line end.
fn output_of(stdout: Vec<u8>) -> Bytes {
    let bytes = Bytes::from(stdout);
    if let Ok(value) = serde_json::from_slice::<&serde_json::value::RawValue>(&bytes) {
        return one_line(bytes.slice_ref(value.get().as_bytes()));
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    serde_json::to_vec(text).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_json_and_text_becomes_a_string() {
        for (stdout, output) in [
            ("{\"a\": 1}\n", "{\"a\": 1}"),
            ("{\n  \"a\": 1\r\n}\n", "{   \"a\": 1  }"),
            ("hello\n", "\"hello\""),
            ("", "\"\""),
            ("two\nlines\n", "\"two\\nlines\""),
            ("12", "12"),
        ] {
            assert_eq!(output_of(stdout.as_bytes().to_vec()), output.as_bytes());
        }
    }
}
