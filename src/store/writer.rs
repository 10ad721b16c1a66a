// SPDX-License-Identifier: Apache-2.0
//! The thread that writes: what waits when a commit ends is the next commit, of all shards together.
//!
//! ```text
//!                 ┌───────────────── a batch comes ─────────────────┐
//!                 ▼                                                 │
//!   waiting ──► group ──► commit ──► "kept" to every shard in it ───┘
//!      ▲                    │ no room
//!      └──── retry ◄────────┘   what only takes away goes first, if it can
//! ```
//!
//! An engine that can't be reached is asked again and again, with the commit that it may have got or not; what comes
//! meanwhile waits, and is refused once it is too much.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corqtt_port::histogram::Histogram;
use corqtt_port::lane::{Receiver, Sender};
use corqtt_port::store::{Answer, Batch, Store, Token};

use super::book::{Book, Group, only_takes_away, read_for};
use super::engine::{Engine, EngineError, Result, Table};
use crate::settings::StorageSync;

/// How long a full disk is left alone.
const FULL_RETRY: Duration = Duration::from_millis(200);
/// How long it is left alone when not even deletions fit: each try opens the engine again.
const TAKE_RETRY: Duration = Duration::from_secs(5);
/// How often a store that has nothing to do says that its process lives.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the size on the disk is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looks after which a store that is above its limit is told to give room back, again and again.
const LOOKS_UNTIL_TIDY: u32 = 5;
/// Below this part of `store-bytes` there is room again.
const ROOM_PERCENT: u64 = 95;
/// With `storage-sync: never`, an engine that syncs with each commit is given one so often.
const NEVER_INTERVAL: Duration = Duration::from_secs(1);
/// Operations that are held for the next sync at most; with more it comes early.
const HELD_OPS_MAX: usize = 100_000;

/// An engine that can't be reached is tried again after this, then twice as long, and so on.
const AWAY_RETRY: Duration = Duration::from_millis(100);
const AWAY_RETRY_MAX: Duration = Duration::from_secs(5);
/// How long clients wait for it before what would have to be kept is refused.
const AWAY_PATIENCE: Duration = Duration::from_secs(10);

/// When the process last said that it lives (wall clock, ms): a row of [`Table::Meta`].
pub(crate) const ALIVE: &[u8] = b"alive";

/// To the writer.
#[derive(Debug)]
pub(crate) enum ToWriter {
    /// From a shard.
    Batch(u8, Batch),
    /// From main, when all shards have ended.
    Stop,
}

/// A shard's way to the writer.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shard: u8,
    pub(crate) to: Sender<ToWriter>,
}

impl Store for Handle {
    fn records(&self) -> bool {
        true
    }

    fn put(&mut self, batch: Batch) -> Option<Token> {
        self.to.push(ToWriter::Batch(self.shard, batch));
        None
    }
}

/// How a shard is answered.
pub(crate) type Tell = Box<dyn Fn(Answer) + Send>;

/// What the writer says of itself, since start. Written by its thread only.
#[derive(Debug, Default)]
pub(crate) struct StoreNumbers {
    pub(crate) commits: AtomicU64,
    /// Batches of shards in them.
    pub(crate) batches: AtomicU64,
    /// Operations in those.
    pub(crate) operations: AtomicU64,
    /// Rows written and removed.
    pub(crate) rows: AtomicU64,
    /// Keys and values of those (bytes).
    pub(crate) written_bytes: AtomicU64,
    /// What the commits took, with their sync (ns).
    pub(crate) commit_ns: AtomicU64,
    /// Commits by that: those up to each bound of [`Histogram::BOUNDS_NS`], and those above the last.
    pub(crate) commits_by_ns: [AtomicU64; Histogram::BOUNDS_NS.len() + 1],
    /// The longest (ns).
    pub(crate) commit_max_ns: AtomicU64,
    /// Operations that wait for the next commit.
    pub(crate) backlog: AtomicU64,
    /// What the store takes on the disk (bytes), a second ago at most while it changes.
    pub(crate) bytes: AtomicU64,
    /// What its rows take of that (bytes).
    pub(crate) used_bytes: AtomicU64,
    /// 1 while there is no room.
    pub(crate) full: AtomicU64,
}

