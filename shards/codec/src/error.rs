// SPDX-License-Identifier: Apache-2.0
//! Why bytes are not a packet, and the reason code that says so to the peer (section 4.13 of 5.0).

use std::fmt;

use crate::ReasonCode;

/// What is wrong, sorted by whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    // Malformed bytes, answered with 0x81: they cannot be read as a packet of that version.
    /// Remaining Length has more than four bytes, or more than it needs.
    RemainingLength,
    /// The packet type is reserved in this version.
    PacketType,
    /// Flags of the fixed header that must have another value.
    FixedHeaderFlags,
    /// A field ends behind the packet.
    Truncated,
    /// Bytes are left behind the last field.
    TrailingBytes,
    /// A Variable Byte Integer of more than four bytes, or of more than it needs.
    VariableByteInteger,
    /// A string is not UTF-8.
    InvalidUtf8,
    /// A string holds U+0000.
    NulInString,
    /// A reserved bit is set: connect flags, acknowledge flags or subscription options.
    ReservedBits,
    /// QoS 3.
    QosReserved,
    /// DUP in a QoS 0 message.
    DupWithQos0,
    /// Will QoS or Will Retain without a will.
    WillFlags,
    /// A password without a user name, before 5.0.
    PasswordWithoutUserName,
    /// A property that does not exist, or does not belong in this packet.
    PropertyNotAllowed,

    // The bytes are a packet, but one that the peer must not send, answered with 0x82.
    /// A property that may be there once is there twice.
    DuplicateProperty,
    /// A property has a value outside its range.
    PropertyValue,
    /// Packet Identifier 0.
    PacketIdZero,
    /// Neither Topic Name nor Topic Alias.
    TopicMissing,
    /// SUBSCRIBE or UNSUBSCRIBE without a filter.
    NoTopicFilter,
    /// Maximum QoS or Retain Handling of a subscription is 3.
    SubscriptionOptions,
    /// No Local on a shared subscription.
    NoLocalOnShared,
    /// A reason or return code that this packet cannot carry.
    ReasonCode,
    /// Authentication data without a method, or AUTH without one.
    AuthenticationMethodMissing,
    /// Session Present in a CONNACK that refuses.
    SessionPresent,

    // Broken rules that have a reason code of their own.
    /// A Topic Name is empty or has wildcards: 0x90.
    TopicName,
    /// Topic Alias 0: 0x94.
    TopicAliasZero,
    /// Protocol name and level are of no version that we speak: 0x84.
    ProtocolVersion,

    // Our limit.
    /// Larger than the maximum packet size: 0x95.
    PacketTooLarge,
}

impl ErrorKind {
    /// The reason code for CONNACK or DISCONNECT `[MQTT5-4.13.1-1]`.
    #[must_use]
    pub const fn reason(self) -> ReasonCode {
        match self {
            Self::RemainingLength
            | Self::PacketType
            | Self::FixedHeaderFlags
            | Self::Truncated
            | Self::TrailingBytes
            | Self::VariableByteInteger
            | Self::InvalidUtf8
            | Self::NulInString
            | Self::ReservedBits
            | Self::QosReserved
            | Self::DupWithQos0
            | Self::WillFlags
            | Self::PasswordWithoutUserName
            | Self::PropertyNotAllowed => ReasonCode::MALFORMED_PACKET,
            Self::DuplicateProperty
            | Self::PropertyValue
            | Self::PacketIdZero
            | Self::TopicMissing
            | Self::NoTopicFilter
            | Self::SubscriptionOptions
            | Self::NoLocalOnShared
            | Self::ReasonCode
            | Self::AuthenticationMethodMissing
            | Self::SessionPresent => ReasonCode::PROTOCOL_ERROR,
            Self::TopicName => ReasonCode::TOPIC_NAME_INVALID,
            Self::TopicAliasZero => ReasonCode::TOPIC_ALIAS_INVALID,
            Self::ProtocolVersion => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
            Self::PacketTooLarge => ReasonCode::PACKET_TOO_LARGE,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RemainingLength => "the remaining length of a packet is malformed",
            Self::PacketType => "a packet type that does not exist in this protocol version",
            Self::FixedHeaderFlags => {
                "the flags of a fixed header are not those of its packet type"
            }
            Self::Truncated => "a field is longer than its packet",
            Self::TrailingBytes => "a packet has bytes behind its last field",
            Self::VariableByteInteger => "a variable byte integer is malformed",
            Self::InvalidUtf8 => "a string is not UTF-8",
            Self::NulInString => "a string holds the character U+0000",
            Self::ReservedBits => "a reserved bit is set",
            Self::QosReserved => "a QoS of 3",
            Self::DupWithQos0 => "the DUP flag is set in a QoS 0 message",
            Self::WillFlags => "a will QoS or will retain flag without a will",
            Self::PasswordWithoutUserName => "a password without a user name",
            Self::PropertyNotAllowed => "a property that does not belong in its packet",
            Self::DuplicateProperty => "a property is there twice",
            Self::PropertyValue => "the value of a property is out of range",
            Self::PacketIdZero => "a packet identifier of 0",
            Self::TopicMissing => "a message has neither a topic name nor a topic alias",
            Self::NoTopicFilter => "a subscribe or unsubscribe packet without a topic filter",
            Self::SubscriptionOptions => "the options of a subscription are out of range",
            Self::NoLocalOnShared => "the no-local option on a shared subscription",
            Self::ReasonCode => "a reason code that does not belong in its packet",
            Self::AuthenticationMethodMissing => "authentication without a method",
            Self::SessionPresent => "a refused connection with a session present",
            Self::TopicName => "a topic name is empty or has wildcards",
            Self::TopicAliasZero => "a topic alias of 0",
            Self::ProtocolVersion => "a protocol name and level of no supported version",
            Self::PacketTooLarge => "a packet is larger than the maximum packet size",
        })
    }
}

/// The bytes are not a packet that may be there; the connection must be closed `[MQTT-4.8.0-1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeError {
    /// What is wrong.
    pub kind: ErrorKind,
}

const _: () = assert!(size_of::<DecodeError>() == 1);

impl DecodeError {
    /// The reason code for CONNACK or DISCONNECT.
    #[must_use]
    pub const fn reason(self) -> ReasonCode {
        self.kind.reason()
    }
}

impl From<ErrorKind> for DecodeError {
    #[inline]
    fn from(kind: ErrorKind) -> Self {
        Self { kind }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for DecodeError {}
