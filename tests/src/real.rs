//! The real `capstan up`, as a process.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A binary of this workspace, built beside the running one.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace` first"))
}

/// A folder in which functions may write too: they run as users of their own.
pub fn shared_folder() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

/// Resident memory of a process and its children, in MiB.
pub fn memory_mib(pid: u32) -> Result<f64> {
    let of = |pid: u32| -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let theirs: f64 = children.split_whitespace().filter_map(|c| of(c.parse().ok()?).ok()).sum();
    Ok(((of(pid)? + theirs) * 10.0).round() / 10.0)
}

/// A running `capstan up` and a client of it. Ends with it.
pub struct Up {
    child: Child,
    /// Where it serves.
    pub url: String,
    /// Its data folder.
    pub data: PathBuf,
    /// A client.
    pub http: reqwest::Client,
    /// Processes that end with it.
    beside: Vec<Child>,
}

impl Up {
    /// Starts on a folder with further arguments.
    pub fn start(data: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_with(data, arguments, |_| {})
    }

    /// The same, with more said to its process.
    pub fn start_with(data: &Path, arguments: &[&str], more: impl FnOnce(&mut Command)) -> Result<Self> {
        let log = data.with_extension(format!("{}.log", arguments.len()));
        let file = std::fs::File::create(&log)?;
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        Self::launch(data, arguments, more, file.into()).with_context(told)
    }

    /// The same, with its log somewhere else.
    pub fn start_logging(data: &Path, arguments: &[&str], log: Stdio) -> Result<Self> {
        Self::launch(data, arguments, |_| {}, log)
    }

    /// The same, of a binary that another program starts, which does what must be done before: another user, other namespaces.
    pub fn start_under(data: &Path, under: &[&str], binary: &Path, arguments: &[&str]) -> Result<Self> {
        let log = std::fs::File::create(data.with_extension("log"))?;
        let (program, before) = under.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(before).arg(binary);
        let told = || std::fs::read_to_string(data.with_extension("log")).unwrap_or_default();
        Self::launch_as(command, data, arguments, log.into()).with_context(told)
    }

    fn launch(data: &Path, arguments: &[&str], more: impl FnOnce(&mut Command), log: Stdio) -> Result<Self> {
        let mut command = Command::new(binary("capstan")?);
        more(&mut command);
        Self::launch_as(command, data, arguments, log)
    }

    fn launch_as(mut command: Command, data: &Path, arguments: &[&str], log: Stdio) -> Result<Self> {
        capstan::client::provide_crypto();
        let mut child = command
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .args(arguments)
            .env_remove("CAPSTAN_LISTEN")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let out = child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let Some(url) = line.trim().strip_prefix("ready ") else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("capstan up did not start");
        };
        Ok(Self { url: url.into(), child, data: data.into(), http: reqwest::Client::new(), beside: Vec::new() })
    }

    /// A process that ends with it.
    pub fn with(mut self, child: Child) -> Self {
        self.beside.push(child);
        self
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) -> Result<std::process::ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        Ok(self.child.wait()?)
    }

    /// The address of a path.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// The address of a function in the default namespace, and what of it.
    pub fn function(&self, name: &str, what: &str) -> String {
        self.at(&format!("/v1/namespaces/default/functions/{name}{what}"))
    }

    /// Deploys a function.
    pub async fn deploy(&self, name: &str, spec: Value) -> Result<Value> {
        let response = self.http.put(self.function(name, "")).json(&spec).send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        if !status.is_success() {
            bail!("deploy of {name}: {body}");
        }
        Ok(body)
    }

    /// GET as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.http.get(self.at(path)).send().await?.json().await?)
    }

    /// POST of a body; answers status and JSON.
    pub async fn post(&self, url: &str, body: impl Into<reqwest::Body>) -> Result<(u16, Value)> {
        let response = self.http.post(url).body(body).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Invokes with a JSON input.
    pub async fn invoke(&self, name: &str, input: Value) -> Result<(u16, Value)> {
        self.post(&self.function(name, "/invoke"), input.to_string()).await
    }

    /// Maps over inputs and collects the lines.
    pub async fn map(&self, name: &str, query: &str, inputs: impl IntoIterator<Item = Value>) -> Result<Vec<Value>> {
        let body: String = inputs.into_iter().map(|i| format!("{i}\n")).collect();
        let response = self.http.post(self.function(name, &format!("/map?{query}"))).body(body).send().await?;
        let text = response.text().await?;
        text.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
    }

    /// All results of a call once it has ended: waits by long polls.
    pub async fn results(&self, call: &str) -> Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/calls/{call}/results?ordered=false&wait_s=20&limit=10000{after}");
            let response = self.http.get(self.at(&path)).send().await?.error_for_status()?;
            let text = response.text().await?;
            let page: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            match page.last() {
                Some(last) => after = format!("&after={}", last["cursor"].as_str().unwrap_or_default()),
                None => {
                    let view = self.get(&format!("/v1/calls/{call}")).await?;
                    if !view["finished_at"].is_null() {
                        return Ok(all);
                    }
                }
            }
            all.extend(page);
        }
    }

    /// Waits until the function's stats are as asked, by looking again and again for at most `most`.
    pub async fn until(&self, name: &str, most: Duration, asked: impl Fn(&Value) -> bool) -> Result<Value> {
        self.until_at(&format!("/v1/namespaces/default/functions/{name}/stats"), most, asked).await
    }

    /// The same of what a path answers.
    pub async fn until_at(&self, path: &str, most: Duration, asked: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = tokio::time::Instant::now();
        loop {
            let answer = self.get(path).await?;
            if asked(&answer) {
                return Ok(answer);
            }
            if begun.elapsed() > most {
                bail!("{path} did not come to the asked state: {answer}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Ended already by `stop` or `kill`: nothing to do.
        for child in self.beside.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A spec of a process with a protocol, and further fields.
pub fn spec(command: &[&str], protocol: &str, more: Value) -> Value {
    let mut spec = json!({"runtime": {"process": {"command": command}}, "protocol": protocol});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

/// A spec of the echo server with a fault, and further fields.
pub fn echo(fault: &str, more: Value) -> Result<Value> {
    let program = binary("echo-server")?.display().to_string();
    Ok(spec(&[&program, fault], "http", more))
}
