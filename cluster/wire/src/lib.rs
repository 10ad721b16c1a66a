// SPDX-License-Identifier: Apache-2.0
//! What travels between the nodes of a cluster beside raft, as bytes: which stream it is, and the publishes on it.
//!
//! ```text
//!  header   version u8 | postcard of StreamHeader     once, when a link begins to carry a stream
//!  body     awaited u8 | entry ...                     a quic frame; as many entries as it says, at least one
//!  entry    postcard: flags, publisher, expiry, topic, properties, groups, payload
//! ```
//!
//! Entries are in the order of the source shard's batch, and each is one entry of the stream, so marks need no numbers of
//! their own. An expiry is by the sender's clock, whose time the header tells each time a link begins to carry the stream:
//! what remains of it would stand still while a frame waits for a link. A message's name (`MessageId`) does not travel: it
//! means something to one node's store only.
#![forbid(unsafe_code)]

use std::fmt;

use bytes::Bytes;
use corqtt_codec::{PublishProperties, QoS, TopicFilter, TopicName};
use corqtt_port::routes::{Batch, Item, Publish, SHARED_PAYLOAD_BYTES_MIN};
use corqtt_topics::ShardId;
use serde::{Deserialize, Serialize};

/// The version of everything in this crate; a stream says it in its header.
const VERSION: u8 = 1;
/// A body is ended at an entry above this (bytes).
const BODY_BYTES_MAX: usize = 256 << 10;

/// No entry is shorter than its seven fields, and a topic is not empty (bytes).
const ENTRY_BYTES_MIN: usize = 8;
/// The largest packet of MQTT (bytes); what cannot be one is not taken.
const MESSAGE_BYTES_MAX: usize = 268_435_455;

const QOS: u8 = 0b0000_0011;
const RETAIN: u8 = 0b0000_0100;
const PLAIN: u8 = 0b0000_1000;

/// Which stream a link begins to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// The raft id of its sender.
    pub node: u64,
    /// The store that its sender keeps it in; drawn once.
    pub store: u64,
    /// Drawn once, and never used again.
    pub stream: u64,
    /// The shard whose publishes it carries, and how many shards its sender has.
    pub shard: u8,
    /// As above.
    pub shards: u8,
    /// The sender's wall clock at this moment (ms).
    pub now_ms: u64,
}

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidWire {
    /// Of another version.
    Version(u8),
    /// A header that cannot be read.
    Header,
    /// An entry that cannot be read; its place in the body, from 0.
    Entry(u32),
    /// More or fewer entries than the frame says.
    Count,
}

impl fmt::Display for InvalidWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "a stream of version {version}, this node knows {VERSION}: it needs the release of its peers"
            ),
            Self::Header => f.write_str("a stream's header that cannot be read"),
            Self::Entry(at) => write!(f, "entry {at} of a frame cannot be read"),
            Self::Count => f.write_str("a frame with more or fewer entries than it says"),
        }
    }
}

impl std::error::Error for InvalidWire {}

impl StreamHeader {
    /// As bytes, below 1 KiB.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("a header is a plain value")
    }

    /// The header of those bytes.
    ///
    /// # Errors
    /// When they are none that this version knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidWire> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => match postcard::take_from_bytes::<Self>(rest) {
                Ok((header, [])) if header.shard < header.shards && header.shards <= 64 => {
                    Ok(header)
                }
                _ => Err(InvalidWire::Header),
            },
            Some((version, _)) => Err(InvalidWire::Version(*version)),
            None => Err(InvalidWire::Header),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    flags: u8,
    publisher: u64,
    /// By the sender's wall clock.
    expires_at_ms: Option<u64>,
    topic: &'a str,
    #[serde(serialize_with = "as_bytes")]
    properties: &'a [u8],
    /// Full filters, each ended by a NUL.
    groups: &'a str,
    #[serde(serialize_with = "as_bytes")]
    payload: &'a [u8],
}

/// At once, where serde would go through a slice one by one.
fn as_bytes<S: serde::Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

/// A part of a batch as a frame takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Entries in it, at least one.
    pub count: u32,
    /// As bytes.
    pub bytes: Bytes,
}

