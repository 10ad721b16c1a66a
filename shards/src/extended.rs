// SPDX-License-Identifier: Apache-2.0
//! Extended authentication: AUTH packets before CONNACK and on a live connection (section 4.12 of 5.0).

use corqtt_codec::{
    Auth, Connect, Frame, Packet, ReasonCode, UserProperties, Version, decode, encode,
};
use corqtt_port::auth::{Question, Verdict, Wish};

use crate::connect::Pending;
use crate::shard::Shard;
use crate::wires::{Close, Why};

const TOO_SMALL: &str = "its Maximum Packet Size is below that of the next AUTH";

/// The authentication method of a live connection.
#[derive(Debug)]
pub(crate) struct Method {
    name: Box<str>,
    /// The authority has answered an AUTH by AUTH 0x18: the client's next step is awaited.
    under_way: bool,
}

impl Method {
    pub(crate) const fn new(name: Box<str>) -> Self {
        Self {
            name,
            under_way: false,
        }
    }
}

impl Shard {
    /// The authority wants more: AUTH 0x18, and the client's AUTH is awaited `[MQTT5-4.12.0-2]`.
    pub(crate) fn challenge(
        &mut self,
        slot: u32,
        connect: &Connect<'_>,
        packet: &[u8],
        assigned: Option<Box<str>>,
        data: &[u8],
    ) {
        let method = connect.authentication_method.unwrap_or_default();
        let bytes_max = connect.maximum_packet_size.unwrap_or(u32::MAX);
        let reason = ReasonCode::CONTINUE_AUTHENTICATION;
        if !self.write_auth(slot, reason, method, data, bytes_max) {
            let why = Why::Broker(TOO_SMALL);
            let close = Close {
                reason: Some(ReasonCode::PACKET_TOO_LARGE),
                why,
                keep_will: true,
            };
            return self.close_soon(slot, close);
        }
        let connection = &mut self.wires.slots[slot as usize];
        let packet = packet.into();
        connection.pending = Some(Box::new(Pending::Connect { packet, assigned }));
        connection.stage = crate::wires::Stage::Connecting;
    }

    /// False: the client has no room for it.
    fn write_auth(
        &mut self,
        slot: u32,
        reason: ReasonCode,
        method: &str,
        data: &[u8],
        bytes_max: u32,
    ) -> bool {
        // [MQTT5-4.12.0-5] each AUTH names the method of CONNECT
        let auth = Auth {
            reason,
            method: Some(method),
            data: Some(data),
            reason_string: None,
            user_properties: UserProperties::EMPTY,
        };
        let out = self.wires.output(slot).bytes_mut();
        let before = out.len();
        encode(&Packet::Auth(auth), Version::V5, out);
        // [MQTT5-3.1.2-24]
        let fits = out.len() - before <= bytes_max as usize;
        if !fits {
            out.truncate(before);
        }
        fits
    }

    /// A packet between CONNECT and CONNACK: the client's next step, or its goodbye `[MQTT5-3.1.2-30]`.
    pub(crate) fn handle_exchange(&mut self, slot: u32, frame: Frame<'_>) {
        let auth = match decode(frame, Version::V5) {
            Ok(Packet::Auth(auth)) => auth,
            Ok(Packet::Disconnect(_)) => {
                let why = Why::Client("DISCONNECT before CONNACK");
                let close = Close {
                    reason: None,
                    why,
                    keep_will: true,
                };
                return self.close_soon(slot, close);
            }
            Ok(_) => {
                return self.refuse(slot, ReasonCode::PROTOCOL_ERROR, "a packet before CONNACK");
            }
            Err(error) => return self.malformed(slot, error),
        };
        let pending = self.wires.slots[slot as usize].pending.take();
        let Some(Pending::Connect { packet, assigned }) = pending.map(|pending| *pending) else {
            return self.refuse(
                slot,
                ReasonCode::PROTOCOL_ERROR,
                "AUTH that nobody asked for",
            );
        };
        let Some(connect) = connect_of(&packet) else {
            return;
        };
        // [MQTT5-4.12.0-3] the client answers with 0x18; [MQTT5-4.12.0-5] and keeps to its method
        let continues = auth.reason == ReasonCode::CONTINUE_AUTHENTICATION;
        if !continues || auth.method != connect.authentication_method {
            return self.refuse(
                slot,
                ReasonCode::PROTOCOL_ERROR,
                "AUTH out of turn or by another method",
            );
        }
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        let question = Question {
            connection: self.wires.key(slot),
            identity: self.identity(slot, client_id, connect.username),
            wish: Wish::Continue {
                data: auth.data.map(Into::into),
            },
        };
        match self.auth.ask(question) {
            Some(verdict) => self.connect_verdict(slot, &connect, &packet, assigned, verdict),
            None => {
                let connection = &mut self.wires.slots[slot as usize];
                connection.asking = true;
                let packet = packet.clone();
                connection.pending = Some(Box::new(Pending::Connect { packet, assigned }));
            }
        }
    }

