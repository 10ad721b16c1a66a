// SPDX-License-Identifier: Apache-2.0
//! What one look for a topic finds.

use std::sync::Arc;

use corqtt_codec::QoS;

use crate::interest::ShardId;
use crate::subscription::{ClientKey, Subscription};

/// Who published, as far as the choice of receivers depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publisher {
    /// The publisher, if it is a client of this shard.
    pub client: Option<ClientKey>,
    /// Of its client id, the same on every shard; for [`crate::Strategy::HashClient`].
    pub client_id_hash: u64,
    /// A random number, new for each message; for [`crate::Strategy::Random`].
    pub rng: u64,
}

/// A local client that gets the message, once however many of its filters match `[MQTT5-3.3.4-2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Who.
    pub client: ClientKey,
    pub(crate) ids_start: u32,
    pub(crate) ids_len: u32,
    /// The highest that was granted to a matching filter.
    pub qos: QoS,
    /// One of the matching subscriptions passes RETAIN on as published.
    pub retain_as_published: bool,
}

const _: () = assert!(size_of::<Hit>() == 16);

/// A shared group whose filter matches: one member gets the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHit {
    /// Who it is, or which shard chooses.
    pub choice: Choice,
    /// The whole filter, `$share/GROUP/` included.
    pub filter: Arc<str>,
}

/// Where a message for a shared group goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To a member on this shard.
    Local {
        /// The member.
        client: ClientKey,
        /// Its subscription.
        sub: Subscription,
        /// It is connected; otherwise the message waits in its session.
        online: bool,
    },
    /// To another shard, which chooses the member.
    Shard {
        /// The shard.
        shard: ShardId,
        /// A member's session there is persistent with QoS above 0: the publisher waits.
        persistent: bool,
    },
}

/// Filled by [`crate::Partition::matches`]; meant to be used again and again, so that its memory is.
#[derive(Debug, Default)]
pub struct Matches {
    /// Local clients, each once.
    pub hits: Vec<Hit>,
    /// Other shards with plain subscribers, a bit each.
    pub shards: u64,
    /// Those of them that the publisher waits for.
    pub shards_persistent: u64,
    /// Shared groups, one choice each; groups with nobody to choose are left out.
    pub groups: Vec<GroupHit>,
    pub(crate) ids: Vec<u32>,
    /// (number of the hit, identifier) while hits are being gathered from several filters.
    pub(crate) gathered_ids: Vec<(u32, u32)>,
}

impl Matches {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The identifiers of all subscriptions of this client that match `[MQTT5-3.3.4-3] [MQTT5-3.3.4-4]`.
    #[inline]
    #[must_use]
    pub fn subscription_ids(&self, hit: &Hit) -> &[u32] {
        &self.ids[hit.ids_start as usize..][..hit.ids_len as usize]
    }

    /// Nobody wants the message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hits.is_empty() && self.shards == 0 && self.groups.is_empty()
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.hits.clear();
        self.shards = 0;
        self.shards_persistent = 0;
        self.groups.clear();
        self.ids.clear();
        self.gathered_ids.clear();
    }

    /// Gives each hit its range of the gathered identifiers; linear in their number.
    pub(crate) fn place_ids(&mut self) {
        if self.gathered_ids.is_empty() {
            return;
        }
        let mut start = 0;
        for hit in &mut self.hits {
            hit.ids_start = start;
            start += hit.ids_len;
            hit.ids_len = 0;
        }
        self.ids.resize(start as usize, 0);
        for (at, id) in self.gathered_ids.drain(..) {
            let hit = &mut self.hits[at as usize];
            self.ids[(hit.ids_start + hit.ids_len) as usize] = id;
            hit.ids_len += 1;
        }
    }
}