/// The publishes of a batch, in order.
///
/// # Panics
/// If there is something else in it: that does not go to nodes, and numbers would not fit any more.
#[must_use]
pub fn encode_publishes(batch: &Batch) -> Vec<Body> {
    let mut bodies = Vec::new();
    let begin = || vec![u8::from(batch.is_awaited)];
    let (mut bytes, mut count) = (begin(), 0);
    for item in &batch.items {
        let Item::Publish(publish) = item else {
            panic!("nodes are told interest and retained messages otherwise");
        };
        let entry = entry_of(batch, publish);
        bytes = postcard::to_extend(&entry, bytes).expect("an entry is a plain value");
        count += 1;
        if bytes.len() >= BODY_BYTES_MAX {
            let full = std::mem::replace(&mut bytes, begin());
            bodies.push(Body {
                count: std::mem::take(&mut count),
                bytes: full.into(),
            });
        }
    }
    if count > 0 {
        bodies.push(Body {
            count,
            bytes: bytes.into(),
        });
    }
    bodies
}

fn entry_of<'a>(batch: &'a Batch, publish: &'a Publish) -> Entry<'a> {
    let text =
        |range| std::str::from_utf8(batch.text_of(range)).expect("topics and filters were checked");
    let mut flags = publish.qos as u8;
    if publish.retain {
        flags |= RETAIN;
    }
    if publish.plain {
        flags |= PLAIN;
    }
    Entry {
        flags,
        publisher: publish.publisher,
        expires_at_ms: publish.expires_at_ms,
        topic: text(&publish.topic),
        properties: batch.text_of(&publish.properties),
        groups: text(&publish.groups),
        payload: match &publish.large {
            Some(large) => large,
            None => batch.text_of(&publish.small),
        },
    }
}

/// The batch of a frame that has `count` entries, of which the first one has number `first` in its stream; the first
/// `known` of them came before and are left out. Frames without entries are not for here. `from` is what this node calls
/// the sender, `ahead_ms` by how much the sender's wall clock is ahead of this node's.
///
/// # Errors
/// When the bytes are not what [`encode_publishes`] makes.
pub fn decode_publishes(
    bytes: &Bytes,
    count: u32,
    first: u64,
    known: u32,
    from: ShardId,
    ahead_ms: i64,
) -> Result<Batch, InvalidWire> {
    let (is_awaited, mut rest) = match bytes.split_first() {
        Some((0, rest)) => (false, rest),
        Some((1, rest)) => (true, rest),
        _ => return Err(InvalidWire::Count),
    };
    // an entry that ends a body may be of any size, so many that do not are not of this version's making
    let possible = rest.len().min(BODY_BYTES_MAX) / ENTRY_BYTES_MIN + 1;
    if count == 0 || count as usize > possible {
        return Err(InvalidWire::Count);
    }
    let mut batch = Batch {
        from,
        first: first + u64::from(known.min(count)),
        items: Vec::with_capacity(count.saturating_sub(known) as usize),
        text: Vec::new(),
        is_awaited,
    };
    for at in 0..count {
        let (entry, left) =
            postcard::take_from_bytes::<Entry<'_>>(rest).map_err(|_| InvalidWire::Entry(at))?;
        rest = left;
        if !is_good(&entry) {
            return Err(InvalidWire::Entry(at));
        }
        if at >= known {
            let publish =
                publish_of(&entry, bytes, &mut batch, ahead_ms).ok_or(InvalidWire::Entry(at))?;
            batch.items.push(Item::Publish(publish));
        }
    }
    if rest.is_empty() {
        Ok(batch)
    } else {
        Err(InvalidWire::Count)
    }
}

/// Whether this could be a message, of this version: what is not right here would break clients.
fn is_good(entry: &Entry<'_>) -> bool {
    let mut groups = entry.groups.split_terminator('\0');
    let is_group = |group: &str| TopicFilter::parse(group).is_ok_and(TopicFilter::is_shared);
    let size = entry.topic.len() + entry.properties.len() + entry.payload.len();
    entry.flags & !(QOS | RETAIN | PLAIN) == 0
        && TopicName::parse(entry.topic).is_ok()
        && PublishProperties::may_be_forwarded(entry.properties)
        && (entry.groups.is_empty() || entry.groups.ends_with('\0'))
        && groups.all(is_group)
        && size <= MESSAGE_BYTES_MAX
}

