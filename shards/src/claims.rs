// SPDX-License-Identifier: Apache-2.0
//! In a cluster: a client id is agreed on before CONNACK, and connections and sessions end that are elsewhere now.

use std::sync::Arc;

use corqtt_codec::{Connect, ReasonCode};
use corqtt_port::ConnectionKey;
use corqtt_port::claims::{Claim, Said, Told, Verdict};

use crate::connect::{Admitted, OTHER_USER, Pending};
use crate::extended::connect_of;
use crate::lanes::Waiter;
use crate::shard::Shard;
use crate::wires::{Close, NONE, Stage, Why};

/// A CONNECT that waits for its client id.
#[derive(Debug)]
pub(crate) struct Claiming {
    packet: Box<[u8]>,
    admitted: Admitted,
}

impl Shard {
    pub(crate) fn say(&self, said: Said) {
        if let Some(claims) = &self.claims {
            claims.push(said);
        }
    }

    /// A client id belongs to a user where somebody checks who that is.
    pub(crate) const fn checks_users(&self) -> bool {
        self.checks_publish || self.checks_subscribe
    }

    /// Asks the cluster for the client id of a CONNECT.
    pub(crate) fn claim(
        &mut self,
        slot: u32,
        connect: &Connect<'_>,
        packet: &[u8],
        admitted: Admitted,
    ) {
        let client_id = admitted.assigned.as_deref().unwrap_or(connect.client_id);
        self.say(Said::Claim(Claim {
            shard: self.me,
            connection: self.wires.key(slot),
            client_id: client_id.into(),
            username: connect
                .username
                .filter(|_| self.checks_users())
                .map(Into::into),
            clean_start: connect.clean_start,
            expiry_secs: self.expiry_secs(connect).0,
        }));
        let connection = &mut self.wires.slots[slot as usize];
        connection.pending = Some(Box::new(Pending::Claim(Claiming {
            packet: packet.into(),
            admitted,
        })));
        connection.asking = true;
        connection.stage = Stage::Connecting;
    }

    /// The store has given a session back: the cluster is to know who holds it.
    pub(crate) fn declare_held(&mut self, session: u32) {
        if self.claims.is_some() {
            let checks_users = self.checks_users();
            let slot = &mut self.sessions.slots[session as usize];
            slot.is_held = true;
            let said = Said::Held {
                client_id: slot.client_id(),
                username: slot
                    .session
                    .username()
                    .filter(|_| checks_users)
                    .map(Into::into),
                expiry_secs: slot.session.session_expiry_secs(),
            };
            self.say(said);
        }
    }

    /// What the cluster tells of a client.
    pub(crate) fn handle_told(&mut self, told: Told) {
        match told {
            Told::Verdict {
                connection,
                client_id,
                verdict,
            } => self.claim_answered(connection, client_id, verdict),
            Told::Taken { client_id, number } => {
                if let Some(session) = self.sessions.find(&client_id)
                    && self.sessions.slots[session as usize].number <= number
                {
                    self.close_taken(session);
                }
            }
            Told::Ended { client_id, epoch } => {
                if let Some(session) = self.sessions.find(&client_id) {
                    self.close_taken(session);
                }
                // with a connection that never lived it may be gone already
                if let Some(session) = self.sessions.find(&client_id) {
                    self.drop_session(session);
                }
                self.dropping.push_back((client_id, epoch));
                if self.keeping.records && self.keeping.lags() {
                    self.keeping.wait(Waiter::Dropped);
                } else {
                    self.drop_is_kept();
                }
            }
            Told::Over { number } => {
                let slots = (0..).zip(&self.sessions.slots);
                let over: Vec<u32> = slots
                    .filter(|(_, slot)| slot.used && slot.connection != NONE)
                    .filter(|(_, slot)| slot.number <= number)
                    .map(|(session, _)| session)
                    .collect();
                for session in over {
                    self.close_taken(session);
                }
            }
        }
    }

    /// No store has the first of those sessions any more.
    pub(crate) fn drop_is_kept(&mut self) {
        if let Some((client_id, epoch)) = self.dropping.pop_front() {
            self.say(Said::Dropped { client_id, epoch });
        }
    }

    /// `[MQTT-3.1.4-2] [MQTT5-3.1.4-3]` on another node.
    fn close_taken(&mut self, session: u32) {
        let connection = self.sessions.slots[session as usize].connection;
        if connection != NONE {
            let close = Close {
                reason: Some(ReasonCode::SESSION_TAKEN_OVER),
                why: Why::Broker("its client id is connected to another node"),
                keep_will: true,
            };
            self.close_now(connection, close);
        }
    }

    fn claim_answered(&mut self, key: ConnectionKey, client_id: Arc<str>, verdict: Verdict) {
        let claiming = self.take_claim(key);
        let refusal = match verdict {
            Verdict::Granted {
                number,
                clean_start,
            } => {
                let lives = claiming
                    .is_some_and(|(slot, claiming)| self.claim_granted(slot, claiming, number));
                if !lives {
                    self.give_back(client_id, number, clean_start);
                }
                return;
            }
            Verdict::HeldElsewhere => (
                ReasonCode::SERVER_UNAVAILABLE,
                "another node holds its session",
            ),
            Verdict::OtherUser => (ReasonCode::NOT_AUTHORIZED, OTHER_USER),
            Verdict::Unknown => (
                ReasonCode::SERVER_UNAVAILABLE,
                "the cluster did not agree on its client id in time",
            ),
        };
        if let Some((slot, _)) = claiming {
            self.refuse(slot, refusal.0, refusal.1);
        }
    }

    fn claim_granted(&mut self, slot: u32, claiming: Claiming, number: u64) -> bool {
        let Claiming { packet, admitted } = claiming;
        let Some(connect) = connect_of(&packet) else {
            return false;
        };
        let admitted = Admitted { number, ..admitted };
        let lives = self.admit_client(slot, &connect, admitted);
        if self.wires.slots[slot as usize].stage != Stage::Lingering {
            // what came behind CONNECT
            self.make_ready(slot);
        }
        lives
    }

    /// A client id was granted to a connection that is not there any more: for the cluster it is the client's last one, and
    /// those before it are over.
    fn give_back(&mut self, client_id: Arc<str>, number: u64, clean_start: bool) {
        let before = self.sessions.find(&client_id);
        let before = before.filter(|at| self.sessions.slots[*at as usize].number < number);
        if let Some(session) = before {
            self.close_taken(session);
        }
        if let Some(session) = before
            && self.sessions.find(&client_id) == before
        {
            if clean_start {
                self.drop_session(session);
            } else {
                self.sessions.slots[session as usize].number = number;
            }
        }
        if self.sessions.find(&client_id).is_none() {
            let client_id = client_id.clone();
            self.say(Said::Ended { client_id, number });
        }
        self.say(Said::Disconnected { client_id, number });
    }

    /// The connection of a claim, if it still waits.
    fn take_claim(&mut self, key: ConnectionKey) -> Option<(u32, Claiming)> {
        let slot = self.wires.find(key)?;
        let connection = &mut self.wires.slots[slot as usize];
        if connection.closing {
            return None;
        }
        match connection.pending.take().map(|pending| *pending) {
            Some(Pending::Claim(claiming)) => {
                connection.asking = false;
                Some((slot, claiming))
            }
            other => {
                connection.pending = other.map(Box::new);
                None
            }
        }
    }
}
