// SPDX-License-Identifier: Apache-2.0
//! MQTT 5.0 reason codes (section 2.4).

/// A reason code; below 0x80 success, from 0x80 on an error.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReasonCode(pub u8);

#[allow(missing_docs, reason = "the names are those of section 2.4")]
impl ReasonCode {
    pub const SUCCESS: Self = Self(0x00);
    pub const NORMAL_DISCONNECTION: Self = Self(0x00);
    pub const GRANTED_QOS_0: Self = Self(0x00);
    pub const GRANTED_QOS_1: Self = Self(0x01);
    pub const GRANTED_QOS_2: Self = Self(0x02);
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    pub const CONTINUE_AUTHENTICATION: Self = Self(0x18);
    pub const REAUTHENTICATE: Self = Self(0x19);
    pub const UNSPECIFIED_ERROR: Self = Self(0x80);
    pub const MALFORMED_PACKET: Self = Self(0x81);
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    pub const IMPLEMENTATION_SPECIFIC_ERROR: Self = Self(0x83);
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    pub const CLIENT_IDENTIFIER_NOT_VALID: Self = Self(0x85);
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    pub const SERVER_BUSY: Self = Self(0x89);
    pub const BANNED: Self = Self(0x8A);
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8B);
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8C);
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8D);
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    pub const TOPIC_FILTER_INVALID: Self = Self(0x8F);
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    pub const PACKET_IDENTIFIER_IN_USE: Self = Self(0x91);
    pub const PACKET_IDENTIFIER_NOT_FOUND: Self = Self(0x92);
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    pub const MESSAGE_RATE_TOO_HIGH: Self = Self(0x96);
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    pub const ADMINISTRATIVE_ACTION: Self = Self(0x98);
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);
    pub const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);
    pub const QOS_NOT_SUPPORTED: Self = Self(0x9B);
    pub const USE_ANOTHER_SERVER: Self = Self(0x9C);
    pub const SERVER_MOVED: Self = Self(0x9D);
    pub const SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: Self = Self(0x9E);
    pub const CONNECTION_RATE_EXCEEDED: Self = Self(0x9F);
    pub const MAXIMUM_CONNECT_TIME: Self = Self(0xA0);
    pub const SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED: Self = Self(0xA1);
    pub const WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED: Self = Self(0xA2);
}

impl ReasonCode {
    /// True from 0x80 on.
    #[inline]
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// An error's name in metrics, after that of section 2.4.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UNSPECIFIED_ERROR => "unspecified-error",
            Self::MALFORMED_PACKET => "malformed-packet",
            Self::PROTOCOL_ERROR => "protocol-error",
            Self::IMPLEMENTATION_SPECIFIC_ERROR => "implementation-specific-error",
            Self::UNSUPPORTED_PROTOCOL_VERSION => "unsupported-protocol-version",
            Self::CLIENT_IDENTIFIER_NOT_VALID => "client-identifier-not-valid",
            Self::BAD_USER_NAME_OR_PASSWORD => "bad-user-name-or-password",
            Self::NOT_AUTHORIZED => "not-authorized",
            Self::SERVER_UNAVAILABLE => "server-unavailable",
            Self::SERVER_BUSY => "server-busy",
            Self::BANNED => "banned",
            Self::SERVER_SHUTTING_DOWN => "server-shutting-down",
            Self::BAD_AUTHENTICATION_METHOD => "bad-authentication-method",
            Self::KEEP_ALIVE_TIMEOUT => "keep-alive-timeout",
            Self::SESSION_TAKEN_OVER => "session-taken-over",
            Self::TOPIC_FILTER_INVALID => "topic-filter-invalid",
            Self::TOPIC_NAME_INVALID => "topic-name-invalid",
            Self::PACKET_IDENTIFIER_IN_USE => "packet-identifier-in-use",
            Self::PACKET_IDENTIFIER_NOT_FOUND => "packet-identifier-not-found",
            Self::RECEIVE_MAXIMUM_EXCEEDED => "receive-maximum-exceeded",
            Self::TOPIC_ALIAS_INVALID => "topic-alias-invalid",
            Self::PACKET_TOO_LARGE => "packet-too-large",
            Self::MESSAGE_RATE_TOO_HIGH => "message-rate-too-high",
            Self::QUOTA_EXCEEDED => "quota-exceeded",
            Self::ADMINISTRATIVE_ACTION => "administrative-action",
            Self::PAYLOAD_FORMAT_INVALID => "payload-format-invalid",
            Self::RETAIN_NOT_SUPPORTED => "retain-not-supported",
            Self::QOS_NOT_SUPPORTED => "qos-not-supported",
            Self::USE_ANOTHER_SERVER => "use-another-server",
            Self::SERVER_MOVED => "server-moved",
            Self::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED => "shared-subscriptions-not-supported",
            Self::CONNECTION_RATE_EXCEEDED => "connection-rate-exceeded",
            Self::MAXIMUM_CONNECT_TIME => "maximum-connect-time",
            Self::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED => {
                "subscription-identifiers-not-supported"
            }
            Self::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED => "wildcard-subscriptions-not-supported",
            _ => "other",
        }
    }
}

impl ReasonCode {
    /// One of the codes of CONNACK (section 3.2.2.2).
    pub(crate) const fn is_of_connack(self) -> bool {
        matches!(self.0, 0 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F)
    }

    /// One of the codes of DISCONNECT (sections 2.4 and 3.14.2.1).
    pub(crate) const fn is_of_disconnect(self) -> bool {
        matches!(self.0, 0 | 4 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B..=0x90 | 0x93..=0xA2)
    }
}

impl ReasonCode {
    /// One of the codes of DISCONNECT that a client may send (section 3.14.2.1).
    #[must_use]
    pub const fn is_of_client_disconnect(self) -> bool {
        matches!(self.0, 0 | 4 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
    }
}

impl std::fmt::Debug for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:02X}", self.0)
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:02X}", self.0)
    }
}