fn publish_of(
    entry: &Entry<'_>,
    bytes: &Bytes,
    batch: &mut Batch,
    ahead_ms: i64,
) -> Option<Publish> {
    let payload = entry.payload;
    let is_large = payload.len() >= SHARED_PAYLOAD_BYTES_MIN;
    // what is kept for long does not keep much else alive
    let large = || match payload.len() >= bytes.len() / 2 {
        true => bytes.slice_ref(payload),
        false => Bytes::copy_from_slice(payload),
    };
    Some(Publish {
        qos: QoS::from_bits(entry.flags & QOS)?,
        retain: entry.flags & RETAIN != 0,
        plain: entry.flags & PLAIN != 0,
        publisher: entry.publisher,
        expires_at_ms: entry
            .expires_at_ms
            .map(|at_ms| at_ms.saturating_add_signed(ahead_ms.saturating_neg())),
        id: None,
        is_owed: false,
        topic: batch.put_text(entry.topic.as_bytes()),
        properties: batch.put_text(entry.properties),
        groups: batch.put_text(entry.groups.as_bytes()),
        large: is_large.then(large),
        small: batch.put_text(if is_large { &[] } else { payload }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ShardId = ShardId(3);
    /// Payload Format Indicator 1.
    const UTF8: &[u8] = &[1, 1];

    fn batch(count: usize, payload: &[u8], properties: &[u8], groups: &str) -> Batch {
        let mut batch = Batch {
            from: ShardId(0),
            first: 5,
            items: Vec::new(),
            text: Vec::new(),
            is_awaited: true,
        };
        for number in 0..count {
            let large = payload.len() >= SHARED_PAYLOAD_BYTES_MIN;
            let publish = Publish {
                topic: batch.put_text(format!("topic/{number}").as_bytes()),
                properties: batch.put_text(properties),
                groups: batch.put_text(groups.as_bytes()),
                small: batch.put_text(if large { &[] } else { payload }),
                large: large.then(|| Bytes::copy_from_slice(payload)),
                qos: QoS::ExactlyOnce,
                retain: number % 2 == 0,
                plain: number % 3 == 0,
                expires_at_ms: (number % 2 == 1).then_some(1_000_500),
                publisher: number as u64,
                id: None,
                is_owed: false,
            };
            batch.items.push(Item::Publish(publish));
        }
        batch
    }

    fn decode(bytes: &Bytes, count: u32) -> Result<Batch, InvalidWire> {
        decode_publishes(bytes, count, 1, 0, ME, 0)
    }

    /// What a publish is, wherever its bytes lie.
    fn shown(batch: &Batch) -> Vec<String> {
        let show = |item: &Item| {
            let Item::Publish(publish) = item else {
                panic!("{item:?}")
            };
            let message = batch.message(publish).expect("a good batch");
            format!(
                "{message:?} {:?} {} {}",
                batch.text_of(&publish.groups),
                publish.publisher,
                publish.plain
            )
        };
        batch.items.iter().map(show).collect()
    }

    #[test]
    fn publishes_come_out_as_they_went_in_by_a_clock_that_is_behind() {
        for payload in [
            &b""[..],
            b"small",
            &vec![7; SHARED_PAYLOAD_BYTES_MIN],
            &vec![8; 200_000],
        ] {
            let sent = batch(10, payload, UTF8, "$share/g/a/#\0$share/h/+\0");
            let (mut first, mut came) = (5, Vec::new());
            for body in encode_publishes(&sent) {
                let got = decode_publishes(&body.bytes, body.count, first, 0, ME, 999_400)
                    .expect("its own bytes");
                assert_eq!((got.first, got.from, got.is_awaited), (first, ME, true));
                first += u64::from(body.count);
                came.extend(shown(&got));
            }
            let expected: Vec<_> = shown(&sent)
                .into_iter()
                .map(|shown| shown.replace("1000500", "1100"))
                .collect();
            assert_eq!(came, expected);
        }
    }

    #[test]
    fn what_came_before_is_left_out() {
        let sent = batch(4, b"payload", UTF8, "");
        let body = encode_publishes(&sent).remove(0);
        let got = decode_publishes(&body.bytes, 4, 10, 3, ME, 0).expect("its own bytes");
        assert_eq!((got.first, &shown(&got)[..]), (13, &shown(&sent)[3..]));
        let got = decode_publishes(&body.bytes, 4, 10, 4, ME, 0).expect("its own bytes");
        assert_eq!((got.first, got.items.len()), (14, 0));
    }

    #[test]
    fn a_body_is_not_much_longer_than_it_should_be() {
        let bodies = encode_publishes(&batch(300, &[9; 2000], UTF8, ""));
        assert!(bodies.len() > 1);
        for body in &bodies {
            assert!(body.bytes.len() < BODY_BYTES_MAX + 4096);
        }
        assert_eq!(bodies.iter().map(|body| body.count).sum::<u32>(), 300);
    }

    #[test]
    fn bytes_that_are_cut_or_changed_are_refused_or_are_another_message() {
        for payload in [&b"payload"[..], &[7; SHARED_PAYLOAD_BYTES_MIN]] {
            let sent = batch(3, payload, UTF8, "$share/g/a\0");
            let body = encode_publishes(&sent).remove(0);
            for end in 0..body.bytes.len() {
                decode(&body.bytes.slice(..end), body.count).expect_err("it is cut");
            }
            let longer = [&body.bytes[..], &[0]].concat();
            decode(&longer.into(), body.count).expect_err("it is longer");
            for count in [0, 2, 4, u32::MAX] {
                decode(&body.bytes, count).expect_err("another count");
            }
            let mut read = 0;
            for at in 0..body.bytes.len() {
                for bit in 0..8 {
                    let mut changed = body.bytes.to_vec();
                    changed[at] ^= 1 << bit;
                    let Ok(got) = decode(&changed.clone().into(), body.count) else {
                        continue;
                    };
                    read += 1;
                    // nothing of it is lost on the way
                    let again = encode_publishes(&got).remove(0);
                    let same = decode(&again.bytes, again.count).expect("its own bytes");
                    assert_eq!(shown(&same), shown(&got));
                }
            }
            assert!(read > 0, "payloads may be anything");
        }
    }

    #[test]
    fn what_would_break_a_client_is_refused() {
        let refused = |sent: &Batch| {
            let body = encode_publishes(sent).remove(0);
            let error = decode(&body.bytes, 1).expect_err("it is refused");
            assert_eq!(error, InvalidWire::Entry(0));
        };
        let mut wildcard = batch(1, b"", UTF8, "");
        wildcard.text[0] = b'#';
        refused(&wildcard);
        for groups in ["a/b\0", "$share/g/a", "$share/g\0"] {
            refused(&batch(1, b"", UTF8, groups));
        }
        // a topic alias, an expiry, half a property, one twice
        for properties in [&[0x23, 0, 1][..], &[0x02, 0, 0, 0, 1], &[1], &[1, 1, 1, 1]] {
            refused(&batch(1, b"", properties, ""));
        }
    }

    #[test]
    fn a_count_that_cannot_be_makes_no_room() {
        let bytes = Bytes::from(vec![0; 1 << 20]);
        let possible = (BODY_BYTES_MAX / ENTRY_BYTES_MIN + 1) as u32;
        assert_eq!(decode(&bytes, possible + 1).err(), Some(InvalidWire::Count));
        assert_eq!(decode(&bytes, possible).err(), Some(InvalidWire::Entry(0)));
    }

    #[test]
    fn a_header_comes_out_as_it_went_in_and_another_version_is_named() {
        let header = StreamHeader {
            node: u64::MAX,
            store: 1,
            stream: 2,
            shard: 3,
            shards: 4,
            now_ms: 5,
        };
        let mut bytes = header.encode();
        assert_eq!(StreamHeader::decode(&bytes), Ok(header));
        let cut = StreamHeader::decode(&bytes[..bytes.len() - 1]);
        assert_eq!(cut, Err(InvalidWire::Header));
        for (shard, shards) in [(4, 4), (0, 0), (0, 65)] {
            let wrong = StreamHeader {
                shard,
                shards,
                ..header
            };
            let read = StreamHeader::decode(&wrong.encode());
            assert_eq!(read, Err(InvalidWire::Header));
        }
        bytes[0] = VERSION + 1;
        let error = StreamHeader::decode(&bytes).expect_err("another version");
        assert_eq!(error, InvalidWire::Version(VERSION + 1));
    }
}
