//! Map from the command line: inputs in, outputs out, progress on the terminal.

use crate::{
    client::{Client, Failed, body_of, lines},
    waiting::{self, Progress},
};
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::{
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// How to map.
#[derive(Clone, Copy)]
pub struct Terms {
    /// Outputs in the order of the inputs.
    pub ordered: bool,
    /// Go on after an error.
    pub collect: bool,
    /// Outputs are wanted.
    pub outputs: bool,
}

impl Terms {
    /// The path that asks for them.
    pub fn path(self, client: &Client, function: &str) -> String {
        let on_error = if self.collect { "collect" } else { "raise" };
        let what = format!("map?ordered={}&on_error={on_error}&outputs={}", self.ordered, self.outputs);
        client.function(function, &what)
    }
}

/// What a line says of itself; its output, which can be large, is not read.
#[derive(serde::Deserialize)]
struct Told<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    error: Option<&'a serde_json::value::RawValue>,
    failed: Option<u64>,
}

/// A bar on the terminal; hidden where standard error is none.
pub fn bar(total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let template = match total {
        Some(_) => "{prefix:16} {bar:32} {pos}/{len}  {per_sec}  eta {eta}  {msg}",
        None => "{prefix:16} {spinner} {pos} done  {per_sec}  {msg}",
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Maps; exits with 1 if an input failed.
pub async fn map(client: &Client, function: &str, file: Option<&Path>, terms: Terms) -> anyhow::Result<ExitCode> {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let body = body_of(file, move |bytes| {
        counted.fetch_add(bytes.iter().filter(|b| **b == b'\n').count() as u64, Ordering::Relaxed);
    })
    .await?;
    let (progress, bar) = (Progress::default(), bar(None).with_prefix(function.to_owned()));
    let path = terms.path(client, function);
    let mut answer = lines(waiting::told(client, function, &progress, client.stream(&path, body, None)).await?);
    let (mut failed, mut refused) = (false, None::<Value>);
    while let Some(line) = waiting::told(client, function, &progress, answer.next()).await {
        progress.made();
        let line = line?;
        let told: Told = serde_json::from_slice(&line)?;
        failed |= told.error.is_some() || told.failed.unwrap_or(0) > 0;
        if told.error.is_some() && told.index.is_none() {
            refused = Some(serde_json::from_slice(&line)?);
            break;
        }
        bar.inc(1);
        bar.set_message(format!("{} sent", sent.load(Ordering::Relaxed)));
        std::io::stdout().lock().write_all(&crate::output::for_stdout(&line))?;
    }
    bar.finish_and_clear();
    if let Some(answer) = refused {
        return Err(Failed::Refused(crate::output::text(&answer["error"]["message"]), answer).into());
    }
    Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
