// SPDX-License-Identifier: Apache-2.0
//! Topic aliases of one connection, both directions (section 3.3.2.3.4 of 5.0).

use std::sync::Arc;

use compact_str::CompactString;
use corqtt_codec::ReasonCode;
use hashbrown::HashMap;

use crate::Violation;

/// Aliases that the client set. They end with the connection `[MQTT5-3.3.2-7]`.
#[derive(Debug, Default)]
pub(crate) struct InboundAliases {
    /// Index: alias - 1.
    topics: Vec<Option<Arc<str>>>,
    bytes: usize,
}

impl InboundAliases {
    pub(crate) fn set(
        &mut self,
        alias: u16,
        topic: &str,
        bytes_max: usize,
    ) -> Result<(), Violation> {
        let index = usize::from(alias) - 1;
        if self.topics.len() <= index {
            self.topics.resize(index + 1, None);
        }
        let old = self.topics[index].as_ref().map_or(0, |topic| topic.len());
        if old != 0 && self.topics[index].as_deref() == Some(topic) {
            return Ok(());
        }
        let bytes = self.bytes - old + topic.len();
        if bytes > bytes_max {
            return Err(Violation::new(
                ReasonCode::QUOTA_EXCEEDED,
                "the topics of its aliases exceed alias-bytes",
            ));
        }
        self.bytes = bytes;
        self.topics[index] = Some(topic.into());
        Ok(())
    }

    pub(crate) fn topic(&self, alias: u16) -> Option<&Arc<str>> {
        self.topics.get(usize::from(alias) - 1)?.as_ref()
    }
}

/// Aliases that the broker sets on the client: the first topics that come get one, as long as there is room.
#[derive(Debug, Default)]
pub(crate) struct OutboundAliases {
    topics: HashMap<CompactString, u16, foldhash::fast::RandomState>,
    bytes: usize,
}

/// How to name a topic in the next PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// No alias.
    Full,
    /// Topic and alias: the client learns it.
    New(u16),
    /// The alias alone.
    Known(u16),
}

impl OutboundAliases {
    /// Chooses how to name `topic`; `maximum` is the client's Topic Alias Maximum `[MQTT5-3.1.2-26]`.
    pub(crate) fn name(&mut self, topic: &str, maximum: u16, bytes_max: usize) -> Named {
        if let Some(alias) = self.topics.get(topic) {
            return Named::Known(*alias);
        }
        let used = u16::try_from(self.topics.len()).unwrap_or(u16::MAX);
        if used >= maximum || self.bytes + topic.len() > bytes_max {
            return Named::Full;
        }
        self.bytes += topic.len();
        self.topics.insert(CompactString::new(topic), used + 1);
        Named::New(used + 1)
    }
}
