//! `capstan top`: functions and workers, live.

use crate::{
    client::{Client, Failed, segment},
    output,
};
use ratatui::{
    crossterm::event::{self, Event, KeyCode, KeyModifiers},
    layout::{Constraint, Layout},
    style::Style,
    widgets::{Block, Row, Table},
};
use serde_json::Value;
use std::{io::IsTerminal, time::Duration};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Shows until `q`.
pub async fn top(client: &Client) -> anyhow::Result<()> {
    // The first look is taken before the screen is: its errors should stay readable.
    let mut seen = look(client).await?;
    if !std::io::stdout().is_terminal() {
        return Err(Failed::Usage("top needs a terminal; `capstan functions --json` is for programs".into()).into());
    }
    let mut terminal = ratatui::init();
    let result = loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, client, &seen)) {
            break Err(error.into());
        }
        let quit = tokio::task::spawn_blocking(quit_pressed).await.unwrap_or(true);
        if quit {
            break Ok(());
        }
        match look(client).await {
            Ok(now) => seen = now,
            Err(error) => break Err(error.into()),
        }
    };
    ratatui::restore();
    result
}

fn quit_pressed() -> bool {
    if !matches!(event::poll(PAUSE), Ok(true)) {
        return false;
    }
    match event::read() {
        Ok(Event::Key(key)) => {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        }
        Ok(_) => false,
        Err(_) => true,
    }
}

struct Seen {
    functions: Vec<Value>,
    workers: Vec<Value>,
}

async fn look(client: &Client) -> Result<Seen, Failed> {
    let path = format!("/v1/namespaces/{}/functions?limit=200", segment(&client.namespace));
    let list = |mut value: Value, name: &str| match value[name].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    Ok(Seen {
        functions: list(client.get(&path).await?, "functions"),
        workers: list(client.get("/v1/workers").await?, "workers"),
    })
}

fn rows(items: &[Value], pointers: &[&str]) -> Vec<Row<'static>> {
    items
        .iter()
        .map(|item| {
            let cells = pointers.iter().map(|p| output::text(item.pointer(p).unwrap_or(&Value::Null)));
            Row::new(cells.collect::<Vec<_>>())
        })
        .collect()
}

fn draw(frame: &mut ratatui::Frame<'_>, client: &Client, seen: &Seen) {
    let height = seen.workers.len() as u16 + 3;
    let [above, below] = Layout::vertical([Constraint::Length(height), Constraint::Min(3)]).areas(frame.area());
    let number = Constraint::Length(10);
    let head = Style::new().bold();
    let workers =
        rows(&seen.workers, &["/name", "/state", "/capacity/cpu", "/free/cpu", "/free/memory_mib", "/containers"]);
    let table = Table::new(workers, [Constraint::Min(20), number, number, number, number, number])
        .header(Row::new(["worker", "state", "cpu", "free", "free MiB", "containers"]).style(head))
        .block(Block::bordered().title(format!(" {} ", client.url())));
    frame.render_widget(table, above);
    let pointers = [
        "/name",
        "/revision",
        "/stats/backlog",
        "/stats/running",
        "/stats/containers/starting",
        "/stats/containers/idle",
        "/stats/containers/busy",
        "/stats/desired",
    ];
    let functions = rows(&seen.functions, &pointers);
    let table = Table::new(functions, [Constraint::Min(20), number, number, number, number, number, number, number])
        .header(
            Row::new(["function", "revision", "backlog", "running", "starting", "idle", "busy", "desired"]).style(head),
        )
        .block(Block::bordered().title(" functions (q quits) "));
    frame.render_widget(table, below);
}
