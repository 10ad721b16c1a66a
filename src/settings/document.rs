// SPDX-License-Identifier: Apache-2.0
//! The table of settings as text: `--help`, the commented `configs/corqtt.yml`, and the tables of `configs/SETTINGS.md`.

use std::fmt::Write as _;

use super::parts::Parts;
use super::table::{ACTIONS, Preset, ROWS, Row};
use super::value::{Dialect, Kind, Raw};

/// What `--help` prints.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "corqtt, a clustered MQTT broker\n\n\
         usage: corqtt [--flag=value]...\n\
         \x20      corqtt store check|dump|load FILE|compact [--flag=value]... (a store that no broker uses)\n\n\
         Each setting has an environment variable (--storage-way is CORQTT_STORAGE_WAY). Flags override the environment,\n\
         which overrides the file that --conf names, which overrides the defaults. configs/corqtt.yml describes the file.\n\n",
    );
    let flags = ROWS.iter().filter_map(|row| Some((row.flag?, row)));
    for (flag, row) in flags {
        let takes = if row.is_switch() { "[=true]" } else { "" };
        entry(&mut text, &format!("{flag}{takes}"), row.meaning);
        let mut details = Vec::new();
        if let Kind::Choice(_) | Kind::Level | Kind::Sync = row.kind {
            details.push(row.kind.expected(Dialect::CommandLine));
        }
        if let Some(default) = default_of(row) {
            details.push(format!("default: {default}"));
        }
        details.extend(lacks(row));
        if !details.is_empty() {
            wrap(&mut text, &details.join("; "), "        ");
        }
    }
    text.push('\n');
    for (name, meaning) in ACTIONS {
        entry(&mut text, name, meaning);
    }
    text
}

fn entry(text: &mut String, name: &str, meaning: &str) {
    text.push_str("  --");
    text.push_str(name);
    text.push('\n');
    wrap(text, meaning, "        ");
}

/// The commented settings file: every key with its default, its unit and its meaning, each commented out.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Settings of corqtt: every key with its meaning, what it takes and its default.\n\
         # A key that is commented out has its default. Flags and CORQTT_* variables override this file; an unknown\n\
         # key is an error. Durations: 500ms, 10s, 5m, 2h, 1d. Sizes: 512KiB, 64MiB, 1GiB (1024), kB, MB, GB (1000).\n\
         # The cluster block, even an empty one, switches cluster mode on.\n",
    );
    let mut open: Vec<&str> = Vec::new();
    for row in ROWS {
        let Some(key) = row.key else { continue };
        let mut path: Vec<&str> = key.split('.').collect();
        let name = path.pop().unwrap_or_default();
        let shared = open.iter().zip(&path).take_while(|(a, b)| a == b).count();
        for (depth, &block) in path.iter().enumerate().skip(shared) {
            open_block(&mut text, &path, depth, block);
        }
        let is_first_of_item =
            path.last().is_some_and(|block| block.ends_with("[]")) && shared < path.len();
        open.clone_from(&path);
        leaf(&mut text, row, &path, name, is_first_of_item);
    }
    text
}

/// Spaces before the keys of the block at this path: two for each block, four for a list of blocks.
fn indent(path: &[&str]) -> String {
    let columns: usize = path
        .iter()
        .map(|block| if block.ends_with("[]") { 4 } else { 2 })
        .sum();
    " ".repeat(columns)
}

/// Whether keys below this path are commented together with their block, since the block itself means something.
fn is_commented_block(path: &[&str]) -> bool {
    path.first() == Some(&"cluster") || path.iter().any(|block| block.ends_with("[]"))
}

fn open_block(text: &mut String, path: &[&str], depth: usize, block: &str) {
    let here = indent(&path[..depth]);
    if depth == 0 {
        text.push('\n');
    }
    let mark = if is_commented_block(&path[..=depth]) {
        "#"
    } else {
        ""
    };
    let _ = writeln!(text, "{here}{mark}{}:", block.trim_end_matches("[]"));
}

fn leaf(text: &mut String, row: &Row, path: &[&str], name: &str, is_first_of_item: bool) {
    let here = indent(path);
    if path.is_empty() {
        text.push('\n');
    }
    let mut about = row.meaning.to_owned();
    if let Some(why) = row.unused {
        about = format!("accepted and unused ({why}): {about}");
    }
    if let Some(lacks) = lacks(row) {
        let _ = write!(about, " ({lacks})");
    }
    wrap(text, &about, &format!("{here}# "));
    let mut takes = format!("takes {}", row.kind.expected(Dialect::File));
    if let Some(flag) = row.flag {
        let _ = write!(takes, "; flag --{flag}");
    }
    if let Preset::Derived(how) = row.default {
        let _ = write!(takes, "; default: {how}");
    }
    if matches!(row.default, Preset::None) {
        takes.push_str("; default: none");
    }
    wrap(text, &takes, &format!("{here}# "));
    let value = match row.default {
        Preset::Is(default) => format!(" {}", quoted(row, default)),
        Preset::Derived(_) | Preset::None => String::new(),
    };
    if is_first_of_item {
        let dash = " ".repeat(here.len() - 2);
        let _ = writeln!(text, "{dash}#- {name}:{value}");
    } else {
        let _ = writeln!(text, "{here}#{name}:{value}");
    }
}

