// SPDX-License-Identifier: Apache-2.0
//! What a session changes that must outlive the process, and what may only be sent once that is kept.
//!
//! ```text
//!   session ──► Journal ──take──► store          "kept" ──► Session::changes_kept
//!                  │  a message that comes and goes between two takes is in none of them
//!                  └─ effects of one take wait for its answer: PUBLISH and PUBREL of QoS 2, freed packet ids
//! ```

use std::collections::VecDeque;
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
pub(crate) enum Effect {
    /// PUBLISH with this packet id may be sent.
    Publish(PacketId),
    /// PUBREL with this packet id may be sent.
    Release(PacketId),
    /// The packet id may be used again.
    Free(PacketId),
}

#[derive(Debug)]
struct Enqueued {
    id: MessageId,
    message: Arc<Message>,
    delivery: Delivery,
    packet_id: Option<PacketId>,
}

/// Changes since the last take.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Sequence number of the first of `enqueued`.
    first: u64,
    /// Messages that came, in order; `None`: gone again.
    enqueued: VecDeque<Option<Enqueued>>,
    others: Vec<Change>,
    effects: Vec<Effect>,
    /// Effects of what was taken and is not kept yet.
    taken: Vec<Effect>,
    /// The owner knows that there is something to take.
    pub(crate) is_listed: bool,
}

impl Journal {
    pub(crate) fn enqueued(
        &mut self,
        seq: u64,
        id: MessageId,
        message: Arc<Message>,
        delivery: Delivery,
    ) {
        if self.enqueued.is_empty() {
            self.first = seq;
        }
        debug_assert_eq!(seq, self.first + self.enqueued.len() as u64);
        self.enqueued.push_back(Some(Enqueued {
            id,
            message,
            delivery,
            packet_id: None,
        }));
    }

    /// The message, if it came after the last take.
    fn new_one(&mut self, seq: u64) -> Option<&mut Option<Enqueued>> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.enqueued.get_mut(index)
    }

    pub(crate) fn begun(&mut self, seq: u64, packet_id: PacketId) {
        match self.new_one(seq) {
            Some(Some(new)) => new.packet_id = Some(packet_id),
            Some(None) => {}
            None => self.others.push(Change::Begun { seq, packet_id }),
        }
    }

    pub(crate) fn released(&mut self, seq: u64) {
        self.others.push(Change::Released { seq });
    }

    /// A message that the store has not seen is forgotten.
    pub(crate) fn dequeued(&mut self, seq: u64) {
        match self.new_one(seq) {
            Some(new) => {
                *new = None;
                while let Some(None) = self.enqueued.front() {
                    self.enqueued.pop_front();
                    self.first += 1;
                }
            }
            None => self.others.push(Change::Dequeued { seq }),
        }
    }

    pub(crate) fn received(&mut self, packet_id: PacketId) {
        self.others.push(Change::Received { packet_id });
    }

    pub(crate) fn freed(&mut self, packet_id: PacketId) {
        self.others.push(Change::Freed { packet_id });
    }

    pub(crate) fn after(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.enqueued.is_empty() && self.others.is_empty() && self.effects.is_empty()
    }

    /// Nothing is in it, and nothing waits for it.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_empty() && self.taken.is_empty()
    }

    /// Hands out all changes; their effects wait for [`Journal::kept`].
    pub(crate) fn take(&mut self, mut each: impl FnMut(Change)) {
        debug_assert!(self.taken.is_empty(), "one batch at a time");
        for change in self.others.drain(..) {
            each(change);
        }
        for (seq, enqueued) in (self.first..).zip(self.enqueued.drain(..)) {
            if let Some(new) = enqueued {
                each(Change::Enqueued {
                    seq,
                    id: new.id,
                    message: new.message,
                    delivery: new.delivery,
                    packet_id: new.packet_id,
                });
            }
        }
        self.taken.append(&mut self.effects);
        self.is_listed = false;
    }

    /// What was taken is kept.
    pub(crate) fn kept(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corqtt_codec::{MessageRef, Payload, TopicName};

    fn id(number: u16) -> PacketId {
        PacketId(number.try_into().expect("not 0"))
    }

    fn enqueue(journal: &mut Journal, seq: u64) {
        let message = MessageRef {
            topic: TopicName::trusted("topic"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: &[],
            expires_at_ms: None,
            payload: Payload::borrowed(b"payload"),
        };
        let name = MessageId {
            start: 0,
            number: seq,
            shard: 0,
        };
        let delivery = Delivery {
            qos: QoS::AtLeastOnce,
            retain: false,
            ids: None,
            group: None,
        };
        journal.enqueued(seq, name, Arc::new(message.to_message()), delivery);
    }

    fn taken(journal: &mut Journal) -> Vec<String> {
        let mut all = Vec::new();
        journal.take(|change| {
            all.push(match change {
                Change::Enqueued { seq, packet_id, .. } => {
                    format!("enqueued {seq} {:?}", packet_id.map(PacketId::value))
                }
                other => format!("{other:?}"),
            });
        });
        all
    }

    #[test]
    fn what_comes_and_goes_between_two_takes_is_in_none() {
        let mut journal = Journal::default();
        for seq in 1..=4 {
            enqueue(&mut journal, seq);
        }
        journal.begun(2, id(7));
        journal.dequeued(1);
        journal.dequeued(3);
        assert_eq!(
            taken(&mut journal),
            ["enqueued 2 Some(7)", "enqueued 4 None"]
        );
        assert!(journal.is_idle());
        enqueue(&mut journal, 5);
        journal.dequeued(5);
        assert!(journal.is_empty());
    }

    #[test]
    fn what_was_taken_before_is_changed_by_name() {
        let mut journal = Journal::default();
        enqueue(&mut journal, 1);
        taken(&mut journal);
        enqueue(&mut journal, 2);
        journal.begun(1, id(1));
        journal.dequeued(1);
        assert_eq!(
            taken(&mut journal),
            [
                format!("{:?}", Change::Begun { seq: 1, packet_id: id(1) }),
                format!("{:?}", Change::Dequeued { seq: 1 }),
                "enqueued 2 None".to_owned(),
            ]
        );
    }

    #[test]
    fn effects_wait_for_the_take_that_they_were_in() {
        let mut journal = Journal::default();
        journal.received(id(1));
        journal.after(Effect::Publish(id(1)));
        taken(&mut journal);
        journal.after(Effect::Free(id(2)));
        assert_eq!(journal.kept(), [Effect::Publish(id(1))]);
        assert!(journal.kept().is_empty());
        taken(&mut journal);
        assert_eq!(journal.kept(), [Effect::Free(id(2))]);
    }
}
