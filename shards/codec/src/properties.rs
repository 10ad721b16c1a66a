// SPDX-License-Identifier: Apache-2.0
//! Property blocks that stay borrowed bytes: user properties, and what a PUBLISH carries (section 2.2.2).

use std::borrow::Cow;
use std::fmt;

use crate::reader::Reader;
use crate::{DecodeError, ErrorKind, TopicName};

/// Property identifiers (section 2.2.2.2). All that exist fit one byte of a Variable Byte Integer.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTH_METHOD: u8 = 0x15;
    pub(crate) const AUTH_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// The largest Subscription Identifier, that of a Variable Byte Integer.
pub const SUBSCRIPTION_ID_MAX: u32 = 268_435_455;

/// Which properties a block had so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen(u64);

impl Seen {
    /// Notes one that may be there once.
    #[inline]
    pub(crate) fn once(&mut self, id: u8) -> Result<(), DecodeError> {
        let bit = 1_u64
            .checked_shl(u32::from(id))
            .ok_or(ErrorKind::PropertyNotAllowed)?;
        if self.0 & bit != 0 {
            return Err(ErrorKind::DuplicateProperty.into());
        }
        self.0 |= bit;
        Ok(())
    }
}

/// One property of a block that was checked before: its identifier, all its bytes, and the bytes of its value.
#[derive(Clone, Copy)]
struct RawProperty<'a> {
    id: u8,
    whole: &'a [u8],
    value: &'a [u8],
}

/// Walks a block; ends at the first byte that is no property, which a checked block does not have.
#[derive(Clone, Copy)]
struct RawProperties<'a>(&'a [u8]);

impl<'a> RawProperties<'a> {
    fn read(raw: &'a [u8]) -> Option<(RawProperty<'a>, &'a [u8])> {
        let mut reader = Reader::new(raw);
        let id = reader.u8().ok()?;
        let value_start = reader.rest();
        match id {
            id::PAYLOAD_FORMAT
            | id::REQUEST_PROBLEM
            | id::REQUEST_RESPONSE
            | id::MAXIMUM_QOS
            | id::RETAIN_AVAILABLE
            | id::WILDCARD_AVAILABLE
            | id::SUBSCRIPTION_IDS_AVAILABLE
            | id::SHARED_AVAILABLE => {
                reader.u8().ok()?;
            }
            id::SERVER_KEEP_ALIVE
            | id::RECEIVE_MAXIMUM
            | id::TOPIC_ALIAS_MAXIMUM
            | id::TOPIC_ALIAS => {
                reader.u16().ok()?;
            }
            id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY | id::MAXIMUM_PACKET_SIZE => {
                reader.u32().ok()?;
            }
            id::SUBSCRIPTION_ID => {
                reader.varint().ok()?;
            }
            id::CONTENT_TYPE
            | id::RESPONSE_TOPIC
            | id::CORRELATION_DATA
            | id::ASSIGNED_CLIENT_ID
            | id::AUTH_METHOD
            | id::AUTH_DATA
            | id::RESPONSE_INFORMATION
            | id::SERVER_REFERENCE
            | id::REASON_STRING => {
                reader.binary().ok()?;
            }
            id::USER_PROPERTY => {
                reader.binary().ok()?;
                reader.binary().ok()?;
            }
            _ => return None,
        }
        let tail = reader.rest();
        let whole = raw.get(..raw.len() - tail.len())?;
        let value = value_start.get(..value_start.len() - tail.len())?;
        Some((RawProperty { id, whole, value }, tail))
    }
}

impl<'a> Iterator for RawProperties<'a> {
    type Item = RawProperty<'a>;

    fn next(&mut self) -> Option<RawProperty<'a>> {
        let (property, tail) = Self::read(self.0)?;
        self.0 = tail;
        Some(property)
    }
}

/// User properties in wire order, borrowed. Iterates over `(&str, &str)`.
#[derive(Clone, Copy, Default)]
pub struct UserProperties<'a> {
    /// A checked property block in which everything but user properties is passed over.
    pub(crate) raw: &'a [u8],
}

impl<'a> UserProperties<'a> {
    /// None.
    pub const EMPTY: UserProperties<'static> = UserProperties { raw: &[] };

    /// The pairs.
    #[must_use]
    pub const fn iter(&self) -> UserPropertiesIter<'a> {
        UserPropertiesIter(RawProperties(self.raw))
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty() || self.iter().next().is_none()
    }
}

/// Equal when the same pairs come in the same order, whatever other properties lie between them.
impl PartialEq for UserProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for UserProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> UserPropertiesIter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &UserProperties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = UserPropertiesIter<'a>;

    fn into_iter(self) -> UserPropertiesIter<'a> {
        self.iter()
    }
}

