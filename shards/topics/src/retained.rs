// SPDX-License-Identifier: Apache-2.0
//! The last retained message of each topic that belongs to this shard.
//!
//! Topics are kept in the order of their bytes, in which everything below a level lies together. So a filter is looked
//! up by seeking: over whole levels that cannot match, instead of through them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use compact_str::CompactString;
use corqtt_codec::{Message, TopicFilter, TopicName};

/// When and where a retained message was published: the newest one stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// Of the publishing shard's clock, which moves only forward.
    pub time: u64,
    /// Decides between equal times.
    pub origin: u16,
}

/// A shard's part of the retained messages; owned by that shard.
#[derive(Debug, Default)]
pub struct Retained {
    messages: BTreeMap<CompactString, Kept>,
    bytes: usize,
    /// How many of them the broker says of itself, and their bytes.
    system: usize,
    system_bytes: usize,
    /// How many of them expire at some time.
    expiring: usize,
    /// Where the sweep goes on.
    sweep: Cursor,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    stamp: Stamp,
}

impl Kept {
    fn expired(&self, now_wall_ms: u64) -> bool {
        self.message
            .expires_at_ms
            .is_some_and(|at| at <= now_wall_ms)
    }
}

/// Whether only the broker itself may publish to this topic.
#[inline]
#[must_use]
pub fn is_system(topic: &str) -> bool {
    topic
        .strip_prefix("$SYS")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// How far a look through the topics has come. It stays valid whatever changes between two pages: a topic that is there
/// all the time is found exactly once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The first topic that was not looked at yet is this one or the next.
    from: CompactString,
    /// `from` itself was looked at.
    after: bool,
}

impl Cursor {
    /// Before the first topic.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn bound(&self) -> Bound<&str> {
        if self.after {
            Bound::Excluded(&self.from)
        } else {
            Bound::Included(&self.from)
        }
    }
}

impl Retained {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a message, with its QoS, in place of the topic's last one `[MQTT-3.3.1-5] [MQTT5-3.3.1-5]`, one of QoS 0
    /// too `[MQTT-3.3.1-7]`, or with an empty payload only removes that one `[MQTT-3.3.1-10] [MQTT-3.3.1-11]
    /// [MQTT5-3.3.1-6] [MQTT5-3.3.1-7]`. `false`: refused, since the one that is there is newer.
    pub fn set(&mut self, message: Arc<Message>, stamp: Stamp) -> bool {
        if let Some(kept) = self.messages.get_mut(&message.topic) {
            if stamp < kept.stamp {
                return false;
            }
            if message.payload.is_empty() {
                if let Some(kept) = self.messages.remove(&message.topic) {
                    self.discount(&kept.message);
                }
                return true;
            }
            let new = Kept {
                message: message.clone(),
                stamp,
            };
            let old = std::mem::replace(kept, new);
            self.discount(&old.message);
            self.count(&message);
        } else if !message.payload.is_empty() {
            // [MQTT-3.3.1-11] [MQTT5-3.3.1-7] an empty one is never kept
            self.count(&message);
            self.messages
                .insert(message.topic.clone(), Kept { message, stamp });
        }
        true
    }

    /// What [`Retained::set`] would add to [`Retained::len`] and [`Retained::bytes`]; replacing by what is no larger,
    /// and removing, add nothing.
    #[must_use]
    pub fn growth(&self, message: &Message, stamp: Stamp) -> (usize, usize) {
        match self.messages.get(&message.topic) {
            _ if message.payload.is_empty() => (0, 0),
            Some(kept) if stamp < kept.stamp => (0, 0),
            Some(kept) => (0, message.size().saturating_sub(kept.message.size())),
            None => (1, message.size()),
        }
    }

    fn count(&mut self, message: &Message) {
        let size = message.size();
        self.bytes += size;
        self.expiring += usize::from(message.expires_at_ms.is_some());
        if is_system(&message.topic) {
            self.system += 1;
            self.system_bytes += size;
        }
    }

    fn discount(&mut self, message: &Message) {
        let size = message.size();
        self.bytes -= size;
        self.expiring -= usize::from(message.expires_at_ms.is_some());
        if is_system(&message.topic) {
            self.system -= 1;
            self.system_bytes -= size;
        }
    }

    /// The message of one topic, unless it has expired.
    #[must_use]
    pub fn get(&self, topic: TopicName<'_>, now_wall_ms: u64) -> Option<(&Arc<Message>, Stamp)> {
        let kept = self
            .messages
            .get(topic.as_str())
            .filter(|kept| !kept.expired(now_wall_ms))?;
        Some((&kept.message, kept.stamp))
    }

