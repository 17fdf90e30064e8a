//! A small `http` function for tests and benchmarks: answers each input with itself.
//!
//! `echo-server [fault]`: without a fault it echoes. Faults: `garbage` answers what is not JSON, `hang` never answers,
//! `close` closes in the middle of an answer, `twice` answers each input twice, `flood` writes a gigabyte to its output first, `short` answers batches with one
//! output too few, `die` exits while it works, `late` takes a second to become ready, `count` answers how many inputs it had.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let fault: Arc<str> = std::env::args().nth(1).unwrap_or_default().into();
    let port: u16 = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(0);
    if &*fault == "late" {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let served = Arc::new(AtomicU64::new(0));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        if &*fault == "twice" {
            tokio::spawn(answer_twice(stream));
            continue;
        }
        let (fault, served) = (fault.clone(), served.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, fault.clone(), served.clone()));
            // A client that closes its connection ends it.
            let _ = http1::Builder::new().pipeline_flush(true).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers each input twice at once, the second time with something else: what no HTTP library would let us do. A
/// second answer that comes later than the next input cannot be told from that one's in HTTP/1.1.
async fn answer_twice(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        read.extend_from_slice(&piece[..count]);
        let Some(head) = read.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4) else { continue };
        let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
        let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        let length = length.unwrap_or(0);
        if read.len() < head + length {
            continue;
        }
        let body: Vec<u8> = read.drain(..head + length).skip(head).collect();
        let mut answers = Vec::new();
        for body in [&body[..], b"\"the second answer\""] {
            answers.extend_from_slice(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
            answers.extend_from_slice(body);
        }
        stream.write_all(&answers).await?;
    }
}

async fn answer(
    request: Request<Incoming>,
    fault: Arc<str>,
    served: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/healthz" {
        return Ok(Response::new(Full::from("ok")));
    }
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let number = served.fetch_add(1, Ordering::Relaxed);
    Ok(match &*fault {
        "garbage" => Response::new(Full::from("}{ not json")),
        "hang" => std::future::pending().await,
        "die" => std::process::exit(9),
        "count" => Response::new(Full::from((number + 1).to_string())),
        "close" => {
            let whole = Response::builder().header("content-length", body.len() + 100);
            whole.body(Full::from(body)).unwrap_or_default()
        }
        "flood" => {
            let line = vec![b'x'; 1 << 20];
            for _ in 0..1024 {
                // A pipe that nobody reads any more is no reason to stop.
                let _ = std::io::stderr().write_all(&line);
            }
            Response::new(Full::from(body))
        }
        "short" => {
            let mut list: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap_or_default();
            list.pop();
            Response::new(Full::from(serde_json::to_vec(&list).unwrap_or_default()))
        }
        _ => Response::new(Full::from(body)),
    })
}
