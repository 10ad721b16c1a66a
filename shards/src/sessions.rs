// SPDX-License-Identifier: Apache-2.0
//! The shard's table of sessions, found by client id.

use std::hash::BuildHasher;
use std::sync::Arc;

use corqtt_session::{AckKey, Session};
use corqtt_topics::Index;

use crate::lanes::Waiter;
use crate::wires::NONE;

/// A session and where its connection is.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) session: Session,
    /// Uses of the slot before this one.
    pub(crate) generation: u32,
    /// Slot of its connection, or `NONE`.
    pub(crate) connection: u32,
    /// Of its last connection, among all of this node in a cluster; 0: there was none.
    pub(crate) number: u64,
    /// The cluster knows it as one that stays without its connection.
    pub(crate) is_held: bool,
    /// Tick of the earliest wheel entry of this slot, 0: none. Outlives the session.
    pub(crate) timer_tick: u64,
    /// Keyed hash of its client id.
    pub(crate) hash: u64,
    /// Its client id for the store, once there was something to tell it.
    name: Option<Arc<str>>,
    pub(crate) used: bool,
}

impl Slot {
    /// The client id, as it is told to others.
    pub(crate) fn client_id(&mut self) -> Arc<str> {
        self.name
            .get_or_insert_with(|| self.session.client_id().into())
            .clone()
    }
}

/// Keyed hash of client ids and topics, the same on every shard and, with the seed of a store, in every start: decides
/// which shard owns what.
#[derive(Clone, Debug)]
pub struct NameHasher(foldhash::fast::FixedState);

impl NameHasher {
    /// With the seed of this start or of its store.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(foldhash::fast::FixedState::with_seed(seed))
    }

    /// The hash of a name.
    #[inline]
    #[must_use]
    pub fn hash(&self, name: &str) -> u64 {
        self.0.hash_one(name)
    }
}

/// All sessions of a shard.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots that are neither used nor free.
    retired: usize,
    by_client: Index,
    hasher: NameHasher,
}

impl Sessions {
    pub(crate) fn new(hash_seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            retired: 0,
            by_client: Index::default(),
            hasher: NameHasher::new(hash_seed),
        }
    }

    /// [`NameHasher::hash`] of a client id.
    #[inline]
    pub(crate) fn hash(&self, client_id: &str) -> u64 {
        self.hasher.hash(client_id)
    }

    /// The session of a client.
    pub(crate) fn find(&self, client_id: &str) -> Option<u32> {
        // [MQTT-3.1.3-2] [MQTT5-3.1.3-2] its id alone says which
        let hash = self.hash(client_id);
        self.by_client.find(hash, |slot| {
            self.slots[slot as usize].session.client_id() == client_id
        })
    }

    /// Adds a session; its client id must not be there.
    pub(crate) fn add(&mut self, session: Session) -> u32 {
        let hash = self.hash(session.client_id());
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(slot as usize) {
            Some(old) => {
                old.session = session;
                old.generation = old.generation.wrapping_add(1);
                old.connection = NONE;
                old.number = 0;
                old.is_held = false;
                old.hash = hash;
                old.name = None;
                old.used = true;
            }
            None => {
                self.slots.push(Slot {
                    session,
                    generation: 0,
                    connection: NONE,
                    number: 0,
                    is_held: false,
                    timer_tick: 0,
                    hash,
                    name: None,
                    used: true,
                });
            }
        }
        let slots = &self.slots;
        self.by_client
            .insert(hash, slot, |slot| slots[slot as usize].hash);
        slot
    }

    /// A session has ended and is found no more; its slot is not used again before [`Sessions::release`].
    pub(crate) fn retire(&mut self, slot: u32) {
        let slots = &self.slots;
        self.by_client
            .remove(slots[slot as usize].hash, slot, |slot| {
                slots[slot as usize].hash
            });
        let old = &mut self.slots[slot as usize];
        old.session = Session::over();
        old.used = false;
        old.connection = NONE;
        self.retired += 1;
    }

    /// Nothing refers to a retired session's slot any more.
    pub(crate) fn release(&mut self, slot: u32) {
        debug_assert!(!self.slots[slot as usize].used);
        self.retired -= 1;
        self.free.push(slot);
    }

    /// Stands for an acknowledgement of a session that waits.
    pub(crate) fn waiter(&self, session: u32, key: AckKey) -> Waiter {
        Waiter::Ack {
            session,
            generation: self.slots[session as usize].generation,
            key,
        }
    }

    /// The session, if the slot still holds the same one.
    #[inline]
    pub(crate) fn get(&mut self, slot: u32, generation: u32) -> Option<&mut Slot> {
        self.slots
            .get_mut(slot as usize)
            .filter(|slot| slot.used && slot.generation == generation)
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len() - self.retired
    }
}