    /// Appends messages whose topic matches, without expired ones, from the cursor on. Looks at no more than
    /// `work_max` topics; whether that was the last of them.
    ///
    /// A shared filter is looked up as the filter it shares; whether retained messages are sent for it is the
    /// caller's to know.
    pub fn page(
        &self,
        filter: TopicFilter<'_>,
        cursor: &mut Cursor,
        work_max: usize,
        now_wall_ms: u64,
        found: &mut Vec<Arc<Message>>,
    ) -> bool {
        if !filter.has_wildcard() {
            let kept = self
                .messages
                .get(filter.filter())
                .filter(|kept| !kept.expired(now_wall_ms));
            found.extend(kept.map(|kept| Arc::clone(&kept.message)));
            return true;
        }
        let filter = filter.filter();
        if cursor.from.is_empty() {
            cursor.from = CompactString::new(literal_prefix(filter));
        }
        let mut work = 0;
        'seek: loop {
            // Topics that the next seek would skip are stepped over instead while there are few of them.
            let mut stepped = 0;
            let mut below: Option<CompactString> = None;
            for (topic, kept) in self
                .messages
                .range::<str, _>((cursor.bound(), Bound::Unbounded))
            {
                if work == work_max {
                    return false;
                }
                work += 1;
                if let Some(bound) = &below
                    && topic < bound
                {
                    stepped += 1;
                    if stepped < STEPS_BEFORE_SEEK {
                        continue;
                    }
                    *cursor = Cursor {
                        from: bound.clone(),
                        after: false,
                    };
                    continue 'seek;
                }
                match look(filter, topic) {
                    Look::Match => {
                        if !kept.expired(now_wall_ms) {
                            found.push(Arc::clone(&kept.message));
                        }
                        *cursor = Cursor {
                            from: topic.clone(),
                            after: true,
                        };
                        below = None;
                    }
                    Look::Next => {
                        *cursor = Cursor {
                            from: topic.clone(),
                            after: true,
                        };
                        below = None;
                    }
                    Look::Seek(bound) => {
                        *cursor = Cursor {
                            from: bound.clone(),
                            after: false,
                        };
                        below = Some(bound);
                    }
                    Look::Finished => return true,
                }
                stepped = 0;
            }
            return true;
        }
    }

    /// Removes what has expired among the next `work_max` topics; how many that was. Called again and again it goes
    /// round through all of them.
    pub fn expire_step(&mut self, work_max: usize, now_wall_ms: u64) -> usize {
        if self.expiring == 0 {
            return 0;
        }
        let mut expired = Vec::new();
        let mut last = None;
        let mut looked = 0;
        for (topic, kept) in self
            .messages
            .range::<str, _>((self.sweep.bound(), Bound::Unbounded))
            .take(work_max)
        {
            looked += 1;
            last = Some(topic);
            if kept.expired(now_wall_ms) {
                expired.push(topic.clone());
            }
        }
        self.sweep = match last {
            Some(topic) if looked == work_max => Cursor {
                from: topic.clone(),
                after: true,
            },
            _ => Cursor::new(),
        };
        for topic in &expired {
            if let Some(kept) = self.messages.remove(topic) {
                self.discount(&kept.message);
            }
        }
        expired.len()
    }

    /// How many messages are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// How many of them clients published: without what the broker says of itself below `$SYS/`.
    #[must_use]
    pub fn of_clients(&self) -> usize {
        self.messages.len() - self.system
    }

    /// No message is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes of topics, properties and payloads that are kept.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Those of messages that clients published.
    #[must_use]
    pub const fn bytes_of_clients(&self) -> usize {
        self.bytes - self.system_bytes
    }
}

/// A seek costs about as much as this many steps.
const STEPS_BEFORE_SEEK: usize = 8;

/// What a topic says about where the next match can be.
enum Look {
    Match,
    /// After this topic.
    Next,
    /// At this topic or after it.
    Seek(CompactString),
    Finished,
}

/// Bytes before the first level with a wildcard, without the slash: where matches begin.
fn literal_prefix(filter: &str) -> &str {
    let wildcard = filter.find(['+', '#']).unwrap_or(filter.len());
    filter[..wildcard]
        .strip_suffix('/')
        .unwrap_or(&filter[..wildcard])
}

/// Compares a topic with a filter that has a wildcard.
fn look(filter: &str, topic: &str) -> Look {
    // [MQTT-4.7.2-1] [MQTT5-4.7.2-1] Wildcards in the first level do not see topics that start with $.
    if filter.starts_with(['+', '#']) && topic.starts_with('$') {
        return Look::Seek(CompactString::const_new("%"));
    }
    // Where the level in hand begins in the topic; none: the topic has ended.
    let mut start = Some(0);
    let mut literal = true;
    for level in filter.split('/') {
        if level == "#" {
            return Look::Match;
        }
        let Some(begin) = start else {
            return Look::Next;
        };
        let rest = &topic[begin..];
        let length = rest.find('/');
        let here = &rest[..length.unwrap_or(rest.len())];
        if level == "+" {
            literal = false;
        } else if here != level {
            return seek(&topic[..begin], rest, level, literal);
        }
        start = length.map(|length| begin + length + 1);
    }
    match start {
        None => Look::Match,
        // Longer than the filter, as is everything below the same levels.
        Some(begin) => beyond(&topic[..begin]),
    }
}

/// Where matches can be after a topic whose part `rest` after `parent` (empty, or with its slash) is at odds with a
/// level of the filter. `literal`: no wildcard came before.
fn seek(parent: &str, rest: &str, level: &str, literal: bool) -> Look {
    if rest.as_bytes() < level.as_bytes() {
        return Look::Seek(joined(parent, level));
    }
    // What begins with the level and goes on with a byte below the slash lies between the level and what is below it.
    if rest
        .strip_prefix(level)
        .and_then(|more| more.bytes().next())
        .is_some_and(|byte| byte < b'/')
    {
        let mut below = joined(parent, level);
        below.push('/');
        return Look::Seek(below);
    }
    if literal {
        Look::Finished
    } else {
        beyond(parent)
    }
}

/// Past everything below `parent`, which ends with a slash.
fn beyond(parent: &str) -> Look {
    let level = parent.strip_suffix('/').unwrap_or(parent);
    let mut past = CompactString::new(level);
    past.push(AFTER_SLASH);
    Look::Seek(past)
}

const AFTER_SLASH: char = '0';
const _: () = assert!(AFTER_SLASH as u8 == b'/' + 1);

fn joined(parent: &str, level: &str) -> CompactString {
    let mut text = CompactString::with_capacity(parent.len() + level.len());
    text.push_str(parent);
    text.push_str(level);
    text
}

#[cfg(test)]
mod tests;
