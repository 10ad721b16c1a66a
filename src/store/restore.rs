// SPDX-License-Identifier: Apache-2.0
//! A start on a store: what is owed is settled, what is over goes, and everything else is given back.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use corqtt_codec::{Message, MessageId, QoS, TopicFilter, TopicName};
use corqtt_port::store::{Op, Owed};
use corqtt_session::{Change, Delivery};
use corqtt_shards::NameHasher;
use corqtt_topics::ShardId;

use super::book::{Book, Edit, Group, read_all};
use super::engine::{Engine, Result, Table};
use super::rows::{
    self, FlightRow, MessageRow, OwedRow, QueueRow, ReceivedRow, RetainedRow, SessionRow,
    SubscriptionRow, Unreadable, WillRow, body_of, client_key, decode, has_expired,
};

/// Rows that are looked for at once, and about as many that are changed by one commit.
const STEP_ROWS: usize = 10_000;

/// Messages that are read in the order in which they lie on the disk, before their entries (bytes). All of them will be in
/// memory soon.
const AHEAD_BYTES_MAX: usize = 512 << 20;

/// Bodies that were read, and how many entries are still to get each.
pub(crate) type Ahead = HashMap<MessageId, (Arc<Message>, u32)>;

/// What a start takes out of the store before anything is given back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cleared {
    pub(crate) sessions: u64,
    pub(crate) messages: u64,
    pub(crate) retained: u64,
    /// QoS 2 messages that shards were still to get, and have got now.
    pub(crate) settled: u64,
}

/// A store that no shard writes to.
pub(crate) struct Quiet<'a> {
    pub(crate) engine: &'a mut dyn Engine,
    pub(crate) book: &'a mut Book,
}

