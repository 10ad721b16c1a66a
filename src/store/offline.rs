// SPDX-License-Identifier: Apache-2.0
//! `corqtt store`: what can be done with a store that no broker uses.
//!
//! A dump is text: a line that names the format, then one JSON object per row, keys and values in hexadecimal. It is of
//! the rows, not of the engine: what redb dumped fjall can load.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;

use anyhow::{Context, bail, ensure};
use corqtt_codec::{MessageId, TopicFilter};
use serde::{Deserialize, Serialize};

use super::book::{Group, read_all};
use super::engine::{Engine, Table};
use super::rows::{
    self, FlightRow, MessageRow, OwedRow, QueueRow, ReceivedRow, RetainedRow, SessionRow,
    SubscriptionRow, Unreadable, WillRow, decode,
};
use super::{Location, check_format, directories, exists, lock, sync_names};
use crate::args::StoreCommand;

/// Rows that one commit of a load writes.
const LOADED_ROWS: usize = 10_000;
/// The store that reads from standard input or writes to standard output has this file name.
const STANDARD: &str = "-";

/// Does what the command says with the store of the settings, and writes what it found to `out`. The exit code: 1 if a
/// check found something.
///
/// # Errors
/// When there is no such store, a process uses it, it is of another version, or the disk fails.
pub(crate) fn run(
    command: &StoreCommand,
    location: Location<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let way = location.storage.way;
    let loads = matches!(command, StoreCommand::Load(_));
    let names = location.directory().map_or_else(Vec::new, directories);
    // as long as the engine is open
    let _lock = match location.directory() {
        Some(path) if loads || exists(way, path) => Some(lock(way, path)?),
        Some(path) => bail!(
            "there is no {way} store in {}; name it with --storage-way and --storage-path",
            path.display()
        ),
        None => None,
    };
    let mut engine = location.engine(loads)?;
    check_format(&*engine, &location.place())?;
    match command {
        StoreCommand::Check => return Ok(u8::from(check(&*engine, out)? > 0)),
        StoreCommand::Dump => dump(&*engine, out)?,
        StoreCommand::Load(file) if file == STANDARD => {
            load(&mut *engine, &mut std::io::stdin().lock())?;
        }
        StoreCommand::Load(file) => {
            let opened = File::open(file).with_context(|| format!("{file} cannot be read"))?;
            load(&mut *engine, &mut BufReader::new(opened)).with_context(|| file.clone())?;
        }
        StoreCommand::Compact => {
            let before = engine.bytes();
            engine.compact()?;
            writeln!(out, "{before} bytes before, {} after", engine.bytes())?;
        }
    }
    sync_names(&names)?;
    Ok(0)
}

/// A key as somebody would read it.
fn about(table: Table, key: &[u8]) -> String {
    let plain = || String::from_utf8_lossy(key).into_owned();
    let of_client = |rest: fn(&[u8]) -> Option<String>| {
        let (client_id, of) = rows::split_key(key).ok()?;
        Some(format!("{client_id} {}", rest(of)?))
    };
    let message = || {
        let id = rows::message_id(key).ok()?;
        Some(format!("{}/{}/{}", id.start, id.shard, id.number))
    };
    let readable = match table {
        Table::Meta | Table::Sessions | Table::Wills | Table::Retained | Table::Bans => None,
        Table::Subscriptions => of_client(|of| Some(rows::text(of).ok()?.to_owned())),
        Table::Queue | Table::Flights => of_client(|of| Some(rows::number(of).ok()?.to_string())),
        Table::Received => of_client(|of| Some(rows::packet_id(of).ok()?.value().to_string())),
        Table::Bodies | Table::Owed => message(),
    };
    readable.unwrap_or_else(plain)
}

