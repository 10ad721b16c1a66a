// SPDX-License-Identifier: Apache-2.0
//! The embedded stores: what shards must keep, on the disk before it is acknowledged.
//!
//! ```text
//!   shards ──batches──► writer thread ──► book (operations -> rows) ──► engine (redb, fjall): one commit
//!      ▲                     │
//!      └────── "kept" ───────┘            at a start: engine ──► book ──operations──► shards
//! ```

mod book;
mod engine;
mod fjall;
mod lock;
mod redb;
mod rows;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use corqtt_port::lane::{self, Sender};
use corqtt_port::store::{Op, Store};
use corqtt_shards::Restored;

use book::{Book, Cleared, Group};
use engine::{Engine, EngineError, Table};
use lock::Lock;
use writer::{ALIVE, Handle, Tell, ToWriter, Writer};

use crate::settings::{StorageSettings, StorageSync, StorageWay};

const FORMAT: &[u8] = b"format";
const START: &[u8] = b"start";
const SEED: &[u8] = b"seed";

/// Operations that a shard is given at once at a start.
const RESTORED_OPS: usize = 1024;

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A store that no shard uses yet.
pub(crate) struct Opened {
    engine: Box<dyn Engine>,
    book: Book,
    _lock: Lock,
    path: PathBuf,
    sync: StorageSync,
    bytes_max: u64,
    alive_at_ms: u64,
    /// Starts on this store before this one.
    pub(crate) start: u32,
    /// Keyed hash of client ids: the same in every start, since what is owed is owed to shards.
    pub(crate) hash_seed: u64,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn engine(way: StorageWay, path: &Path) -> anyhow::Result<Box<dyn Engine>> {
    let opened: Result<Box<dyn Engine>, EngineError> = match way {
        StorageWay::Redb => redb::Redb::open(path).map(|engine| Box::new(engine) as _),
        StorageWay::Fjall => fjall::Fjall::open(path).map(|engine| Box::new(engine) as _),
        StorageWay::Memory | StorageWay::Redis => bail!("there is no embedded store of that kind"),
    };
    opened.with_context(|| format!("the store in {} cannot be opened", path.display()))
}

fn stored_number(engine: &dyn Engine, name: &[u8]) -> anyhow::Result<Option<u64>> {
    let unreadable = |_| EngineError::Broken("a row of meta cannot be read".to_owned());
    match engine.get(Table::Meta, name)? {
        Some(bytes) => Ok(Some(rows::number(&bytes).map_err(unreadable)?)),
        None => Ok(None),
    }
}

/// Opens the store that the settings name; `None` for memory.
///
/// # Errors
/// When its directory cannot be had or another process has it, when it is of a later version, or cannot be read.
pub(crate) fn open(settings: &StorageSettings, bytes_max: u64) -> anyhow::Result<Option<Opened>> {
    if settings.way == StorageWay::Memory {
        return Ok(None);
    }
    let path = &settings.path;
    std::fs::create_dir_all(path).with_context(|| {
        format!(
            "{} cannot be made; name another --storage-path",
            path.display()
        )
    })?;
    let lock = Lock::take(path)?;
    let mut engine = engine(settings.way, path)?;
    match stored_number(&*engine, FORMAT)? {
        None | Some(1) => {}
        Some(later) => bail!(
            "the store in {} has format {later} and this build knows {}: use the build that wrote it, or another --storage-path",
            path.display(),
            rows::FORMAT
        ),
    }
    let start = stored_number(&*engine, START)?.unwrap_or(0);
    let hash_seed = match stored_number(&*engine, SEED)? {
        Some(seed) => seed,
        None => {
            let mut seed = [0u8; 8];
            rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
                .context("no random numbers")?;
            u64::from_ne_bytes(seed)
        }
    };
    let alive_at_ms = stored_number(&*engine, ALIVE)?.unwrap_or_else(wall_ms);
    let numbers = [
        (FORMAT, u64::from(rows::FORMAT)),
        (START, start + 1),
        (SEED, hash_seed),
    ];
    let numbers = numbers.map(|(name, number)| (name, number.to_be_bytes()));
    let mut rows = numbers
        .iter()
        .map(|(name, number)| (Table::Meta, *name, Some(&number[..])));
    engine.commit(&mut rows, true)?;
    let book = Book::open(&*engine)?;
    Ok(Some(Opened {
        engine,
        book,
        _lock: lock,
        path: path.clone(),
        sync: settings.sync,
        bytes_max,
        alive_at_ms,
        start: u32::try_from(start).unwrap_or(u32::MAX),
        hash_seed,
    }))
}

impl Opened {
    /// Above the stamps of all retained messages that it has (ns).
    #[must_use]
    pub(crate) fn stamp_base(&self) -> u64 {
        self.book.stamp
    }

