// SPDX-License-Identifier: Apache-2.0
//! The stores: what shards must keep, on the disk or in redis before it is acknowledged.
//!
//! ```text
//!   shards ──batches──► writer thread ──► book (operations -> rows) ──► engine (redb, fjall, redis): one commit
//!      ▲                     │
//!      └────── "kept" ───────┘          at a start: engine ──► restore ──operations──► shards
//! ```
//!
//! * One process has a store (`lock`; of redis it is the one that came last), and one thread of it writes.
//! * What a start was given is what was committed: all of a commit or nothing.

mod book;
mod engine;
mod fjall;
mod journal;
mod lock;
pub(crate) mod offline;
mod redb;
mod redis;
mod restore;
mod rows;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use corqtt_port::lane::{self, Sender};
use corqtt_port::store::{Op, Store};
use corqtt_session::Change;
use corqtt_shards::Restored;

use book::{Book, Group};
use engine::{Engine, EngineError, Table};
use lock::Lock;
use restore::{Cleared, Quiet};
use writer::{ALIVE, Handle, Parts, ToWriter, Writer};
pub(crate) use writer::{StoreNumbers, Tell};

use crate::settings::{RedisSettings, Settings, StorageSettings, StorageSync, StorageWay};

/// Where an embedded store is while it is made.
const NEW: &str = "NEW";

/// Rows of [`Table::Meta`], each a number of 64 bits.
const FORMAT: &[u8] = b"format";
const STARTS: &[u8] = b"start";
const SEED: &[u8] = b"seed";

/// Operations that a shard is given at once at a start.
const RESTORED_OPS: usize = 1024;
/// Such portions that wait for a shard at most.
const RESTORED_PORTIONS: usize = 4;

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Where a store is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location<'a> {
    storage: &'a StorageSettings,
    /// How redis is reached, and the name of this node.
    redis: Option<(&'a RedisSettings, &'a str)>,
}

impl<'a> From<&'a Settings> for Location<'a> {
    fn from(settings: &'a Settings) -> Self {
        Self {
            storage: &settings.storage,
            redis: Some((&settings.redis, &settings.node_name)),
        }
    }
}

#[cfg(test)]
impl<'a> From<&'a StorageSettings> for Location<'a> {
    fn from(storage: &'a StorageSettings) -> Self {
        Self {
            storage,
            redis: None,
        }
    }
}

impl Location<'_> {
    /// For people.
    fn place(&self) -> String {
        match self.redis {
            Some((redis, _)) if self.storage.way == StorageWay::Redis => redis::place(redis),
            _ => self.storage.path.display().to_string(),
        }
    }

    /// The way to an embedded one.
    fn directory(&self) -> Option<&Path> {
        (self.storage.way != StorageWay::Redis).then_some(&*self.storage.path)
    }

    /// Connects or opens; `writes`: it is this process's from then on.
    fn engine(&self, writes: bool) -> anyhow::Result<Box<dyn Engine>> {
        match (self.storage.way, self.redis) {
            (StorageWay::Redis, Some((settings, node))) => {
                let opened = redis::Redis::open(settings, node, writes);
                let opened = opened.with_context(|| {
                    format!(
                        "{} cannot be used as a store; start it, see --redis, --redis-user and --redis-pass, or name another --storage-way",
                        self.place()
                    )
                })?;
                Ok(Box::new(opened))
            }
            (way, _) => {
                let path = &self.storage.path;
                if writes && !exists(way, path) {
                    create(way, path).with_context(|| {
                        format!(
                            "the {way} store in {} cannot be made; look at the disk, or name another --storage-path",
                            path.display()
                        )
                    })?;
                }
                open_engine(way, path)
            }
        }
    }
}

fn open_engine(way: StorageWay, path: &Path) -> anyhow::Result<Box<dyn Engine>> {
    let opened: Result<Box<dyn Engine>, EngineError> = match way {
        StorageWay::Redb => redb::Redb::open(path).map(|engine| Box::new(engine) as _),
        StorageWay::Fjall => fjall::Fjall::open(path).map(|engine| Box::new(engine) as _),
        StorageWay::Memory | StorageWay::Redis => {
            bail!("storage-way {way} has no embedded store: name redb or fjall")
        }
    };
    opened.with_context(|| {
        format!(
            "the {way} store in {} cannot be opened; look at the disk, or name another --storage-path",
            path.display()
        )
    })
}

/// What an embedded store of that kind is, below its path.
const fn name(way: StorageWay) -> Option<&'static str> {
    match way {
        StorageWay::Redb => Some(redb::FILE),
        StorageWay::Fjall => Some(fjall::DIRECTORY),
        StorageWay::Memory | StorageWay::Redis => None,
    }
}

/// Whether there is a store of that kind.
fn exists(way: StorageWay, path: &Path) -> bool {
    name(way).is_some_and(|name| path.join(name).exists())
}

