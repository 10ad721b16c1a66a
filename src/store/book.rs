// SPDX-License-Identifier: Apache-2.0
//! Operations of shards as rows of one commit.
//!
//! A [`Group`] is what batches change together: made from the rows that are there, and thrown away if it can't be
//! committed. The [`Book`] learns of it when it was.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use corqtt_codec::{Message, MessageId};
use corqtt_port::store::Op;
use corqtt_session::{Change, Delivery};
use smallvec::{SmallVec, smallvec};

use super::engine::{Engine, Result, Row, Table};
use super::rows::{
    self, FlightRow, MessageRow, OwedRow, QueueRow, ReceivedRow, RetainedRow, SessionRow,
    SubscriptionRow, WillRow, body_of, client_key, decode, encode,
};

/// Rows of one client, beside that of its session and its will.
const OF_CLIENT: [Table; 4] = [
    Table::Subscriptions,
    Table::Queue,
    Table::Flights,
    Table::Received,
];

/// The newest stamp of a retained message: a row of [`Table::Meta`].
pub(crate) const STAMP: &[u8] = b"stamp";

/// A row that a group writes, or removes.
#[derive(Debug)]
struct Pending {
    value: Option<Vec<u8>>,
    /// There is none on the disk: if it goes again nothing was changed.
    is_new: bool,
}

/// What one commit writes and removes; the last word on each row counts.
#[derive(Debug, Default)]
pub(crate) struct Group {
    tables: [BTreeMap<Vec<u8>, Pending>; Table::ALL.len()],
    /// How many entries of queues have a body after it.
    references: HashMap<MessageId, u32>,
    /// The newest stamp after it.
    stamp: u64,
}

impl Group {
    pub(crate) fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }

    /// Rows in it.
    pub(crate) fn len(&self) -> usize {
        self.tables.iter().map(BTreeMap::len).sum()
    }

    /// Keys and values in it (bytes).
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |(_, key, value): Row<'_>| (key.len() + value.map_or(0, <[u8]>::len)) as u64;
        self.rows().map(bytes).sum()
    }

    /// Table by table, in the order of their keys.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        Table::ALL.into_iter().flat_map(move |table| {
            let rows = self.tables[table as usize].iter();
            rows.map(move |(key, row)| (table, key.as_slice(), row.value.as_deref()))
        })
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        let row = self.tables[table as usize].get(key)?;
        Some(row.value.as_deref())
    }

    /// It writes that row, and there is none on the disk.
    fn is_new(&self, table: Table, key: &[u8]) -> bool {
        let row = self.tables[table as usize].get(key);
        row.is_some_and(|row| row.is_new)
    }

    pub(crate) fn set(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.write(table, key, value, false);
    }

    /// A row of which there is none on the disk.
    fn set_new(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.write(table, key, value, true);
    }

    fn write(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>, is_new: bool) {
        let row = self.tables[table as usize].entry(key).or_insert(Pending {
            value: None,
            is_new,
        });
        row.value = Some(value);
    }

    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) {
        let rows = &mut self.tables[table as usize];
        match rows.get_mut(key) {
            Some(row) if row.is_new => drop(rows.remove(key)),
            Some(row) => row.value = None,
            None => {
                let gone = Pending {
                    value: None,
                    is_new: false,
                };
                rows.insert(key.to_vec(), gone);
            }
        }
    }
}

/// What is known of the rows without reading them.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// How many entries of queues have a body: one for each that there is.
    references: HashMap<MessageId, u32>,
    /// The newest stamp of a retained message.
    pub(crate) stamp: u64,
}

