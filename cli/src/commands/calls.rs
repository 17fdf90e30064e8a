//! Calls from the command line.

use crate::{
    client::{Client, Failed, body_of, lines, segment},
    output,
    waiting::{self, Progress},
};
use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    path::Path,
    process::ExitCode,
};

fn input_of(text: String) -> Result<Bytes, Failed> {
    let text = if text == "-" {
        let mut read = String::new();
        let got = std::io::stdin().read_to_string(&mut read);
        got.map_err(|e| Failed::Usage(format!("standard input cannot be read: {e}")))?;
        read
    } else {
        text
    };
    // Looked at and not read: numbers of any size, and halves of characters, are JSON.
    serde_json::from_str::<&serde_json::value::RawValue>(text.trim())
        .map_err(|e| Failed::Usage(format!("the input is not JSON: {e}; write a text as '\"text\"'")))?;
    Ok(text.into())
}

/// One input, and its output.
pub async fn invoke(client: &Client, function: &str, input: String) -> anyhow::Result<()> {
    // As it came: numbers keep their digits, and fields their order.
    let path = client.function(function, "invoke");
    let asked = client.post_text(&path, input_of(input)?);
    let output = waiting::told(client, function, &Progress::default(), asked).await?;
    output::print(output)
}

/// One input, or a file of them, without waiting.
pub async fn spawn(
    client: &Client,
    function: &str,
    input: Option<String>,
    file: Option<&Path>,
    key: Option<&str>,
    as_json: bool,
) -> anyhow::Result<()> {
    let answer = match file {
        Some(file) => {
            let body = body_of(Some(file), |_| {}).await?;
            let response = client.stream(&client.function(function, "spawn_map"), body, key).await?;
            response.json().await.map_err(crate::client::broken)?
        }
        None => {
            let input = input_of(input.unwrap_or_else(|| "null".into()))?;
            client.post(&client.function(function, "spawn"), input, key).await?
        }
    };
    if as_json {
        return output::print_json(&answer);
    }
    output::print(output::text(&answer["call_id"]))
}

/// Lists calls.
pub async fn list(
    client: &Client,
    function: Option<&str>,
    state: Option<&str>,
    limit: usize,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut path = format!("/v1/calls?namespace={}&limit={limit}", segment(&client.namespace));
    for (name, value) in [("function", function), ("state", state)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", segment(value)));
        }
    }
    let fields = [
        ("call", "/id"),
        ("function", "/function"),
        ("state", "/state"),
        ("inputs", "/inputs/total"),
        ("succeeded", "/inputs/succeeded"),
        ("failed", "/inputs/failed"),
        ("created", "/created_at"),
    ];
    super::list(client, &path, "calls", &fields, as_json).await
}

/// Shows a call; one that failed or was cancelled ends with exit code 1.
pub async fn show(client: &Client, id: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let call = client.get(&format!("/v1/calls/{}", segment(id))).await?;
    if as_json {
        output::print_json(&call)?;
    } else {
        let flat = ["state", "namespace", "function", "created_at", "finished_at", "expires_at"];
        let rows = flat.iter().map(|name| vec![(*name).to_owned(), output::text(&call[*name])]);
        let counts = call["inputs"].as_object().into_iter().flatten();
        let counts = counts.map(|(name, n)| vec![format!("inputs {name}"), output::text(n)]);
        output::print(output::table(&["call", id], rows.chain(counts)))?;
    }
    Ok(exit_code_of(&call))
}

/// Prints results, page by page; those of a call that failed or was cancelled end with exit code 1.
pub async fn results(client: &Client, id: &str, ordered: bool, wait: bool) -> anyhow::Result<ExitCode> {
    let (call, mut after) = (segment(id), String::new());
    loop {
        let wait_s = if wait { 30 } else { 0 };
        let path = format!("/v1/calls/{call}/results?ordered={ordered}&limit=1000&wait_s={wait_s}{after}");
        let mut page = lines(client.follow(&path).await?);
        let mut last = None;
        while let Some(line) = page.next().await {
            let line = line?;
            let value: Value = serde_json::from_slice(&line)?;
            last = value["cursor"].as_str().map(str::to_owned);
            std::io::stdout().lock().write_all(&output::for_stdout(&line))?;
        }
        match last {
            Some(cursor) => after = format!("&after={cursor}"),
            None => {
                let call = client.get(&format!("/v1/calls/{call}")).await?;
                if !wait || !call["finished_at"].is_null() {
                    return Ok(exit_code_of(&call));
                }
            }
        }
    }
}

/// Lists inputs of a call, page by page, until there are as many as asked for.
pub async fn inputs(client: &Client, id: &str, state: Option<&str>, limit: usize, as_json: bool) -> anyhow::Result<()> {
    let filter = state.map_or_else(String::new, |state| format!("&state={}", segment(state)));
    let (mut inputs, mut after) = (Vec::new(), String::new());
    let next = loop {
        let path =
            format!("/v1/calls/{}/inputs?limit={}{filter}{after}", segment(id), (limit - inputs.len()).min(1000));
        let mut page = client.get(&path).await?;
        inputs.extend(page["inputs"].as_array_mut().map(std::mem::take).unwrap_or_default());
        match page["next"].as_u64() {
            Some(next) if inputs.len() < limit => after = format!("&after={next}"),
            next => break next,
        }
    };
    if as_json {
        return output::print_json(&json!({"inputs": inputs, "next": next}));
    }
    let fields = [
        ("index", "/index"),
        ("state", "/state"),
        ("attempts", "/attempts"),
        ("container", "/container"),
        ("run ms", "/run_ms"),
        ("error", "/error/message"),
    ];
    super::print_list(&inputs, &fields)?;
    if next.is_some() {
        output::say(format!("there are more: capstan inputs {id} --limit {}", limit.saturating_mul(10)));
    }
    Ok(())
}

/// How a call went, in numbers.
pub async fn summary(client: &Client, id: &str, as_json: bool) -> anyhow::Result<()> {
    let summary = client.get(&format!("/v1/calls/{}/summary", segment(id))).await?;
    if as_json {
        return output::print_json(&summary);
    }
    let counts = summary["inputs"].as_object().into_iter().flatten();
    output::print(output::table(&["inputs", ""], counts.map(|(name, n)| vec![name.clone(), output::text(n)])))?;
    let spread = |name: &str| {
        let of = &summary[name];
        [vec![name.to_owned()], ["p50_ms", "p90_ms", "p99_ms", "max_ms"].map(|field| output::text(&of[field])).into()]
            .concat()
    };
    output::print(output::table(&["ms", "p50", "p90", "p99", "max"], ["queue", "run"].map(spread)))?;
    let failures = summary["failures"].as_array().map_or(&[][..], Vec::as_slice);
    if !failures.is_empty() {
        let fields =
            [("failed", "/count"), ("type", "/type"), ("message", "/message"), ("one of them", "/example_index")];
        super::print_list(failures, &fields)?;
    }
    Ok(())
}

fn exit_code_of(call: &Value) -> ExitCode {
    let ended_well = !["failed", "cancelled"].iter().any(|state| call["state"] == *state);
    if ended_well { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Cancels a call.
pub async fn cancel(client: &Client, id: &str, as_json: bool) -> anyhow::Result<()> {
    let call = client.send(Method::POST, &format!("/v1/calls/{}/cancel", segment(id)), &json!({})).await?;
    if as_json {
        return output::print_json(&call);
    }
    output::print(format!("{id}: {}", output::text(&call["state"])))
}
