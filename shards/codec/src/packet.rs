// SPDX-License-Identifier: Apache-2.0
//! The control packets of all versions in one model (section 3 of the specifications).
//!
//! Every packet borrows the bytes it was decoded from. Fields that a version does not have are at their
//! defaults after decoding and are left out when encoding.

use std::num::NonZeroU16;

use crate::reader::Reader;
use crate::{PublishProperties, QoS, ReasonCode, TopicName, UserProperties, Version};

/// A packet identifier, 1 to 65,535 `[MQTT-2.3.1-1] [MQTT5-2.2.1-3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    /// `None` for 0.
    #[inline]
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number on the wire.
    #[inline]
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0.get()
    }
}

/// Any control packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    /// Client to server: open a session.
    Connect(Connect<'a>),
    /// Server to client: the answer to CONNECT.
    ConnAck(ConnAck<'a>),
    /// Either way: an application message.
    Publish(Publish<'a>),
    /// Answer to a QoS 1 PUBLISH.
    PubAck(Ack<'a>),
    /// First answer to a QoS 2 PUBLISH.
    PubRec(Ack<'a>),
    /// Answer to PUBREC.
    PubRel(Ack<'a>),
    /// Answer to PUBREL.
    PubComp(Ack<'a>),
    /// Client to server: subscribe.
    Subscribe(Subscribe<'a>),
    /// Server to client: the answer to SUBSCRIBE, a reason code per filter.
    SubAck(SubAck<'a>),
    /// Client to server: unsubscribe.
    Unsubscribe(Unsubscribe<'a>),
    /// Server to client: the answer to UNSUBSCRIBE; the codes are there in 5.0 only.
    UnsubAck(SubAck<'a>),
    /// Client to server: are you there?
    PingReq,
    /// Server to client: yes.
    PingResp,
    /// Client to server in all versions, server to client in 5.0.
    Disconnect(Disconnect<'a>),
    /// 5.0: extended authentication, either way.
    Auth(Auth<'a>),
}

/// CONNECT (section 3.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    /// From protocol name and level.
    pub version: Version,
    /// Level bit 0x80 was set: the peer is a bridge; its subscriptions are no-local.
    pub bridge: bool,
    /// Clean Start of 5.0, Clean Session before.
    pub clean_start: bool,
    /// Seconds; 0 means none.
    pub keep_alive_secs: u16,
    /// May be empty.
    pub client_id: &'a str,
    /// The will message.
    pub will: Option<Will<'a>>,
    /// User Name.
    pub username: Option<&'a str>,
    /// Password: any bytes.
    pub password: Option<&'a [u8]>,
    /// Seconds; `None` if absent (then 0). `u32::MAX` never expires.
    pub session_expiry_secs: Option<u32>,
    /// Default 65,535.
    pub receive_maximum: NonZeroU16,
    /// Bytes; `None`: no limit beyond the protocol's.
    pub maximum_packet_size: Option<u32>,
    /// Aliases that the client accepts, 0 to this.
    pub topic_alias_maximum: u16,
    /// Default false.
    pub request_response_information: bool,
    /// Default true.
    pub request_problem_information: bool,
    /// Name of the extended authentication method.
    pub authentication_method: Option<&'a str>,
    /// Only with a method.
    pub authentication_data: Option<&'a [u8]>,
    /// User properties of CONNECT itself.
    pub user_properties: UserProperties<'a>,
}

/// The will of a CONNECT (sections 3.1.2.5 and 3.1.3.2 of 5.0).
#[derive(Clone, Debug, PartialEq)]
pub struct Will<'a> {
    /// QoS to publish it with.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
    /// Checked: no wildcards, not empty.
    pub topic: TopicName<'a>,
    /// Any bytes.
    pub payload: &'a [u8],
    /// Seconds between the end of the connection and publication; default 0.
    pub delay_secs: u32,
    /// The properties that are published with it (message expiry apart, see [`PublishProperties`]).
    pub properties: PublishProperties<'a>,
}

/// CONNACK (section 3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct ConnAck<'a> {
    /// Stored session state exists; only with success.
    pub session_present: bool,
    /// For 3.1 and 3.1.1 mapped to their return codes 0 to 5 when encoded.
    pub reason: ReasonCode,
    /// The properties; ignored before 5.0.
    pub properties: ConnAckProperties<'a>,
}

/// Properties of CONNACK; `None` or the default leaves the property out.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are those of section 3.2.2.3")]
pub struct ConnAckProperties<'a> {
    pub session_expiry_secs: Option<u32>,
    pub receive_maximum: Option<NonZeroU16>,
    /// Sent when it is below `ExactlyOnce`.
    pub maximum_qos: Option<QoS>,
    pub retain_available: Option<bool>,
    pub maximum_packet_size: Option<u32>,
    pub assigned_client_id: Option<&'a str>,
    pub topic_alias_maximum: Option<u16>,
    pub reason_string: Option<&'a str>,
    pub user_properties: UserProperties<'a>,
    pub wildcard_subscription_available: Option<bool>,
    pub subscription_ids_available: Option<bool>,
    pub shared_subscription_available: Option<bool>,
    pub server_keep_alive_secs: Option<u16>,
    pub response_information: Option<&'a str>,
    pub server_reference: Option<&'a str>,
    pub authentication_method: Option<&'a str>,
    pub authentication_data: Option<&'a [u8]>,
}

/// PUBLISH (section 3.3).
#[derive(Clone, Debug, PartialEq)]
pub struct Publish<'a> {
    /// May have been sent before.
    pub dup: bool,
    /// Level of this transfer.
    pub qos: QoS,
    /// From a client: store it. To a client: it was stored (or retain-as-published).
    pub retain: bool,
    /// `None`: empty, to be resolved through the topic alias (5.0).
    pub topic: Option<TopicName<'a>>,
    /// There exactly when the QoS is above 0.
    pub packet_id: Option<PacketId>,
    /// Empty before 5.0.
    pub properties: PublishProperties<'a>,
    /// Any bytes.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (sections 3.4 to 3.7).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ack<'a> {
    /// Of the PUBLISH that it belongs to.
    pub packet_id: PacketId,
    /// Success before 5.0.
    pub reason: ReasonCode,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// In wire order.
    pub user_properties: UserProperties<'a>,
}

impl Ack<'_> {
    /// An acknowledgement without properties.
    #[inline]
    #[must_use]
    pub const fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self {
            packet_id,
            reason,
            reason_string: None,
            user_properties: UserProperties::EMPTY,
        }
    }
}

/// SUBSCRIBE (section 3.8).
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe<'a> {
    /// Answered by SUBACK with the same.
    pub packet_id: PacketId,
    /// 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// In wire order.
    pub user_properties: UserProperties<'a>,
    /// At least one; already checked to be well formed on the wire.
    pub filters: SubscribeFilters<'a>,
}

/// Options of one filter in SUBSCRIBE (section 3.8.3.1 of 5.0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Highest QoS that the subscriber wants.
    pub qos: QoS,
    /// Not what this client publishes itself.
    pub no_local: bool,
    /// Keep the RETAIN flag as it was published.
    pub retain_as_published: bool,
    /// When retained messages are sent.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent at SUBSCRIBE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// At each SUBSCRIBE (always so before 5.0).
    #[default]
    Send = 0,
    /// Only if the subscription did not exist.
    SendIfNew = 1,
    /// Never.
    DontSend = 2,
}

/// The filters of a SUBSCRIBE with their options, in wire order, borrowed. Iterates over
/// `(&str, SubscribeOptions)`: UTF-8 and free of NUL is checked, being a valid filter is not
/// (see [`crate::TopicFilter::parse`]), since that is done part by part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubscribeFilters<'a> {
    pub(crate) raw: &'a [u8],
    pub(crate) version: Version,
}

impl<'a> SubscribeFilters<'a> {
    /// Bytes that [`SubscribeFilters::parse`] has checked, from the beginning of any filter on.
    #[must_use]
    pub const fn trusted(raw: &'a [u8], version: Version) -> Self {
        Self { raw, version }
    }

    /// As on the wire: for each filter two bytes of length, the text, and a byte of options.
    #[must_use]
    pub const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Filters with their options.
    #[must_use]
    pub const fn iter(&self) -> SubscribeFiltersIter<'a> {
        SubscribeFiltersIter(Reader::new(self.raw))
    }

    /// How many, which is also how many codes SUBACK has `[MQTT-3.8.4-5] [MQTT5-3.8.4-6]`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// True without any, which no decoded packet is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

impl<'a> IntoIterator for SubscribeFilters<'a> {
    type Item = (&'a str, SubscribeOptions);
    type IntoIter = SubscribeFiltersIter<'a>;

    fn into_iter(self) -> SubscribeFiltersIter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &SubscribeFilters<'a> {
    type Item = (&'a str, SubscribeOptions);
    type IntoIter = SubscribeFiltersIter<'a>;

    fn into_iter(self) -> SubscribeFiltersIter<'a> {
        self.iter()
    }
}

/// Iterates over [`SubscribeFilters`].
#[derive(Clone)]
pub struct SubscribeFiltersIter<'a>(Reader<'a>);

impl<'a> Iterator for SubscribeFiltersIter<'a> {
    type Item = (&'a str, SubscribeOptions);

    fn next(&mut self) -> Option<(&'a str, SubscribeOptions)> {
        let filter = self.0.string().ok()?;
        let options = self.0.u8().ok()?;
        Some((filter, SubscribeOptions::from_bits(options)?))
    }
}

impl SubscribeOptions {
    /// From the options byte; before 5.0 only the QoS is there. `None` for reserved values.
    const fn from_bits(bits: u8) -> Option<Self> {
        let Some(qos) = QoS::from_bits(bits & 0b11) else {
            return None;
        };
        let retain_handling = match bits >> 4 & 0b11 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DontSend,
            _ => return None,
        };
        Some(Self {
            qos,
            no_local: bits & 0b100 != 0,
            retain_as_published: bits & 0b1000 != 0,
            retain_handling,
        })
    }
}

/// SUBACK and UNSUBACK (sections 3.9 and 3.11).
#[derive(Clone, Debug, PartialEq)]
pub struct SubAck<'a> {
    /// Of the SUBSCRIBE or UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// In wire order.
    pub user_properties: UserProperties<'a>,
    /// A reason code byte per filter; before 5.0 SUBACK errors are sent as 0x80 and UNSUBACK has none.
    pub codes: &'a [u8],
}

/// UNSUBSCRIBE (section 3.10).
#[derive(Clone, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    /// Answered by UNSUBACK with the same.
    pub packet_id: PacketId,
    /// In wire order.
    pub user_properties: UserProperties<'a>,
    /// At least one.
    pub filters: UnsubscribeFilters<'a>,
}

