// SPDX-License-Identifier: Apache-2.0
//! Operations of shards as rows of one commit, and back.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use corqtt_codec::{Message, MessageId, QoS, TopicFilter, TopicName};
use corqtt_port::store::{Op, Owed};
use corqtt_session::{Change, Delivery};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;

use super::engine::{Engine, EngineError, Result, Table};
use super::rows::{
    self, FlightRow, MessageRow, OwedRow, QueueRow, ReceivedRow, RetainedRow, SessionRow,
    SubscriptionRow, Unreadable, WillRow, client_key, decode, encode,
};

/// Rows of one client, beside that of its session and its will.
const OF_CLIENT: [Table; 4] = [
    Table::Subscriptions,
    Table::Queue,
    Table::Flights,
    Table::Received,
];

pub(crate) const STAMP: &[u8] = b"stamp";

/// What one commit writes and removes; the last word on each row counts.
pub(crate) type Group = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// What is known of the rows without reading them.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// How many entries of queues each body has.
    references: HashMap<MessageId, u32>,
    /// The newest stamp of a retained message.
    pub(crate) stamp: u64,
}

fn unreadable(table: Table) -> impl Fn(Unreadable) -> EngineError {
    move |_| EngineError::Broken(format!("a row of {} cannot be read", table.name()))
}

fn get(engine: &dyn Engine, group: &Group, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
    // a key is looked up by reference in no map of pairs; keys are short
    match group.get(&(table, key.to_vec())) {
        Some(row) => Ok(row.clone()),
        None => engine.get(table, key),
    }
}

