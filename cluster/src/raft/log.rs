// SPDX-License-Identifier: Apache-2.0
//! The raft log and the vote on redb. Whatever `storage-sync` says, both are on the disk before raft counts on them: an
//! entry that a quorum has is never lost (Ongaro and Ousterhout 2014, section 5.4).
//!
//! A thread of its own writes. What comes while it waits for the disk is the next commit, so a commit holds as many
//! entries as arrive during one. Entries can be read at once: what the disk does not have yet is in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{Entry, EntryPayload, LogId, OptionalSend, StorageError, StorageIOError, Vote};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::{Types, any};
use crate::threads::lock;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const PURGED: &str = "purged";

/// Entries that a follower is sent at once take at most about this (bytes), or are one.
const BATCH_BYTES_MAX: usize = 128 << 10;

type Id = LogId<u64>;
type Failure = StorageError<u64>;

/// The raft directory's database cannot be opened.
#[derive(Debug)]
pub(crate) struct OpenError {
    path: PathBuf,
    cause: String,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the raft log {} cannot be opened: {}",
            self.path.display(),
            self.cause
        )
    }
}

impl std::error::Error for OpenError {}

/// What the writer does; in the order in which it was asked.
enum Op {
    /// With its number among the appends.
    Append(u64, Vec<(u64, Vec<u8>)>, LogFlushed<Types>),
    /// Entries from this one on go.
    Truncate(u64),
    /// Entries up to this one go.
    Purge(Id),
    Put(&'static str, Vec<u8>, oneshot::Sender<Result<(), String>>),
}

#[derive(Debug, Default)]
struct Tail {
    /// What the disk does not have yet, with the number of its append.
    entries: BTreeMap<u64, (u64, Entry<Types>)>,
    /// Appends so far.
    appends: u64,
    last: Option<Id>,
    purged: Option<Id>,
}

#[derive(Debug)]
struct Shared {
    database: Database,
    tail: Mutex<Tail>,
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        match read().map_err(|error| error.to_string())? {
            Some(bytes) => decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    fn read(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry<Types>>, String> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        // first what is in memory: what leaves it meanwhile is on the disk by then. The disk may still have what is
        // truncated or purged.
        let (start, end, fresh) = {
            let tail = self.tail();
            let after = |id: Option<Id>| id.map_or(0, |id| id.index + 1);
            let (start, end) = (start.max(after(tail.purged)), end.min(after(tail.last)));
            if end <= start {
                return Ok(Vec::new());
            }
            let fresh = tail
                .entries
                .range(start..end)
                .map(|(_, (_, entry))| entry.clone());
            (start, end, fresh.collect::<Vec<_>>())
        };
        let stored = fresh.first().map_or(end, |entry| entry.log_id.index);
        let mut entries = Vec::new();
        let mut bytes = 0;
        if start < stored {
            let mut read = || -> Result<Vec<Vec<u8>>, redb::Error> {
                let table = self.database.begin_read()?.open_table(LOG)?;
                let mut rows = Vec::new();
                for row in table.range(start..stored)? {
                    let value = row?.1.value().to_vec();
                    bytes += value.len();
                    rows.push(value);
                    if bytes > bytes_max {
                        break;
                    }
                }
                Ok(rows)
            };
            for row in read().map_err(|error| error.to_string())? {
                entries.push(decode(&row)?);
            }
            if bytes > bytes_max {
                return Ok(entries);
            }
        }
        for entry in fresh {
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            if let EntryPayload::Normal(proposal) = &entry.payload {
                bytes += proposal.0.len();
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // fails for sequences of unknown length only
    postcard::to_stdvec(value).expect("raft's values are plain")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|error| error.to_string())
}

/// The log of one node; openraft's, and its readers'.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer {
    ops: Option<mpsc::Sender<Op>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ops = None;
        if let Some(thread) = self.thread.take() {
            // what it was asked is done; a panic of it has been told
            drop(thread.join());
        }
    }
}

impl LogStore {
    /// Opens or makes the log of a raft directory, and starts its writer.
    ///
    /// # Errors
    /// When the file cannot be had, or another process has it.
    pub(crate) fn open(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join("log.redb");
        let failed = |cause: String| OpenError {
            path: path.clone(),
            cause,
        };
        std::fs::create_dir_all(directory).map_err(|error| failed(error.to_string()))?;
        let prepare = || -> Result<Database, redb::Error> {
            let database = Database::create(&path)?;
            let begun = database.begin_write()?;
            begun.open_table(LOG)?;
            begun.open_table(META)?;
            begun.commit()?;
            Ok(database)
        };
        let database = prepare().map_err(|error| failed(error.to_string()))?;
        // the file's name is on the disk too
        std::fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| failed(error.to_string()))?;
        let shared = Arc::new(Shared {
            database,
            tail: Mutex::default(),
        });
        let purged: Option<Id> = shared.meta(PURGED).map_err(failed)?;
        let last = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = shared.database.begin_read()?.open_table(LOG)?;
            let last = table.last()?;
            Ok(last.map(|(_, value)| value.value().to_vec()))
        };
        let last = match last().map_err(|error| failed(error.to_string()))? {
            Some(bytes) => Some(decode::<Entry<Types>>(&bytes).map_err(failed)?.log_id),
            None => None,
        };
        *shared.tail() = Tail {
            entries: BTreeMap::new(),
            appends: 0,
            last: last.or(purged),
            purged,
        };
        let (ops, todo) = mpsc::channel();
        let writing = shared.clone();
        let thread = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || write(&writing, &todo))
            .map_err(|error| failed(error.to_string()))?;
        let writer = Writer {
            ops: Some(ops),
            thread: Some(thread),
        };
        Ok(Self {
            shared,
            writer: Arc::new(writer),
        })
    }

    fn ask(&self, op: Op) {
        if let Some(ops) = &self.writer.ops {
            // it ends after the last of them
            let _ = ops.send(op);
        }
    }

    async fn put(&self, key: &'static str, value: &impl Serialize) -> Result<(), String> {
        let (done, waiting) = oneshot::channel();
        self.ask(Op::Put(key, encode(value), done));
        waiting
            .await
            .unwrap_or_else(|_| Err("the writer has ended".to_owned()))
    }
}