/// Calls `each` with every row whose key begins with `prefix`, until the first error.
pub(crate) fn read_all<E: From<super::engine::EngineError>>(
    engine: &dyn Engine,
    table: Table,
    prefix: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut outcome = Ok(());
    engine.scan(table, prefix, &mut |key, value| {
        if !key.starts_with(prefix) {
            return ControlFlow::Break(());
        }
        outcome = each(key, value);
        if outcome.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    outcome
}

impl Book {
    /// Reads what has to be known.
    pub(crate) fn open(engine: &dyn Engine) -> Result<Self> {
        let mut book = Self::default();
        read_all(engine, Table::Queue, &[], |_, value| {
            if let Some(id) = body_of(value)? {
                *book.references.entry(id).or_default() += 1;
            }
            Result::Ok(())
        })?;
        if let Some(stamp) = engine.get(Table::Meta, STAMP)? {
            book.stamp = rows::number(&stamp)?;
        }
        Ok(book)
    }

    /// How many entries of queues have that body.
    pub(crate) fn references(&self, id: MessageId) -> u32 {
        self.references.get(&id).copied().unwrap_or(0)
    }

    /// A group as it would be changed further.
    pub(crate) fn edit<'a>(&'a self, engine: &'a dyn Engine, group: &'a mut Group) -> Edit<'a> {
        Edit {
            engine,
            book: self,
            group,
        }
    }

    /// The group is on the disk.
    pub(crate) fn committed(&mut self, group: Group) {
        for (id, references) in group.references {
            match references {
                0 => drop(self.references.remove(&id)),
                references => drop(self.references.insert(id, references)),
            }
        }
        self.stamp = self.stamp.max(group.stamp);
    }
}

/// Whether an operation needs no more room than it gives back.
pub(crate) fn only_takes_away(op: &Op) -> bool {
    match op {
        Op::Left { .. }
        | Op::SessionEnded { .. }
        | Op::Will { will: None, .. }
        | Op::Unsubscribed { .. }
        | Op::Settled { .. } => true,
        Op::Changed { change, .. } => match change {
            // a packet id is small, and without it what is in the queue can't leave it
            Change::Begun { .. }
            | Change::Released { .. }
            | Change::Dequeued { .. }
            | Change::Freed { .. } => true,
            Change::Enqueued { .. } | Change::Received { .. } => false,
        },
        Op::Retained { message, .. } => message.payload.is_empty(),
        // an operator's order, and small
        Op::Ban { .. } => true,
        Op::Session { .. } | Op::Will { .. } | Op::Subscribed { .. } | Op::Owed { .. } => false,
    }
}

/// A row or two.
type Keys = SmallVec<[(Table, Vec<u8>); 2]>;

/// The rows that are looked at where an operation is applied, if they are known before.
pub(crate) fn read_for(op: &Op) -> Option<Keys> {
    let client = |client_id: &str| client_id.as_bytes().to_vec();
    Some(match op {
        Op::Left { client_id, .. } => smallvec![(Table::Sessions, client(client_id))],
        Op::Settled { id, .. } => smallvec![(Table::Owed, id.to_bytes().into())],
        Op::Changed { client_id, change } => match change {
            Change::Released { seq } => {
                let key = client_key(client_id, &seq.to_be_bytes());
                smallvec![(Table::Flights, key.clone()), (Table::Queue, key)]
            }
            Change::Dequeued { seq } => {
                smallvec![(Table::Queue, client_key(client_id, &seq.to_be_bytes()))]
            }
            Change::Freed { packet_id } => {
                let key = client_key(client_id, &packet_id.value().to_be_bytes());
                smallvec![(Table::Received, key)]
            }
            Change::Enqueued { .. } | Change::Begun { .. } | Change::Received { .. } => {
                return None;
            }
        },
        _ => return None,
    })
}

/// A group, and what it is made from.
pub(crate) struct Edit<'a> {
    engine: &'a dyn Engine,
    book: &'a Book,
    pub(crate) group: &'a mut Group,
}

