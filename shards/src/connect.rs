// SPDX-License-Identifier: Apache-2.0
//! CONNECT to CONNACK: checks, placement, auth, take-over, resume (sections 3.1 and 3.2).

use std::num::NonZeroU16;
use std::sync::Arc;

use corqtt_codec::{
    ConnAck, ConnAckProperties, Connect, Frame, Packet, QoS, ReasonCode, Version, decode, encode,
};
use corqtt_port::ConnectionKey;
use corqtt_port::auth::{Identity, Question, Verdict, Wish};
use corqtt_port::events::Event;
use corqtt_port::store::{self, Op};
use corqtt_session::{Opening, Session, Will};

use crate::claims::Claiming;
use crate::connection::keep_alive_ms;
use crate::extended::{Method, connect_of};
use crate::lanes::Waiter;
use crate::limits::Limited;
use crate::shard::Shard;
use crate::subscribe::Subscribing;
use crate::wires::{Close, NONE, Stage, Why};

/// What a connection does once an answer is in.
#[derive(Debug)]
pub(crate) enum Pending {
    /// CONNECT waits for auth.
    Connect {
        packet: Box<[u8]>,
        assigned: Option<Box<str>>,
    },
    /// CONNECT waits for the cluster.
    Claim(Claiming),
    /// CONNACK waits for the store.
    Open(Box<Terms>),
    /// AUTH of a live connection waits for auth.
    Auth,
    /// SUBSCRIBE or UNSUBSCRIBE waits for auth, or for the next turn.
    Subscribe(Subscribing),
    /// PUBLISH waits for auth; its alias is resolved already.
    Publish {
        packet: bytes::Bytes,
        topic: Box<str>,
    },
}

/// What CONNECT and the broker agreed on.
#[derive(Debug)]
pub(crate) struct Terms {
    opening: Opening,
    session_present: bool,
    clean_start: bool,
    assigned: Option<Box<str>>,
    keep_alive_secs: u16,
    /// The client asked for more or less than it gets.
    tell_keep_alive: bool,
    tell_expiry: bool,
    authentication: Option<(Box<str>, Box<[u8]>)>,
}

/// A client that may connect.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) assigned: Option<Box<str>>,
    pub(crate) authentication: Option<(Box<str>, Box<[u8]>)>,
    /// Of its connection, among all of this node; 0: there is no cluster.
    pub(crate) number: u64,
}

/// A CONNECT that is refused.
struct Refused {
    reason: ReasonCode,
    why: &'static str,
}

/// What a CONNECT costs, in packets or deliveries.
const CONNECT_WORK: i64 = 32;
/// Bytes of a CONNECT that count as much again: each property is looked at.
const CONNECT_BYTES_PER_WORK: usize = 64;

fn kept_will(will: &Will) -> store::Will {
    store::Will {
        message: Arc::new(will.message.clone()),
        delay_secs: will.delay_secs,
        expiry_secs: will.expiry_secs,
    }
}

pub(crate) const OTHER_USER: &str = "its client id belongs to another user";
const SHUTTING_DOWN: &str = "the broker is shutting down";

