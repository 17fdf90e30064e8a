//! Requests as they are written: no client in between that mends a path or a header. Acknowledgements are not delayed: what comes
//! in two pieces comes at once.

use anyhow::{Context, Result, bail};
use rustix::net::sockopt::set_tcp_quickack;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The longest answer that is read.
const ANSWER_MAX: usize = 1 << 20;
/// How long an answer may take, and each piece of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer as it came.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head, as text.
    pub head: String,
    /// Its body, cut where it is long.
    pub body: String,
}

/// A connection that is used again and again.
pub struct Raw {
    host: String,
    stream: Option<TcpStream>,
}

impl Raw {
    /// To a server like `http://127.0.0.1:7070`.
    pub fn to(url: &str) -> Self {
        Self { host: url.trim_start_matches("http://").into(), stream: None }
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(&self.host)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Sends a request, byte by byte as given, and reads its answer.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.host);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let whole = [request.as_bytes(), body].concat();
        // A connection that was kept may be closed by now.
        if let Some(stream) = self.stream.take()
            && let Ok(answer) = self.exchange(stream, &whole, method)
        {
            return Ok(answer);
        }
        let stream = self.connect()?;
        self.exchange(stream, &whole, method)
    }

    /// Sends bytes over a connection of their own, and reads whatever comes until that is closed, or for a moment.
    pub fn shout(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        // A server that has heard enough closes in the middle.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 || answer.len() > ANSWER_MAX {
                break;
            }
            answer.extend_from_slice(&buffer[..count]);
        }
        Ok(answer)
    }

    /// Sends bytes over a connection of their own and nothing more, and reads all that is answered until the other side closes.
    pub fn ask(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.connect()?;
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(answer),
                Ok(count) if answer.len() < ANSWER_MAX => answer.extend_from_slice(&buffer[..count]),
                // What was cut off has been answered all the same.
                Ok(_) | Err(_) => return Ok(answer),
            }
        }
    }

    fn exchange(&mut self, mut stream: TcpStream, request: &[u8], method: &str) -> Result<Answer> {
        stream.write_all(request)?;
        let (mut got, mut buffer) = (Vec::new(), [0; 8192]);
        let end = loop {
            if let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            set_tcp_quickack(&stream, true)?;
            match stream.read(&mut buffer)? {
                0 => bail!("closed before the answer's head had come"),
                count => got.extend_from_slice(&buffer[..count]),
            }
        };
        let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        let length = field("content-length").and_then(|text| text.parse::<usize>().ok());
        let bare = method == "HEAD" || matches!(status, 204 | 304) || status < 200;
        let wanted = if bare { Some(0) } else { length };
        let mut body = got[end + 4..].to_vec();
        while wanted.is_none_or(|wanted| body.len() < wanted) && body.len() < ANSWER_MAX {
            set_tcp_quickack(&stream, true)?;
            match stream.read(&mut buffer) {
                // Of an endless answer the begin is enough.
                Ok(0) | Err(_) => break,
                Ok(count) => body.extend_from_slice(&buffer[..count]),
            }
            if wanted.is_none() && (body.ends_with(b"0\r\n\r\n") || body.starts_with(b": ")) {
                break;
            }
        }
        let kept = wanted.is_some_and(|wanted| body.len() == wanted)
            && head.starts_with("http/1.1")
            && field("connection").as_deref() != Some("close");
        self.stream = kept.then_some(stream);
        Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }
}
