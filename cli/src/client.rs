//! The REST interface, from the client's side.

use anyhow::Context;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::{Certificate, Client as Http, ClientBuilder, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use std::{path::Path, time::Duration};

/// How often a request that met a limit is sent again.
const TRIES_AT_LIMIT: u32 = 3;
/// A limit that asks for more patience is told at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a command failed, for its exit code.
#[derive(Debug)]
pub enum Failed {
    /// The function or call failed; what was answered, if it was JSON.
    Function(String, Value),
    /// Capstan refused; what it answered.
    Refused(String, Value),
    /// There is no connection.
    NoConnection(String),
    /// The command line is wrong.
    Usage(String),
}

impl Failed {
    /// 1 the function failed, 2 wrong usage, 3 refused, 4 no connection.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Function(..) => 1,
            Self::Usage(_) => 2,
            Self::Refused(..) => 3,
            Self::NoConnection(_) => 4,
        }
    }

    /// What was answered, for `--json`.
    pub fn answer(&self) -> Option<&Value> {
        match self {
            Self::Function(_, answer) | Self::Refused(_, answer) => Some(answer).filter(|a| !a.is_null()),
            Self::NoConnection(_) | Self::Usage(_) => None,
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Function(text, _) | Self::Refused(text, _) | Self::NoConnection(text) | Self::Usage(text) => {
                f.write_str(text)
            }
        }
    }
}

impl std::error::Error for Failed {}

