// SPDX-License-Identifier: Apache-2.0
//! What a session changes that must outlive the process, and what may only be sent once that is kept.
//!
//! ```text
//!   session ──take_news──► changes ──► store ──"kept"──┐
//!                  └─────► effects ──── wait ──────────┴──► Session::apply
//! ```

use std::sync::Arc;

use corqtt_codec::{Message, MessageId, PacketId, QoS};

/// A change to a session that outlives its connections. Sequence numbers name the messages of one session, from 1 in
/// the order in which they came; none is used twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A message is for the session, in its queue or in flight.
    Enqueued {
        /// Names it in this session.
        seq: u64,
        /// Names it on this node.
        id: MessageId,
        /// What.
        message: Arc<Message>,
        /// How it is to be delivered.
        delivery: Delivery,
        /// Its packet id, if it is in flight already.
        packet_id: Option<PacketId>,
    },
    /// The message was given a packet id: its PUBLISH was sent, or (QoS 2) may be once this is kept.
    Begun {
        /// Which.
        seq: u64,
        /// In the space of the broker.
        packet_id: PacketId,
    },
    /// PUBREC came: of the message only its packet id is left.
    Released {
        /// Which.
        seq: u64,
    },
    /// The message has left the session: acknowledged, expired, or dropped.
    Dequeued {
        /// Which.
        seq: u64,
    },
    /// A QoS 2 message of the client waits for PUBREL.
    Received {
        /// In the space of the client.
        packet_id: PacketId,
    },
    /// PUBREL came: the client's packet id is free.
    Freed {
        /// In the space of the client.
        packet_id: PacketId,
    },
}

/// How a session is to be sent a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// 1 or 2.
    pub qos: QoS,
    /// The RETAIN flag.
    pub retain: bool,
    /// Subscription identifiers.
    pub ids: Option<Box<[u32]>>,
    /// The shared subscription (full filter) that it was chosen for.
    pub group: Option<Arc<str>>,
}

/// What waits until the changes before it are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// PUBLISH with this packet id may be sent.
    Publish(PacketId),
    /// PUBREL with this packet id may be sent.
    Release(PacketId),
    /// The packet id may be used again.
    Free(PacketId),
}

/// Changes and effects that the owner has not taken yet. Sequence number 0: a message that no store has.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) changes: Vec<Change>,
    pub(crate) effects: Vec<Effect>,
}

impl Journal {
    pub(crate) fn enqueued(
        &mut self,
        seq: u64,
        id: MessageId,
        message: Arc<Message>,
        delivery: Delivery,
    ) {
        self.changes.push(Change::Enqueued {
            seq,
            id,
            message,
            delivery,
            packet_id: None,
        });
    }

    pub(crate) fn begun(&mut self, seq: u64, id: PacketId) {
        match self.changes.last_mut() {
            Some(Change::Enqueued {
                seq: last,
                packet_id,
                ..
            }) if *last == seq => *packet_id = Some(id),
            _ if seq == 0 => {}
            _ => self.changes.push(Change::Begun { seq, packet_id: id }),
        }
    }

    pub(crate) fn released(&mut self, seq: u64) {
        if seq > 0 {
            self.changes.push(Change::Released { seq });
        }
    }

    pub(crate) fn dequeued(&mut self, seq: u64) {
        if seq > 0 {
            self.changes.push(Change::Dequeued { seq });
        }
    }

    pub(crate) fn received(&mut self, packet_id: PacketId) {
        self.changes.push(Change::Received { packet_id });
    }

    pub(crate) fn freed(&mut self, packet_id: PacketId) {
        self.changes.push(Change::Freed { packet_id });
    }

    pub(crate) fn after(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}