/// Calls `each` with every row, and fails with the first that it can't read.
fn read_all(
    engine: &dyn Engine,
    table: Table,
    prefix: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> std::result::Result<(), Unreadable>,
) -> Result<()> {
    let mut outcome = Ok(());
    engine.scan(table, prefix, &mut |key, value| {
        outcome = each(key, value);
        if outcome.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    outcome.map_err(unreadable(table))
}

impl Book {
    /// Reads what has to be known.
    pub(crate) fn open(engine: &dyn Engine) -> Result<Self> {
        let mut book = Self::default();
        read_all(engine, Table::Queue, &[], |_, value| {
            if let Some(id) = decode::<QueueRow>(value)?.body() {
                *book.references.entry(id).or_default() += 1;
            }
            Ok(())
        })?;
        if let Some(stamp) = engine.get(Table::Meta, STAMP)? {
            book.stamp = rows::number(&stamp).map_err(unreadable(Table::Meta))?;
        }
        Ok(book)
    }

    /// Adds what an operation changes to a group.
    pub(crate) fn apply(&mut self, engine: &dyn Engine, group: &mut Group, op: Op) -> Result<()> {
        match op {
            Op::Session {
                client_id,
                terms,
                fresh,
            } => {
                if fresh {
                    self.end(engine, group, &client_id)?;
                }
                let row = encode(&SessionRow::new(&terms));
                group.insert((Table::Sessions, client_id.as_bytes().to_vec()), Some(row));
            }
            Op::Left { client_id, at_ms } => {
                let key = client_id.as_bytes();
                if let Some(row) = get(engine, group, Table::Sessions, key)? {
                    let mut row: SessionRow = decode(&row).map_err(unreadable(Table::Sessions))?;
                    row.left_at_ms = Some(at_ms);
                    group.insert((Table::Sessions, key.to_vec()), Some(encode(&row)));
                }
            }
            Op::SessionEnded { client_id } => self.end(engine, group, &client_id)?,
            Op::Will { client_id, will } => {
                let row = will.map(|will| encode(&WillRow::new(&will)));
                group.insert((Table::Wills, client_id.as_bytes().to_vec()), row);
            }
            Op::Subscribed {
                client_id,
                filter,
                options,
                subscription_id,
            } => {
                let key = client_key(&client_id, filter.as_bytes());
                let row = encode(&SubscriptionRow::new(&options, subscription_id));
                group.insert((Table::Subscriptions, key), Some(row));
            }
            Op::Unsubscribed { client_id, filter } => {
                let key = client_key(&client_id, filter.as_bytes());
                group.insert((Table::Subscriptions, key), None);
            }
            Op::Changed { client_id, change } => self.change(engine, group, &client_id, change)?,
            Op::Owed {
                client_id,
                packet_id,
                owed,
            } => {
                let key = client_key(&client_id, &packet_id.value().to_be_bytes());
                let received = encode(&ReceivedRow::new(Some(owed.id)));
                group.insert((Table::Received, key), Some(received));
                let row = encode(&OwedRow::new(&client_id, packet_id, &owed));
                group.insert((Table::Owed, owed.id.to_bytes().to_vec()), Some(row));
            }
            Op::Settled { id, shard } => {
                let key = id.to_bytes();
                if let Some(row) = get(engine, group, Table::Owed, &key)? {
                    let mut row: OwedRow = decode(&row).map_err(unreadable(Table::Owed))?;
                    row.shards &= !shard.bit();
                    let row = (row.shards != 0).then(|| encode(&row));
                    group.insert((Table::Owed, key.to_vec()), row);
                }
            }
            Op::Retained { message, stamp } => {
                let key = (Table::Retained, message.topic.as_bytes().to_vec());
                let row = (!message.payload.is_empty())
                    .then(|| encode(&RetainedRow::new(&message, stamp)));
                group.insert(key, row);
                if stamp.time > self.stamp {
                    self.stamp = stamp.time;
                    let newest = Some(stamp.time.to_be_bytes().to_vec());
                    group.insert((Table::Meta, STAMP.to_vec()), newest);
                }
            }
        }
        Ok(())
    }

    fn change(
        &mut self,
        engine: &dyn Engine,
        group: &mut Group,
        client_id: &str,
        change: Change,
    ) -> Result<()> {
        let at = |seq: u64| client_key(client_id, &seq.to_be_bytes());
        match change {
            Change::Enqueued {
                seq,
                id,
                message,
                delivery,
                packet_id,
            } => {
                self.enqueue(group, at(seq), id, &message, &delivery);
                if let Some(id) = packet_id {
                    group.insert((Table::Flights, at(seq)), Some(encode(&FlightRow::new(id))));
                }
            }
            Change::Begun { seq, packet_id } => {
                let row = encode(&FlightRow::new(packet_id));
                group.insert((Table::Flights, at(seq)), Some(row));
            }
            Change::Released { seq } => {
                if let Some(row) = get(engine, group, Table::Flights, &at(seq))? {
                    let mut row: FlightRow = decode(&row).map_err(unreadable(Table::Flights))?;
                    row.released = true;
                    group.insert((Table::Flights, at(seq)), Some(encode(&row)));
                }
                if let Some(row) = get(engine, group, Table::Queue, &at(seq))? {
                    let row: QueueRow = decode(&row).map_err(unreadable(Table::Queue))?;
                    if let Some(id) = row.body() {
                        self.forget(group, id);
                    }
                    let row = encode(&row.without_body());
                    group.insert((Table::Queue, at(seq)), Some(row));
                }
            }
            Change::Dequeued { seq } => self.dequeue(engine, group, at(seq))?,
            Change::Received { packet_id } => {
                let key = client_key(client_id, &packet_id.value().to_be_bytes());
                let row = encode(&ReceivedRow::new(None));
                group.insert((Table::Received, key), Some(row));
            }
            Change::Freed { packet_id } => {
                let key = client_key(client_id, &packet_id.value().to_be_bytes());
                self.free(engine, group, key)?;
            }
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        group: &mut Group,
        key: Vec<u8>,
        id: MessageId,
        message: &Message,
        delivery: &Delivery,
    ) {
        let references = self.references.entry(id).or_default();
        *references += 1;
        if *references == 1 {
            let row = encode(&MessageRow::new(message));
            group.insert((Table::Bodies, id.to_bytes().to_vec()), Some(row));
        }
        let row = encode(&QueueRow::new(id, delivery));
        group.insert((Table::Queue, key), Some(row));
    }

    /// One entry less has that body.
    fn forget(&mut self, group: &mut Group, id: MessageId) {
        let Some(references) = self.references.get_mut(&id) else {
            return;
        };
        *references -= 1;
        if *references == 0 {
            self.references.remove(&id);
            remove_new(group, Table::Bodies, id.to_bytes().to_vec());
        }
    }

    fn dequeue(&mut self, engine: &dyn Engine, group: &mut Group, key: Vec<u8>) -> Result<()> {
        let Some(row) = get(engine, group, Table::Queue, &key)? else {
            return Ok(());
        };
        let row: QueueRow = decode(&row).map_err(unreadable(Table::Queue))?;
        if let Some(id) = row.body() {
            self.forget(group, id);
        }
        group.insert((Table::Flights, key.clone()), None);
        group.insert((Table::Queue, key), None);
        Ok(())
    }

    fn free(&mut self, engine: &dyn Engine, group: &mut Group, key: Vec<u8>) -> Result<()> {
        if let Some(row) = get(engine, group, Table::Received, &key)? {
            let row: ReceivedRow = decode(&row).map_err(unreadable(Table::Received))?;
            if let Some(id) = row.owed() {
                group.insert((Table::Owed, id.to_bytes().to_vec()), None);
            }
        }
        group.insert((Table::Received, key), None);
        Ok(())
    }

    /// Everything of a client goes.
    fn end(&mut self, engine: &dyn Engine, group: &mut Group, client_id: &str) -> Result<()> {
        let prefix = client_key(client_id, &[]);
        for table in OF_CLIENT {
            let mut keys = Vec::new();
            read_all(engine, table, &prefix, |key, _| {
                keys.push(key.to_vec());
                Ok(())
            })?;
            let pending = group
                .range((table, prefix.clone())..)
                .take_while(|((of, key), _)| *of == table && key.starts_with(&prefix))
                .map(|((_, key), _)| key.clone());
            keys.extend(pending);
            for key in keys {
                match table {
                    Table::Queue => self.dequeue(engine, group, key)?,
                    Table::Received => self.free(engine, group, key)?,
                    table => drop(group.insert((table, key), None)),
                }
            }
        }
        for table in [Table::Sessions, Table::Wills] {
            group.insert((table, client_id.as_bytes().to_vec()), None);
        }
        Ok(())
    }
}

/// A row that only this group has is not written at all.
fn remove_new(group: &mut Group, table: Table, key: Vec<u8>) {
    let key = (table, key);
    match group.get(&key) {
        Some(Some(_)) => drop(group.remove(&key)),
        _ => drop(group.insert(key, None)),
    }
}

/// What a start takes out of the store before anything is given back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cleared {
    pub(crate) sessions: u64,
    pub(crate) messages: u64,
    pub(crate) retained: u64,
    /// QoS 2 messages that shards were still to get, and have got now.
    pub(crate) settled: u64,
}

impl Book {
    /// Messages that shards of an earlier start were still to get go to their sessions: what each of those shards would
    /// have done.
    pub(crate) fn settle(
        &mut self,
        engine: &dyn Engine,
        group: &mut Group,
        hash_seed: u64,
        cleared: &mut Cleared,
    ) -> Result<()> {
        let mut all = Vec::new();
        read_all(engine, Table::Owed, &[], |key, value| {
            let row: OwedRow = decode(value)?;
            let (client_id, packet_id) = (row.client_id.clone(), row.packet_id());
            all.push((client_id, packet_id, row.owed(rows::message_id(key)?)?));
            Ok(())
        })?;
        if all.is_empty() {
            return Ok(());
        }
        let hasher = FixedState::with_seed(hash_seed);
        let mut sessions = Vec::new();
        read_all(engine, Table::Sessions, &[], |key, _| {
            sessions.push(rows::text(key)?.to_owned());
            Ok(())
        })?;
        let mut next = HashMap::new();
        for (client_id, packet_id, owed) in all {
            cleared.settled += 1;
            let mut chosen = vec![false; owed.groups.len()];
            for session in &sessions {
                let shard = hasher.hash_one(session.as_str()) % u64::from(owed.of.max(1));
                if owed.shards >> shard & 1 == 0 {
                    continue;
                }
                let deliveries =
                    deliveries(engine, session, &owed, shard as u8, &client_id, &mut chosen)?;
                for delivery in deliveries {
                    let seq = match next.get(session) {
                        Some(seq) => *seq,
                        None => last_seq(engine, session)? + 1,
                    };
                    next.insert(session.clone(), seq + 1);
                    let key = client_key(session, &seq.to_be_bytes());
                    self.enqueue(group, key, owed.id, &owed.message, &delivery);
                }
            }
            group.insert((Table::Owed, owed.id.to_bytes().to_vec()), None);
            let key = client_key(&client_id, &packet_id.value().to_be_bytes());
            let row = encode(&ReceivedRow::new(None));
            group.insert((Table::Received, key), Some(row));
        }
        Ok(())
    }

    /// Takes out what has expired while nobody was there.
    pub(crate) fn expire(
        &mut self,
        engine: &dyn Engine,
        group: &mut Group,
        alive_at_ms: u64,
        now_ms: u64,
        cleared: &mut Cleared,
    ) -> Result<()> {
        let mut over = Vec::new();
        read_all(engine, Table::Sessions, &[], |key, value| {
            let row: SessionRow = decode(value)?;
            if row.ends_at_ms(row.left_at_ms.unwrap_or(alive_at_ms)) <= now_ms {
                over.push(rows::text(key)?.to_owned());
            }
            Ok(())
        })?;
        for client_id in over {
            cleared.sessions += 1;
            self.end(engine, group, &client_id)?;
        }
        let has_expired = |row: &MessageRow| row.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms);
        let mut gone = Vec::new();
        read_all(engine, Table::Retained, &[], |key, value| {
            if has_expired(&decode::<RetainedRow>(value)?.message) {
                gone.push(key.to_vec());
            }
            Ok(())
        })?;
        for key in gone {
            cleared.retained += 1;
            group.insert((Table::Retained, key), None);
        }
        let mut expired = std::collections::HashSet::new();
        read_all(engine, Table::Bodies, &[], |key, value| {
            if has_expired(&decode(value)?) {
                expired.insert(rows::message_id(key)?);
            }
            Ok(())
        })?;
        if expired.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        read_all(engine, Table::Queue, &[], |key, value| {
            if decode::<QueueRow>(value)?
                .body()
                .is_some_and(|id| expired.contains(&id))
            {
                entries.push(key.to_vec());
            }
            Ok(())
        })?;
        for key in entries {
            // [MQTT5-4.3.3-7] what was begun goes on
            if get(engine, group, Table::Flights, &key)?.is_none() {
                cleared.messages += 1;
                self.dequeue(engine, group, key)?;
            }
        }
        Ok(())
    }

    /// Gives everything back: each session with all that belongs to it, then the retained messages.
    pub(crate) fn restore(
        &self,
        engine: &dyn Engine,
        alive_at_ms: u64,
        each: &mut dyn FnMut(Op),
    ) -> Result<()> {
        // the same body for all of its entries
        let mut shared = HashMap::new();
        let mut failed = Ok(());
        read_all(engine, Table::Sessions, &[], |key, value| {
            let client_id: Arc<str> = rows::text(key)?.into();
            let row: SessionRow = decode(value)?;
            let at_ms = row.left_at_ms.unwrap_or(alive_at_ms);
            each(Op::Session {
                client_id: client_id.clone(),
                terms: row.terms()?,
                fresh: false,
            });
            let left = client_id.clone();
            each(Op::Left {
                client_id: left,
                at_ms,
            });
            failed = self.restore_session(engine, &client_id, &mut shared, each);
            if failed.is_ok() {
                Ok(())
            } else {
                Err(Unreadable)
            }
        })
        .or_else(|error| failed.and(Err(error)))?;
        read_all(engine, Table::Retained, &[], |_, value| {
            let row: RetainedRow = decode(value)?;
            let stamp = row.stamp();
            let message = Arc::new(row.message.message()?);
            each(Op::Retained { message, stamp });
            Ok(())
        })
    }

    fn restore_session(
        &self,
        engine: &dyn Engine,
        client_id: &Arc<str>,
        shared: &mut HashMap<MessageId, Arc<Message>>,
        each: &mut dyn FnMut(Op),
    ) -> Result<()> {
        if let Some(row) = engine.get(Table::Wills, client_id.as_bytes())? {
            let row: WillRow = decode(&row).map_err(unreadable(Table::Wills))?;
            let will = Some(row.will().map_err(unreadable(Table::Wills))?);
            let client_id = client_id.clone();
            each(Op::Will { client_id, will });
        }
        let prefix = client_key(client_id, &[]);
        read_all(engine, Table::Subscriptions, &prefix, |key, value| {
            let row: SubscriptionRow = decode(value)?;
            each(Op::Subscribed {
                client_id: client_id.clone(),
                filter: rows::text(&key[prefix.len()..])?.into(),
                options: row.options()?,
                subscription_id: row.id,
            });
            Ok(())
        })?;
        let mut flights = HashMap::new();
        read_all(engine, Table::Flights, &prefix, |key, value| {
            let row: FlightRow = decode(value)?;
            flights.insert(rows::number(&key[prefix.len()..])?, row);
            Ok(())
        })?;
        let mut failed = Ok(());
        read_all(engine, Table::Queue, &prefix, |key, value| {
            let seq = rows::number(&key[prefix.len()..])?;
            let row: QueueRow = decode(value)?;
            let body = row.body();
            let message = match body {
                None => Ok(Arc::new(nothing())),
                Some(id) => self.body(engine, id, shared),
            };
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    failed = Err(error);
                    return Err(Unreadable);
                }
            };
            let flight = flights.get(&seq);
            let enqueued = Change::Enqueued {
                seq,
                id: body.unwrap_or_default(),
                message,
                delivery: row.delivery()?,
                packet_id: flight.map(FlightRow::packet_id),
            };
            each(changed(client_id, enqueued));
            if flight.is_some_and(|flight| flight.released) {
                each(changed(client_id, Change::Released { seq }));
            }
            Ok(())
        })
        .or_else(|error| failed.and(Err(error)))?;
        read_all(engine, Table::Received, &prefix, |key, _| {
            let packet_id = rows::packet_id(&key[prefix.len()..])?;
            each(changed(client_id, Change::Received { packet_id }));
            Ok(())
        })
    }

    fn body(
        &self,
        engine: &dyn Engine,
        id: MessageId,
        shared: &mut HashMap<MessageId, Arc<Message>>,
    ) -> Result<Arc<Message>> {
        if let Some(message) = shared.get(&id) {
            return Ok(message.clone());
        }
        let missing = || EngineError::Broken("a queue has a message that is not there".to_owned());
        let row = engine
            .get(Table::Bodies, &id.to_bytes())?
            .ok_or_else(missing)?;
        let read = || decode::<MessageRow>(&row)?.message();
        let message = Arc::new(read().map_err(unreadable(Table::Bodies))?);
        if self.references.get(&id).is_some_and(|count| *count > 1) {
            shared.insert(id, message.clone());
        }
        Ok(message)
    }
}

