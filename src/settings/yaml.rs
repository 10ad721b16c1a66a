// SPDX-License-Identifier: Apache-2.0
//! The settings file: YAML events to settings of the table, with the line of each.
//!
//! Strict: an unknown or repeated key, a second document, an anchor or an alias is a problem, never skipped.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::error::Problem;
use super::nearest::nearest_key;
use super::table;
use super::value::Raw;

/// Blocks within blocks. The table needs five.
const DEPTH_MAX: usize = 16;

/// A setting as the file has it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: usize,
    pub(super) raw: Raw,
    pub(super) line: usize,
}

/// One block of `mqtt.listeners`.
#[derive(Debug)]
pub(super) struct ListenerEntry {
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
}

/// Everything that a file names.
#[derive(Debug, Default)]
pub(super) struct FileSettings {
    pub(super) entries: Vec<Entry>,
    pub(super) listeners: Vec<ListenerEntry>,
    /// The line of a `cluster` block, even an empty one.
    pub(super) cluster_line: Option<usize>,
}

/// Reads the text of a settings file. `file` is its name in problems.
pub(super) fn read(text: &str, file: &str, problems: &mut Vec<Problem>) -> FileSettings {
    let mut found = FileSettings::default();
    match parse(text) {
        Ok(Some(root)) => Walk {
            file,
            problems,
            found: &mut found,
        }
        .root(root),
        Ok(None) => {}
        Err(error) => problems.push(Problem::file(file, error.line, error.text)),
    }
    found
}

#[derive(Debug)]
struct Node {
    line: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

struct YamlError {
    line: usize,
    text: String,
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        Self {
            line: error.marker().line(),
            text: format!("not YAML: {}", error.info()),
        }
    }
}

type Events<'text> = Parser<'text, StrInput<'text>>;

/// The file's one document, none if it is empty.
fn parse(text: &str) -> Result<Option<Node>, YamlError> {
    let mut events = Parser::new_from_str(text.trim_start_matches('\u{feff}'));
    let mut root = None;
    while let Some(event) = events.next_event() {
        let (event, span) = event?;
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Nothing => {}
            event if root.is_none() => root = Some(node(event, span, &mut events, 0)?),
            _ => {
                return Err(YamlError {
                    line: span.start.line(),
                    text: "a second document; a settings file has one".into(),
                });
            }
        }
    }
    Ok(root)
}

fn node(
    event: Event<'_>,
    span: Span,
    events: &mut Events<'_>,
    depth: usize,
) -> Result<Node, YamlError> {
    let line = span.start.line();
    let refuse = |text: &str| {
        Err(YamlError {
            line,
            text: text.into(),
        })
    };
    if depth > DEPTH_MAX {
        return refuse("blocks are nested too deeply");
    }
    let content = match event {
        Event::Scalar(_, _, anchor, _)
        | Event::SequenceStart(anchor, _)
        | Event::MappingStart(anchor, _)
            if anchor != 0 =>
        {
            return refuse("anchors and aliases are not supported; write the value out");
        }
        Event::Scalar(text, ScalarStyle::Plain, _, _)
            if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") =>
        {
            Content::Null
        }
        Event::Scalar(text, ..) => Content::Scalar(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match next(events)? {
                    (Event::SequenceEnd, _) => break Content::List(items),
                    (event, span) => items.push(node(event, span, events, depth + 1)?),
                }
            }
        }
        Event::MappingStart(..) => mapping(events, depth)?,
        _ => return refuse("anchors and aliases are not supported; write the value out"),
    };
    Ok(Node { line, content })
}

fn mapping(events: &mut Events<'_>, depth: usize) -> Result<Content, YamlError> {
    let mut pairs: Vec<(String, Node)> = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    loop {
        let (event, span) = next(events)?;
        let line = span.start.line();
        let key = match event {
            Event::MappingEnd => return Ok(Content::Map(pairs)),
            Event::Scalar(key, _, 0, _) => key.into_owned(),
            _ => {
                return Err(YamlError {
                    line,
                    text: "a key must be a plain word".into(),
                });
            }
        };
        if let Some(first) = lines.insert(key.clone(), line) {
            return Err(YamlError {
                line,
                text: format!("the key {key} is there twice, first in line {first}"),
            });
        }
        let (event, span) = next(events)?;
        let mut value = node(event, span, events, depth + 1)?;
        // an empty value starts where the next token does; a block starts below its key
        value.line = line;
        pairs.push((key, value));
    }
}