/// Iterates over [`UserProperties`].
#[derive(Clone)]
pub struct UserPropertiesIter<'a>(RawProperties<'a>);

impl<'a> Iterator for UserPropertiesIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let property = self.0.find(|property| property.id == id::USER_PROPERTY)?;
        let mut reader = Reader::new(property.value);
        Some((reader.string().ok()?, reader.string().ok()?))
    }
}

/// The properties of a PUBLISH or a will.
///
/// Most of them travel to subscribers unchanged `[MQTT5-3.3.2-4]`; those stay the bytes they were, and only what the
/// broker itself acts on is a field.
#[derive(Clone, Copy, Default)]
pub struct PublishProperties<'a> {
    /// The checked block, without its length.
    pub(crate) raw: &'a [u8],
    /// Topic Alias, never 0.
    pub topic_alias: Option<u16>,
    /// Message Expiry Interval, seconds.
    pub message_expiry_secs: Option<u32>,
    /// Payload Format Indicator 1: the payload says that it is UTF-8.
    pub payload_is_utf8: bool,
    /// `raw` holds something that is not forwarded unchanged (alias, expiry, subscription identifier, will delay).
    pub(crate) has_own: bool,
}

impl<'a> PublishProperties<'a> {
    /// None.
    pub const EMPTY: PublishProperties<'static> = PublishProperties {
        raw: &[],
        topic_alias: None,
        message_expiry_secs: None,
        payload_is_utf8: false,
        has_own: false,
    };

    /// Reads back what [`Self::forwarded`] gave, or a block of [`PropertiesBuf`]. The bytes are trusted to be such a
    /// block; in others, everything from the first fault on is passed over.
    #[must_use]
    pub fn from_forwarded(raw: &'a [u8]) -> Self {
        let mut properties = Self { raw, ..Self::EMPTY };
        for property in RawProperties(raw) {
            let mut value = Reader::new(property.value);
            match property.id {
                id::PAYLOAD_FORMAT => properties.payload_is_utf8 = property.value == [1],
                id::MESSAGE_EXPIRY => properties.message_expiry_secs = value.u32().ok(),
                id::TOPIC_ALIAS => properties.topic_alias = value.u16().ok().filter(|&a| a > 0),
                _ => {}
            }
            properties.has_own |= is_own(property.id);
        }
        properties
    }

    /// Whether bytes that another node says are what [`Self::forwarded`] gave could be that: a checked block without what
    /// is between a client and its broker.
    #[must_use]
    pub fn may_be_forwarded(raw: &[u8]) -> bool {
        PublishProperties::decode_block(raw, false).is_ok_and(|(properties, _)| !properties.has_own)
    }

    /// Checks the block of a PUBLISH.
    #[inline]
    pub(crate) fn decode(raw: &'a [u8]) -> Result<Self, DecodeError> {
        if raw.is_empty() {
            return Ok(Self::EMPTY);
        }
        let (properties, _) = Self::decode_block(raw, false)?;
        Ok(properties)
    }

    /// Checks the block of a will; also gives the Will Delay Interval.
    pub(crate) fn decode_will(raw: &'a [u8]) -> Result<(Self, u32), DecodeError> {
        Self::decode_block(raw, true)
    }

    /// The properties of a PUBLISH or of a will; also gives the Will Delay Interval.
    fn decode_block(raw: &'a [u8], of_will: bool) -> Result<(Self, u32), DecodeError> {
        let mut properties = Self { raw, ..Self::EMPTY };
        let mut will_delay = 0;
        let mut seen = Seen::default();
        let mut reader = Reader::new(raw);
        while !reader.is_empty() {
            let id = reader.u8()?;
            // only these two may be there more than once
            if id != id::USER_PROPERTY && id != id::SUBSCRIPTION_ID {
                seen.once(id)?;
            }
            match id {
                id::PAYLOAD_FORMAT => properties.payload_is_utf8 = reader.bool()?,
                id::MESSAGE_EXPIRY => properties.message_expiry_secs = Some(reader.u32()?),
                // [MQTT5-3.3.2-19]
                id::CONTENT_TYPE => _ = reader.string()?,
                id::RESPONSE_TOPIC => {
                    // [MQTT5-3.3.2-13] [MQTT5-3.3.2-14]
                    TopicName::parse(reader.string()?).map_err(|_| ErrorKind::PropertyValue)?;
                }
                id::CORRELATION_DATA => _ = reader.binary()?,
                id::SUBSCRIPTION_ID if !of_will => {
                    if reader.varint()? == 0 {
                        return Err(ErrorKind::PropertyValue.into());
                    }
                }
                id::WILL_DELAY if of_will => will_delay = reader.u32()?,
                id::TOPIC_ALIAS if !of_will => {
                    let alias = reader.u16()?;
                    // [MQTT5-3.3.2-8]
                    if alias == 0 {
                        return Err(ErrorKind::TopicAliasZero.into());
                    }
                    properties.topic_alias = Some(alias);
                }
                id::USER_PROPERTY => {
                    // [MQTT5-1.5.7-1]
                    reader.skip_string()?;
                    reader.skip_string()?;
                }
                _ => return Err(ErrorKind::PropertyNotAllowed.into()),
            }
            properties.has_own |= is_own(id);
        }
        Ok((properties, will_delay))
    }

    /// Content Type.
    #[must_use]
    pub fn content_type(&self) -> Option<&'a str> {
        self.find(id::CONTENT_TYPE)
            .and_then(|value| Reader::new(value).string().ok())
    }

    /// Response Topic.
    #[must_use]
    pub fn response_topic(&self) -> Option<TopicName<'a>> {
        let text = self
            .find(id::RESPONSE_TOPIC)
            .and_then(|value| Reader::new(value).string().ok());
        text.and_then(|text| TopicName::parse(text).ok())
    }

    /// Correlation Data.
    #[must_use]
    pub fn correlation_data(&self) -> Option<&'a [u8]> {
        self.find(id::CORRELATION_DATA)
            .and_then(|value| Reader::new(value).binary().ok())
    }

    /// User properties.
    #[must_use]
    pub const fn user_properties(&self) -> UserProperties<'a> {
        UserProperties { raw: self.raw }
    }

    /// Subscription identifiers in wire order; a client must not send any `[MQTT5-3.3.4-6]`.
    #[must_use]
    pub const fn subscription_ids(&self) -> SubscriptionIds<'a> {
        let raw: &[u8] = if self.has_own { self.raw } else { &[] };
        SubscriptionIds(RawProperties(raw))
    }

    /// The bytes that travel to subscribers unchanged and in order: payload format, content type, response topic,
    /// correlation data and user properties
    /// `[MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] [MQTT5-3.3.2-20]`.
    #[must_use]
    pub fn forwarded(&self) -> Cow<'a, [u8]> {
        if !self.has_own {
            return Cow::Borrowed(self.raw);
        }
        let mut kept = RawProperties(self.raw)
            .filter(|property| !is_own(property.id))
            .peekable();
        if kept.peek().is_none() {
            return Cow::Borrowed(&[]);
        }
        let mut bytes = Vec::with_capacity(self.raw.len());
        for property in kept {
            bytes.extend_from_slice(property.whole);
        }
        Cow::Owned(bytes)
    }

    fn find(&self, id: u8) -> Option<&'a [u8]> {
        RawProperties(self.raw)
            .find(|property| property.id == id)
            .map(|property| property.value)
    }
}

