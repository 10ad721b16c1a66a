// SPDX-License-Identifier: Apache-2.0
//! Work that goes on over several turns: large fan-outs, jobs, and what operators ask.

use std::sync::Arc;

use corqtt_codec::{Message, MessageId, QoS};
use corqtt_port::ConnectionKey;
use corqtt_port::admin::{Answer, Ask, Client, Query, Reply};
use corqtt_session::{Frame, Grant, Leftover, Outgoing};
use corqtt_topics::{ClientKey, ShardId};

use crate::connect::Pending;
use crate::lanes::{ToShard, Waiter};
use crate::router::{FAN_OUT_INLINE, Former, Routed, Source};
use crate::shard::{Shard, WORK_MAX};
use crate::wires::{NONE, Stage};

/// A message that still goes to many local subscribers. Its source waits, so nothing overtakes it.
#[derive(Debug)]
pub(crate) struct FanOut {
    pub(crate) message: Arc<Message>,
    pub(crate) id: Option<MessageId>,
    pub(crate) targets: Vec<Target>,
    pub(crate) position: usize,
    pub(crate) source: Source,
    pub(crate) next: Next,
    /// The batch that gathers waits for its end.
    pub(crate) is_one_commit: bool,
    pub(crate) routed: Routed,
}

/// A subscriber, as it was when the message was matched.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) client: ClientKey,
    pub(crate) generation: u32,
    pub(crate) qos: QoS,
    pub(crate) retain_as_published: bool,
    pub(crate) ids: Box<[u32]>,
}

/// What follows when a message went to everybody.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// The acknowledgement of its publisher, which waits for this among others.
    Release(Waiter),
    /// The batches of that shard go on.
    Batches { from: ShardId, item: u64 },
    /// Nothing.
    Nothing,
}

/// Something that takes several turns. Each of its steps is some 100 to 200 microseconds at most.
#[derive(Debug)]
pub(crate) enum Job {
    /// A long SUBSCRIBE or UNSUBSCRIBE; its connection is not decoded meanwhile.
    Subscribe(ConnectionKey),
    /// Subscriptions of a session that is over; its slot is not used again before.
    End(u32),
    /// Messages that a session left over.
    Redispatch { left: Leftover, from: Former },
    /// Wills of the sessions from this slot on, while the broker goes down.
    Wills(u32),
}

/// Work that a turn spends on jobs: about 200 microseconds.
const JOBS_WORK: i64 = 2_000;
/// Sessions looked at for wills in one step.
const WILLS_LOOKED_AT: u32 = 1024;

impl Shard {
    /// Goes on with jobs, a step each, as long as the turn has work for them; with one in any case.
    pub(crate) fn continue_jobs(&mut self) {
        let end = self.work - JOBS_WORK;
        for _ in 0..self.jobs.len() {
            let Some(job) = self.jobs.pop_front() else {
                return;
            };
            match job {
                Job::Subscribe(key) => self.continue_subscribe_job(key),
                Job::End(session) => self.end_subscriptions(session),
                Job::Redispatch { left, from } => self.redispatch(left, from),
                Job::Wills(from) => self.publish_wills(from),
            }
            if self.work <= end {
                return;
            }
        }
    }

    fn continue_subscribe_job(&mut self, key: ConnectionKey) {
        let Some(slot) = self.wires.find(key) else {
            return;
        };
        let connection = &mut self.wires.slots[slot as usize];
        if connection.stage != Stage::Live || connection.closing {
            return;
        }
        match connection.pending.take().map(|pending| *pending) {
            Some(Pending::Subscribe(under_way)) => {
                connection.asking = false;
                self.continue_subscribing(slot, under_way, None);
                self.make_ready(slot);
            }
            other => connection.pending = other.map(Box::new),
        }
    }

    /// Publishes wills of all sessions. A will that waits for its delay cannot outlive the process either.
    pub(crate) fn publish_wills(&mut self, from: u32) {
        let end = self
            .sessions
            .slots
            .len()
            .min((from + WILLS_LOOKED_AT) as usize) as u32;
        for session in from..end {
            if self.work <= 0 && session > from {
                return self.jobs.push_back(Job::Wills(session));
            }
            let slot = &mut self.sessions.slots[session as usize];
            // what waits for its delay in a session that is kept goes on waiting after the next start
            let stays = slot.session.is_kept() && slot.session.will_waits();
            if slot.used
                && !stays
                && let Some(will) = slot.session.take_will()
            {
                self.keep_no_will(session);
                let testator = self.testator(session);
                self.send_will(*will, testator);
            }
        }
        if (end as usize) < self.sessions.slots.len() {
            self.jobs.push_back(Job::Wills(end));
        }
    }

