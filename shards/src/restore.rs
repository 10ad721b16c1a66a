// SPDX-License-Identifier: Apache-2.0
//! A start on a store: the sessions, messages and retained messages that it kept come back before anybody connects.

use std::num::NonZeroU32;
use std::sync::mpsc;

use corqtt_codec::{PacketId, TopicFilter};
use corqtt_port::store::{self, Op};
use corqtt_session::{Change, Held, Session, Will};
use corqtt_topics::{ClientKey, Subscription};

use crate::shard::Shard;

/// What a shard is given at a start: operations of its sessions and topics, in batches.
pub type Restored = mpsc::Receiver<Vec<Op>>;

/// The session that is coming back.
#[derive(Default)]
struct Reviving {
    session: Option<u32>,
    will: Option<Box<Will>>,
    left_at_ms: Option<u64>,
    /// Of its last message in flight.
    packet_id: Option<PacketId>,
}

impl Shard {
    /// Takes everything back that the store has for this shard; waits for it.
    pub(crate) fn restore(&mut self, restored: &Restored) {
        let mut reviving = Reviving::default();
        while let Ok(ops) = restored.recv() {
            for op in ops {
                self.restore_op(op, &mut reviving);
            }
        }
        self.finish_reviving(&mut reviving);
        self.spread_interest();
    }

    fn restore_op(&mut self, op: Op, reviving: &mut Reviving) {
        match op {
            Op::Session {
                client_id, terms, ..
            } => {
                self.finish_reviving(reviving);
                let session = Session::restored(
                    &client_id,
                    terms.username.as_deref(),
                    terms.version,
                    terms.expiry_secs,
                );
                let session = self.sessions.add(session);
                self.publish_rates.forget(session);
                self.declare(session, true, false);
                self.declare_held(session);
                reviving.session = Some(session);
            }
            Op::Left { at_ms, .. } => reviving.left_at_ms = Some(at_ms),
            Op::Will { will, .. } => reviving.will = will.map(|will| Box::new(will_of(&will))),
            Op::Subscribed {
                filter,
                options,
                subscription_id,
                ..
            } => {
                if let (Some(session), Ok(filter)) = (reviving.session, TopicFilter::parse(&filter))
                {
                    let sub = Subscription {
                        qos: options.qos,
                        no_local: options.no_local,
                        retain_as_published: options.retain_as_published,
                        id: NonZeroU32::new(subscription_id),
                    };
                    let client = ClientKey(session);
                    self.topics
                        .subscribe(client, filter, sub, &mut self.changes);
                }
            }
            Op::Changed { change, .. } => self.restore_change(change, reviving),
            Op::Retained { message, stamp } => {
                self.finish_reviving(reviving);
                self.retained.set(message, stamp);
                self.share_retained();
                self.admission.shares.will_retain(usize::from(self.me.0));
            }
            Op::Ban { client_id, .. } => self.bans.restore(client_id),
            // a store gives none of these back
            Op::SessionEnded { .. }
            | Op::Unsubscribed { .. }
            | Op::Owed { .. }
            | Op::Settled { .. } => debug_assert!(false, "no part of a state: {op:?}"),
        }
    }

    fn restore_change(&mut self, change: Change, reviving: &mut Reviving) {
        let Some(at) = reviving.session else { return };
        let session = &mut self.sessions.slots[at as usize].session;
        match change {
            Change::Enqueued {
                seq,
                message,
                delivery,
                packet_id,
                ..
            } => {
                reviving.packet_id = packet_id;
                session.restore_message(seq, Held::shared(message), delivery, packet_id);
            }
            // it follows its message
            Change::Released { .. } => {
                if let Some(id) = reviving.packet_id {
                    session.restore_released(id);
                }
            }
            Change::Received { packet_id } => session.restore_received(packet_id),
            Change::Begun { .. } | Change::Dequeued { .. } | Change::Freed { .. } => {
                debug_assert!(false, "no part of a state");
            }
        }
    }

    /// All of a session is there: it expires, and its will is due, as if it had been there all the time.
    fn finish_reviving(&mut self, reviving: &mut Reviving) {
        let Reviving {
            session: Some(session),
            will,
            left_at_ms,
            ..
        } = std::mem::take(reviving)
        else {
            return;
        };
        let now = self.now;
        let ago_ms = left_at_ms.map_or(0, |at_ms| now.wall_ms.saturating_sub(at_ms));
        let slot = &mut self.sessions.slots[session as usize];
        slot.session.restore_left(will, ago_ms, now);
        self.meter.inflight_changed(0, slot.session.inflight_len());
        if let Some(deadline) = slot.session.poll_deadline() {
            self.session_deadline(session, deadline.at_ms());
        }
    }
}

fn will_of(will: &store::Will) -> Will {
    Will::restored((*will.message).clone(), will.delay_secs, will.expiry_secs)
}
