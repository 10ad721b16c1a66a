// SPDX-License-Identifier: Apache-2.0
//! fjall: a log-structured merge tree in a directory.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::engine::{Each, Engine, EngineError, Result, Row, Table};

pub(crate) const DIRECTORY: &str = "fjall";

pub(crate) struct Fjall {
    database: Database,
    keyspaces: Vec<Keyspace>,
}

impl From<fjall::Error> for EngineError {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(error) => Self::of_io(&error),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl Fjall {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let database = Database::builder(directory.join(DIRECTORY))
            .worker_threads(1)
            .open()?;
        let open = |table: Table| database.keyspace(table.name(), KeyspaceCreateOptions::default);
        let keyspaces = Table::ALL
            .into_iter()
            .map(open)
            .collect::<fjall::Result<_>>()?;
        Ok(Self {
            database,
            keyspaces,
        })
    }
}

impl Engine for Fjall {
    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, durable: bool) -> Result<()> {
        let durability = durable.then_some(PersistMode::SyncAll);
        let mut batch = self.database.batch().durability(durability);
        for (table, key, value) in rows {
            let keyspace = &self.keyspaces[table as usize];
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        Ok(batch.commit()?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.keyspaces[table as usize].get(key)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8], each: Each<'_>) -> Result<()> {
        for row in self.keyspaces[table as usize].prefix(prefix) {
            let (key, value) = row.into_inner()?;
            if each(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }
}
