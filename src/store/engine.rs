// SPDX-License-Identifier: Apache-2.0
//! What the store needs of a key-value engine: ordered tables, and commits of many changes at once.

use std::fmt;
use std::ops::ControlFlow;

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
}

impl Table {
    pub(crate) const ALL: [Self; 10] = [
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
        }
    }
}

/// A row to write, or to remove (`None`).
pub(crate) type Row<'a> = (Table, &'a [u8], Option<&'a [u8]>);

/// Why an engine did not do what it was told.
#[derive(Debug)]
pub(crate) enum EngineError {
    /// No room on the disk, or no more than is allowed. Nothing was changed; it may be tried again.
    Full(String),
    /// It can't go on.
    Broken(String),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(text) | Self::Broken(text) => f.write_str(text),
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
pub(crate) trait Engine: Send {
    /// All of the rows or none, in their order; on the disk when it returns if `durable`.
    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, durable: bool) -> Result<()>;

    /// Everything that was committed is on the disk when it returns.
    fn sync(&mut self) -> Result<()>;

    /// A row's value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// All rows whose keys begin with `prefix`, in the order of their keys.
    fn scan(&self, table: Table, prefix: &[u8], each: Each<'_>) -> Result<()>;

    /// What it takes on the disk (bytes).
    fn bytes(&self) -> u64;
}