fn next<'text>(events: &mut Events<'text>) -> Result<(Event<'text>, Span), YamlError> {
    match events.next_event() {
        Some(event) => Ok(event?),
        None => Err(YamlError {
            line: 1,
            text: "not YAML: the text ends inside a block".into(),
        }),
    }
}

/// Sorts the nodes of a document into settings.
struct Walk<'a> {
    file: &'a str,
    problems: &'a mut Vec<Problem>,
    found: &'a mut FileSettings,
}

impl Walk<'_> {
    fn root(&mut self, root: Node) {
        match root.content {
            Content::Map(pairs) => {
                if let Some((_, cluster)) = pairs.iter().find(|(key, _)| key == "cluster") {
                    self.found.cluster_line = Some(cluster.line);
                }
                let mut entries = Vec::new();
                self.block("", pairs, &mut entries);
                self.found.entries = entries;
            }
            Content::Null => {}
            Content::Scalar(_) | Content::List(_) => {
                self.refuse(root.line, "a settings file is a block of keys".to_owned());
            }
        }
    }

    /// Takes the keys of the block at `path` ("" is the whole file, else it ends with a dot).
    fn block(&mut self, path: &str, pairs: Vec<(String, Node)>, entries: &mut Vec<Entry>) {
        for (name, node) in pairs {
            let key = format!("{path}{name}");
            if let Some(place) = table::place_of_key(&key) {
                self.entry(&key, place, node, entries);
            } else if key == "mqtt.listeners" {
                self.listeners(node);
            } else if is_block(&key) {
                match node.content {
                    Content::Map(pairs) => self.block(&format!("{key}."), pairs, entries),
                    Content::Null => {}
                    Content::Scalar(_) | Content::List(_) => {
                        self.refuse(node.line, format!("{key} is a block of keys, not a value"));
                    }
                }
            } else {
                let shown = nearest_key(&key).replace("[]", "");
                let key = key.replace("[]", "");
                self.refuse(
                    node.line,
                    format!(
                        "unknown key {}; the nearest known key is {shown}",
                        printable(&key)
                    ),
                );
            }
        }
    }

    fn entry(&mut self, key: &str, place: usize, node: Node, entries: &mut Vec<Entry>) {
        let line = node.line;
        let raw = match node.content {
            // comqtt's own files leave values out to mean the default
            Content::Null => return,
            Content::Scalar(text) => Some(Raw::Scalar(text)),
            Content::List(items) => items
                .into_iter()
                .map(Node::scalar)
                .collect::<Option<_>>()
                .map(Raw::List),
            Content::Map(pairs) => pairs
                .into_iter()
                .map(|(name, node)| Some((name, node.scalar()?)))
                .collect::<Option<_>>()
                .map(Raw::Map),
        };
        match raw {
            Some(raw) => {
                // a key and its older path: the later line holds nothing of the earlier, so name both
                if let Some(earlier) = entries.iter().find(|entry| entry.place == place) {
                    let first = earlier.line;
                    self.refuse(line, format!("{key} is there twice, first in line {first}"));
                } else {
                    entries.push(Entry { place, raw, line });
                }
            }
            None => self.refuse(line, format!("{key} takes texts, not blocks")),
        }
    }

    fn listeners(&mut self, node: Node) {
        let items = match node.content {
            Content::List(items) => items,
            Content::Null => return,
            Content::Scalar(_) | Content::Map(_) => {
                return self.refuse(node.line, "mqtt.listeners is a list of blocks".to_owned());
            }
        };
        for item in items {
            match item.content {
                Content::Map(pairs) => {
                    let mut entries = Vec::new();
                    self.block("mqtt.listeners[].", pairs, &mut entries);
                    self.found.listeners.push(ListenerEntry {
                        line: item.line,
                        entries,
                    });
                }
                _ => self.refuse(
                    item.line,
                    "each item of mqtt.listeners is a block of keys".to_owned(),
                ),
            }
        }
    }

    fn refuse(&mut self, line: usize, text: String) {
        self.problems.push(Problem::file(self.file, line, text));
    }
}

impl Node {
    fn scalar(self) -> Option<String> {
        match self.content {
            Content::Scalar(text) => Some(text),
            Content::Null => Some(String::new()),
            Content::List(_) | Content::Map(_) => None,
        }
    }
}

/// Whether some setting lies below this path.
fn is_block(path: &str) -> bool {
    table::keys().any(|key| {
        key.strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// A key of the file for a terminal.
fn printable(key: &str) -> String {
    key.escape_debug().to_string()
}
