// SPDX-License-Identifier: Apache-2.0
//! The two forms of a log line.
//!
//! Values come from strangers (client ids, topics, reasons): what could end a line, move a cursor or reorder text is
//! escaped, and every text is cut at [`TEXT_CHARS_MAX`], so a line is one line and has a bounded length.

use std::fmt::{self, Write};

use log::Record;
use log::kv::{self, Key, Value, VisitSource, VisitValue};

use super::clock::Moment;

/// Characters of a message or of a value that are logged.
const TEXT_CHARS_MAX: usize = 2048;

/// `2026-11-22T10:00:00.000Z INFO attached listener address=:1883 id=tcp`
pub(super) fn text(now: Moment, record: &Record<'_>) -> String {
    let mut line = format!("{now} {} ", record.level());
    push(&mut line, Escape::Text, record.args());
    each_pair(record, |key, value| {
        line.push(' ');
        push(&mut line, Escape::Text, key);
        line.push('=');
        push_text_value(&mut line, &value);
    });
    line.push('\n');
    line
}

/// `{"time":"2026-11-22T10:00:00.000Z","level":"INFO","msg":"attached listener","address":":1883","id":"tcp"}`
pub(super) fn json(now: Moment, record: &Record<'_>) -> String {
    let mut line = format!(r#"{{"time":"{now}","level":"{}","msg":""#, record.level());
    push(&mut line, Escape::Json, record.args());
    line.push('"');
    each_pair(record, |key, value| {
        line.push_str(",\"");
        push(&mut line, Escape::Json, key);
        line.push_str("\":");
        let mut value_of = JsonValue(&mut line);
        // the visitor only appends to a String
        let _ = value.visit(&mut value_of);
    });
    line.push_str("}\n");
    line
}

fn each_pair(record: &Record<'_>, pair: impl FnMut(Key<'_>, Value<'_>)) {
    struct Pairs<F>(F);
    impl<'kvs, F: FnMut(Key<'_>, Value<'_>)> VisitSource<'kvs> for Pairs<F> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            (self.0)(key, value);
            Ok(())
        }
    }
    // the visitor never fails
    let _ = record.key_values().visit(&mut Pairs(pair));
}

/// A value without spaces and quotes stands bare, any other one in quotes.
fn push_text_value(line: &mut String, value: &Value<'_>) {
    let start = line.len();
    push(line, Escape::Text, value);
    let written = &line[start..];
    let is_bare = !written.is_empty() && !written.contains([' ', '"', '=', '\\']);
    if !is_bare {
        line.truncate(start);
        line.push('"');
        push(line, Escape::Quoted, value);
        line.push('"');
    }
}

struct JsonValue<'a>(&'a mut String);

impl VisitValue<'_> for JsonValue<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0.push('"');
        push(self.0, Escape::Json, value);
        self.0.push('"');
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0.push_str("null");
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0.push_str(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        push(self.0, Escape::Json, value);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        push(self.0, Escape::Json, value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        if value.is_finite() {
            push(self.0, Escape::Json, value);
        } else {
            // JSON has no such numbers
            self.0.push_str("null");
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    /// Outside quotes.
    Text,
    /// In quotes of a text line.
    Quoted,
    /// In quotes of JSON.
    Json,
}

fn push(line: &mut String, escape: Escape, shown: impl fmt::Display) {
    // an error of a Display that is not ours leaves what it wrote so far; ours (too long) is the cut
    let _ = write!(
        Escaped {
            line,
            escape,
            left: TEXT_CHARS_MAX,
        },
        "{shown}"
    );
}

struct Escaped<'a> {
    line: &'a mut String,
    escape: Escape,
    /// Characters that may still be written.
    left: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.left == 0 {
                self.line.push('…');
                return Err(fmt::Error);
            }
            self.left -= 1;
            self.push(c);
        }
        Ok(())
    }
}

impl Escaped<'_> {
    fn push(&mut self, c: char) {
        match c {
            '\n' => self.line.push_str("\\n"),
            '\r' => self.line.push_str("\\r"),
            '\t' => self.line.push_str("\\t"),
            '"' | '\\' if self.escape != Escape::Text => {
                self.line.push('\\');
                self.line.push(c);
            }
            c if is_unsafe_to_show(c) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    // writing to a String cannot fail
                    let _ = write!(self.line, "\\u{unit:04x}");
                }
            }
            c => self.line.push(c),
        }
    }
}

/// Control characters, line and paragraph separators, and marks that hide text or turn its direction.
fn is_unsafe_to_show(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
