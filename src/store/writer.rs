// SPDX-License-Identifier: Apache-2.0
//! The thread that writes: what waits when a commit ends is the next commit, of all shards together.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use corqtt_port::lane::{Receiver, Sender};
use corqtt_port::store::{Answer, Batch, Store, Token};

use super::book::{Book, Group};
use super::engine::{Engine, EngineError, Table};
use crate::settings::StorageSync;

/// How long a full disk is left alone.
const FULL_RETRY: Duration = Duration::from_millis(200);
/// How often a store that has nothing to do says that its process lives.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Below this part of `store-bytes` there is room again.
const ROOM_PERCENT: u64 = 95;

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

pub(crate) struct Writer {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) book: Book,
    pub(crate) from: Receiver<ToWriter>,
    pub(crate) tell: Vec<Tell>,
    pub(crate) sync: StorageSync,
    /// 0: no limit.
    pub(crate) bytes_max: u64,
    /// For messages.
    pub(crate) path: PathBuf,
    pub(crate) is_full: bool,
    pub(crate) unsynced_since: Option<Instant>,
}

impl Writer {
    /// Until it is told to stop, or the engine breaks, which ends the process: nothing that is acknowledged from then on
    /// would be kept.
    pub(crate) fn run(mut self) {
        let mut messages = Vec::new();
        loop {
            self.from.wait(&mut messages, Some(self.patience()));
            let mut batches = Vec::new();
            let mut stops = false;
            for message in messages.drain(..) {
                match message {
                    ToWriter::Batch(shard, batch) => batches.push((shard, batch)),
                    ToWriter::Stop => stops = true,
                }
            }
            let outcome = self.write(batches).and_then(|()| self.sync_if_due(stops));
            if let Err(error) = outcome {
                panic!(
                    "the store in {} failed: {error}; look at the disk, then run `corqtt store check`",
                    self.path.display()
                );
            }
            if stops {
                return;
            }
        }
    }

    /// How long to wait for something to do.
    fn patience(&self) -> Duration {
        match (self.sync, self.unsynced_since) {
            (StorageSync::Every(interval), Some(since)) => interval.saturating_sub(since.elapsed()),
            _ => ALIVE_INTERVAL,
        }
    }

    fn write(&mut self, batches: Vec<(u8, Batch)>) -> Result<(), EngineError> {
        let mut group = Group::new();
        let mut kept = Vec::with_capacity(batches.len());
        for (shard, batch) in batches {
            kept.push((shard, batch.token));
            for op in batch.ops {
                self.book.apply(&*self.engine, &mut group, op)?;
            }
        }
        let alive = super::wall_ms().to_be_bytes().to_vec();
        group.insert((Table::Meta, ALIVE.to_vec()), Some(alive));
        self.commit(&group)?;
        for (shard, token) in kept {
            if let Some(tell) = self.tell.get(usize::from(shard)) {
                tell(Answer::Kept(token));
            }
        }
        self.watch_bytes();
        Ok(())
    }

    /// Commits a group, however long the disk is full.
    fn commit(&mut self, group: &Group) -> Result<(), EngineError> {
        let durable = self.sync == StorageSync::Always;
        loop {
            let mut rows = group
                .iter()
                .map(|((table, key), value)| (*table, key.as_slice(), value.as_deref()));
            match self.engine.commit(&mut rows, durable) {
                Ok(()) => break,
                Err(EngineError::Full(why)) => {
                    if !self.is_full {
                        log::error!(path:% = self.path.display(), error = why; "the disk is full: what would be kept is refused until there is room");
                    }
                    self.set_full(true);
                    std::thread::sleep(FULL_RETRY);
                }
                Err(broken) => return Err(broken),
            }
        }
        if !durable {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        if self.is_full && self.bytes_max == 0 {
            log::info!(path:% = self.path.display(); "the disk has room again");
            self.set_full(false);
        }
        Ok(())
    }

    fn watch_bytes(&mut self) {
        let bytes = self.engine.bytes();
        let limit = self.bytes_max;
        if limit == 0 {
            return;
        }
        if bytes >= limit && !self.is_full {
            log::warn!(bytes = bytes, limit = limit; "the store has reached store-bytes: what would be kept is refused");
            self.set_full(true);
        } else if self.is_full && bytes < limit / 100 * ROOM_PERCENT {
            log::info!(bytes = bytes, limit = limit; "the store has room again");
            self.set_full(false);
        }
    }

    fn set_full(&mut self, is_full: bool) {
        if self.is_full != is_full {
            self.is_full = is_full;
            for tell in &self.tell {
                tell(Answer::Full(is_full));
            }
        }
    }

    fn sync_if_due(&mut self, stops: bool) -> Result<(), EngineError> {
        let is_due = match (self.sync, self.unsynced_since) {
            (_, None) => false,
            (StorageSync::Every(interval), Some(since)) => stops || since.elapsed() >= interval,
            (_, Some(_)) => stops,
        };
        if is_due {
            self.engine.sync()?;
            self.unsynced_since = None;
        }
        Ok(())
    }
}
