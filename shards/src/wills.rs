// SPDX-License-Identifier: Apache-2.0
//! Wills on their way out: whether their client may still publish them is asked again when they are sent.
//!
//! The connection is gone by then, so an answer that comes late finds the will by a number in its place.

use std::collections::HashMap;

use corqtt_port::ConnectionKey;
use corqtt_port::auth::{Answer, Identity, Question, Verdict, Wish};
use corqtt_session::Will;

use crate::shard::Shard;
use crate::wires::NONE;

/// Wills that wait for auth; at most one per session is on its way.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    waiting: HashMap<u32, Will>,
    next: u32,
}

impl Wills {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What stands for a will in a question. No connection has this slot.
    const fn key(number: u32) -> ConnectionKey {
        ConnectionKey {
            slot: NONE,
            generation: number,
        }
    }

    pub(crate) const fn is_key(key: ConnectionKey) -> bool {
        key.slot == NONE
    }
}

impl Shard {
    /// As whom a session's will is sent; `None` where nobody is asked. The address of its connection is not known any
    /// more.
    pub(crate) fn testator(&self, session: u32) -> Option<Identity> {
        let session = &self.sessions.slots[session as usize].session;
        self.checks_publish.then(|| Identity {
            client_id: session.client_id().into(),
            username: session.username().map(Into::into),
            remote: "".into(),
        })
    }

    /// Sends a will, if its client may still publish to that topic.
    pub(crate) fn send_will(&mut self, will: Will, testator: Option<Identity>) {
        let Some(identity) = testator else {
            return self.publish_will(will);
        };
        let number = self.wills.next;
        self.wills.next = number.wrapping_add(1);
        let question = Question {
            connection: Wills::key(number),
            identity,
            wish: Wish::Publish(will.message.topic.as_str().into()),
        };
        match self.auth.ask(question) {
            Some(verdict) => self.decide_will(will, &verdict),
            None => {
                self.wills.waiting.insert(number, will);
            }
        }
    }

    /// Auth answered late.
    pub(crate) fn will_answered(&mut self, answer: &Answer) {
        if let Some(will) = self.wills.waiting.remove(&answer.connection.generation) {
            self.decide_will(will, &answer.verdict);
        }
    }

    fn decide_will(&mut self, will: Will, verdict: &Verdict) {
        match verdict {
            Verdict::Deny(reason) => {
                log::info!(topic = will.message.topic.as_str(), reason:% = reason; "will refused");
            }
            _ => self.publish_will(will),
        }
    }
}
