// SPDX-License-Identifier: Apache-2.0
//! redb: a copy-on-write B-tree in one file.

use std::path::{Path, PathBuf};

use redb::{
    Builder, CommitError, Database, Durability, ReadableDatabase, StorageError, TableDefinition,
    TableError,
};

use super::engine::{Each, Engine, EngineError, Result, Row, Table};

/// Pages that are kept in memory (bytes). Values are read once, at a start.
const CACHE_BYTES: usize = 64 << 20;

pub(crate) const FILE: &str = "corqtt.redb";

pub(crate) struct Redb {
    path: PathBuf,
    /// `None` only after it could not be opened again.
    database: Option<Database>,
    /// Something was committed and not synced.
    is_dirty: bool,
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

impl From<TableError> for EngineError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<CommitError> for EngineError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Storage(error) => error.into(),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<redb::TransactionError> for EngineError {
    fn from(error: redb::TransactionError) -> Self {
        match error {
            redb::TransactionError::Storage(error) => error.into(),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl Redb {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let mut redb = Self {
            database: Some(create(&path)?),
            path,
            is_dirty: false,
        };
        // every table is there from the beginning, so that reading never finds one missing
        redb.commit(&mut std::iter::empty(), true)?;
        Ok(redb)
    }

    fn database(&self) -> Result<&Database> {
        let closed = || EngineError::Broken("it could not be opened again".to_owned());
        self.database.as_ref().ok_or_else(closed)
    }

    fn try_commit(
        &mut self,
        rows: &mut dyn Iterator<Item = Row<'_>>,
        durability: Durability,
    ) -> Result<()> {
        let mut transaction = self.database()?.begin_write()?;
        transaction
            .set_durability(durability)
            .map_err(|error| EngineError::Broken(error.to_string()))?;
        {
            let mut tables = Vec::with_capacity(Table::ALL.len());
            for table in Table::ALL {
                tables.push(transaction.open_table(definition(table))?);
            }
            for (table, key, value) in rows {
                let table = &mut tables[table as usize];
                match value {
                    Some(value) => drop(table.insert(key, value)?),
                    None => drop(table.remove(key)?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// After an I/O error the database takes nothing more: what is on the disk is opened anew.
    fn reopen(&mut self) -> Result<()> {
        self.database = None;
        self.database = Some(create(&self.path)?);
        Ok(())
    }
}

fn create(path: &Path) -> Result<Database> {
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(path)
        .map_err(|error| match error {
            redb::DatabaseError::Storage(error) => error.into(),
            error => EngineError::Broken(error.to_string()),
        })
}

impl Engine for Redb {
    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, durable: bool) -> Result<()> {
        let durability = if durable {
            Durability::Immediate
        } else {
            Durability::None
        };
        let done = self.try_commit(rows, durability);
        match &done {
            Ok(()) => self.is_dirty = !durable,
            Err(EngineError::Full(_)) if self.is_dirty => {
                return Err(EngineError::Broken(
                    "the disk is full, and what was not synced is gone".to_owned(),
                ));
            }
            Err(EngineError::Full(_)) => self.reopen()?,
            Err(EngineError::Broken(_)) => {}
        }
        done
    }

    fn sync(&mut self) -> Result<()> {
        if self.is_dirty {
            self.commit(&mut std::iter::empty(), true)?;
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(definition(table))?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8], each: Each<'_>) -> Result<()> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(definition(table))?;
        for row in table.range::<&[u8]>(prefix..)? {
            let (key, value) = row?;
            if !key.value().starts_with(prefix) || each(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}