/// Whether the row can be read.
fn read(table: Table, key: &[u8], value: &[u8]) -> Result<(), Unreadable> {
    let of_client = |rest_bytes: usize| match rows::split_key(key)? {
        (_, rest) if rest.len() == rest_bytes => Ok(()),
        _ => Err(Unreadable),
    };
    match table {
        Table::Meta => drop(rows::number(value)?),
        Table::Sessions => {
            rows::text(key)?;
            decode::<SessionRow<'_>>(value)?.terms()?;
        }
        Table::Wills => drop(decode::<WillRow<'_>>(value)?.will()?),
        Table::Subscriptions => {
            let (_, filter) = rows::split_key(key)?;
            TopicFilter::parse(rows::text(filter)?).map_err(|_| Unreadable)?;
            decode::<SubscriptionRow>(value)?.options()?;
        }
        Table::Queue => {
            of_client(size_of::<u64>())?;
            decode::<QueueRow<'_>>(value)?.delivery()?;
        }
        Table::Flights => {
            of_client(size_of::<u64>())?;
            decode::<FlightRow>(value)?;
        }
        Table::Bodies => {
            rows::message_id(key)?;
            decode::<MessageRow<'_>>(value)?.message()?;
        }
        Table::Received => {
            of_client(size_of::<u16>())?;
            decode::<ReceivedRow>(value)?;
        }
        Table::Owed => drop(decode::<OwedRow<'_>>(value)?.owed(rows::message_id(key)?)?),
        Table::Retained => {
            let message = decode::<RetainedRow<'_>>(value)?.message.message()?;
            if message.topic.as_bytes() != key {
                return Err(Unreadable);
            }
        }
        Table::Bans => {
            rows::text(key)?;
            if !value.is_empty() {
                return Err(Unreadable);
            }
        }
    }
    Ok(())
}

/// Reads every row and counts them; how many cannot be read, or refer to nothing.
pub(super) fn check(engine: &dyn Engine, out: &mut dyn Write) -> anyhow::Result<u64> {
    let mut problems = 0;
    let mut bodies: HashMap<MessageId, u32> = HashMap::new();
    for table in Table::ALL {
        let mut count = 0_u64;
        // rows of one client lie together
        let mut known = (Vec::new(), true);
        read_all(engine, table, &[], |key, value| {
            count += 1;
            let mut problem = |what: &str| {
                problems += 1;
                writeln!(out, "{} {}: {what}", table.name(), about(table, key))
            };
            if read(table, key, value).is_err() {
                problem("cannot be read")?;
                return anyhow::Ok(());
            }
            let client_id = match table {
                Table::Wills => key,
                Table::Subscriptions | Table::Queue | Table::Flights | Table::Received => {
                    rows::split_key(key)?.0.as_bytes()
                }
                _ => &[],
            };
            if !client_id.is_empty() {
                if known.0 != client_id {
                    let is_there = engine.get(Table::Sessions, client_id)?.is_some();
                    known = (client_id.to_vec(), is_there);
                }
                if !known.1 {
                    problem("there is no such session")?;
                }
            }
            match table {
                Table::Queue => {
                    if let Some(id) = rows::body_of(value)? {
                        *bodies.entry(id).or_default() += 1;
                    }
                }
                Table::Flights if engine.get(Table::Queue, key)?.is_none() => {
                    problem("there is no such message in the queue")?;
                }
                Table::Bodies if bodies.remove(&rows::message_id(key)?).is_none() => {
                    problem("no queue has it")?;
                }
                _ => {}
            }
            Ok(())
        })?;
        writeln!(out, "{}: {count}", table.name())?;
    }
    for (id, entries) in bodies {
        problems += 1;
        let about = about(Table::Bodies, &id.to_bytes());
        writeln!(
            out,
            "bodies {about}: is missing, and {entries} entries of queues have it"
        )?;
    }
    match problems {
        0 => writeln!(out, "everything can be read")?,
        1 => writeln!(out, "1 problem")?,
        _ => writeln!(out, "{problems} problems")?,
    }
    Ok(problems)
}

/// The first line of a dump.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    #[serde(rename = "corqtt-store-format")]
    format: u64,
}

/// The others.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    table: String,
    /// For people; not read again.
    #[serde(default)]
    about: String,
    key: String,
    value: String,
}

fn dump(engine: &dyn Engine, out: &mut dyn Write) -> anyhow::Result<()> {
    let head = Head {
        format: rows::FORMAT,
    };
    writeln!(out, "{}", serde_json::to_string(&head)?)?;
    for table in Table::ALL {
        read_all(engine, table, &[], |key, value| {
            let line = Line {
                table: table.name().to_owned(),
                about: about(table, key),
                key: hex(key),
                value: hex(value),
            };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

fn load(engine: &mut dyn Engine, from: &mut dyn BufRead) -> anyhow::Result<()> {
    for table in Table::ALL {
        let mut is_empty = true;
        engine.scan(table, &[], &mut |_, _| {
            is_empty = false;
            ControlFlow::Break(())
        })?;
        ensure!(
            is_empty,
            "the store is not empty: load into a new one (--storage-path)"
        );
    }
    let mut lines = from.lines();
    let head = lines.next().context("the dump is empty")??;
    let head: Head = serde_json::from_str(&head).context("line 1 is not that of a dump")?;
    ensure!(
        head.format == rows::FORMAT,
        "the dump has format {}, and this build knows {}",
        head.format,
        rows::FORMAT
    );
    let mut group = Group::default();
    // the format of the store comes last: without it the load has not come to its end
    let mut meta = Group::default();
    for (number, line) in (2..).zip(lines) {
        let line: Line =
            serde_json::from_str(&line?).with_context(|| format!("line {number} is no row"))?;
        let row = || {
            let table = Table::named(&line.table)?;
            let (key, value) = (unhex(&line.key)?, unhex(&line.value)?);
            read(table, &key, &value).ok()?;
            Some((table, key, value))
        };
        let (table, key, value) =
            row().with_context(|| format!("line {number} is no row of table {:?}", line.table))?;
        let of = if table == Table::Meta {
            &mut meta
        } else {
            &mut group
        };
        of.set(table, key, value);
        if group.len() >= LOADED_ROWS {
            engine.commit(&mut std::mem::take(&mut group).rows(), true)?;
        }
    }
    engine.commit(&mut group.rows(), true)?;
    engine.commit(&mut meta.rows(), true)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |bits: u8| char::from(b"0123456789abcdef"[usize::from(bits)]);
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(digit).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let &[high, low] = pair else { return None };
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        })
        .collect()
}