impl Edit<'_> {
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        match self.group.get(table, key) {
            Some(row) => Ok(row.map(Cow::Borrowed)),
            None => Ok(self.engine.get(table, key)?.map(Cow::Owned)),
        }
    }

    /// Adds what an operation changes.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Session {
                client_id,
                terms,
                fresh,
            } => {
                if *fresh {
                    self.end(client_id)?;
                }
                let row = encode(&SessionRow::new(terms));
                self.group
                    .set(Table::Sessions, client_id.as_bytes().into(), row);
            }
            Op::Left { client_id, at_ms } => self.leave(client_id, *at_ms)?,
            Op::SessionEnded { client_id } => self.end(client_id)?,
            Op::Will { client_id, will } => match will {
                Some(will) => {
                    let row = encode(&WillRow::new(will));
                    self.group
                        .set(Table::Wills, client_id.as_bytes().into(), row);
                }
                None => self.group.remove(Table::Wills, client_id.as_bytes()),
            },
            Op::Subscribed {
                client_id,
                filter,
                options,
                subscription_id,
            } => {
                if !rows::fits(client_id, filter.len()) {
                    log::warn!(filter_bytes = filter.len(), client_id_bytes = client_id.len(); "a subscription is not kept: filter and client id are too long together");
                    return Ok(());
                }
                let row = encode(&SubscriptionRow::new(options, *subscription_id));
                let key = client_key(client_id, filter.as_bytes());
                self.group.set(Table::Subscriptions, key, row);
            }
            Op::Unsubscribed { client_id, filter } => {
                if rows::fits(client_id, filter.len()) {
                    let key = client_key(client_id, filter.as_bytes());
                    self.group.remove(Table::Subscriptions, &key);
                }
            }
            Op::Changed { client_id, change } => self.change(client_id, change)?,
            Op::Owed {
                client_id,
                packet_id,
                owed,
            } => {
                if rows::fits(client_id, size_of::<u16>()) {
                    let key = client_key(client_id, &packet_id.value().to_be_bytes());
                    let received = encode(&ReceivedRow::new(Some(owed.id)));
                    self.group.set(Table::Received, key, received);
                }
                let row = encode(&OwedRow::new(client_id, *packet_id, owed));
                self.group
                    .set_new(Table::Owed, owed.id.to_bytes().into(), row);
            }
            Op::Settled { id, shard } => {
                let key = id.to_bytes();
                let Some(row) = self.get(Table::Owed, &key)? else {
                    return Ok(());
                };
                let mut row: OwedRow<'_> = decode(&row)?;
                row.shards &= !shard.bit();
                let left = (row.shards != 0).then(|| encode(&row));
                match left {
                    Some(row) => self.group.set(Table::Owed, key.into(), row),
                    None => self.group.remove(Table::Owed, &key),
                }
            }
            Op::Retained { message, stamp } => {
                let key = message.topic.as_bytes();
                if message.payload.is_empty() {
                    self.group.remove(Table::Retained, key);
                } else {
                    let row = encode(&RetainedRow::new(message, *stamp));
                    self.group.set(Table::Retained, key.into(), row);
                }
                if stamp.time > self.book.stamp.max(self.group.stamp) {
                    self.group.stamp = stamp.time;
                    let newest = stamp.time.to_be_bytes();
                    self.group.set(Table::Meta, STAMP.into(), newest.into());
                }
            }
            Op::Ban { client_id, banned } => {
                let key = client_id.as_bytes();
                if *banned {
                    self.group.set(Table::Bans, key.into(), Vec::new());
                } else {
                    self.group.remove(Table::Bans, key);
                }
            }
        }
        Ok(())
    }

    /// The session, if there is one, has no connection since `at_ms` (wall clock).
    pub(crate) fn leave(&mut self, client_id: &str, at_ms: u64) -> Result<()> {
        let key = client_id.as_bytes();
        let left = match self.get(Table::Sessions, key)? {
            Some(row) => {
                let mut row: SessionRow<'_> = decode(&row)?;
                row.left_at_ms = Some(at_ms);
                encode(&row)
            }
            None => return Ok(()),
        };
        self.group.set(Table::Sessions, key.into(), left);
        Ok(())
    }

    fn change(&mut self, client_id: &str, change: &Change) -> Result<()> {
        if !rows::fits(client_id, size_of::<u64>()) {
            return Ok(());
        }
        let at = |seq: u64| client_key(client_id, &seq.to_be_bytes());
        let of = |packet_id: u16| client_key(client_id, &packet_id.to_be_bytes());
        match change {
            Change::Enqueued {
                seq,
                id,
                message,
                delivery,
                packet_id,
            } => {
                self.enqueue(at(*seq), *id, message, delivery);
                if let Some(id) = packet_id {
                    let row = encode(&FlightRow::new(*id));
                    self.group.set_new(Table::Flights, at(*seq), row);
                }
            }
            Change::Begun { seq, packet_id } => {
                let (key, row) = (at(*seq), encode(&FlightRow::new(*packet_id)));
                if self.group.is_new(Table::Queue, &key) {
                    self.group.set_new(Table::Flights, key, row);
                } else {
                    self.group.set(Table::Flights, key, row);
                }
            }
            Change::Released { seq } => self.release(at(*seq))?,
            Change::Dequeued { seq } => {
                let key = at(*seq);
                let body = match self.get(Table::Queue, &key)? {
                    Some(row) => body_of(&row)?,
                    None => return Ok(()),
                };
                self.dequeue(&key, body);
            }
            Change::Received { packet_id } => {
                let key = of(packet_id.value());
                // the record of what is owed under it may be there already
                if !matches!(self.group.get(Table::Received, &key), Some(Some(_))) {
                    let row = encode(&ReceivedRow::new(None));
                    self.group.set(Table::Received, key, row);
                }
            }
            Change::Freed { packet_id } => {
                let key = of(packet_id.value());
                let owed = match self.get(Table::Received, &key)? {
                    Some(row) => decode::<ReceivedRow>(&row)?.owed(),
                    None => return Ok(()),
                };
                self.free(&key, owed);
            }
        }
        Ok(())
    }

    pub(crate) fn enqueue(
        &mut self,
        key: Vec<u8>,
        id: MessageId,
        message: &Message,
        delivery: &Delivery,
    ) {
        let references = self.references(id);
        if references == 0 {
            let row = encode(&MessageRow::new(message));
            let key = id.to_bytes().into();
            if self.book.references(id) == 0 {
                self.group.set_new(Table::Bodies, key, row);
            } else {
                self.group.set(Table::Bodies, key, row);
            }
        }
        self.group.references.insert(id, references + 1);
        let row = encode(&QueueRow::new(id, delivery));
        self.group.set_new(Table::Queue, key, row);
    }

    fn references(&self, id: MessageId) -> u32 {
        let changed = self.group.references.get(&id);
        changed.map_or_else(|| self.book.references(id), |references| *references)
    }

    /// One entry less has that body.
    fn forget(&mut self, id: MessageId) {
        let references = self.references(id).saturating_sub(1);
        self.group.references.insert(id, references);
        if references == 0 {
            self.group.remove(Table::Bodies, &id.to_bytes());
        }
    }

    /// Of the message only its packet id is left.
    fn release(&mut self, key: Vec<u8>) -> Result<()> {
        let mut flight: FlightRow = match self.get(Table::Flights, &key)? {
            Some(row) => decode(&row)?,
            None => return Ok(()),
        };
        flight.released = true;
        let entry = match self.get(Table::Queue, &key)? {
            Some(row) => {
                let row: QueueRow<'_> = decode(&row)?;
                Some((row.body(), encode(&row.without_body())))
            }
            None => None,
        };
        if let Some((body, row)) = entry {
            if let Some(id) = body {
                self.forget(id);
            }
            self.group.set(Table::Queue, key.clone(), row);
        }
        self.group.set(Table::Flights, key, encode(&flight));
        Ok(())
    }

    pub(crate) fn dequeue(&mut self, key: &[u8], body: Option<MessageId>) {
        if let Some(id) = body {
            self.forget(id);
        }
        let never_begun =
            self.group.is_new(Table::Queue, key) && self.group.get(Table::Flights, key).is_none();
        if !never_begun {
            self.group.remove(Table::Flights, key);
        }
        self.group.remove(Table::Queue, key);
    }

    fn free(&mut self, key: &[u8], owed: Option<MessageId>) {
        if let Some(id) = owed {
            self.group.remove(Table::Owed, &id.to_bytes());
        }
        self.group.remove(Table::Received, key);
    }

    /// The rows of a client in a table, those of the group too.
    fn of_client(&self, table: Table, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = Vec::new();
        read_all(self.engine, table, prefix, |key, value| {
            if self.group.get(table, key).is_none() {
                found.push((key.to_vec(), value.to_vec()));
            }
            Result::Ok(())
        })?;
        let pending = self.group.tables[table as usize].range(prefix.to_vec()..);
        for (key, row) in pending.take_while(|(key, _)| key.starts_with(prefix)) {
            if let Some(value) = &row.value {
                found.push((key.clone(), value.clone()));
            }
        }
        Ok(found)
    }

    /// Everything of a client goes.
    pub(crate) fn end(&mut self, client_id: &str) -> Result<()> {
        let prefix = client_key(client_id, &[]);
        for table in OF_CLIENT {
            for (key, value) in self.of_client(table, &prefix)? {
                match table {
                    Table::Queue => self.dequeue(&key, body_of(&value)?),
                    Table::Received => self.free(&key, decode::<ReceivedRow>(&value)?.owed()),
                    table => self.group.remove(table, &key),
                }
            }
        }
        for table in [Table::Sessions, Table::Wills] {
            if self.get(table, client_id.as_bytes())?.is_some() {
                self.group.remove(table, client_id.as_bytes());
            }
        }
        Ok(())
    }
}