/// A name as one segment of a path, or one value of a query, whatever is in it.
pub fn segment(name: &str) -> String {
    // A dot alone would be taken for a step in the path.
    let dots = name.bytes().all(|b| b == b'.');
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~') || (b == b'.' && !dots);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Gives this process the cryptography that its TLS uses. Once is enough; more does no harm.
pub fn provide_crypto() {
    // Fails where it was given before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// An HTTP client that believes whoever this authority signed, or without one whom the system believes. Plain HTTP asks nobody.
pub fn trusting(ca: Option<&Path>, https: bool) -> anyhow::Result<ClientBuilder> {
    provide_crypto();
    let trusted = match ca {
        Some(file) => {
            let pem = std::fs::read(file).with_context(|| format!("--ca {} cannot be read", file.display()))?;
            let read = Certificate::from_pem_bundle(&pem).ok().filter(|read| !read.is_empty());
            read.with_context(|| format!("--ca {} holds no certificate as PEM", file.display()))?
        }
        // Reading the system's certificates takes a while.
        None if !https => Vec::new(),
        None => return Ok(Http::builder()),
    };
    Ok(Http::builder().tls_certs_only(trusted))
}

/// A scheduler, by its address.
#[derive(Clone)]
pub struct Client {
    http: Http,
    url: String,
    token: Option<String>,
    /// The namespace of all calls.
    pub namespace: String,
}

impl Client {
    /// A client of the scheduler at `url`.
    pub fn new(url: &str, ca: Option<&Path>, token: Option<String>, namespace: &str) -> Result<Self, Failed> {
        let wrong = |why: &str| {
            Failed::Usage(format!("--url `{url}` {why}; write it as http://HOST:PORT (CAPSTAN_URL sets it too)"))
        };
        let parsed = reqwest::Url::parse(url).map_err(|error| wrong(&format!("is not an address: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(wrong("is not an http address"));
        }
        // A proxy of the environment is for the way out, not for this machine.
        let here = matches!(parsed.host_str(), Some("localhost" | "[::1]"))
            || parsed.host_str().is_some_and(|host| host.starts_with("127."));
        let http = trusting(ca, parsed.scheme() == "https").map_err(|error| Failed::Usage(format!("{error:#}")))?;
        let http = if here { http.no_proxy() } else { http };
        let http = http.build().map_err(|error| wrong(&format!("cannot be used: {error}")))?;
        Ok(Self { http, url: url.trim_end_matches('/').into(), token, namespace: namespace.into() })
    }

    /// The scheduler's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The path of something in the namespace.
    pub fn in_namespace(&self, what: &str) -> String {
        format!("/v1/namespaces/{}{what}", segment(&self.namespace))
    }

    /// The path of a function, and what of it.
    pub fn function(&self, name: &str, what: &str) -> String {
        let slash = if what.is_empty() { "" } else { "/" };
        format!("/v1/namespaces/{}/functions/{}{slash}{what}", segment(&self.namespace), segment(name))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request; one that meets a limit is sent again when the answer says so, a few times (SPEC M13).
    async fn answer(&self, mut request: RequestBuilder) -> Result<Response, Failed> {
        let mut left = TRIES_AT_LIMIT;
        let response = loop {
            let again = request.try_clone();
            let response = request.send().await.map_err(|error| {
                if error.is_builder() {
                    return Failed::Usage(format!(
                        "the request cannot be made: {}; look at --token and --url",
                        root(&error)
                    ));
                }
                if error.is_body() {
                    return Failed::Usage(format!("what is to be sent cannot be read: {}", root(&error)));
                }
                let url = &self.url;
                let why = root(&error);
                let remedy = if why.contains("certificate") {
                    "name the authority that signed it with --ca FILE (CAPSTAN_CA)"
                } else if why.contains("InvalidContentType") {
                    "it speaks plain http: write http:// in --url"
                } else {
                    "is `capstan up` running there?"
                };
                Failed::NoConnection(format!("no connection to {url}: {why}; {remedy}"))
            })?;
            let Some((next, pause)) = again.zip(pause(&response)).filter(|_| left > 0) else { break response };
            left -= 1;
            tokio::time::sleep(pause).await;
            request = next;
        };
        if response.status().is_success() {
            if let Some(silent) = response.headers().get("capstan-silent").and_then(|value| value.to_str().ok()) {
                crate::output::say(format!(
                    "capstan: no answer from {silent} in time: what is owned there is missing here; ask again in a moment"
                ));
            }
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or(&text);
        let Some(code) = problem["code"].as_str() else {
            let (url, begin) = (&self.url, text.trim().chars().take(200).collect::<String>());
            return Err(Failed::NoConnection(format!(
                "what answers at {url} is no Capstan scheduler ({status}): {begin}"
            )));
        };
        let remedy =
            if status == StatusCode::UNAUTHORIZED { "; give a token with --token (CAPSTAN_TOKEN)" } else { "" };
        let traceback =
            problem["error"]["traceback"].as_str().map(|t| format!("\n{}", t.trim_end())).unwrap_or_default();
        let told = format!("{detail}{remedy}{traceback} ({code}, {})", status.as_u16());
        Err(match code {
            "function_failed" | "function_timeout" => Failed::Function(told, problem),
            _ => Failed::Refused(told, problem),
        })
    }

    /// GET as JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failed> {
        json(self.answer(self.request(Method::GET, path)).await?).await
    }

    /// A method with a JSON body, answered by JSON or nothing.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failed> {
        json(self.answer(self.request(method, path).json(body)).await?).await
    }

    /// POST of bytes that are JSON; the answer as it is written.
    pub async fn post_text(&self, path: &str, body: Bytes) -> Result<String, Failed> {
        let request = self.request(Method::POST, path).header("Content-Type", "application/json").body(body);
        self.answer(request).await?.text().await.map_err(broken)
    }

    /// POST of bytes that are JSON.
    pub async fn post(&self, path: &str, body: Bytes, key: Option<&str>) -> Result<Value, Failed> {
        let mut request = self.request(Method::POST, path).header("Content-Type", "application/json").body(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        json(self.answer(request).await?).await
    }

    /// POST of a stream; the answer streams too.
    pub async fn stream(&self, path: &str, body: reqwest::Body, key: Option<&str>) -> Result<Response, Failed> {
        let mut request = self.request(Method::POST, path).header("Content-Type", "application/x-ndjson").body(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.answer(request).await
    }

    /// GET whose answer streams.
    pub async fn follow(&self, path: &str) -> Result<Response, Failed> {
        self.answer(self.request(Method::GET, path)).await
    }
}

/// How long to wait before a request that met a limit is sent again.
fn pause(response: &Response) -> Option<Duration> {
    let limited = response.status() == StatusCode::TOO_MANY_REQUESTS;
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds)).filter(|pause| limited && *pause <= LONGEST_PAUSE)
}

fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn json(response: Response) -> Result<Value, Failed> {
    let text = response.text().await.map_err(broken)?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).map_err(|error| Failed::NoConnection(format!("the answer is not JSON: {error}")))
}

/// An answer that broke off.
pub fn broken(error: reqwest::Error) -> Failed {
    Failed::NoConnection(format!("the connection broke: {}", root(&error)))
}

/// Lines of a streaming answer.
pub fn lines(response: Response) -> impl Stream<Item = Result<Bytes, Failed>> + Unpin {
    let mut rest = bytes::BytesMut::new();
    let chunks = response.bytes_stream().map(Some).chain(futures_util::stream::iter([None]));
    Box::pin(chunks.flat_map(move |chunk| {
        let mut found = Vec::new();
        match chunk {
            Some(Ok(chunk)) => {
                rest.extend_from_slice(&chunk);
                while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                    found.push(Ok(rest.split_to(end + 1).freeze()));
                }
            }
            Some(Err(error)) => found.push(Err(broken(error))),
            None if !rest.is_empty() => found.push(Ok(rest.split().freeze())),
            None => {}
        }
        futures_util::stream::iter(found)
    }))
}

/// A file, or standard input for `-` or nothing, as a body; `seen` is told of its bytes.
pub async fn body_of(
    file: Option<&Path>,
    seen: impl Fn(&[u8]) + Send + Sync + 'static,
) -> Result<reqwest::Body, Failed> {
    let reader: Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin> = match file.filter(|f| *f != Path::new("-")) {
        Some(path) if path.is_dir() => {
            return Err(Failed::Usage(format!("{} cannot be read: it is a folder", path.display())));
        }
        Some(path) => {
            let opened = tokio::fs::File::open(path).await;
            Box::new(opened.map_err(|e| Failed::Usage(format!("{} cannot be read: {e}", path.display())))?)
        }
        None => Box::new(tokio::io::stdin()),
    };
    let chunks = tokio_util::io::ReaderStream::with_capacity(reader, 64 << 10);
    Ok(reqwest::Body::wrap_stream(chunks.inspect(move |chunk| {
        if let Ok(bytes) = chunk {
            seen(bytes);
        }
    })))
}