fn add(to: &AtomicU64, more: u64) {
    // one writer
    to.store(to.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// Operations of batches.
fn operations(batches: &[Waiting]) -> usize {
    batches.iter().map(|waiting| waiting.batch.ops.len()).sum()
}

impl StoreNumbers {
    fn committed(&self, batches: &[Waiting], group: &Group, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bounds = Histogram::BOUNDS_NS.iter();
        let bucket = bounds.take_while(|bound| ns > **bound).count();
        add(&self.commits, 1);
        add(&self.batches, batches.len() as u64);
        add(&self.operations, operations(batches) as u64);
        add(&self.rows, group.len() as u64);
        add(&self.written_bytes, group.bytes());
        add(&self.commit_ns, ns);
        add(&self.commits_by_ns[bucket], 1);
        self.commit_max_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

/// A batch that is not committed.
#[derive(Debug)]
struct Waiting {
    shard: u8,
    batch: Batch,
    is_answered: bool,
}

/// The disk has no room.
#[derive(Debug)]
struct Full {
    retry_at: Instant,
    /// When to try whether at least deletions fit.
    take_at: Instant,
}

/// The engine can't be reached.
struct Away {
    since: Instant,
    retry_at: Instant,
    pause: Duration,
    /// What the log was told last.
    why: String,
    batches: Vec<Waiting>,
    /// What was sent of them and may be there.
    group: Option<Box<Group>>,
}

/// Why batches were not committed, and what they change together, if it was sent.
type NotCommitted = (EngineError, Vec<Waiting>, Option<Box<Group>>);

pub(crate) struct Writer {
    engine: Box<dyn Engine>,
    book: Book,
    from: Receiver<ToWriter>,
    tell: Vec<Tell>,
    sync: StorageSync,
    /// 0: no limit.
    bytes_max: u64,
    numbers: Arc<StoreNumbers>,
    /// For messages.
    place: String,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    /// Something that was answered is not on the disk since then.
    unsynced_since: Option<Instant>,
    committed_at: Instant,
    full: Option<Full>,
    away: Option<Away>,
    /// Looks since the store is above its limit.
    looks_above: Option<u32>,
    /// When the size was last looked at; `None`: something has changed since, and it was long ago.
    looked_at: Option<Instant>,
    is_looked_at: bool,
    /// The shards know that there is no room.
    told_full: bool,
}

/// What a [`Writer`] is made of.
pub(crate) struct Parts {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) book: Book,
    pub(crate) from: Receiver<ToWriter>,
    pub(crate) tell: Vec<Tell>,
    pub(crate) sync: StorageSync,
    pub(crate) bytes_max: u64,
    pub(crate) numbers: Arc<StoreNumbers>,
    pub(crate) place: String,
}

impl Writer {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            engine: parts.engine,
            book: parts.book,
            from: parts.from,
            tell: parts.tell,
            sync: parts.sync,
            bytes_max: parts.bytes_max,
            numbers: parts.numbers,
            place: parts.place,
            waiting: Vec::new(),
            unsynced_since: None,
            committed_at: Instant::now(),
            full: None,
            away: None,
            looks_above: None,
            looked_at: None,
            is_looked_at: false,
            told_full: false,
        }
    }

    /// Until it is told to stop, or the engine breaks, which ends the process: nothing that is acknowledged from then on
    /// would be kept.
    pub(crate) fn run(mut self) {
        let mut messages = Vec::new();
        loop {
            self.from.wait(&mut messages, Some(self.patience()));
            let mut stops = false;
            for message in messages.drain(..) {
                match message {
                    ToWriter::Batch(shard, batch) => self.waiting.push(Waiting {
                        shard,
                        batch,
                        is_answered: false,
                    }),
                    ToWriter::Stop => stops = true,
                }
            }
            if let Err(error) = self.step(stops) {
                log::error!(store = self.place, error:% = error; "the store failed, and nothing more would be kept: look at where it lies and the logs there, then run corqtt store check before the next start");
                panic!("the store in {} failed: {error}", self.place);
            }
            if stops {
                return;
            }
        }
    }

    /// How long to wait for something to do.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        if let Some(away) = &self.away {
            return away.retry_at.saturating_duration_since(now);
        }
        if let Some(full) = &self.full {
            return full.retry_at.saturating_duration_since(now);
        }
        let mut until = self.committed_at + ALIVE_INTERVAL;
        if let Some(at) = self.sync_at() {
            until = until.min(at);
        }
        if !self.is_looked_at {
            until = until.min(self.looked_at.map_or(now, |at| at + LOOK_INTERVAL));
        }
        until.saturating_duration_since(now)
    }

    /// Batches are answered before they are committed: the engine would sync.
    fn holds(&self) -> bool {
        self.sync != StorageSync::Always && self.engine.always_syncs()
    }

    /// When what was answered is to be on the disk.
    fn sync_at(&self) -> Option<Instant> {
        let interval = match self.sync {
            StorageSync::Every(interval) => interval,
            StorageSync::Never if self.engine.always_syncs() => NEVER_INTERVAL,
            StorageSync::Always | StorageSync::Never => return None,
        };
        Some(self.unsynced_since? + interval)
    }

    fn step(&mut self, stops: bool) -> Result<()> {
        let now = Instant::now();
        let is_due = |at: Instant| stops || at <= now;
        if let Some(away) = self.away.take_if(|away| is_due(away.retry_at)) {
            self.reach(away)?;
        }
        match &self.full {
            _ if self.away.is_some() => {}
            Some(full) if is_due(full.retry_at) => self.retry(now)?,
            Some(_) => {}
            None => {
                let is_silent = self.committed_at + ALIVE_INTERVAL <= now;
                let mut commits = !self.waiting.is_empty();
                if self.holds() && commits {
                    self.unsynced_since.get_or_insert(now);
                    self.answer_held();
                    commits = is_silent
                        || operations(&self.waiting) > HELD_OPS_MAX
                        || self.sync_at().is_none_or(is_due);
                }
                if commits {
                    self.commit_waiting()?;
                } else if is_silent && self.waiting.is_empty() {
                    self.say_alive()?;
                }
            }
        }
        if self.full.is_none()
            && self.away.is_none()
            && self.unsynced_since.is_some()
            && (stops || self.sync_at().is_some_and(is_due))
        {
            match self.engine.sync() {
                Ok(()) => self.unsynced_since = None,
                Err(EngineError::Full(why)) => self.disk_is_full(&why),
                Err(broken) => return Err(broken),
            }
        }
        let sent = self
            .away
            .as_ref()
            .map_or(0, |away| operations(&away.batches));
        let backlog = operations(&self.waiting) + sent;
        self.numbers
            .backlog
            .store(backlog as u64, Ordering::Relaxed);
        if stops && backlog > 0 {
            log::error!(store = self.place, operations = backlog; "the store takes nothing: what was not acknowledged yet is not kept");
        }
        self.tell_full();
        self.look(now)
    }

    fn answer(tell: &[Tell], waiting: &mut Waiting) {
        if !waiting.is_answered
            && let Some(tell) = tell.get(usize::from(waiting.shard))
        {
            tell(Answer::Kept(waiting.batch.token));
        }
        waiting.is_answered = true;
    }

    fn answer_held(&mut self) {
        for waiting in &mut self.waiting {
            Self::answer(&self.tell, waiting);
        }
    }

    /// Everything that waits, as one commit.
    fn commit_waiting(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let left = self.try_commit(waiting)?;
        // an engine that can't be reached keeps its own
        self.waiting.splice(0..0, left);
        Ok(())
    }

    /// What the batches change together.
    fn gather(&self, batches: &[Waiting]) -> Result<Group> {
        let ops = || batches.iter().flat_map(|waiting| &waiting.batch.ops);
        self.engine
            .fetch(ops().filter_map(read_for).flatten().collect())?;
        let mut group = Group::default();
        let mut edit = self.book.edit(&*self.engine, &mut group);
        for op in ops() {
            edit.apply(op)?;
        }
        Ok(group)
    }

    /// The engine could not be reached; now it may be.
    fn reach(&mut self, away: Away) -> Result<()> {
        let Away {
            since,
            pause,
            why: told,
            batches,
            group,
            ..
        } = away;
        let reached = self.engine.ready().map(drop);
        let outcome = match reached {
            Ok(()) => self.commit_group(batches, group),
            Err(error) => Err((error, batches, group)),
        };
        match outcome {
            Ok(()) => {
                let away_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                log::info!(store = self.place, away_ms = away_ms; "the store is reached again");
                Ok(())
            }
            Err((EngineError::Away(why), batches, group)) => {
                // another cause wants another answer: a password, say
                let level = if why == told {
                    log::Level::Debug
                } else {
                    log::Level::Error
                };
                log::log!(level, store = self.place, error = why.as_str(); "the store is still not reached");
                let pause = (pause * 2).min(AWAY_RETRY_MAX);
                self.away = Some(Away {
                    since,
                    retry_at: Instant::now() + pause,
                    pause,
                    why,
                    batches,
                    group,
                });
                Ok(())
            }
            Err(other) => {
                let left = self.put_off(other)?;
                self.waiting.splice(0..0, left);
                Ok(())
            }
        }
    }

    /// Batches were not committed: they go with what can't be reached, or are given back where there is no room, which
    /// is noted.
    fn put_off(&mut self, (error, batches, group): NotCommitted) -> Result<Vec<Waiting>> {
        match error {
            EngineError::Away(why) => {
                self.is_away(&why, batches, group);
                Ok(Vec::new())
            }
            EngineError::Full(why) => {
                self.disk_is_full(&why);
                Ok(batches)
            }
            broken @ EngineError::Broken(_) => Err(broken),
        }
    }

    /// What is left of the batches: all of them if there is no room, which is noted, else none.
    fn try_commit(&mut self, batches: Vec<Waiting>) -> Result<Vec<Waiting>> {
        match self.commit_group(batches, None) {
            Ok(()) => Ok(Vec::new()),
            Err(why) => self.put_off(why),
        }
    }

    /// Commits batches and tells their shards; `group`: what they change, where that was sent before. Gives both back
    /// with an error.
    fn commit_group(
        &mut self,
        mut batches: Vec<Waiting>,
        group: Option<Box<Group>>,
    ) -> std::result::Result<(), NotCommitted> {
        let group = match group {
            Some(group) => *group,
            None => match self.gather(&batches) {
                Ok(group) => group,
                Err(error) => return Err((error, batches, None)),
            },
        };
        if group.is_empty() {
            self.book.committed(group);
        } else if let Err((error, group)) = self.commit(&batches, group) {
            return Err((error, batches, Some(group)));
        }
        for waiting in &mut batches {
            Self::answer(&self.tell, waiting);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        batches: &[Waiting],
        mut group: Group,
    ) -> std::result::Result<(), (EngineError, Box<Group>)> {
        let alive = super::wall_ms().to_be_bytes();
        group.set(Table::Meta, ALIVE.into(), alive.into());
        let durable = self.sync == StorageSync::Always;
        let begun = Instant::now();
        let committed = self.engine.commit(&mut group.rows(), durable);
        if let Err(error) = committed {
            return Err((error, Box::new(group)));
        }
        let now = Instant::now();
        self.numbers.committed(batches, &group, now - begun);
        self.book.committed(group);
        self.committed_at = now;
        self.is_looked_at = false;
        if self.holds() {
            self.unsynced_since = None;
        } else if !durable {
            self.unsynced_since.get_or_insert(now);
        }
        Ok(())
    }

    /// The clock of those who are connected goes on at the next start from here.
    fn say_alive(&mut self) -> Result<()> {
        let mut has_sessions = false;
        let scanned = self.engine.scan(Table::Sessions, &[], &mut |_, _| {
            has_sessions = true;
            ControlFlow::Break(())
        });
        self.committed_at = Instant::now();
        let said = match scanned {
            Ok(()) if has_sessions => self
                .commit(&[], Group::default())
                .map_err(|(error, group)| (error, Some(group))),
            Ok(()) => Ok(()),
            Err(error) => Err((error, None)),
        };
        match said {
            Ok(()) => Ok(()),
            Err((error, group)) => self.put_off((error, Vec::new(), group)).map(drop),
        }
    }

    fn is_away(&mut self, why: &str, batches: Vec<Waiting>, group: Option<Box<Group>>) {
        log::error!(store = self.place, error = why; "the store cannot be reached: acknowledgements wait, and what would have to be kept is refused if that lasts");
        let now = Instant::now();
        self.away = Some(Away {
            since: now,
            retry_at: now + AWAY_RETRY,
            pause: AWAY_RETRY,
            why: why.to_owned(),
            batches,
            group,
        });
    }

    fn disk_is_full(&mut self, why: &str) {
        let now = Instant::now();
        match &mut self.full {
            Some(full) => full.retry_at = now + FULL_RETRY,
            None => {
                log::error!(store = self.place, error = why; "the disk is full: what would have to be kept is refused until there is room");
                self.full = Some(Full {
                    retry_at: now + FULL_RETRY,
                    take_at: now,
                });
            }
        }
        self.tell_full();
    }

    /// There was no room a while ago. If there is some now everything goes on, else what only takes away does, if that
    /// can be written.
    fn retry(&mut self, now: Instant) -> Result<()> {
        let Some(Full { take_at, .. }) = self.full else {
            return Ok(());
        };
        if self.opens(true)? {
            self.commit_waiting()?;
            if self.waiting.is_empty() {
                log::info!(store = self.place; "the disk has room again");
                self.full = None;
                self.tell_full();
                return Ok(());
            }
        }
        if take_at <= now {
            self.take_away(now)?;
        }
        if let Some(full) = &mut self.full {
            full.retry_at = now + FULL_RETRY;
        }
        Ok(())
    }

    /// Whether the engine works; it is opened again if something fits on the disk, or without asking.
    fn opens(&mut self, asks: bool) -> Result<bool> {
        let room = if asks { self.engine.room() } else { Ok(()) };
        match room.and_then(|()| self.engine.ready()) {
            Ok(was_closed) => {
                if was_closed {
                    // a commit whose sync failed may be there
                    self.book = Book::open(&*self.engine)?;
                }
                Ok(true)
            }
            Err(EngineError::Full(_) | EngineError::Away(_)) => Ok(false),
            Err(broken) => Err(broken),
        }
    }

    fn take_away(&mut self, now: Instant) -> Result<()> {
        let only_takes = |waiting: &Waiting| waiting.batch.ops.iter().all(only_takes_away);
        if !self.waiting.iter().any(only_takes) {
            return Ok(());
        }
        let mut fits = self.opens(false)?;
        if fits {
            // of different shards, which wait for each other's answers: their order is free
            let all = std::mem::take(&mut self.waiting);
            let (takes, others): (Vec<_>, Vec<_>) = all.into_iter().partition(only_takes);
            self.waiting = others;
            let left = self.try_commit(takes)?;
            fits = left.is_empty();
            self.waiting.extend(left);
        }
        if let Some(full) = &mut self.full {
            full.take_at = if fits { now } else { now + TAKE_RETRY };
        }
        Ok(())
    }

    /// Looks at the size now and then, and compares it with the limit.
    fn look(&mut self, now: Instant) -> Result<()> {
        let is_due = self.looked_at.is_none_or(|at| at + LOOK_INTERVAL <= now);
        if self.is_looked_at || !is_due || self.full.is_some() || self.away.is_some() {
            return Ok(());
        }
        self.looked_at = Some(now);
        self.is_looked_at = true;
        let (bytes, used) = (self.engine.bytes(), self.engine.used_bytes());
        self.numbers.bytes.store(bytes, Ordering::Relaxed);
        self.numbers.used_bytes.store(used, Ordering::Relaxed);
        let limit = self.bytes_max;
        if limit == 0 {
            return Ok(());
        }
        let room = u128::from(limit) * u128::from(ROOM_PERCENT) / 100;
        match &mut self.looks_above {
            None if used >= limit => {
                log::warn!(used_bytes = used, limit = limit; "the store has reached store-bytes: what would have to be kept is refused");
                self.looks_above = Some(0);
            }
            Some(_) if u128::from(used) < room => {
                log::info!(used_bytes = used, limit = limit; "the store has room again");
                self.looks_above = None;
            }
            Some(looks) => {
                *looks += 1;
                if looks.is_multiple_of(LOOKS_UNTIL_TIDY)
                    && let Err(broken @ EngineError::Broken(_)) = self.engine.tidy()
                {
                    return Err(broken);
                }
            }
            None => {}
        }
        // what gives room back may go on by itself
        self.is_looked_at = self.looks_above.is_none();
        self.tell_full();
        Ok(())
    }

    fn tell_full(&mut self) {
        let is_gone = |away: &Away| away.since.elapsed() >= AWAY_PATIENCE;
        let is_full = self.full.is_some()
            || self.looks_above.is_some()
            || self.away.as_ref().is_some_and(is_gone);
        if self.told_full != is_full {
            self.told_full = is_full;
            self.numbers.full.store(is_full.into(), Ordering::Relaxed);
            for tell in &self.tell {
                tell(Answer::Full(is_full));
            }
        }
    }
}
