// SPDX-License-Identifier: Apache-2.0
//! Topic aliases of one connection, both directions (section 3.3.2.3.4 of 5.0).

use std::sync::Arc;

use compact_str::CompactString;
use corqtt_codec::ReasonCode;
use hashbrown::HashMap;

use crate::Violation;

/// Aliases up to this one are found by position; a client that only uses a high one must not make a table of all below.
const LOW_ALIASES: usize = 1024;

/// Aliases that the client set. They end with the connection `[MQTT5-3.3.2-7]`.
#[derive(Debug, Default)]
pub(crate) struct InboundAliases {
    /// Index: alias - 1, below [`LOW_ALIASES`].
    low: Vec<Option<Arc<str>>>,
    high: HashMap<u16, Arc<str>, foldhash::fast::RandomState>,
    /// Of all topics, at most `bytes_max`.
    bytes: usize,
}

impl InboundAliases {
    /// `alias` is not 0.
    pub(crate) fn set(
        &mut self,
        alias: u16,
        topic: &str,
        bytes_max: usize,
    ) -> Result<(), Violation> {
        let old = self.topic(alias);
        if old.is_some_and(|old| **old == *topic) {
            return Ok(());
        }
        let bytes = self.bytes - old.map_or(0, |old| old.len()) + topic.len();
        if bytes > bytes_max {
            return Err(Violation::new(
                ReasonCode::QUOTA_EXCEEDED,
                "the topics of its aliases exceed alias-bytes",
            ));
        }
        self.bytes = bytes;
        let index = usize::from(alias) - 1;
        if index < LOW_ALIASES {
            if self.low.len() <= index {
                self.low.resize(index + 1, None);
            }
            self.low[index] = Some(topic.into());
        } else {
            self.high.insert(alias, topic.into());
        }
        Ok(())
    }

    /// `alias` is not 0.
    #[inline]
    pub(crate) fn topic(&self, alias: u16) -> Option<&Arc<str>> {
        let index = usize::from(alias) - 1;
        if index < LOW_ALIASES {
            self.low.get(index)?.as_ref()
        } else {
            self.high.get(&alias)
        }
    }
}

/// Aliases that the broker sets on the client: the first topics that come get one, as long as there is room.
#[derive(Debug, Default)]
pub(crate) struct OutboundAliases {
    topics: HashMap<CompactString, u16, foldhash::fast::RandomState>,
    bytes: usize,
}

impl OutboundAliases {
    /// Shorter topics get no alias: with it, and without the topic, the packet would be longer.
    pub(crate) const TOPIC_BYTES_MIN: usize = 4;

    /// The alias that the client knows for `topic`.
    #[inline]
    pub(crate) fn known(&self, topic: &str) -> Option<u16> {
        self.topics.get(topic).copied()
    }

    /// The alias that `topic` would get; `maximum` is the client's Topic Alias Maximum
    /// `[MQTT5-3.1.2-26] [MQTT5-3.3.2-11]`.
    pub(crate) fn free(&self, topic: &str, maximum: u16, bytes_max: usize) -> Option<u16> {
        let used = u16::try_from(self.topics.len()).unwrap_or(u16::MAX);
        let room = used < maximum && self.bytes + topic.len() <= bytes_max;
        // [MQTT5-3.3.2-8] never 0
        (room && topic.len() >= Self::TOPIC_BYTES_MIN).then(|| used + 1)
    }

    /// A packet with topic and alias is being sent.
    pub(crate) fn learn(&mut self, topic: &str, alias: u16) {
        self.bytes += topic.len();
        self.topics.insert(CompactString::new(topic), alias);
    }
}
