// SPDX-License-Identifier: Apache-2.0
//! In a cluster: a client id is agreed on before CONNACK, and connections and sessions end that are elsewhere now.

use std::sync::Arc;

use corqtt_codec::{Connect, ReasonCode};
use corqtt_port::ConnectionKey;
use corqtt_port::claims::{Claim, Said, Told, Verdict};

use crate::connect::{Admitted, Pending};
use crate::extended::connect_of;
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
            username: connect.username.map(Into::into),
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
            let slot = &mut self.sessions.slots[session as usize];
            slot.is_held = true;
            let said = Said::Held {
                client_id: slot.client_id(),
                username: slot.session.username().map(Into::into),
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
                self.say(Said::Dropped { client_id, epoch });
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
        let number = match verdict {
            Verdict::Granted(number) => Some(number),
            _ => None,
        };
        let Some((slot, claiming)) = self.take_claim(key) else {
            if let Some(number) = number {
                self.say(Said::Disconnected { client_id, number });
            }
            return;
        };
        let refuse = |shard: &mut Self, reason, why| shard.refuse(slot, reason, why);
        match verdict {
            Verdict::Granted(number) => {
                let Claiming { packet, admitted } = claiming;
                let Some(connect) = connect_of(&packet) else {
                    return;
                };
                let admitted = Admitted { number, ..admitted };
                if !self.admit_client(slot, &connect, admitted) {
                    self.say(Said::Disconnected { client_id, number });
                }
            }
            Verdict::HeldElsewhere => refuse(
                self,
                ReasonCode::SERVER_UNAVAILABLE,
                "another node holds its session",
            ),
            Verdict::OtherUser => refuse(
                self,
                ReasonCode::NOT_AUTHORIZED,
                "its client id belongs to another user",
            ),
            Verdict::Unknown => refuse(
                self,
                ReasonCode::SERVER_UNAVAILABLE,
                "the cluster did not agree on its client id in time",
            ),
        }
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