/// Every setting in tables, one for each block of the file.
#[must_use]
pub fn manual() -> String {
    let mut text = String::from(
        "<!-- Made from the table of settings in src/settings/table.rs: UPDATE_CONFIGS=1 cargo test -p corqtt --lib documented -->\n\
         # Settings\n\n\
         A flag overrides its environment variable, which overrides the file that `--conf` names, which overrides the\n\
         default. Unknown flags and keys are errors. [corqtt.yml](corqtt.yml) is the file with every key commented out;\n\
         `corqtt --check` says what would run.\n\n\
         A duration is a number and its unit, `500ms`, `10s`, `5m`, `2h`, `1d`; a number alone counts in the unit that its row\n\
         names. A size is a number of bytes, or has `KiB`, `MiB`, `GiB`, `TiB` (1024) or `kB`, `MB`, `GB`, `TB` (1000) behind it.\n\
         A row without a key is for the command line and the environment only, one without a flag for the file only.\n\
         Where several words stand for one choice they are separated by a slash.\n",
    );
    let mut open: Option<&str> = None;
    for row in ROWS {
        // a row of the command line stands with those before it
        let block = match row.key {
            Some(key) => key.rsplit_once('.').map_or("", |(block, _)| block),
            None => open.unwrap_or(""),
        };
        if open != Some(block) {
            open = Some(block);
            let title = match block {
                "" => "Top level".to_owned(),
                block => format!("`{}`", block.replace("[]", "[...]")),
            };
            let _ = write!(
                text,
                "\n## {title}\n\n\
                 | key | flag | environment | default | takes | unit | meaning |\n\
                 |---|---|---|---|---|---|---|\n"
            );
        }
        manual_row(&mut text, row);
    }
    text
}

fn manual_row(text: &mut String, row: &Row) {
    let code = |word: Option<String>| word.map_or(String::new(), |word| format!("`{word}`"));
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let default = match row.default {
        Preset::Is(default) => code(Some(default.to_owned())),
        Preset::Derived(how) => how.to_owned(),
        Preset::None => "none".to_owned(),
    };
    let (takes, unit) = row.kind.in_short();
    let mut meaning = row.meaning.to_owned();
    if let Some(also) = row.also {
        let _ = write!(meaning, "; also `{also}`");
    }
    if let Some(why) = row.unused {
        let _ = write!(meaning, "; accepted and unused: {why}");
    }
    if let Some(lacks) = lacks(row) {
        let _ = write!(meaning, " ({lacks})");
    }
    let cells = [
        code(row.key.map(last)),
        code(row.flag.map(|flag| format!("--{flag}"))),
        code(row.variable()),
        default,
        takes,
        unit.to_owned(),
        meaning,
    ];
    for cell in cells {
        text.push_str("| ");
        text.push_str(&cell.replace('|', "\\|"));
        text.push(' ');
    }
    text.push_str("|\n");
}

/// What of a setting this build does not have.
fn lacks(row: &Row) -> Option<String> {
    if row.needs.iter().any(|&part| !Parts::BUILT.has(part)) {
        return Some("not in this build".to_owned());
    }
    let mut words: Vec<&str> = row
        .values_need
        .iter()
        .filter(|(_, part)| !Parts::BUILT.has(*part))
        .map(|&(word, _)| word)
        .collect();
    words.dedup();
    (!words.is_empty()).then(|| format!("without {} in this build", words.join(", ")))
}

fn quoted(row: &Row, default: &str) -> String {
    match row.kind {
        Kind::Listen | Kind::RedisAddress => format!("\"{default}\""),
        _ => default.to_owned(),
    }
}

fn default_of(row: &Row) -> Option<String> {
    match row.default {
        Preset::Is(default) => {
            // the file's number for a level is another one than the flag's; names are the same
            debug_assert!(
                row.kind
                    .read(&Raw::Scalar(default.to_owned()), Dialect::CommandLine)
                    .is_ok()
            );
            Some(default.to_owned())
        }
        Preset::Derived(how) => Some(how.to_owned()),
        Preset::None => None,
    }
}

/// Appends words in lines of at most 110 columns, each after the prefix.
fn wrap(text: &mut String, words: &str, prefix: &str) {
    let mut column = 0;
    for word in words.split(' ') {
        if column == 0 || column + 1 + word.len() > 110 {
            if column > 0 {
                text.push('\n');
            }
            text.push_str(prefix);
            column = prefix.len();
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
}