    /// What nobody has to be given any more goes, and what was owed is settled.
    fn clear(&mut self) -> Result<Cleared, EngineError> {
        let mut cleared = Cleared::default();
        let mut group = Group::new();
        self.book
            .settle(&*self.engine, &mut group, self.hash_seed, &mut cleared)?;
        self.write(&group)?;
        let mut group = Group::new();
        let (alive_at_ms, now_ms) = (self.alive_at_ms, wall_ms());
        self.book
            .expire(&*self.engine, &mut group, alive_at_ms, now_ms, &mut cleared)?;
        self.write(&group)?;
        Ok(cleared)
    }

    fn write(&mut self, group: &Group) -> Result<(), EngineError> {
        if group.is_empty() {
            return Ok(());
        }
        let mut rows = group
            .iter()
            .map(|((table, key), value)| (*table, key.as_slice(), value.as_deref()));
        self.engine.commit(&mut rows, true)
    }

    /// Starts the thread. First it gives every shard what is its own, through `restored`, and then it writes.
    /// `owner` says which shard that is; `tell` is how each is answered.
    ///
    /// # Errors
    /// If no thread can be had.
    pub(crate) fn start(
        mut self,
        restored: Vec<SyncSender<Vec<Op>>>,
        owner: impl Fn(&str) -> usize + Send + 'static,
        tell: Vec<Tell>,
    ) -> anyhow::Result<Keeper> {
        let (to, from) = lane::blocking();
        let run = move || {
            let begun = std::time::Instant::now();
            match self.clear().and_then(|cleared| {
                self.give_back(restored, owner)?;
                Ok(cleared)
            }) {
                Ok(cleared) => {
                    let took_ms = begun.elapsed().as_millis() as u64;
                    log::info!(path:% = self.path.display(), took_ms = took_ms, expired_sessions = cleared.sessions, expired_messages = cleared.messages, expired_retained = cleared.retained, settled = cleared.settled; "store is restored");
                }
                Err(error) => panic!(
                    "the store in {} cannot be restored: {error}; run `corqtt store check`",
                    self.path.display()
                ),
            }
            let Self {
                engine,
                book,
                _lock,
                path,
                sync,
                bytes_max,
                ..
            } = self;
            let writer = Writer {
                engine,
                book,
                from,
                tell,
                sync,
                bytes_max,
                path,
                is_full: false,
                unsynced_since: None,
            };
            writer.run();
            drop(_lock);
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(run)
            .context("no thread for the store")?;
        Ok(Keeper { to, thread })
    }

    fn give_back(
        &self,
        restored: Vec<SyncSender<Vec<Op>>>,
        owner: impl Fn(&str) -> usize,
    ) -> Result<(), EngineError> {
        let mut parts: Vec<Vec<Op>> = restored.iter().map(|_| Vec::new()).collect();
        let send = |shard: usize, part: &mut Vec<Op>| {
            // a shard that has ended needs nothing
            drop(restored[shard].send(std::mem::take(part)));
        };
        self.book
            .restore(&*self.engine, self.alive_at_ms, &mut |op| {
                let shard = owner(whose(&op)) % parts.len();
                parts[shard].push(op);
                if parts[shard].len() >= RESTORED_OPS {
                    send(shard, &mut parts[shard]);
                }
            })?;
        for (shard, part) in parts.iter_mut().enumerate() {
            send(shard, part);
        }
        Ok(())
    }
}

/// What decides which shard an operation is for.
fn whose(op: &Op) -> &str {
    match op {
        Op::Session { client_id, .. }
        | Op::Left { client_id, .. }
        | Op::SessionEnded { client_id }
        | Op::Will { client_id, .. }
        | Op::Subscribed { client_id, .. }
        | Op::Unsubscribed { client_id, .. }
        | Op::Changed { client_id, .. }
        | Op::Owed { client_id, .. } => client_id,
        Op::Retained { message, .. } => &message.topic,
        Op::Settled { .. } => "",
    }
}

/// A store that is written to.
#[derive(Debug)]
pub(crate) struct Keeper {
    to: Sender<ToWriter>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// A shard's way to it.
    #[must_use]
    pub(crate) fn store(&self, shard: u8) -> Box<dyn Store> {
        Box::new(Handle {
            shard,
            to: self.to.clone(),
        })
    }

    /// Writes what is left, when all shards have ended.
    pub(crate) fn stop(self) {
        self.to.push(ToWriter::Stop);
        // a panic of its own has ended the process
        drop(self.thread.join());
    }
}

/// A shard's part of a restored store goes in here.
type ToShards = SyncSender<Vec<Op>>;

/// What shards take their part of a restored store from.
#[must_use]
pub(crate) fn channels(shards: u8) -> (Vec<ToShards>, Vec<Restored>) {
    (0..shards).map(|_| mpsc::sync_channel(4)).unzip()
}