/// Not forwarded unchanged: between this client and this broker only, or counted down.
#[inline]
const fn is_own(id: u8) -> bool {
    matches!(
        id,
        id::TOPIC_ALIAS | id::MESSAGE_EXPIRY | id::SUBSCRIPTION_ID | id::WILL_DELAY
    )
}

/// Equal when they say the same; the places of what is not forwarded do not matter.
impl PartialEq for PublishProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.topic_alias == other.topic_alias
            && self.message_expiry_secs == other.message_expiry_secs
            && self.payload_is_utf8 == other.payload_is_utf8
            && self.forwarded() == other.forwarded()
            && self.subscription_ids().eq(other.subscription_ids())
    }
}

impl fmt::Debug for PublishProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishProperties")
            .field("topic_alias", &self.topic_alias)
            .field("message_expiry_secs", &self.message_expiry_secs)
            .field("payload_is_utf8", &self.payload_is_utf8)
            .field("content_type", &self.content_type())
            .field("response_topic", &self.response_topic())
            .field("correlation_data", &self.correlation_data())
            .field(
                "subscription_ids",
                &self.subscription_ids().collect::<Vec<_>>(),
            )
            .field("user_properties", &self.user_properties())
            .finish()
    }
}

/// Iterates over the subscription identifiers of a PUBLISH.
#[derive(Clone)]
pub struct SubscriptionIds<'a>(RawProperties<'a>);

impl Iterator for SubscriptionIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let property = self.0.find(|property| property.id == id::SUBSCRIPTION_ID)?;
        Reader::new(property.value).varint().ok()
    }
}

/// A property that cannot be sent: too long, with U+0000, out of range, or there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidProperty;