fn changed(client_id: &Arc<str>, change: Change) -> Op {
    Op::Changed {
        client_id: client_id.clone(),
        change,
    }
}

/// In place of a message of which only the packet id is left.
fn nothing() -> Message {
    Message {
        topic: "-".into(),
        qos: QoS::ExactlyOnce,
        retain: false,
        properties: Box::default(),
        expires_at_ms: None,
        payload: bytes::Bytes::new(),
    }
}

fn last_seq(engine: &dyn Engine, client_id: &str) -> Result<u64> {
    let prefix = client_key(client_id, &[]);
    let mut last = 0;
    read_all(engine, Table::Queue, &prefix, |key, _| {
        last = rows::number(&key[prefix.len()..])?;
        Ok(())
    })?;
    Ok(last)
}

/// What a session gets of a message that its shard was owed. `chosen`: groups that have found their member.
fn deliveries(
    engine: &dyn Engine,
    session: &str,
    owed: &Owed,
    shard: u8,
    publisher: &str,
    chosen: &mut [bool],
) -> Result<Vec<Delivery>> {
    let topic = TopicName::trusted(&owed.message.topic);
    let prefix = client_key(session, &[]);
    let (mut plain, mut all) = (None::<Delivery>, Vec::new());
    read_all(engine, Table::Subscriptions, &prefix, |key, value| {
        let full = rows::text(&key[prefix.len()..])?;
        let row: SubscriptionRow = decode(value)?;
        let options = row.options()?;
        let filter = TopicFilter::parse(full).map_err(|_| Unreadable)?;
        let qos = options.qos.min(owed.message.qos);
        if qos == QoS::AtMostOnce || (options.no_local && session == publisher) {
            return Ok(());
        }
        let ids: Option<Box<[u32]>> = (row.id != 0).then(|| [row.id].into());
        let retain = owed.message.retain && options.retain_as_published;
        if filter.is_shared() {
            let is_this = |(group, of): &(Box<str>, _)| {
                **group == *full && *of == corqtt_topics::ShardId(shard)
            };
            if let Some(at) = owed.groups.iter().position(is_this)
                && !chosen[at]
            {
                chosen[at] = true;
                all.push(Delivery {
                    qos,
                    retain,
                    ids,
                    group: Some(full.into()),
                });
            }
        } else if owed.plain >> shard & 1 != 0 && filter.matches(topic) {
            match &mut plain {
                None => {
                    plain = Some(Delivery {
                        qos,
                        retain,
                        ids,
                        group: None,
                    });
                }
                Some(delivery) => {
                    delivery.qos = delivery.qos.max(qos);
                    delivery.retain |= retain;
                    let both = delivery.ids.iter().chain(&ids).flatten().copied();
                    let both: Box<[u32]> = both.collect();
                    delivery.ids = (!both.is_empty()).then_some(both);
                }
            }
        }
        Ok(())
    })?;
    all.extend(plain);
    Ok(all)
}