/// The filters of an UNSUBSCRIBE, in wire order, borrowed. Iterates over `&str` (UTF-8, no NUL).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnsubscribeFilters<'a> {
    pub(crate) raw: &'a [u8],
}

impl<'a> UnsubscribeFilters<'a> {
    /// Bytes that [`UnsubscribeFilters::parse`] has checked, from the beginning of any filter on.
    #[must_use]
    pub const fn trusted(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// As on the wire: for each filter two bytes of length and the text.
    #[must_use]
    pub const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The filters.
    #[must_use]
    pub const fn iter(&self) -> UnsubscribeFiltersIter<'a> {
        UnsubscribeFiltersIter(Reader::new(self.raw))
    }

    /// How many, which is also how many codes UNSUBACK has in 5.0 `[MQTT5-3.11.3-1]`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// True without any, which no decoded packet is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

impl<'a> IntoIterator for UnsubscribeFilters<'a> {
    type Item = &'a str;
    type IntoIter = UnsubscribeFiltersIter<'a>;

    fn into_iter(self) -> UnsubscribeFiltersIter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &UnsubscribeFilters<'a> {
    type Item = &'a str;
    type IntoIter = UnsubscribeFiltersIter<'a>;

    fn into_iter(self) -> UnsubscribeFiltersIter<'a> {
        self.iter()
    }
}

