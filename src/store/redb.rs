// SPDX-License-Identifier: Apache-2.0
//! redb: a copy-on-write B-tree in one file.
//!
//! Each commit is one sync: pages and the header of the other slot are written, and a header is believed after a crash
//! only if the checksums of all that it names are right. So a torn commit is none, and the one before it counts. Without
//! a sync a commit would exist in this process alone, which is why there is no such thing here.

use std::cell::OnceCell;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use redb::{
    Builder, CommitError, Database, DatabaseError, ReadOnlyTable, ReadableDatabase, StorageError,
    TableDefinition, TableError, TransactionError,
};

use super::engine::{Each, Engine, EngineError, Result, Row, Table, probe};

/// Pages that are kept in memory (bytes). Values are read once, at a start.
const CACHE_BYTES: usize = 64 << 20;

pub(crate) const FILE: &str = "corqtt.redb";

/// What all rows together take: keys and values (bytes).
const USED: TableDefinition<'static, &'static str, u64> = TableDefinition::new("used");
const USED_KEY: &str = "bytes";

type WriteTable<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;
type ReadTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

pub(crate) struct Redb {
    directory: PathBuf,
    /// All tables as of the last commit, made by the first read after it; gone before the next one, so that pages which
    /// that one frees can be used again.
    reader: OnceCell<Vec<ReadTable>>,
    /// `None` after an error: it takes nothing more, and is opened again.
    database: Option<Database>,
    used_bytes: u64,
}

const fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

impl From<StorageError> for EngineError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io(error) => Self::of_io(&error),
            error => Self::Broken(error.to_string()),
        }
    }
}

/// The errors of redb's calls are that of its storage, or one that this use of it does not meet.
macro_rules! of_storage {
    ($($error:ident)+) => {
        $(impl From<$error> for EngineError {
            fn from(error: $error) -> Self {
                match error {
                    $error::Storage(error) => error.into(),
                    error => Self::Broken(error.to_string()),
                }
            }
        })+
    };
}

of_storage!(CommitError DatabaseError TableError TransactionError);

impl Redb {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let mut redb = Self {
            directory: directory.to_owned(),
            reader: OnceCell::new(),
            database: None,
            used_bytes: 0,
        };
        redb.open_database()?;
        Ok(redb)
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn open_database(&mut self) -> Result<()> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create(self.path())?;
        // every table is there from the beginning, so that reading never finds one missing
        let transaction = database.begin_write()?;
        for table in Table::ALL {
            transaction.open_table(definition(table))?;
        }
        self.used_bytes = {
            let used = transaction.open_table(USED)?;
            let bytes = redb::ReadableTable::get(&used, USED_KEY)?;
            bytes.map_or(0, |bytes| bytes.value())
        };
        transaction.commit()?;
        self.database = Some(database);
        Ok(())
    }

    fn database(&self) -> Result<&Database> {
        let closed = || EngineError::Broken("it was not opened again".to_owned());
        self.database.as_ref().ok_or_else(closed)
    }

    fn reader(&self) -> Result<&[ReadTable]> {
        if let Some(tables) = self.reader.get() {
            return Ok(tables);
        }
        let transaction = self.database()?.begin_read()?;
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            tables.push(transaction.open_table(definition(table))?);
        }
        Ok(self.reader.get_or_init(|| tables))
    }

    /// The bytes that are used from then on.
    fn write(&self, rows: &mut dyn Iterator<Item = Row<'_>>) -> Result<u64> {
        let transaction = self.database()?.begin_write()?;
        let mut used_bytes = self.used_bytes;
        {
            let mut open: Option<(Table, WriteTable<'_>)> = None;
            for (table, key, value) in rows {
                let handle = match open.take().filter(|(of, _)| *of == table) {
                    Some(handle) => handle,
                    None => (table, transaction.open_table(definition(table))?),
                };
                let (_, handle) = open.insert(handle);
                let old = match value {
                    Some(value) => {
                        used_bytes += (key.len() + value.len()) as u64;
                        handle.insert(key, value)?
                    }
                    None => handle.remove(key)?,
                };
                if let Some(old) = old {
                    let bytes = (key.len() + old.value().len()) as u64;
                    used_bytes = used_bytes.saturating_sub(bytes);
                }
            }
            drop(open);
            transaction.open_table(USED)?.insert(USED_KEY, used_bytes)?;
        }
        transaction.commit()?;
        Ok(used_bytes)
    }
}

impl Engine for Redb {
    fn ready(&mut self) -> Result<bool> {
        let was_closed = self.database.is_none();
        if was_closed {
            self.open_database()?;
        }
        Ok(was_closed)
    }

    fn room(&self) -> Result<()> {
        probe(&self.directory)
    }

    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, _durable: bool) -> Result<()> {
        self.reader.take();
        match self.write(rows) {
            Ok(used_bytes) => {
                self.used_bytes = used_bytes;
                Ok(())
            }
            Err(error) => {
                self.database = None;
                Err(error)
            }
        }
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn always_syncs(&self) -> bool {
        true
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.reader()?[table as usize].get(key)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, from: &[u8], each: Each<'_>) -> Result<()> {
        for row in self.reader()?[table as usize].range::<&[u8]>(from..)? {
            let (key, value) = row?;
            if each(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        // the file has holes
        std::fs::metadata(self.path()).map_or(0, |file| file.blocks() * 512)
    }

    fn used_bytes(&self) -> u64 {
        // pages are between half full and full
        self.bytes().min(self.used_bytes / 2 * 3)
    }

    fn tidy(&mut self) -> Result<()> {
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        self.reader.take();
        if let Some(database) = &mut self.database {
            let compacted = database.compact();
            compacted.map_err(|error| EngineError::Broken(error.to_string()))?;
        }
        Ok(())
    }
}
