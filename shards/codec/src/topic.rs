// SPDX-License-Identifier: Apache-2.0
//! Topic names and topic filters (section 4.7 of the specifications).

use std::fmt;
use std::str::Split;

use crate::{DecodeError, ErrorKind};

/// What a shared subscription's filter starts with (section 4.8.2 of 5.0).
pub const SHARE_PREFIX: &str = "$share/";

/// Longest topic name or filter `[MQTT-4.7.3-3] [MQTT5-4.7.3-3]`.
const TOPIC_BYTES_MAX: usize = 65_535;

/// Not a topic name, or not a topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTopic;

impl fmt::Display for InvalidTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a valid topic name or topic filter")
    }
}

impl std::error::Error for InvalidTopic {}

/// A topic name that exists is valid: not empty `[MQTT-4.7.3-1]`, no NUL `[MQTT-4.7.3-2]`, no wildcards
/// `[MQTT-3.3.2-2]`, at most 65,535 bytes `[MQTT-4.7.3-3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName<'a>(&'a str);

impl<'a> TopicName<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidTopic`] if it is empty, too long, or holds a wildcard or NUL.
    #[inline]
    pub fn parse(name: &'a str) -> Result<Self, InvalidTopic> {
        // [MQTT-4.7.1-1] [MQTT5-4.7.0-1] [MQTT-4.7.3-1] [MQTT5-4.7.3-1] [MQTT-4.7.3-2] [MQTT5-4.7.3-2] [MQTT-4.7.3-3]
        // [MQTT5-4.7.3-3]
        if name.is_empty() || name.len() > TOPIC_BYTES_MAX || has_special(name.as_bytes()) {
            return Err(InvalidTopic);
        }
        Ok(Self(name))
    }

    /// A name that was parsed before it was stored or sent between shards.
    #[inline]
    #[must_use]
    pub fn trusted(name: &'a str) -> Self {
        debug_assert!(Self::parse(name).is_ok());
        Self(name)
    }

    /// A name off the wire, with NUL told apart from what else is wrong.
    #[inline]
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        // [MQTT-1.5.3-1] [MQTT-1.5.3-3] [MQTT-3.3.2-1] [MQTT5-1.5.4-1] [MQTT5-1.5.4-3] [MQTT5-3.3.2-1]
        let text = std::str::from_utf8(bytes).map_err(|_| ErrorKind::InvalidUtf8)?;
        // [MQTT-3.3.2-2] [MQTT5-3.3.2-2] [MQTT-4.7.1-1] [MQTT5-4.7.0-1] [MQTT-4.7.3-1] [MQTT5-4.7.3-1]
        if bytes.is_empty() || has_special(bytes) {
            return Err(name_error(bytes));
        }
        Ok(Self(text))
    }

    /// The text.
    #[inline]
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The levels, of which some may be empty.
    #[inline]
    #[must_use]
    pub fn levels(self) -> Split<'a, char> {
        self.0.split('/')
    }

    /// At least 1.
    #[inline]
    #[must_use]
    pub fn level_count(self) -> usize {
        level_count(self.0)
    }
}

/// A wildcard or NUL. Every name that is published passes here, so it looks at eight bytes at a time.
#[inline]
fn has_special(bytes: &[u8]) -> bool {
    // `+` (0x2B) and `#` (0x23) differ in one bit
    let Some(&last) = bytes.last_chunk::<8>() else {
        return bytes.iter().any(|&b| b == 0 || b & !0x08 == b'#');
    };
    let special = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        zero_bytes(word) | zero_bytes(word & !(ONES * 0x08) ^ (ONES * b'#' as u64))
    };
    // the last eight may have been looked at before
    let (chunks, _) = bytes.as_chunks::<8>();
    chunks
        .iter()
        .fold(special(last), |found, &chunk| found | special(chunk))
        != 0
}

/// 1 in each byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;

/// Not 0 exactly when a byte of the word is 0: only that one borrows from a bit which it does not have.
#[inline]
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES * 0x80)
}

#[cold]
fn name_error(bytes: &[u8]) -> DecodeError {
    // NUL makes the string malformed [MQTT-1.5.3-2] [MQTT5-1.5.4-2]; wildcards [MQTT-3.3.2-2] [MQTT5-3.3.2-2]
    // and emptiness [MQTT-4.7.3-1] [MQTT5-4.7.3-1] make the name invalid
    let kind = if bytes.contains(&0) {
        ErrorKind::NulInString
    } else {
        ErrorKind::TopicName
    };
    kind.into()
}

fn level_count(text: &str) -> usize {
    1 + text.bytes().filter(|&b| b == b'/').count()
}