    /// AUTH on a live connection: the client authenticates anew.
    pub(crate) fn handle_auth(&mut self, slot: u32, auth: &Auth<'_>) {
        // [MQTT5-4.12.0-7] a CONNECT without a method leaves none here
        let Some(method) = self.methods.get(&slot) else {
            let what = "AUTH after a CONNECT without an authentication method";
            return self.violation(slot, ReasonCode::PROTOCOL_ERROR, what);
        };
        // [MQTT5-4.12.0-5] [MQTT5-4.12.1-1]
        if auth.method != Some(&*method.name) {
            let what = "AUTH without the authentication method of its CONNECT";
            return self.violation(slot, ReasonCode::PROTOCOL_ERROR, what);
        }
        // [MQTT5-4.12.0-3] 0x18 goes on; [MQTT5-4.12.1-1] 0x19 begins
        let in_turn = if method.under_way {
            ReasonCode::CONTINUE_AUTHENTICATION
        } else {
            ReasonCode::REAUTHENTICATE
        };
        if auth.reason != in_turn {
            return self.violation(slot, ReasonCode::PROTOCOL_ERROR, "AUTH out of turn");
        }
        let question = self.question(
            slot,
            Wish::Continue {
                data: auth.data.map(Into::into),
            },
        );
        match self.auth.ask(question) {
            Some(verdict) => self.auth_verdict(slot, &verdict),
            None => {
                let connection = &mut self.wires.slots[slot as usize];
                connection.asking = true;
                connection.pending = Some(Box::new(Pending::Auth));
            }
        }
    }

    /// The authority's answer to AUTH on a live connection.
    pub(crate) fn auth_verdict(&mut self, slot: u32, verdict: &Verdict) {
        let Some(method) = self.methods.get_mut(&slot) else {
            return;
        };
        method.under_way = matches!(verdict, Verdict::Continue { .. });
        let name = method.name.clone();
        let (reason, data) = match verdict {
            // [MQTT5-4.12.0-2]
            Verdict::Continue { data } => (ReasonCode::CONTINUE_AUTHENTICATION, &**data),
            Verdict::Authenticated { data } => (ReasonCode::SUCCESS, &**data),
            Verdict::Allow | Verdict::Filters(_) => (ReasonCode::SUCCESS, &[][..]),
            // [MQTT5-4.12.1-2]
            Verdict::Deny(reason) => {
                return self.violation(slot, *reason, "a proof that was not accepted");
            }
        };
        let session = self.wires.slots[slot as usize].session;
        let state = &self.sessions.slots[session as usize].session;
        let bytes_max = state.packet_bytes_max();
        if !self.write_auth(slot, reason, &name, data, bytes_max) {
            self.violation(slot, ReasonCode::PACKET_TOO_LARGE, TOO_SMALL);
        }
    }
}

/// A CONNECT that was decoded before.
pub(crate) fn connect_of(packet: &[u8]) -> Option<Connect<'_>> {
    let (frame, _) = corqtt_codec::frame(packet, u32::MAX).ok()??;
    match decode(frame, Version::V5) {
        Ok(Packet::Connect(connect)) => Some(connect),
        _ => None,
    }
}