impl Shard {
    /// The first packet of a connection. `rest` begins with it.
    pub(crate) fn handle_connect(&mut self, slot: u32, frame: Frame<'_>, size: usize, rest: &[u8]) {
        // what is no CONNECT was closed before it came whole
        let connect = match decode(frame, Version::V5) {
            Ok(Packet::Connect(connect)) => connect,
            Ok(_) => {
                let why = Why::Client("the first packet was not CONNECT");
                return self.close_soon(
                    slot,
                    Close {
                        reason: None,
                        why,
                        keep_will: true,
                    },
                );
            }
            Err(error) => return self.refuse_malformed(slot, frame, error),
        };
        self.work -= CONNECT_WORK + (size / CONNECT_BYTES_PER_WORK) as i64;
        let connection = &mut self.wires.slots[slot as usize];
        connection.version = connect.version;
        connection.bridge = connect.bridge;
        let assigned = match self.check_connect(&connect) {
            Ok(assigned) => assigned,
            Err(refused) => {
                if refused.reason == ReasonCode::TOPIC_NAME_INVALID {
                    self.limited_client(Limited::TopicLevels, slot);
                }
                return self.refuse(slot, refused.reason, refused.why);
            }
        };
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        let owner = self.sessions.hash(client_id) % u64::from(self.config.shards);
        if owner != u64::from(self.me.0) {
            log::debug!(client = client_id, from = self.me.0, to = owner; "client goes to its shard");
            return self.hand_over_socket(slot, owner, rest);
        }
        if let Err(limit) = self.memory_for_client(client_id) {
            return self.refuse_limited(slot, limit, ReasonCode::QUOTA_EXCEEDED);
        }
        if let Err(limit) = self.admission.connect(self.now.mono_ms) {
            return self.refuse_limited(slot, limit, ReasonCode::CONNECTION_RATE_EXCEEDED);
        }
        let Some(question) = self.connect_question(slot, &connect, client_id) else {
            return self.open_session(slot, &connect, &rest[..size], assigned, None);
        };
        match self.auth.ask(question) {
            Some(verdict) => self.connect_verdict(slot, &connect, &rest[..size], assigned, verdict),
            None => {
                let packet = rest[..size].into();
                let connection = &mut self.wires.slots[slot as usize];
                connection.pending = Some(Box::new(Pending::Connect { packet, assigned }));
                connection.asking = true;
                connection.stage = Stage::Connecting;
            }
        }
    }

    /// A CONNECT that cannot be decoded: closed, with CONNACK where the client can understand one
    /// `[MQTT-3.1.4-1] [MQTT5-3.1.4-1]`.
    fn refuse_malformed(&mut self, slot: u32, frame: Frame<'_>, error: corqtt_codec::DecodeError) {
        let connection = &mut self.wires.slots[slot as usize];
        let version = corqtt_codec::connect_version(frame);
        if frame.packet_type() == 1 {
            let answer = match version {
                Ok(version) => {
                    connection.version = version;
                    // [MQTT-3.1.4-1] before 5.0 without an answer
                    version.is_v5()
                }
                // [MQTT-3.1.2-2] [MQTT5-3.1.2-2]
                Err(unknown) => {
                    connection.version = Version::V311;
                    unknown.reason() == ReasonCode::UNSUPPORTED_PROTOCOL_VERSION
                }
            };
            if answer {
                let ack = ConnAck {
                    session_present: false,
                    reason: error.reason(),
                    properties: ConnAckProperties::default(),
                };
                let version = connection.version;
                encode(
                    &Packet::ConnAck(ack),
                    version,
                    self.wires.output(slot).bytes_mut(),
                );
            }
        }
        self.malformed(slot, error);
    }

    /// Whether a CONNECT that is well-formed may go on; a client id that was assigned `[MQTT5-3.1.4-2]`.
    fn check_connect(&mut self, connect: &Connect<'_>) -> Result<Option<Box<str>>, Refused> {
        let capabilities = &self.config.capabilities;
        let refused = |reason, why| Err(Refused { reason, why });
        if self.draining.is_some() {
            return refused(ReasonCode::SERVER_UNAVAILABLE, SHUTTING_DOWN);
        }
        if connect.version < capabilities.minimum_version {
            return refused(
                ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
                "its version is below minimum-protocol-version",
            );
        }
        if let Some(will) = &connect.will {
            // [MQTT5-3.2.2-12]
            if will.qos > capabilities.maximum_qos {
                return refused(
                    ReasonCode::QOS_NOT_SUPPORTED,
                    "the QoS of its will is above maximum-qos",
                );
            }
            // [MQTT5-3.2.2-13]
            if will.retain && !capabilities.retain {
                return refused(
                    ReasonCode::RETAIN_NOT_SUPPORTED,
                    "its will is retained and retain-available is off",
                );
            }
            let levels_max = self.config.limits.topic_levels_max;
            if levels_max > 0 && will.topic.level_count() > levels_max {
                return refused(
                    ReasonCode::TOPIC_NAME_INVALID,
                    "the topic of its will has too many levels",
                );
            }
            if corqtt_topics::is_system(will.topic.as_str()) {
                return refused(ReasonCode::NOT_AUTHORIZED, "its will is for $SYS");
            }
        }
        if let Some(method) = connect.authentication_method
            // [MQTT5-4.12.0-1]
            && !self.auth.knows_method(method)
        {
            return refused(
                ReasonCode::BAD_AUTHENTICATION_METHOD,
                "its authentication method is not known",
            );
        }
        if connect.client_id.is_empty() {
            // [MQTT-3.1.3-7] 3.1 has no empty client ids
            let allowed = match connect.version {
                Version::V31 => false,
                Version::V311 => connect.clean_start,
                Version::V5 => true,
            };
            if !allowed {
                // [MQTT-3.1.3-8] [MQTT-3.1.3-9]
                return refused(
                    ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
                    "its client id is empty",
                );
            }
            // [MQTT-3.1.3-6] [MQTT5-3.1.3-6]
            return Ok(Some(self.assign_client_id()));
        }
        // [MQTT-3.1.3-5] [MQTT5-3.1.3-5] no other id is refused; 3.1 has a limit
        if connect.version == Version::V31 && connect.client_id.chars().count() > 23 {
            return refused(
                ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
                "its client id is longer than 23 characters",
            );
        }
        Ok(None)
    }