impl fmt::Display for InvalidProperty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a property is too long, out of range, or there twice")
    }
}

impl std::error::Error for InvalidProperty {}

/// Builds the property block of a message, for publishers and wills that do not come from the wire, and of user
/// properties for every packet.
#[derive(Clone, Debug, Default)]
pub struct PropertiesBuf {
    raw: Vec<u8>,
    seen: Seen,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl PropertiesBuf {
    /// An empty block.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            raw: Vec::new(),
            seen: Seen(0),
        }
    }

    /// Payload Format Indicator: 1 says that the payload is UTF-8.
    ///
    /// # Errors
    /// There already.
    pub fn payload_is_utf8(&mut self, is_utf8: bool) -> Result<&mut Self, InvalidProperty> {
        self.push(id::PAYLOAD_FORMAT, &[u8::from(is_utf8)])
    }

    /// Message Expiry Interval.
    ///
    /// # Errors
    /// There already.
    pub fn message_expiry_secs(&mut self, secs: u32) -> Result<&mut Self, InvalidProperty> {
        self.push(id::MESSAGE_EXPIRY, &secs.to_be_bytes())
    }

    /// Content Type.
    ///
    /// # Errors
    /// Too long, with U+0000, or there already.
    pub fn content_type(&mut self, text: &str) -> Result<&mut Self, InvalidProperty> {
        self.push_binary(id::CONTENT_TYPE, checked(text)?)
    }

    /// Response Topic.
    ///
    /// # Errors
    /// There already.
    pub fn response_topic(&mut self, topic: TopicName<'_>) -> Result<&mut Self, InvalidProperty> {
        self.push_binary(id::RESPONSE_TOPIC, checked(topic.as_str())?)
    }

    /// Correlation Data.
    ///
    /// # Errors
    /// Too long or there already.
    pub fn correlation_data(&mut self, data: &[u8]) -> Result<&mut Self, InvalidProperty> {
        self.push_binary(id::CORRELATION_DATA, data)
    }

    /// Topic Alias.
    ///
    /// # Errors
    /// 0 or there already.
    pub fn topic_alias(&mut self, alias: u16) -> Result<&mut Self, InvalidProperty> {
        if alias == 0 {
            return Err(InvalidProperty);
        }
        self.push(id::TOPIC_ALIAS, &alias.to_be_bytes())
    }

    /// One more Subscription Identifier, 1 to [`SUBSCRIPTION_ID_MAX`].
    ///
    /// # Errors
    /// Out of range.
    pub fn subscription_id(&mut self, id: u32) -> Result<&mut Self, InvalidProperty> {
        if id == 0 || id > SUBSCRIPTION_ID_MAX {
            return Err(InvalidProperty);
        }
        self.raw.push(id::SUBSCRIPTION_ID);
        crate::encode::put_varint(&mut self.raw, id as usize);
        Ok(self)
    }

    /// One more User Property.
    ///
    /// # Errors
    /// Too long or with U+0000.
    pub fn user_property(&mut self, name: &str, value: &str) -> Result<&mut Self, InvalidProperty> {
        let (name, value) = (checked(name)?, checked(value)?);
        self.raw.push(id::USER_PROPERTY);
        crate::encode::put_binary(&mut self.raw, name);
        crate::encode::put_binary(&mut self.raw, value);
        Ok(self)
    }

    /// As the properties of a PUBLISH or a will.
    #[must_use]
    pub fn publish_properties(&self) -> PublishProperties<'_> {
        PublishProperties::from_forwarded(&self.raw)
    }

    /// The user properties in it.
    #[must_use]
    pub fn user_properties(&self) -> UserProperties<'_> {
        UserProperties { raw: &self.raw }
    }

    /// The block.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    fn push(&mut self, id: u8, value: &[u8]) -> Result<&mut Self, InvalidProperty> {
        self.seen.once(id).map_err(|_| InvalidProperty)?;
        self.raw.push(id);
        self.raw.extend_from_slice(value);
        Ok(self)
    }

    fn push_binary(&mut self, id: u8, value: &[u8]) -> Result<&mut Self, InvalidProperty> {
        if value.len() > usize::from(u16::MAX) {
            return Err(InvalidProperty);
        }
        self.push(id, &[])?;
        crate::encode::put_binary(&mut self.raw, value);
        Ok(self)
    }
}

/// What a string on the wire may be.
fn checked(text: &str) -> Result<&[u8], InvalidProperty> {
    if text.len() > usize::from(u16::MAX) || text.as_bytes().contains(&0) {
        return Err(InvalidProperty);
    }
    Ok(text.as_bytes())
}