/// Makes an empty store. It gets its name when it is whole: one that a crash left half made could not be opened.
fn create(way: StorageWay, path: &Path) -> anyhow::Result<()> {
    let Some(name) = name(way) else { return Ok(()) };
    let new = path.join(NEW);
    if new.exists() {
        std::fs::remove_dir_all(&new)?;
    }
    std::fs::create_dir(&new)?;
    let mut engine = open_engine(way, &new)?;
    engine.sync()?;
    drop(engine);
    sync_names(std::slice::from_ref(&new))?;
    std::fs::rename(new.join(name), path.join(name))?;
    std::fs::remove_dir(&new)?;
    Ok(())
}

fn stored_number(engine: &dyn Engine, name: &[u8]) -> Result<Option<u64>, EngineError> {
    match engine.get(Table::Meta, name)? {
        Some(bytes) => Ok(Some(rows::number(&bytes)?)),
        None => Ok(None),
    }
}

/// Fails for a store that a later version has written.
fn check_format(engine: &dyn Engine, place: &str) -> anyhow::Result<()> {
    match stored_number(engine, FORMAT)? {
        None | Some(rows::FORMAT) => Ok(()),
        Some(other) => bail!(
            "the store in {place} has format {other}, and this build knows {}: use the build that wrote it, or another --storage-path or redis.prefix",
            rows::FORMAT
        ),
    }
}

/// The directories that hold the names of a store's files: its own, and those above it up to the first that was there
/// before.
fn directories(path: &Path) -> Vec<PathBuf> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut directories: Vec<PathBuf> = Vec::new();
    for above in path.ancestors() {
        directories.push(above.to_owned());
        if above.is_dir() {
            break;
        }
    }
    directories
}

/// A file whose content is synced may still lose its name in a power cut, and with it everything: fsync(2).
fn sync_names(directories: &[PathBuf]) -> anyhow::Result<()> {
    for path in directories {
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("the directory {} cannot be synced", path.display()))?;
    }
    Ok(())
}

/// Makes the directory of an embedded store where there is none, and takes it for this process.
fn lock(way: StorageWay, path: &Path) -> anyhow::Result<Lock> {
    // what clients said is nobody else's business
    let mut maker = std::fs::DirBuilder::new();
    maker.recursive(true).mode(0o700);
    maker.create(path).with_context(|| {
        format!(
            "{} cannot be made; name another --storage-path",
            path.display()
        )
    })?;
    let lock = Lock::take(path)?;
    for other in [StorageWay::Redb, StorageWay::Fjall] {
        if other != way && exists(other, path) && !exists(way, path) {
            log::warn!(path:% = path.display(), way:% = way, other:% = other; "a new store begins beside one of another storage-way, which is not read; corqtt store dump and load move one to the other");
        }
    }
    Ok(lock)
}

/// A store that no shard uses yet.
pub(crate) struct Opened {
    engine: Box<dyn Engine>,
    book: Book,
    /// Of an embedded one.
    lock: Option<Lock>,
    place: String,
    sync: StorageSync,
    bytes_max: u64,
    /// When the last process that had it said that it lives (wall clock, ms).
    alive_at_ms: u64,
    /// Starts on this store before this one.
    pub(crate) start: u32,
    /// Keyed hash of client ids: the same in every start, since what is owed is owed to shards.
    pub(crate) hash_seed: u64,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Opens the store that the settings name, and counts this start; `None` for memory. `bytes_max`: what it may take on
/// the disk, 0 for no limit.
///
/// # Errors
/// When its directory cannot be had or another process has it, when redis cannot be reached, when it is of another
/// version, or cannot be read.
pub(crate) fn open<'a>(
    location: impl Into<Location<'a>>,
    bytes_max: u64,
) -> anyhow::Result<Option<Opened>> {
    let location = location.into();
    let settings = location.storage;
    if settings.way == StorageWay::Memory {
        return Ok(None);
    }
    let names = location.directory().map_or_else(Vec::new, directories);
    let lock = location.directory().map(|path| lock(settings.way, path));
    let lock = lock.transpose()?;
    let place = location.place();
    let mut engine = location.engine(true)?;
    check_format(&*engine, &place)?;
    let start = stored_number(&*engine, STARTS)?.unwrap_or(0);
    let hash_seed = match stored_number(&*engine, SEED)? {
        Some(seed) => seed,
        None => crate::random::draw()?,
    };
    let alive_at_ms = stored_number(&*engine, ALIVE)?.unwrap_or_else(wall_ms);
    let numbers = [
        (FORMAT, rows::FORMAT),
        (STARTS, start + 1),
        (SEED, hash_seed),
    ];
    let mut group = Group::default();
    for (name, number) in numbers {
        group.set(Table::Meta, name.into(), number.to_be_bytes().into());
    }
    let mut book = Book::open(&*engine)?;
    Quiet {
        engine: &mut *engine,
        book: &mut book,
    }
    .commit(group)
    .with_context(|| format!("the store in {place} cannot be written"))?;
    sync_names(&names)?;
    Ok(Some(Opened {
        engine,
        book,
        lock,
        place,
        sync: settings.sync,
        bytes_max,
        alive_at_ms,
        start: u32::try_from(start).context("a store has been started too often")?,
        hash_seed,
    }))
}

