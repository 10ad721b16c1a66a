// SPDX-License-Identifier: Apache-2.0
//! Client ids that operators have banned: each on the shard that its sessions belong to, kept by the store.

use std::collections::VecDeque;
use std::sync::Arc;

use corqtt_codec::ReasonCode;
use corqtt_port::admin::{Answer, Reply};
use corqtt_port::lane::Sender;
use corqtt_port::store::Op;
use hashbrown::HashSet;

use crate::lanes::Waiter;
use crate::shard::Shard;
use crate::wires::{Close, NONE, Why};

/// Bans of one shard at most.
const BANS_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Bans {
    client_ids: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// Operators whose order waits for the store, in the order of their waiters there.
    waiting: VecDeque<(u64, Sender<Reply>)>,
}

impl Bans {
    pub(crate) fn contains(&self, client_id: &str) -> bool {
        !self.client_ids.is_empty() && self.client_ids.contains(client_id)
    }

    /// As the store gives it back.
    pub(crate) fn restore(&mut self, client_id: Arc<str>) {
        self.client_ids.insert(client_id);
    }

    /// All of them, in no order.
    pub(crate) fn list(&self) -> Vec<Box<str>> {
        self.client_ids.iter().map(|id| (&**id).into()).collect()
    }
}

impl Shard {
    /// A client id is banned from now on, or no more. Answered when that is kept.
    pub(crate) fn ban(&mut self, client_id: &str, banned: bool, id: u64, reply: Sender<Reply>) {
        let owner = self.sessions.hash(client_id) % u64::from(self.config.shards);
        let is_there = self.bans.client_ids.contains(client_id);
        let is_one = (1..=usize::from(u16::MAX)).contains(&client_id.len());
        let answer = if !is_one || owner != u64::from(self.me.0) || (!banned && !is_there) {
            Answer::NotHere
        } else if banned && !is_there && self.bans.client_ids.len() >= BANS_MAX {
            Answer::NoRoom
        } else {
            if banned != is_there {
                self.change_ban(client_id, banned);
            }
            if self.keeping.records && self.keeping.lags() {
                self.bans.waiting.push_back((id, reply));
                return self.keeping.wait(Waiter::Ban);
            }
            Answer::Done
        };
        reply.push(Reply { id, answer });
    }

    fn change_ban(&mut self, client_id: &str, banned: bool) {
        let client_id: Arc<str> = client_id.into();
        if banned {
            self.bans.client_ids.insert(client_id.clone());
            self.disconnect(&client_id, "its client id was banned");
        } else {
            self.bans.client_ids.remove(&client_id);
        }
        if self.keeping.records {
            self.keeping.push(Op::Ban { client_id, banned });
        }
    }

    /// The first order that waited is kept.
    pub(crate) fn ban_is_kept(&mut self) {
        if let Some((id, reply)) = self.bans.waiting.pop_front() {
            let answer = Answer::Done;
            reply.push(Reply { id, answer });
        }
    }

    /// Closes a client's connection as an operator's act (0x98); false: there is no such client here.
    pub(crate) fn disconnect(&mut self, client_id: &str, why: &'static str) -> bool {
        let Some(session) = self.sessions.find(client_id) else {
            return false;
        };
        let connection = self.sessions.slots[session as usize].connection;
        if connection != NONE {
            let close = Close {
                reason: Some(ReasonCode::ADMINISTRATIVE_ACTION),
                why: Why::Broker(why),
                keep_will: true,
            };
            self.close_soon(connection, close);
        }
        true
    }
}