    /// Goes on with the oldest large fan-out.
    pub(crate) fn continue_fan_outs(&mut self) {
        let Some(mut job) = self.fan_outs.pop_front() else {
            return;
        };
        let mut frame = Frame::default();
        let mut outgoing = Outgoing::kept(&job.message, &mut frame).named(job.id);
        let end = job.targets.len().min(job.position + FAN_OUT_INLINE);
        for target in &job.targets[job.position..end] {
            let slot = &self.sessions.slots[target.client.0 as usize];
            if !slot.used || slot.generation != target.generation {
                continue;
            }
            let retain = outgoing.message().retain && target.retain_as_published;
            let grant = Grant {
                qos: target.qos,
                retain,
                ids: &target.ids,
                group: None,
            };
            self.deliver(target.client, &mut outgoing, grant, &mut job.routed);
        }
        job.position = end;
        if end < job.targets.len() {
            return self.fan_outs.push_front(job);
        }
        if job.is_one_commit {
            self.keeping.complete();
        }
        if let Source::Client(key) = job.source
            && let Some(slot) = self.wires.find(key)
        {
            self.wires.slots[slot as usize].fanning_out = false;
            self.make_ready(slot);
        }
        match job.next {
            Next::Release(waiter) => {
                if job.routed.stored && !job.routed.refused && self.keeping.lags() {
                    self.keeping.wait(waiter);
                } else {
                    let mut resolved = std::mem::take(&mut self.resolved);
                    resolved.push((waiter, job.routed.refused));
                    self.resolve(&mut resolved);
                    self.resolved = resolved;
                }
            }
            Next::Batches { from, item } => {
                if job.routed.refused {
                    self.refused[usize::from(from.0)].push(item);
                }
                self.continue_batches(from);
            }
            Next::Nothing => {}
        }
    }

    /// An operator asks or orders something.
    pub(crate) fn handle_admin(&mut self, query: Query) {
        let answer = match query.ask {
            Ask::Numbers => Answer::Numbers(Box::new(self.numbers())),
            Ask::Client(client_id) => Answer::Client(
                self.sessions
                    .find(&client_id)
                    .map(|at| Box::new(self.client(at))),
            ),
            Ask::Disconnect(client_id) => {
                if self.disconnect(&client_id, "an operator's order") {
                    Answer::Done
                } else {
                    Answer::NotHere
                }
            }
            Ask::Ban(client_id) => return self.ban(&client_id, true, query.id, query.reply),
            Ask::Unban(client_id) => return self.ban(&client_id, false, query.id, query.reply),
            Ask::Bans => Answer::Bans(self.bans.list()),
            Ask::Publish(message) => {
                self.publish_own(&message);
                Answer::Done
            }
            Ask::System(mut messages) => {
                while let Some(message) = messages.pop_front() {
                    self.publish_own(&message);
                    if self.work <= WORK_MAX / 2 && !messages.is_empty() {
                        let ask = Ask::System(messages);
                        let rest = ToShard::Admin(Query { ask, ..query });
                        return self.messages.push_front(rest);
                    }
                }
                Answer::Done
            }
        };
        query.reply.push(Reply {
            id: query.id,
            answer,
        });
    }

    fn client(&self, at: u32) -> Client {
        let slot = &self.sessions.slots[at as usize];
        let session = &slot.session;
        let connection =
            (slot.connection != NONE).then(|| &self.wires.slots[slot.connection as usize]);
        Client {
            client_id: session.client_id().into(),
            username: session.username().map(Into::into),
            online: session.is_connected(),
            remote: connection.map(|connection| connection.peer.to_string().into()),
            filters: self
                .topics
                .subscriptions(ClientKey(at))
                .map(|(filter, _)| filter.into())
                .collect(),
            queued: session.queue_len(),
            inflight: session.inflight_len(),
            protocol_version: session.version() as u8,
        }
    }
}