    /// A client id that nobody has and that belongs to this shard.
    fn assign_client_id(&mut self) -> Box<str> {
        // an id is as good as a password to who knows it: one must not tell what the next will be
        let mut secret = [0; 8];
        if rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()).is_err() {
            secret = self.random().to_ne_bytes();
        }
        let secret = u64::from_ne_bytes(secret);
        loop {
            // [MQTT5-3.2.2-16]
            let id = format!("auto-{secret:016X}{:08X}", self.random() as u32);
            let owner = self.sessions.hash(&id) % u64::from(self.config.shards);
            if owner == u64::from(self.me.0) && self.sessions.find(&id).is_none() {
                return id.into();
            }
        }
    }

    pub(crate) fn identity(&self, slot: u32, client_id: &str, username: Option<&str>) -> Identity {
        Identity {
            client_id: client_id.into(),
            username: username.map(Into::into),
            remote: self.wires.slots[slot as usize].peer.to_string().into(),
        }
    }

    /// What to ask about a live connection.
    pub(crate) fn question(&self, slot: u32, wish: Wish) -> Question {
        let session =
            &self.sessions.slots[self.wires.slots[slot as usize].session as usize].session;
        let identity = self.identity(slot, session.client_id(), session.username());
        Question {
            connection: self.wires.key(slot),
            identity,
            wish,
        }
    }

    fn connect_question(
        &self,
        slot: u32,
        connect: &Connect<'_>,
        client_id: &str,
    ) -> Option<Question> {
        // nobody is asked where everybody may do everything
        if !self.checks_publish && !self.checks_subscribe && connect.authentication_method.is_none()
        {
            return None;
        }
        let wish = Wish::Connect {
            version: connect.version,
            password: connect.password.map(Into::into),
            method: connect.authentication_method.map(Into::into),
            data: connect.authentication_data.map(Into::into),
            will_topic: connect.will.as_ref().map(|will| will.topic.as_str().into()),
        };
        let identity = self.identity(slot, client_id, connect.username);
        Some(Question {
            connection: self.wires.key(slot),
            identity,
            wish,
        })
    }

    /// Auth answered a CONNECT late.
    pub(crate) fn connect_answered(
        &mut self,
        slot: u32,
        packet: &[u8],
        assigned: Option<Box<str>>,
        verdict: Verdict,
    ) {
        if let Some(connect) = connect_of(packet) {
            self.connect_verdict(slot, &connect, packet, assigned, verdict);
        }
    }

    /// The authority's answer to CONNECT, or to the last step of an exchange; `packet` holds the CONNECT.
    pub(crate) fn connect_verdict(
        &mut self,
        slot: u32,
        connect: &Connect<'_>,
        packet: &[u8],
        assigned: Option<Box<str>>,
        verdict: Verdict,
    ) {
        let data = match verdict {
            Verdict::Allow | Verdict::Filters(_) => Box::default(),
            Verdict::Authenticated { data } => data,
            Verdict::Continue { data } => {
                return self.challenge(slot, connect, packet, assigned, &data);
            }
            // [MQTT5-3.1.4-2] [MQTT5-4.12.0-4]
            Verdict::Deny(reason) => {
                let obscure = self.config.compatibilities.obscure_not_authorized;
                let reason = if obscure {
                    ReasonCode::UNSPECIFIED_ERROR
                } else {
                    reason
                };
                return self.refuse(slot, reason, "not authorized");
            }
        };
        // [MQTT5-4.12.0-5] [MQTT5-4.12.0-6] CONNACK names the method of CONNECT, or none
        let authentication = connect
            .authentication_method
            .map(|method| (method.into(), data));
        self.open_session(slot, connect, packet, assigned, authentication);
    }

    /// CONNACK with an error, then the connection closes `[MQTT-3.2.2-5] [MQTT5-3.2.2-7]`.
    pub(crate) fn refuse(&mut self, slot: u32, reason: ReasonCode, why: &'static str) {
        self.refuse_why(slot, reason, Why::Broker(why));
    }

    /// As [`Shard::refuse`], by a limit.
    fn refuse_limited(&mut self, slot: u32, limit: Limited, reason: ReasonCode) {
        self.limited_client(limit, slot);
        self.refuse_why(slot, reason, Why::Limit(limit));
    }

    fn refuse_why(&mut self, slot: u32, reason: ReasonCode, why: Why) {
        let version = self.wires.slots[slot as usize].version;
        // [MQTT-3.2.2-6] no return code says what is wrong with a will
        let unspeakable = !version.is_v5()
            && matches!(
                reason,
                ReasonCode::QOS_NOT_SUPPORTED
                    | ReasonCode::RETAIN_NOT_SUPPORTED
                    | ReasonCode::TOPIC_NAME_INVALID
            );
        if !unspeakable {
            // [MQTT-3.2.2-4] [MQTT5-3.2.2-6] no session present with an error
            let ack = ConnAck {
                session_present: false,
                reason,
                properties: ConnAckProperties::default(),
            };
            let out = self.wires.output(slot).bytes_mut();
            encode(&Packet::ConnAck(ack), version, out);
        }
        self.close_soon(
            slot,
            Close {
                // told in CONNACK; no DISCONNECT follows
                reason: Some(reason),
                why,
                keep_will: true,
            },
        );
    }

    /// The client may connect, as soon as its client id is its own.
    fn open_session(
        &mut self,
        slot: u32,
        connect: &Connect<'_>,
        packet: &[u8],
        assigned: Option<Box<str>>,
        authentication: Option<(Box<str>, Box<[u8]>)>,
    ) {
        let admitted = Admitted {
            assigned,
            authentication,
            number: 0,
        };
        if self.claims.is_none() {
            self.admit_client(slot, connect, admitted);
        } else if let Some(refused) = self.refusal(connect, &admitted) {
            self.refuse(slot, refused.reason, refused.why);
        } else {
            self.claim(slot, connect, packet, admitted);
        }
    }

    /// Why a client may not connect now.
    fn refusal(&self, connect: &Connect<'_>, admitted: &Admitted) -> Option<Refused> {
        let refused = |reason, why| Some(Refused { reason, why });
        // wills are published already: its own would never be
        if self.draining.is_some() {
            return refused(ReasonCode::SERVER_UNAVAILABLE, SHUTTING_DOWN);
        }
        let client_id = admitted.assigned.as_deref().unwrap_or(connect.client_id);
        if self.bans.contains(client_id) {
            return refused(ReasonCode::BANNED, "its client id is banned");
        }
        if self.checks_users()
            && let Some(existing) = self.sessions.find(client_id)
            && self.sessions.slots[existing as usize].session.username() != connect.username
        {
            return refused(ReasonCode::NOT_AUTHORIZED, OTHER_USER);
        }
        None
    }

    /// An older connection of a client's id ends, its session is found, ended or made. False: it is refused.
    pub(crate) fn admit_client(
        &mut self,
        slot: u32,
        connect: &Connect<'_>,
        admitted: Admitted,
    ) -> bool {
        if let Some(refused) = self.refusal(connect, &admitted) {
            self.refuse(slot, refused.reason, refused.why);
            return false;
        }
        let Admitted {
            assigned,
            authentication,
            number,
        } = admitted;
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        let mut ended = false;
        if let Some(existing) = self.sessions.find(client_id) {
            let old = self.sessions.slots[existing as usize].connection;
            if old != NONE {
                // [MQTT-3.1.4-2] [MQTT5-3.1.4-3]
                let why = Why::Broker("another connection took its client id over");
                self.close_now(
                    old,
                    Close {
                        reason: Some(ReasonCode::SESSION_TAKEN_OVER),
                        why,
                        keep_will: true,
                    },
                );
            }
        }
        let existing = self.sessions.find(client_id);
        if let Some(existing) = existing
            && connect.clean_start
        {
            // [MQTT-3.1.2-6] [MQTT-3.1.4-3] [MQTT5-3.1.2-4] [MQTT5-3.1.4-4]
            ended = self.sessions.slots[existing as usize]
                .session
                .is_persistent();
            // for the cluster its claim has ended it
            self.drop_session(existing);
        }
        let existing = if connect.clean_start { None } else { existing };
        // [MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT5-3.2.2-2] [MQTT5-3.2.2-3]
        let session_present = existing.is_some();
        let session = match existing {
            // [MQTT-3.1.2-4] [MQTT5-3.1.2-5]
            Some(session) => session,
            // [MQTT5-3.1.2-6]
            None => {
                let session = Session::new(client_id, connect.username);
                let session = self.sessions.add(session);
                self.publish_rates.forget(session);
                session
            }
        };
        let claimed = number > 0;
        let of_session = &mut self.sessions.slots[session as usize];
        of_session.connection = slot;
        of_session.number = number;
        let connection = &mut self.wires.slots[slot as usize];
        connection.session = session;
        connection.stage = Stage::Connecting;
        let terms = self.terms(connect, session_present, assigned, authentication);
        let persistent = terms.opening.session_expiry_secs > 0;
        let of_session = &mut self.sessions.slots[session as usize];
        // one that goes on was held before, if only for as long as this connection
        of_session.is_held = claimed && (persistent || of_session.is_held);
        // a claim may have ended a session before this was told of it
        ended |= claimed && connect.clean_start && self.keeping.lags();
        let state = &mut self.sessions.slots[session as usize].session;
        if self.keeping.records && (persistent || ended || state.is_kept()) {
            if persistent {
                state.keep();
            }
            self.keep_session(session, &terms.opening, !session_present);
            self.keeping.wait(Waiter::Connect(self.wires.key(slot)));
            let connection = &mut self.wires.slots[slot as usize];
            connection.asking = true;
            connection.pending = Some(Box::new(Pending::Open(Box::new(terms))));
            return true;
        }
        self.finish_connect(slot, terms);
        true
    }

    /// The store is to have a session with these terms, and the will that came with them.
    fn keep_session(&mut self, session: u32, opening: &Opening, fresh: bool) {
        let (version, expiry_secs) = (opening.version, opening.session_expiry_secs);
        if !self.keep_terms(session, version, expiry_secs, fresh) {
            return;
        }
        let will = opening.will.as_deref().map(kept_will);
        if will.is_some() || !fresh {
            let client_id = self.sessions.slots[session as usize].client_id();
            self.keeping.push(Op::Will { client_id, will });
        }
    }

    /// The store is to have a session with these terms. False: none keeps it.
    pub(crate) fn keep_terms(
        &mut self,
        session: u32,
        version: Version,
        expiry_secs: u32,
        fresh: bool,
    ) -> bool {
        let slot = &mut self.sessions.slots[session as usize];
        if !slot.session.is_kept() {
            return false;
        }
        let terms = store::Terms {
            username: slot.session.username().map(Into::into),
            version,
            expiry_secs,
        };
        let client_id = slot.client_id();
        self.keeping.push(Op::Session {
            client_id,
            terms,
            fresh,
        });
        true
    }

    /// A CONNECT that got no CONNACK changes nothing: the store is to have the session as it was.
    pub(crate) fn keep_as_before(&mut self, session: u32) {
        let state = &self.sessions.slots[session as usize].session;
        let (version, expiry_secs) = (state.version(), state.session_expiry_secs());
        let will = state.will().map(kept_will);
        let at_ms = self.now.wall_ms - state.left_ago_ms(self.now).min(self.now.wall_ms);
        if self.keep_terms(session, version, expiry_secs, false) {
            let client_id = self.sessions.slots[session as usize].client_id();
            self.keeping.push(Op::Will {
                client_id: client_id.clone(),
                will,
            });
            self.keeping.push(Op::Left { client_id, at_ms });
        }
    }

    /// How long a session stays, and how long its client wants it to (s).
    pub(crate) fn expiry_secs(&self, connect: &Connect<'_>) -> (u32, u32) {
        let wanted = match connect.version {
            Version::V5 => connect.session_expiry_secs.unwrap_or(0),
            // before 5.0 a session that is not clean never ends
            _ if connect.clean_start => 0,
            _ => u32::MAX,
        };
        let maximum = self.config.capabilities.session_expiry_max_secs;
        (wanted.min(maximum), wanted)
    }

    fn terms(
        &self,
        connect: &Connect<'_>,
        session_present: bool,
        assigned: Option<Box<str>>,
        authentication: Option<(Box<str>, Box<[u8]>)>,
    ) -> Terms {
        let capabilities = &self.config.capabilities;
        let (session_expiry_secs, wanted_expiry) = self.expiry_secs(connect);
        let keep_alive_max = capabilities.keep_alive_max_secs;
        let too_long = keep_alive_max > 0
            && (connect.keep_alive_secs == 0 || connect.keep_alive_secs > keep_alive_max);
        // a client before 5.0 cannot be told another one
        let tell_keep_alive = too_long && connect.version.is_v5();
        let keep_alive_secs = if tell_keep_alive {
            // [MQTT5-3.1.2-21] [MQTT5-3.2.2-21]
            keep_alive_max
        } else {
            // [MQTT5-3.2.2-22]
            connect.keep_alive_secs
        };
        let opening = Opening {
            version: connect.version,
            session_expiry_secs,
            receive_maximum: connect.receive_maximum.get(),
            packet_bytes_max: connect.maximum_packet_size.unwrap_or(u32::MAX),
            topic_alias_maximum: connect.topic_alias_maximum,
            problem_information: connect.request_problem_information,
            will: connect.will.as_ref().map(|will| Box::new(Will::new(will))),
        };
        Terms {
            opening,
            session_present,
            clean_start: connect.clean_start,
            assigned,
            keep_alive_secs,
            tell_keep_alive,
            tell_expiry: session_expiry_secs != wanted_expiry,
            authentication,
        }
    }

    /// The store has the session: CONNACK may leave.
    pub(crate) fn connect_is_kept(&mut self, key: ConnectionKey) {
        let Some(slot) = self.wires.find(key) else {
            return;
        };
        let connection = &mut self.wires.slots[slot as usize];
        match connection.pending.take().map(|pending| *pending) {
            Some(Pending::Open(_)) if self.draining.is_some() => {
                self.refuse(slot, ReasonCode::SERVER_UNAVAILABLE, SHUTTING_DOWN);
            }
            Some(Pending::Open(terms)) if !connection.closing => {
                connection.asking = false;
                crate::crash_point("connack");
                self.finish_connect(slot, *terms);
                self.make_ready(slot);
            }
            other => connection.pending = other.map(Box::new),
        }
    }

    fn finish_connect(&mut self, slot: u32, terms: Terms) {
        let version = self.wires.slots[slot as usize].version;
        // [MQTT-3.1.4-4] [MQTT-3.2.0-1] [MQTT5-3.1.4-5] [MQTT5-3.2.0-1] before anything else
        let connack_bytes = self.write_connack(slot, version, &terms);
        // [MQTT5-3.1.2-24] a client that has no room for its CONNACK cannot be served
        if connack_bytes > terms.opening.packet_bytes_max as usize {
            let why = "its Maximum Packet Size is below that of its CONNACK";
            return self.close_soon(
                slot,
                Close {
                    reason: Some(ReasonCode::PACKET_TOO_LARGE),
                    why: Why::Broker(why),
                    keep_will: true,
                },
            );
        }
        let connection = &mut self.wires.slots[slot as usize];
        let session = connection.session;
        connection.stage = Stage::Live;
        self.meter.client_came();
        connection.keep_alive_secs = terms.keep_alive_secs;
        connection.clock_ms = self.now.mono_ms;
        if let Some(span) = keep_alive_ms(terms.keep_alive_secs) {
            let at = self.now.mono_ms + span;
            self.connection_deadline(slot, at);
        }
        if let Some((method, _)) = &terms.authentication {
            self.methods.insert(slot, Method::new(method.clone()));
        }
        let expiry_secs = terms.opening.session_expiry_secs;
        self.sessions.slots[session as usize]
            .session
            .open(terms.opening);
        self.declare(session, expiry_secs > 0, true);
        self.spread_interest();
        let state = &self.sessions.slots[session as usize].session;
        let peer = self.wires.slots[slot as usize].peer;
        log::debug!(client = state.client_id(), remote:% = peer, protocol = version as u8, clean = terms.clean_start; "client connected");
        if let Some(events) = &self.events {
            events.push(Event::Connected {
                client_id: state.client_id().into(),
                username: state.username().map(Into::into),
                remote: peer.to_string().into(),
                version,
                clean: terms.clean_start,
            });
        }
        // what was begun is sent again at once
        self.pump(session);
    }

    /// Bytes of the CONNACK; it is written if the client takes as many.
    fn write_connack(&mut self, slot: u32, version: Version, terms: &Terms) -> usize {
        let capabilities = &self.config.capabilities;
        let limits = &self.config.session;
        let properties = if version.is_v5() {
            ConnAckProperties {
                session_expiry_secs: terms
                    .tell_expiry
                    .then_some(terms.opening.session_expiry_secs),
                receive_maximum: NonZeroU16::new(limits.receive_maximum)
                    .filter(|maximum| maximum.get() != u16::MAX),
                // [MQTT5-3.2.2-9]
                maximum_qos: Some(capabilities.maximum_qos)
                    .filter(|maximum| *maximum < QoS::ExactlyOnce),
                retain_available: (!capabilities.retain).then_some(false),
                maximum_packet_size: Some(capabilities.packet_bytes_max)
                    .filter(|bytes| *bytes != 0),
                // [MQTT5-3.1.3-7]
                assigned_client_id: terms.assigned.as_deref(),
                topic_alias_maximum: Some(limits.topic_alias_maximum)
                    .filter(|maximum| *maximum != 0),
                wildcard_subscription_available: (!capabilities.wildcards).then_some(false),
                subscription_ids_available: (!capabilities.subscription_ids).then_some(false),
                shared_subscription_available: (!capabilities.shared).then_some(false),
                server_keep_alive_secs: terms.tell_keep_alive.then_some(terms.keep_alive_secs),
                authentication_method: terms.authentication.as_ref().map(|(method, _)| &**method),
                authentication_data: terms.authentication.as_ref().map(|(_, data)| &**data),
                ..ConnAckProperties::default()
            }
        } else {
            ConnAckProperties::default()
        };
        let ack = ConnAck {
            session_present: terms.session_present,
            reason: ReasonCode::SUCCESS,
            properties,
        };
        let out = self.wires.output(slot).bytes_mut();
        let before = out.len();
        encode(&Packet::ConnAck(ack), version, out);
        let bytes = out.len() - before;
        if bytes > terms.opening.packet_bytes_max as usize {
            out.truncate(before);
        }
        bytes
    }
}
