//! Printing: tables for people, JSON for programs.

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// A table with a head.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table
}

/// A text without what a terminal would obey: a function's words must not clear the screen, or look like a prompt.
pub fn plain(text: &str) -> String {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(obeyed) {
        return text.to_owned();
    }
    text.chars().fold(String::new(), |mut out, c| {
        if obeyed(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
        out
    })
}

/// The same of bytes that go to standard output, if that is a terminal.
pub fn for_stdout(bytes: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if io::stdout().is_terminal() { plain(&String::from_utf8_lossy(bytes)).into_bytes().into() } else { bytes.into() }
}

/// Says something on standard error. Whoever started us may have closed that.
pub fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{}", plain(&text.to_string()));
}

/// Prints a line; a closed pipe is an error that `main` does not report.
pub fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Prints JSON, indented.
pub fn print_json(value: &Value) -> anyhow::Result<()> {
    print(serde_json::to_string_pretty(value)?)
}

/// Whether whoever reads our output has gone.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A value as people read it; of a list, how long it is.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => plain(text),
        Value::Array(items) => items.len().to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_terminal_obeys_nothing_that_a_function_says() {
        assert_eq!(plain("\u{1b}[2J\u{7}ok\r\n\ttab \u{9b}31m"), "\\u{1b}[2J\\u{7}ok\\r\n\ttab \\u{9b}31m");
        assert_eq!(plain("ä 漢字"), "ä 漢字");
    }
}
