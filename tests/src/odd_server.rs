//! Servers as the world has them: each argument is one way of being odd.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Health checks that were answered.
static CHECKS: AtomicU32 = AtomicU32::new(0);

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn read(from: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Some(Self { method, path, headers })
    }

    fn body(&self, from: &mut impl Read) -> Vec<u8> {
        let length = self.headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        // A client that breaks off has no body.
        let _ = from.read_exact(&mut body);
        body
    }
}

fn answer(to: &mut TcpStream, status: &str, more: &str, body: &[u8]) {
    // In two pieces, as many do: the second waits for the acknowledgement of the first.
    let head = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    let _ = to.write_all(head.as_bytes());
    let _ = to.write_all(body);
}

fn health(how: &str, stream: &mut TcpStream) {
    let seen = CHECKS.fetch_add(1, Ordering::SeqCst);
    match how {
        "no-get" => answer(stream, "501 Unsupported method ('GET')", "", b""),
        "post-only" => answer(stream, "405 Method Not Allowed", "", b""),
        "late" if seen < 3 => answer(stream, "503 Service Unavailable", "", b""),
        "never" => answer(stream, "503 Service Unavailable", "", b"loading"),
        _ => answer(stream, "200 OK", "", b""),
    }
}

/// Serves one connection. Whatever is odd about the server happens here.
fn serve(how: &str, mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        if let Some(ms) = how.strip_prefix("idle-") {
            stream.set_read_timeout(Some(Duration::from_millis(ms.parse().ok()?))).ok()?;
        }
        let request = Request::read(&mut reader)?;
        stream.set_read_timeout(None).ok()?;
        if request.path == "/healthz" {
            health(how, &mut stream);
            continue;
        }
        match how {
            "early" => {
                // It has heard enough: the rest lies unread when it closes.
                answer(&mut stream, "413 Payload Too Large", "Connection: close\r\n", b"far too much");
                return None;
            }
            "switches" if request.method == "GET" => {
                let _ =
                    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
            }
            "drops" => return None,
            "verbose" => {
                request.body(&mut reader);
                let body = format!("\"{}\"", "x".repeat(20_000));
                answer(&mut stream, "200 OK", "Content-Type: application/json\r\n", body.as_bytes());
            }
            "half" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12");
                return None;
            }
            "surrogate" => {
                answer(&mut stream, "500 Oh", "", b"{\"type\":\"Odd\\ud83d\",\"message\":\"half \\ud83d\"}");
            }
            "long" => {
                let text = "x".repeat(2 << 20);
                let body = format!("{{\"type\":\"E\",\"message\":\"{text}\",\"traceback\":\"{text}\"}}");
                answer(&mut stream, "500 Oh", "", body.as_bytes());
            }
            "headers" => {
                request.body(&mut reader);
                let more = "Set-Cookie: a=1; Path=/; Domain=example.com\r\nX-Inner: secret\r\nConnection: x-inner\r\n";
                let body = serde_json::to_vec(&request.headers).ok()?;
                answer(&mut stream, "200 OK", more, &body);
            }
            _ => {
                let body = request.body(&mut reader);
                let body = if body.is_empty() { b"null".to_vec() } else { body };
                answer(&mut stream, "200 OK", "Content-Type: application/json\r\n", &body);
                if how == "closes" {
                    return None;
                }
            }
        }
    }
}

fn main() {
    let how = std::env::args().nth(1).unwrap_or_default();
    let port: u16 = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).expect("PORT");
    let host: IpAddr = if how == "v6" { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let listener = TcpListener::bind((host, port)).expect("the port");
    if how == "deaf" {
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    for stream in listener.incoming().flatten() {
        let how = how.clone();
        std::thread::spawn(move || serve(&how, stream));
    }
}