/// The writer: one commit for all that has come since the last one. After one that failed there is none: the log ends
/// where the disk does.
fn write(shared: &Shared, todo: &mpsc::Receiver<Op>) {
    let mut failed: Option<String> = None;
    while let Ok(first) = todo.recv() {
        let ops: Vec<Op> = std::iter::once(first).chain(todo.try_iter()).collect();
        let committed = match &failed {
            Some(cause) => Err(cause.clone()),
            None => commit(shared, &ops).map_err(|error| error.to_string()),
        };
        if let Err(cause) = &committed {
            failed = Some(cause.clone());
        } else {
            forget(&mut shared.tail(), &ops);
        }
        for op in ops {
            match op {
                Op::Append(_, _, flushed) => {
                    flushed.log_io_completed(committed.clone().map_err(std::io::Error::other));
                }
                Op::Put(_, _, done) => drop(done.send(committed.clone())),
                Op::Truncate(_) | Op::Purge(_) => {}
            }
        }
    }
}

/// What is on the disk need not be in memory, unless another entry has taken its place meanwhile.
fn forget(tail: &mut Tail, ops: &[Op]) {
    for op in ops {
        let Op::Append(append, entries, _) = op else {
            continue;
        };
        for (index, _) in entries {
            if tail.entries.get(index).is_some_and(|(of, _)| of == append) {
                tail.entries.remove(index);
            }
        }
    }
}

fn commit(shared: &Shared, ops: &[Op]) -> Result<(), redb::Error> {
    let begun = shared.database.begin_write()?;
    {
        let mut log = begun.open_table(LOG)?;
        let mut meta = begun.open_table(META)?;
        for op in ops {
            match op {
                Op::Append(_, entries, _) => {
                    for (index, bytes) in entries {
                        log.insert(index, &bytes[..])?;
                    }
                }
                Op::Truncate(from) => log.retain_in::<u64, _>(from.., |_, _| false)?,
                Op::Purge(upto) => {
                    meta.insert(PURGED, &encode(upto)[..])?;
                    log.retain_in::<u64, _>(..=upto.index, |_, _| false)?;
                }
                Op::Put(key, value, _) => {
                    meta.insert(*key, &value[..])?;
                }
            }
        }
    }
    begun.commit()?;
    Ok(())
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        self.shared.read(range, usize::MAX).map_err(read_error)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        self.shared
            .read(start..end, BATCH_BYTES_MAX)
            .map_err(read_error)
    }
}

fn read_error(cause: String) -> Failure {
    StorageIOError::read_logs(any(&std::io::Error::other(cause))).into()
}

fn write_error(cause: String) -> Failure {
    StorageIOError::write_vote(any(&std::io::Error::other(cause))).into()
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let tail = self.shared.tail();
        Ok(LogState {
            last_purged_log_id: tail.purged,
            last_log_id: tail.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        self.put(VOTE, vote).await.map_err(write_error)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        self.shared.meta(VOTE).map_err(read_error)
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        let append = {
            let mut tail = self.shared.tail();
            tail.appends += 1;
            let append = tail.appends;
            for entry in entries {
                rows.push((entry.log_id.index, encode(&entry)));
                tail.last = Some(entry.log_id);
                tail.entries.insert(entry.log_id.index, (append, entry));
            }
            append
        };
        self.ask(Op::Append(append, rows, flushed));
        Ok(())
    }

    async fn truncate(&mut self, log_id: Id) -> Result<(), Failure> {
        let before = match log_id.index.checked_sub(1) {
            Some(index) => self
                .shared
                .read(index..=index, usize::MAX)
                .map_err(read_error)?,
            None => Vec::new(),
        };
        let mut tail = self.shared.tail();
        tail.entries.split_off(&log_id.index);
        tail.last = before.first().map(|entry| entry.log_id).or(tail.purged);
        drop(tail);
        self.ask(Op::Truncate(log_id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: Id) -> Result<(), Failure> {
        let mut tail = self.shared.tail();
        tail.purged = Some(log_id);
        tail.last = tail.last.max(Some(log_id));
        tail.entries.retain(|index, _| *index > log_id.index);
        drop(tail);
        self.ask(Op::Purge(log_id));
        Ok(())
    }
}
