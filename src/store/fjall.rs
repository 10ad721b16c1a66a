// SPDX-License-Identifier: Apache-2.0
//! fjall: a log-structured merge tree in a directory. A commit is one batch in its journal; a torn one at the end of that
//! is cut off before it is opened.

use std::ops::Bound;
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::engine::{Each, Engine, EngineError, KEY_BYTES_MAX, Result, Row, Table, probe};
use super::journal::cut_torn_end;

pub(crate) const DIRECTORY: &str = "fjall";

/// Blocks that are kept in memory (bytes). Values are read once, at a start.
const CACHE_BYTES: u64 = 64 << 20;
/// Journals beyond this are written into tables (bytes): a start reads them all.
const JOURNALS_BYTES_MAX: u64 = 128 << 20;
/// So often its threads may fail while there is room, without a commit in between.
const POISONINGS_MAX: u32 = 5;
/// One flushes while another compacts.
const WORKERS: usize = 2;

struct Open {
    keyspaces: Vec<Keyspace>,
    database: Database,
}

pub(crate) struct Fjall {
    directory: PathBuf,
    /// `None` after an error: it takes nothing more, and is opened again.
    open: Option<Open>,
    /// Failures of its threads since the last commit that was one.
    poisonings: u32,
}

impl From<fjall::Error> for EngineError {
    fn from(error: fjall::Error) -> Self {
        let mut cause: &(dyn std::error::Error + 'static) = &error;
        loop {
            if let Some(error) = cause.downcast_ref() {
                return Self::of_io(error);
            }
            match cause.source() {
                Some(deeper) => cause = deeper,
                None => return Self::Broken(error.to_string()),
            }
        }
    }
}

impl Fjall {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            open: Some(open(directory)?),
            poisonings: 0,
        })
    }

    fn opened(&self) -> Result<&Open> {
        let closed = || EngineError::Broken("it was not opened again".to_owned());
        self.open.as_ref().ok_or_else(closed)
    }

    /// After an error it has to be opened again: the end of its journal may be torn. One of its own threads may have met
    /// the full disk, whatever room there is by now; if that is not what happened to them it happens again.
    fn failed(&mut self, error: fjall::Error) -> EngineError {
        self.open = None;
        if !matches!(error, fjall::Error::Poisoned) {
            return error.into();
        }
        if let Err(full) = probe(&self.directory) {
            return full;
        }
        self.poisonings += 1;
        let text = "one of fjall's threads failed".to_owned();
        if self.poisonings > POISONINGS_MAX {
            EngineError::Broken(text)
        } else {
            EngineError::Full(text)
        }
    }
}

fn open(directory: &Path) -> Result<Open> {
    let directory = directory.join(DIRECTORY);
    cut_torn_end(&directory).map_err(|error| EngineError::of_io(&error))?;
    let database = Database::builder(directory)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(JOURNALS_BYTES_MAX)
        .worker_threads(WORKERS)
        .open()?;
    let open = |table: Table| database.keyspace(table.name(), KeyspaceCreateOptions::default);
    let keyspaces = Table::ALL
        .into_iter()
        .map(open)
        .collect::<fjall::Result<_>>()?;
    Ok(Open {
        keyspaces,
        database,
    })
}

impl Engine for Fjall {
    fn ready(&mut self) -> Result<bool> {
        let was_closed = self.open.is_none();
        if was_closed {
            self.open = Some(open(&self.directory)?);
        }
        Ok(was_closed)
    }

    fn room(&self) -> Result<()> {
        probe(&self.directory)
    }

    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, durable: bool) -> Result<()> {
        let Open {
            keyspaces,
            database,
        } = self.opened()?;
        // without any the batch would stay in a buffer of this process. The size of a file and where it lies are synced
        // with its data
        let mode = if durable {
            PersistMode::SyncData
        } else {
            PersistMode::Buffer
        };
        let mut batch = database.batch().durability(Some(mode));
        for (table, key, value) in rows {
            let keyspace = &keyspaces[table as usize];
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        batch.commit().map_err(|error| self.failed(error))?;
        self.poisonings = 0;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.opened()?.database.persist(PersistMode::SyncAll);
        synced.map_err(|error| self.failed(error))
    }

    fn always_syncs(&self) -> bool {
        false
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let value = self.opened()?.keyspaces[table as usize].get(key)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, table: Table, from: &[u8], each: Each<'_>) -> Result<()> {
        // it panics at longer keys; a key that there is lies behind a longer one if it lies behind its beginning
        let start = match from.get(..KEY_BYTES_MAX) {
            Some(begin) if from.len() > KEY_BYTES_MAX => Bound::Excluded(begin),
            _ => Bound::Included(from),
        };
        let range = (start, Bound::<&[u8]>::Unbounded);
        for row in self.opened()?.keyspaces[table as usize].range::<&[u8], _>(range) {
            let (key, value) = row.into_inner()?;
            if each(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let bytes = |open: &Open| open.database.disk_space().ok();
        self.open.as_ref().and_then(bytes).unwrap_or(0)
    }

    fn used_bytes(&self) -> u64 {
        // its journal is as large as it was made, whatever is in it: what is not in tables yet counts instead
        let bytes = |open: &Open| {
            let tables: u64 = open.keyspaces.iter().map(|table| table.disk_space()).sum();
            tables + open.database.write_buffer_size()
        };
        self.open.as_ref().map_or(0, bytes)
    }

    fn tidy(&mut self) -> Result<()> {
        // deletions reach the tables, and compaction drops them with what they deleted
        for keyspace in &self.opened()?.keyspaces {
            keyspace.rotate_memtable()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        for keyspace in &self.opened()?.keyspaces {
            keyspace.rotate_memtable_and_wait()?;
            keyspace.major_compact()?;
        }
        Ok(())
    }
}