/// A topic filter that exists is valid: wildcards stand alone in their level, `#` is last
/// `[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.1-3]`, and a shared one has a group name and a filter
/// `[MQTT5-4.8.2-1] [MQTT5-4.8.2-2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TopicFilter<'a> {
    full: &'a str,
    /// Bytes of `$share/GROUP/`, 0 for a plain filter.
    share_bytes: usize,
}

impl<'a> TopicFilter<'a> {
    /// Checks a filter.
    ///
    /// # Errors
    /// [`InvalidTopic`] if it is empty, too long, holds NUL, has a wildcard that does not stand alone in its level or
    /// a `#` that is not last, or is shared without a group name or without a filter.
    pub fn parse(full: &'a str) -> Result<Self, InvalidTopic> {
        // [MQTT-4.7.3-1] [MQTT5-4.7.3-1] [MQTT-4.7.3-3] [MQTT5-4.7.3-3]
        if full.is_empty() || full.len() > TOPIC_BYTES_MAX {
            return Err(InvalidTopic);
        }
        let Some(shared) = full.strip_prefix(SHARE_PREFIX) else {
            check_filter(full)?;
            return Ok(Self {
                full,
                share_bytes: 0,
            });
        };
        // [MQTT5-4.8.2-2]
        let (group, filter) = shared.split_once('/').ok_or(InvalidTopic)?;
        // [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]
        if group.is_empty() || has_special(group.as_bytes()) || filter.is_empty() {
            return Err(InvalidTopic);
        }
        check_filter(filter)?;
        Ok(Self {
            full,
            share_bytes: full.len() - filter.len(),
        })
    }

    /// A filter that was parsed before it was stored or sent between shards.
    #[must_use]
    pub fn trusted(full: &'a str) -> Self {
        debug_assert!(Self::parse(full).is_ok());
        let filter = full
            .strip_prefix(SHARE_PREFIX)
            .and_then(|shared| shared.split_once('/'));
        Self {
            full,
            share_bytes: filter.map_or(0, |(_, filter)| full.len() - filter.len()),
        }
    }

    /// All of it, `$share/GROUP/` included.
    #[inline]
    #[must_use]
    pub const fn full(self) -> &'a str {
        self.full
    }

    /// What topics are matched with: without `$share/GROUP/`.
    #[inline]
    #[must_use]
    pub fn filter(self) -> &'a str {
        self.full.get(self.share_bytes..).unwrap_or_default()
    }

    /// The group of a shared subscription.
    #[inline]
    #[must_use]
    pub fn group(self) -> Option<&'a str> {
        self.full
            .get(SHARE_PREFIX.len()..self.share_bytes.checked_sub(1)?)
    }

    /// True for `$share/GROUP/FILTER`.
    #[inline]
    #[must_use]
    pub const fn is_shared(self) -> bool {
        self.share_bytes > 0
    }

    /// True with `+` or `#`.
    #[inline]
    #[must_use]
    pub fn has_wildcard(self) -> bool {
        has_special(self.filter().as_bytes())
    }

    /// The levels of [`Self::filter`].
    #[inline]
    #[must_use]
    pub fn levels(self) -> Split<'a, char> {
        self.filter().split('/')
    }

    /// Levels of [`Self::filter`], at least 1.
    #[inline]
    #[must_use]
    pub fn level_count(self) -> usize {
        level_count(self.filter())
    }

    /// Whether messages with that name go to this filter.
    #[must_use]
    pub fn matches(&self, name: TopicName<'_>) -> bool {
        let mut names = name.levels();
        for (i, level) in self.levels().enumerate() {
            // a wildcard in the first level is not for topics that begin with $: [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
            let hidden = i == 0 && name.as_str().starts_with('$');
            match (level, names.next()) {
                // `a/#` is also for `a`: its `#` meets the end of the name
                ("#", _) => return !hidden,
                ("+", Some(_)) if !hidden => {}
                (level, Some(name)) if level == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

/// Wildcards stand alone in their level `[MQTT-4.7.1-3] [MQTT5-4.7.1-2]`, `#` is last
/// `[MQTT-4.7.1-2] [MQTT5-4.7.1-1]`, and there is no NUL `[MQTT-4.7.3-2] [MQTT5-4.7.3-2]`.
fn check_filter(filter: &str) -> Result<(), InvalidTopic> {
    if !has_special(filter.as_bytes()) {
        return Ok(());
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let valid = match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            _ => !has_special(level.as_bytes()),
        };
        if !valid {
            return Err(InvalidTopic);
        }
    }
    Ok(())
}
