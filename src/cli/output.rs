//! How results and errors are printed: aligned for people, JSON for programs, colours on a terminal only.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use serde::Serialize;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use crate::gate::now;
use crate::wire::text::{is_deceptive, printable};

/// Where results go.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Output {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Output { json, colour: wanted && !dumb && io::stdout().is_terminal() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// A value, for programs: one line.
    pub(super) fn value(&self, value: &impl Serialize) -> io::Result<()> {
        let text = if self.json || !io::stdout().is_terminal() {
            serde_json::to_string(value)
        } else {
            serde_json::to_string_pretty(value)
        };
        self.print(&format!("{}\n", escaped(&text.map_err(io::Error::other)?)))
    }

    /// One of many values that come one by one, for programs: one line, at once. Says whether anybody still reads.
    pub(super) fn json_line(&self, value: &impl Serialize) -> io::Result<ControlFlow<()>> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.put(&format!("{}\n", escaped(&text)))
    }

    /// One of many lines that come one by one, at once. Says whether anybody still reads.
    pub(super) fn line(&self, line: &str) -> io::Result<ControlFlow<()>> {
        self.put(&format!("{line}\n"))
    }

    /// Text that is for another program, as it stands.
    pub(super) fn raw(&self, text: &str) -> io::Result<()> {
        self.print(text)
    }

    /// A word on the side, for people: on standard error, and none where programs read.
    pub(super) fn note(&self, message: &str) {
        if !self.json {
            let _ = io::stderr().write_all(format!("authsock: {}\n", printable(message)).as_bytes());
        }
    }

    /// Names and what they stand for, below each other.
    pub(super) fn fields(&self, fields: &[(&str, String)]) -> io::Result<()> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in fields {
            let name = self.bold(&format!("{name:width$}"));
            text.push_str(&format!("{name}  {}\n", printable(value)));
        }
        self.print(&text)
    }

    /// An empty line between groups.
    pub(super) fn blank(&self) -> io::Result<()> {
        self.print("\n")
    }

    /// A table with a heading.
    pub(super) fn table(&self, heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        let lines = aligned(heading, &rows);
        let (first, rest) = lines.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        let mut text = format!("{}\n", self.bold(first));
        for line in rest {
            text.push_str(line);
            text.push('\n');
        }
        self.print(&text)
    }

    /// What went wrong, on standard error: a sentence for people, an object for programs.
    pub(super) fn error(&self, code: u8, detail: Option<&Value>, message: &str) {
        let message = message.trim_end();
        let text = if self.json {
            format!("{}\n", json!({ "error": { "exit_code": code, "code": detail, "message": message } }))
        } else {
            // Lines are kept: a configuration's error shows the place.
            let lines: Vec<String> = message.lines().map(printable).collect();
            format!("authsock: {}\n", lines.join("\n"))
        };
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn print(&self, text: &str) -> io::Result<()> {
        self.put(text).map(|_| ())
    }

    fn put(&self, text: &str) -> io::Result<ControlFlow<()>> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // A reader that has seen enough is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("cannot write to standard output: {error}")))
            }
            Ok(()) => Ok(ControlFlow::Continue(())),
        }
    }
}

/// JSON escapes some control characters within texts; the others, and what deceives, are escaped alike. Between its parts
/// JSON that others wrote may have tabs.
fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\t' {
            line.push(' ');
        } else if character != '\n' && is_deceptive(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                line.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            line.push(character);
        }
    }
    line
}

/// The lines of a table, columns below each other: a character may take two places on a terminal, or none.
fn aligned(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
            cells.chain([heading[column].width()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width()))))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let first = line(&mut heading.iter().copied());
    std::iter::once(first).chain(rows.iter().map(|row| line(&mut row.iter().map(String::as_str)))).collect()
}

/// A field of a result as text; `-` if it is missing.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// How long ago a moment was, in milliseconds since 1970.
pub(super) fn ago(when: &Value) -> String {
    span(now().saturating_sub(when.as_u64().unwrap_or(0)) / 1000)
}

/// When something ends by itself that may have no such moment.
pub(super) fn expires(when: &Value) -> String {
    match when.as_u64() {
        None => "never by itself".into(),
        Some(when) => format!("in {}", span(when.saturating_sub(now()).div_ceil(1000))),
    }
}

/// How long ago or ahead, in one unit.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_between_parts_of_json_stays_json() {
        let line = escaped("{\"a\":\t\"\\t\u{202e}\u{e0041}\"}");
        assert_eq!(line, "{\"a\": \"\\t\\u202e\\udb40\\udc41\"}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["a"], "\t\u{202e}\u{e0041}");
    }

    #[test]
    fn columns_are_below_each_other_whatever_is_in_them() {
        let names = ["plain", "漢字", "e\u{301}te\u{301}", "👍", &"e\u{301}".repeat(21)];
        let rows: Vec<Vec<String>> =
            names.iter().map(|name| vec![(*name).to_owned(), "|".to_owned()]).collect();
        let lines = aligned(&["NAME", "X"], &rows);
        let places: Vec<usize> =
            lines[1..].iter().map(|line| line.split('|').next().unwrap().width()).collect();
        assert_eq!(places, [23; 5], "{lines:#?}");
        assert_eq!(lines[0].width(), 24);
    }
}
