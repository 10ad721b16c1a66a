// SPDX-License-Identifier: Apache-2.0
//! May this client connect, subscribe, publish, leave this will? Each question may wait for its answer.

use std::sync::Arc;

use corqtt_codec::{QoS, ReasonCode, Version};

use crate::ConnectionKey;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Client identifier, after assignment.
    pub client_id: Arc<str>,
    /// User name of CONNECT.
    pub username: Option<Arc<str>>,
    /// `ip:port`.
    pub remote: Arc<str>,
}

/// Shard to auth. Bounded: one per connection, which is not read meanwhile. If it were dropped its connection would
/// wait until it is closed by keep-alive; nobody retries.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whom to tell.
    pub connection: ConnectionKey,
    /// Who wants it.
    pub identity: Identity,
    /// What.
    pub wish: Wish,
}

/// What a client wants to do.
#[derive(Clone, Debug)]
pub enum Wish {
    /// To connect.
    Connect {
        /// Protocol version.
        version: Version,
        /// Password of CONNECT.
        password: Option<Box<[u8]>>,
        /// Extended authentication.
        method: Option<Box<str>>,
        /// Its first data.
        data: Option<Box<[u8]>>,
        /// Topic of the will, to be checked like a publish.
        will_topic: Option<Box<str>>,
    },
    /// The next step of extended authentication.
    Continue {
        /// Data of AUTH.
        data: Option<Box<[u8]>>,
    },
    /// To subscribe to filters (without their `$share/GROUP/`) up to a QoS each.
    Subscribe(Vec<(Box<str>, QoS)>),
    /// To publish to a topic.
    Publish(Box<str>),
}

/// Auth to shard, through its inbox, in the room that the question reserved. If it were dropped: as for the question.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The connection of the question.
    pub connection: ConnectionKey,
    /// The decision.
    pub verdict: Verdict,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, to everything asked.
    Allow,
    /// No, for this reason.
    Deny(ReasonCode),
    /// For [`Wish::Subscribe`]: per filter, `None` for yes.
    Filters(Vec<Option<ReasonCode>>),
    /// For [`Wish::Connect`] and [`Wish::Continue`]: the next step of extended authentication, AUTH 0x18.
    Continue {
        /// Data for the client.
        data: Box<[u8]>,
    },
    /// For [`Wish::Connect`] and [`Wish::Continue`]: yes, with data for CONNACK.
    Authenticated {
        /// Data for the client.
        data: Box<[u8]>,
    },
}

/// A shard's way to its authority.
pub trait Auth: Send {
    /// False: publishes are not asked for at all.
    fn checks_publish(&self) -> bool;
    /// False: subscriptions are not asked for at all.
    fn checks_subscribe(&self) -> bool;
    /// Methods of extended authentication that CONNECT may name.
    fn knows_method(&self, method: &str) -> bool;
    /// Asks. The verdict at once, or `None` and later an [`Answer`] in the shard's inbox.
    fn ask(&mut self, question: Question) -> Option<Verdict>;
}

/// Everybody may do everything: no credentials are set up.
#[derive(Debug, Default)]
pub struct Anonymous;

impl Auth for Anonymous {
    fn checks_publish(&self) -> bool {
        false
    }

    fn checks_subscribe(&self) -> bool {
        false
    }

    fn knows_method(&self, _method: &str) -> bool {
        false
    }

    fn ask(&mut self, _question: Question) -> Option<Verdict> {
        Some(Verdict::Allow)
    }
}