impl Quiet<'_> {
    pub(crate) fn commit(&mut self, group: Group) -> Result<()> {
        if !group.is_empty() {
            self.engine.commit(&mut group.rows(), true)?;
        }
        self.book.committed(group);
        Ok(())
    }

    /// Changes what `pick` finds among all rows of a table, in commits of some thousand rows.
    fn sweep<T>(
        &mut self,
        table: Table,
        mut pick: impl FnMut(&Book, &[u8], &[u8]) -> std::result::Result<Option<T>, Unreadable>,
        mut change: impl FnMut(&mut Edit<'_>, T) -> Result<()>,
    ) -> Result<()> {
        let mut from = Vec::new();
        loop {
            let (mut picked, mut last, mut outcome) = (Vec::new(), None, Ok(()));
            self.engine.scan(table, &from, &mut |key, value| {
                match pick(self.book, key, value) {
                    Ok(found) => picked.extend(found),
                    Err(error) => outcome = Err(error),
                }
                if outcome.is_ok() && picked.len() < STEP_ROWS {
                    return ControlFlow::Continue(());
                }
                last = Some(key.to_vec());
                ControlFlow::Break(())
            })?;
            outcome?;
            let mut group = Group::default();
            for found in picked {
                change(&mut self.book.edit(self.engine, &mut group), found)?;
                if group.len() >= STEP_ROWS {
                    self.commit(std::mem::take(&mut group))?;
                }
            }
            self.commit(group)?;
            let Some(mut last) = last else { return Ok(()) };
            // the next key that there can be
            last.push(0);
            from = last;
        }
    }

    /// Takes out what is over by now, and notes that nobody is connected: since `alive_at_ms`, which is when the process
    /// last said that it lives (wall clock). Bodies of what is left, as far as they were read ahead.
    pub(crate) fn clear(
        &mut self,
        alive_at_ms: u64,
        now_ms: u64,
        cleared: &mut Cleared,
    ) -> Result<Ahead> {
        self.sweep(
            Table::Sessions,
            |_, key, value| {
                let row: SessionRow<'_> = decode(value)?;
                let is_over = row.is_over(row.left_at_ms.unwrap_or(alive_at_ms), now_ms);
                let is_wrong = is_over || row.left_at_ms.is_none();
                let client_id = rows::text(key)?.to_owned();
                Ok(is_wrong.then_some((client_id, row.left_at_ms, is_over)))
            },
            |edit, (client_id, left_at_ms, is_over)| {
                // one with a will ends when its shard has it: the will is published then
                if is_over && edit.get(Table::Wills, client_id.as_bytes())?.is_none() {
                    cleared.sessions += 1;
                    return edit.end(&client_id);
                }
                match left_at_ms {
                    None => edit.leave(&client_id, alive_at_ms),
                    Some(_) => Ok(()),
                }
            },
        )?;
        self.sweep(
            Table::Retained,
            |_, key, value| Ok(has_expired(value, now_ms)?.then(|| key.to_vec())),
            |edit, key| {
                cleared.retained += 1;
                edit.group.remove(Table::Retained, &key);
                Ok(())
            },
        )?;
        let mut expired = HashSet::new();
        let mut ahead = Ahead::new();
        let mut ahead_bytes = 0;
        self.sweep(
            Table::Bodies,
            |book, key, value| {
                let id = rows::message_id(key)?;
                let entries = book.references(id);
                if entries == 0 {
                    return Ok(Some(id));
                }
                if has_expired(value, now_ms)? {
                    expired.insert(id);
                } else if ahead_bytes < AHEAD_BYTES_MAX {
                    ahead_bytes += value.len();
                    let message = decode::<MessageRow<'_>>(value)?.message()?;
                    ahead.insert(id, (Arc::new(message), entries));
                }
                Ok(None)
            },
            |edit, id| {
                edit.group.remove(Table::Bodies, &id.to_bytes());
                Ok(())
            },
        )?;
        if expired.is_empty() {
            return Ok(ahead);
        }
        let mut begun = HashSet::new();
        read_all(&*self.engine, Table::Flights, &[], |key, _| {
            begun.insert(key.to_vec());
            Result::Ok(())
        })?;
        self.sweep(
            Table::Queue,
            |_, key, value| {
                let body = body_of(value)?.filter(|id| expired.contains(id));
                // [MQTT5-4.3.3-7] [MQTT5-4.3.3-13] what was begun goes on
                let goes = body.is_some() && !begun.contains(key);
                Ok(goes.then(|| (key.to_vec(), body)))
            },
            |edit, (key, body)| {
                cleared.messages += 1;
                edit.dequeue(&key, body);
                Ok(())
            },
        )?;
        Ok(ahead)
    }

    /// Messages that shards of an earlier start were still to get go to their sessions, in one commit: what each of those
    /// shards would have done.
    pub(crate) fn settle(&mut self, hash_seed: u64, cleared: &mut Cleared) -> Result<()> {
        let mut all = Vec::new();
        read_all(&*self.engine, Table::Owed, &[], |key, value| {
            let row: OwedRow<'_> = decode(value)?;
            all.push(Debt {
                publisher: row.client_id.to_owned(),
                received: client_key(row.client_id, &row.packet_id().value().to_be_bytes()),
                owed: row.owed(rows::message_id(key)?)?,
                plain: BTreeMap::new(),
                members: BTreeMap::new(),
            });
            Result::Ok(())
        })?;
        if all.is_empty() {
            return Ok(());
        }
        find_receivers(&*self.engine, &mut all, hash_seed)?;
        let mut group = Group::default();
        let mut edit = self.book.edit(&*self.engine, &mut group);
        let mut next = HashMap::new();
        for debt in all {
            cleared.settled += 1;
            let owed = &debt.owed;
            let members = debt.members.into_values();
            let plain = debt.plain.into_iter();
            for (client_id, delivery) in members.chain(plain) {
                if delivery.qos == QoS::AtMostOnce || !rows::fits(&client_id, size_of::<u64>()) {
                    continue;
                }
                let seq = match next.get(&client_id) {
                    Some(seq) => *seq,
                    None => last_seq(&*self.engine, &client_id)? + 1,
                };
                let key = client_key(&client_id, &u64::to_be_bytes(seq));
                edit.enqueue(key, owed.id, &owed.message, &delivery);
                next.insert(client_id, seq + 1);
            }
            edit.group.remove(Table::Owed, &owed.id.to_bytes());
            if self.engine.get(Table::Received, &debt.received)?.is_some() {
                let row = rows::encode(&ReceivedRow::new(None));
                edit.group.set(Table::Received, debt.received, row);
            }
        }
        self.commit(group)
    }

    /// Gives everything back: each session with all that belongs to it, then the retained messages.
    ///
    /// # Errors
    /// What `each` said, or that a row can't be read.
    pub(crate) fn stream(
        &self,
        mut ahead: Ahead,
        each: &mut dyn FnMut(Op) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        read_all(&*self.engine, Table::Sessions, &[], |key, value| {
            let client_id: Arc<str> = rows::text(key)?.into();
            let row: SessionRow<'_> = decode(value)?;
            each(Op::Session {
                client_id: client_id.clone(),
                terms: row.terms()?,
                fresh: false,
            })?;
            if let Some(at_ms) = row.left_at_ms {
                let client_id = client_id.clone();
                each(Op::Left { client_id, at_ms })?;
            }
            self.stream_session(&client_id, &mut ahead, each)
                .with_context(|| format!("of client {client_id:?}"))
        })?;
        read_all(&*self.engine, Table::Retained, &[], |_, value| {
            let row: RetainedRow<'_> = decode(value)?;
            let message = Arc::new(row.message.message()?);
            let stamp = row.stamp();
            each(Op::Retained { message, stamp })
        })?;
        read_all(&*self.engine, Table::Bans, &[], |key, _| {
            let client_id = rows::text(key)?.into();
            let banned = true;
            each(Op::Ban { client_id, banned })
        })
    }

    fn stream_session(
        &self,
        client_id: &Arc<str>,
        ahead: &mut Ahead,
        each: &mut dyn FnMut(Op) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if let Some(row) = self.engine.get(Table::Wills, client_id.as_bytes())? {
            let row: WillRow<'_> = decode(&row)?;
            each(Op::Will {
                client_id: client_id.clone(),
                will: Some(row.will()?),
            })?;
        }
        let prefix = client_key(client_id, &[]);
        read_all(
            &*self.engine,
            Table::Subscriptions,
            &prefix,
            |key, value| {
                let row: SubscriptionRow = decode(value)?;
                each(Op::Subscribed {
                    client_id: client_id.clone(),
                    filter: rows::text(&key[prefix.len()..])?.into(),
                    options: row.options()?,
                    subscription_id: row.id,
                })
            },
        )?;
        let changed = |change| Op::Changed {
            client_id: client_id.clone(),
            change,
        };
        let mut flights: HashMap<u64, FlightRow> = HashMap::new();
        read_all(&*self.engine, Table::Flights, &prefix, |key, value| {
            flights.insert(rows::number(&key[prefix.len()..])?, decode(value)?);
            Result::Ok(())
        })?;
        read_all(&*self.engine, Table::Queue, &prefix, |key, value| {
            let seq = rows::number(&key[prefix.len()..])?;
            let row: QueueRow<'_> = decode(value)?;
            let body = row.body();
            let message = match body {
                None => Arc::new(nothing()),
                Some(id) => self.body(id, ahead)?,
            };
            let flight = flights.get(&seq);
            each(changed(Change::Enqueued {
                seq,
                id: body.unwrap_or_default(),
                message,
                delivery: row.delivery()?,
                packet_id: flight.map(FlightRow::packet_id),
            }))?;
            if flight.is_some_and(|flight| flight.released) {
                each(changed(Change::Released { seq }))?;
            }
            anyhow::Ok(())
        })?;
        read_all(&*self.engine, Table::Received, &prefix, |key, _| {
            let packet_id = rows::packet_id(&key[prefix.len()..])?;
            each(changed(Change::Received { packet_id }))
        })
    }

    fn body(&self, id: MessageId, ahead: &mut Ahead) -> anyhow::Result<Arc<Message>> {
        if let Entry::Occupied(mut read) = ahead.entry(id) {
            let (message, entries) = read.get_mut();
            *entries -= 1;
            return Ok(if *entries == 0 {
                read.remove().0
            } else {
                message.clone()
            });
        }
        let row = self.engine.get(Table::Bodies, &id.to_bytes())?;
        let row = row.context("a queue has a message that is not there")?;
        let message = Arc::new(decode::<MessageRow<'_>>(&row)?.message()?);
        // others are given the same one
        let others = self.book.references(id).saturating_sub(1);
        if others > 0 {
            ahead.insert(id, (message.clone(), others));
        }
        Ok(message)
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

/// A message that shards are owed, and who gets it.
struct Debt {
    publisher: String,
    /// Key of the packet id under which it came.
    received: Vec<u8>,
    owed: Owed,
    /// By client id.
    plain: BTreeMap<String, Delivery>,
    /// By place in [`Owed::groups`].
    members: BTreeMap<usize, (String, Delivery)>,
}

/// Looks through all subscriptions once. Topics are found by name for filters without wildcards, and one by one for the
/// others.
fn find_receivers(engine: &dyn Engine, all: &mut [Debt], hash_seed: u64) -> Result<()> {
    let hasher = NameHasher::new(hash_seed);
    let mut by_topic: HashMap<String, Vec<usize>> = HashMap::new();
    let mut by_group: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
    for (at, debt) in all.iter().enumerate() {
        let topic = debt.owed.message.topic.to_string();
        by_topic.entry(topic).or_default().push(at);
        for (place, (group, _)) in debt.owed.groups.iter().enumerate() {
            let places = by_group.entry(group.to_string()).or_default();
            places.push((at, place));
        }
    }
    read_all(engine, Table::Subscriptions, &[], |key, value| {
        let (client_id, filter) = rows::split_key(key)?;
        let full = rows::text(filter)?;
        let filter = TopicFilter::parse(full).map_err(|_| Unreadable)?;
        let row: SubscriptionRow = decode(value)?;
        let options = row.options()?;
        let id = (row.id != 0).then_some(row.id);
        let hash = hasher.hash(client_id);
        let shard_of = |owed: &Owed| ShardId((hash % u64::from(owed.of.max(1))) as u8);
        let delivery = |owed: &Owed, group| Delivery {
            qos: options.qos.min(owed.message.qos),
            retain: owed.message.retain && options.retain_as_published,
            ids: id.map(|id| [id].into()),
            group,
        };
        if filter.is_shared() {
            for (at, place) in by_group.get(full).into_iter().flatten() {
                let Debt { owed, members, .. } = &mut all[*at];
                let chosen = owed.groups[*place].1;
                let is_there = chosen == shard_of(owed) && owed.shards & chosen.bit() != 0;
                if is_there && options.qos != QoS::AtMostOnce {
                    let member = || (client_id.to_owned(), delivery(owed, Some(full.into())));
                    members.entry(*place).or_insert_with(member);
                }
            }
            return Result::Ok(());
        }
        let offer = |debt: &mut Debt| {
            let Debt { owed, plain, .. } = debt;
            let bit = shard_of(owed).bit();
            let is_own = options.no_local && *client_id == *debt.publisher;
            if owed.shards & owed.plain & bit == 0 || is_own {
                return;
            }
            // once, however many filters match [MQTT5-3.3.4-2]
            let new = delivery(owed, None);
            match plain.get_mut(client_id) {
                None => drop(plain.insert(client_id.to_owned(), new)),
                Some(old) => {
                    old.qos = old.qos.max(new.qos);
                    old.retain |= new.retain;
                    let ids = old.ids.iter().chain(&new.ids).flatten().copied();
                    let ids: Box<[u32]> = ids.collect();
                    old.ids = (!ids.is_empty()).then_some(ids);
                }
            }
        };
        if filter.has_wildcard() {
            for debt in all.iter_mut() {
                let topic = debt.owed.message.topic.clone();
                if filter.matches(TopicName::trusted(&topic)) {
                    offer(debt);
                }
            }
        } else {
            for at in by_topic.get(full).into_iter().flatten() {
                offer(&mut all[*at]);
            }
        }
        Ok(())
    })
}

fn last_seq(engine: &dyn Engine, client_id: &str) -> Result<u64> {
    let prefix = client_key(client_id, &[]);
    let mut last = 0;
    read_all(engine, Table::Queue, &prefix, |key, _| {
        last = rows::number(&key[prefix.len()..])?;
        Result::Ok(())
    })?;
    Ok(last)
}
