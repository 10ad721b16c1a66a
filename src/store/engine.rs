// SPDX-License-Identifier: Apache-2.0
//! What the store needs of a key-value engine: ordered tables, and commits of many changes at once.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

/// One kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// By name: format version, starts, hash seed, newest stamp, last sign of life.
    Meta,
    /// By client id: terms, and since when the client is away.
    Sessions,
    /// By client id.
    Wills,
    /// By client id and filter.
    Subscriptions,
    /// By client id and sequence number: which message, and how to deliver it.
    Queue,
    /// By client id and sequence number: packet id, and whether PUBREC came.
    Flights,
    /// By message id.
    Bodies,
    /// By client id and packet id of the client.
    Received,
    /// By message id: QoS 2 messages that shards are still to get.
    Owed,
    /// By topic.
    Retained,
    /// Who may not connect; nothing writes it yet.
    Bans,
}

impl Table {
    pub(crate) const ALL: [Self; 11] = [
        Self::Meta,
        Self::Sessions,
        Self::Wills,
        Self::Subscriptions,
        Self::Queue,
        Self::Flights,
        Self::Bodies,
        Self::Received,
        Self::Owed,
        Self::Retained,
        Self::Bans,
    ];

    /// Its name in an engine and in a dump.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Sessions => "sessions",
            Self::Wills => "wills",
            Self::Subscriptions => "subscriptions",
            Self::Queue => "queue",
            Self::Flights => "flights",
            Self::Bodies => "bodies",
            Self::Received => "received",
            Self::Owed => "owed",
            Self::Retained => "retained",
            Self::Bans => "bans",
        }
    }

    /// The table of that [`Table::name`].
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// Longest key that every engine takes (bytes); none is empty.
pub(crate) const KEY_BYTES_MAX: usize = 65_535;

/// A row to write, or to remove (`None`).
pub(crate) type Row<'a> = (Table, &'a [u8], Option<&'a [u8]>);

/// Why an engine did not do what it was told.
#[derive(Debug)]
pub(crate) enum EngineError {
    /// No room on the disk, or no more than is allowed. Nothing was changed, and it may be tried again; where it is the
    /// sync that failed, the rows may be there all the same.
    Full(String),
    /// It can't be reached. What it was told is told again, word for word.
    Away(String),
    /// It can't go on.
    Broken(String),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(text) | Self::Away(text) | Self::Broken(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for EngineError {}

impl EngineError {
    /// An I/O error, told apart by whether it is one of room.
    pub(crate) fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::Full(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, EngineError>;

/// What a scan calls with the key and the value of each row.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A key-value engine, used by one thread.
///
/// After an error nothing works before [`Engine::ready`]; what is read then is what the disk has. Only a commit that ended
/// with [`EngineError::Away`] may be there or not, and is made again before anything else is.
pub(crate) trait Engine: Send {
    /// Opens it again after an error, which may take reading all of it; whether it had to be.
    fn ready(&mut self) -> Result<bool>;

    /// Whether the disk takes something, as far as that can be known without [`Engine::ready`].
    fn room(&self) -> Result<()>;

    /// All of the rows or none. If `durable` they are on the disk when it returns, else the kernel has them.
    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, durable: bool) -> Result<()>;

    /// Everything that was committed is on the disk when it returns.
    fn sync(&mut self) -> Result<()>;

    /// It cannot write without syncing: who wants fewer syncs makes fewer commits.
    fn always_syncs(&self) -> bool;

    /// Rows that will be asked for one by one, before the next commit: an engine that is far away gets them at once.
    fn fetch(&self, _keys: Vec<(Table, Vec<u8>)>) -> Result<()> {
        Ok(())
    }

    /// A row's value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// All rows from the key `from` on, in the order of their keys, until `each` breaks.
    fn scan(&self, table: Table, from: &[u8], each: Each<'_>) -> Result<()>;

    /// What it takes on the disk (bytes).
    fn bytes(&self) -> u64;

    /// What its rows take of that (bytes): room that deleted ones left and new ones will use is not counted. An estimate.
    fn used_bytes(&self) -> u64;

    /// Begins to give back what deleted rows took, where that does not happen by itself; does not wait for it.
    fn tidy(&mut self) -> Result<()>;

    /// Gives back what deleted rows took, and waits for it. For a store that nobody uses.
    fn compact(&mut self) -> Result<()>;
}

/// A file of this size must fit in the directory before an engine whose disk was full is tried again (bytes).
const PROBE_BYTES: usize = 1 << 20;

/// Whether the disk takes something.
pub(crate) fn probe(directory: &Path) -> Result<()> {
    let path = directory.join("PROBE");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![1; PROBE_BYTES])?;
        file.sync_data()
    });
    // it is overwritten by the next one
    let _ = std::fs::remove_file(&path);
    written.map_err(|error| EngineError::of_io(&error))
}