impl Opened {
    /// Above the stamps of all retained messages that it has (ns).
    #[must_use]
    pub(crate) const fn stamp_base(&self) -> u64 {
        self.book.stamp
    }

    /// Settles what is owed, takes out what is over by `now_ms` (wall clock), and gives back everything else: each session
    /// with what belongs to it, then the retained messages.
    ///
    /// # Errors
    /// What `each` says; when a row can't be read or the disk can't be written.
    pub(crate) fn restore(
        &mut self,
        now_ms: u64,
        each: &mut dyn FnMut(Op) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut cleared = Cleared::default();
        let mut quiet = Quiet {
            engine: &mut *self.engine,
            book: &mut self.book,
        };
        quiet.settle(self.hash_seed, &mut cleared)?;
        let ahead = quiet.clear(self.alive_at_ms, now_ms, &mut cleared)?;
        let (mut sessions, mut messages, mut retained) = (0_u64, 0_u64, 0_u64);
        quiet.stream(ahead, &mut |op| {
            match &op {
                Op::Session { .. } => sessions += 1,
                Op::Changed {
                    change: Change::Enqueued { .. },
                    ..
                } => messages += 1,
                Op::Retained { .. } => retained += 1,
                _ => {}
            }
            each(op)
        })?;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        log::info!(store = self.place, took_ms = took_ms, sessions = sessions, messages = messages, retained = retained, expired_sessions = cleared.sessions, expired_messages = cleared.messages, expired_retained = cleared.retained, settled = cleared.settled; "store is restored");
        Ok(())
    }

    /// Starts the thread. First it gives every shard what is its own, through `restored`, and then it writes.
    /// `owner` says which shard that is; `tell` is how each is answered.
    ///
    /// # Errors
    /// If no thread can be had.
    pub(crate) fn start(
        mut self,
        restored: Vec<ToShard>,
        owner: impl Fn(&str) -> usize + Send + 'static,
        tell: Vec<Tell>,
    ) -> anyhow::Result<Keeper> {
        let (to, from) = lane::blocking();
        let numbers = Arc::new(StoreNumbers::default());
        let shown = numbers.clone();
        let run = move || {
            if let Err(error) = self.give_back(restored, owner) {
                let place = self.place;
                log::error!(store = place; "the store cannot be restored: {error:#}; corqtt store check says what is wrong with it");
                panic!("the store in {place} cannot be restored: {error:#}");
            }
            let Self {
                engine,
                book,
                lock,
                place,
                sync,
                bytes_max,
                ..
            } = self;
            let parts = Parts {
                engine,
                book,
                from,
                tell,
                sync,
                bytes_max,
                numbers,
                place,
            };
            Writer::new(parts).run();
            drop(lock);
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(run)
            .context("no thread for the store")?;
        Ok(Keeper {
            to,
            thread,
            numbers: shown,
        })
    }

    fn give_back(
        &mut self,
        restored: Vec<ToShard>,
        owner: impl Fn(&str) -> usize,
    ) -> anyhow::Result<()> {
        let mut portions: Vec<Vec<Op>> = restored.iter().map(|_| Vec::new()).collect();
        self.restore(wall_ms(), &mut |op| {
            let shard = owner(whose(&op)) % portions.len();
            let portion = &mut portions[shard];
            portion.push(op);
            if portion.len() >= RESTORED_OPS {
                // a shard that has ended needs nothing
                drop(restored[shard].send(std::mem::take(portion)));
            }
            Ok(())
        })?;
        for (shard, portion) in restored.iter().zip(portions) {
            drop(shard.send(portion));
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
        | Op::Owed { client_id, .. }
        | Op::Ban { client_id, .. } => client_id,
        Op::Retained { message, .. } => &message.topic,
        Op::Settled { .. } => "",
    }
}

/// A store that is written to.
#[derive(Debug)]
pub(crate) struct Keeper {
    to: Sender<ToWriter>,
    thread: JoinHandle<()>,
    numbers: Arc<StoreNumbers>,
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

    /// What it says of itself.
    #[must_use]
    pub(crate) fn numbers(&self) -> Arc<StoreNumbers> {
        self.numbers.clone()
    }

    /// Writes what is left, when all shards have ended; returns when it is on the disk.
    pub(crate) fn stop(self) {
        self.to.push(ToWriter::Stop);
        // a panic of its own has ended the process
        drop(self.thread.join());
    }
}

/// A shard's part of a restored store goes in here.
type ToShard = SyncSender<Vec<Op>>;

/// What shards take their part of a restored store from.
#[must_use]
pub(crate) fn channels(shards: u8) -> (Vec<ToShard>, Vec<Restored>) {
    (0..shards)
        .map(|_| mpsc::sync_channel(RESTORED_PORTIONS))
        .unzip()
}