/// Iterates over [`UnsubscribeFilters`].
#[derive(Clone)]
pub struct UnsubscribeFiltersIter<'a>(Reader<'a>);

impl<'a> Iterator for UnsubscribeFiltersIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.0.string().ok()
    }
}

/// DISCONNECT (section 3.14).
#[derive(Clone, Debug, PartialEq)]
pub struct Disconnect<'a> {
    /// Normal before 5.0.
    pub reason: ReasonCode,
    /// From clients only.
    pub session_expiry_secs: Option<u32>,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// In wire order.
    pub user_properties: UserProperties<'a>,
    /// From the server only.
    pub server_reference: Option<&'a str>,
}

impl Disconnect<'_> {
    /// A DISCONNECT without properties.
    #[must_use]
    pub const fn new(reason: ReasonCode) -> Self {
        Self {
            reason,
            session_expiry_secs: None,
            reason_string: None,
            user_properties: UserProperties::EMPTY,
            server_reference: None,
        }
    }
}

/// AUTH (section 3.15 of 5.0).
#[derive(Clone, Debug, PartialEq)]
pub struct Auth<'a> {
    /// Success, continue or re-authenticate.
    pub reason: ReasonCode,
    /// Must be there on the wire unless the packet is empty.
    pub method: Option<&'a str>,
    /// Any bytes.
    pub data: Option<&'a [u8]>,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// In wire order.
    pub user_properties: UserProperties<'a>,
}
