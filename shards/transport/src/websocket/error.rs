// SPDX-License-Identifier: Apache-2.0
//! Why a WebSocket connection must be closed, and what the peer is told.

use std::fmt;

/// The peer broke a rule of RFC 6455, or asked for what is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WebSocketError {
    // The request, answered with an HTTP status.
    /// The bytes are no HTTP request.
    Request,
    /// The request head is too large, or has too many headers.
    HeadTooLarge,
    /// Not GET.
    Method,
    /// Not HTTP/1.1.
    HttpVersion,
    /// A header is missing that must be there once, or is there twice: Host, Sec-WebSocket-Key, -Version or Origin.
    HeaderCount,
    /// The request has a body.
    Body,
    /// An HTTP request that asks for no WebSocket.
    NoUpgrade,
    /// A version of WebSocket other than 13.
    Version,
    /// The key is not 16 bytes in base64.
    Key,
    /// The page is of an origin that may not connect.
    Origin,
    /// `mqtt` is not among the subprotocols.
    Subprotocol,

    // Frames, answered with Close.
    /// A reserved bit is set, though no extension was agreed on.
    ReservedBits,
    /// An opcode that does not exist.
    Opcode,
    /// A text frame.
    Text,
    /// A frame of a client that is not masked.
    Unmasked,
    /// A continuation of nothing, or a message begun inside another.
    Continuation,
    /// A control frame in fragments.
    FragmentedControl,
    /// A control frame of more than 125 bytes.
    ControlTooLong,
    /// A length in more bytes than it needs, or of more than 63 bits.
    Length,
    /// A Close frame with half a code, or with one that must not be sent.
    CloseCode,
    /// The reason in a Close frame is not UTF-8.
    CloseReason,
}

impl WebSocketError {
    /// Status of the HTTP response; `None` for what is wrong behind the upgrade.
    #[must_use]
    pub const fn http_status(self) -> Option<u16> {
        match self {
            Self::Request | Self::HeaderCount | Self::Body | Self::Key | Self::Subprotocol => {
                Some(400)
            }
            Self::Origin => Some(403),
            Self::Method => Some(405),
            Self::NoUpgrade | Self::Version => Some(426),
            Self::HeadTooLarge => Some(431),
            Self::HttpVersion => Some(505),
            Self::ReservedBits
            | Self::Opcode
            | Self::Text
            | Self::Unmasked
            | Self::Continuation
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::Length
            | Self::CloseCode
            | Self::CloseReason => None,
        }
    }

    /// Status code of the Close frame, RFC 6455 7.4.1.
    pub(super) const fn close_code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::CloseReason => 1007,
            _ => 1002,
        }
    }
}

impl fmt::Display for WebSocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "the bytes are not an HTTP request (is this the right port?)",
            Self::HeadTooLarge => {
                "the head of the HTTP request has more than 8192 bytes or 64 headers"
            }
            Self::Method => "the method of the HTTP request is not GET",
            Self::HttpVersion => {
                "the HTTP request is not of version 1.1 (a reverse proxy may have to be told to use it)"
            }
            Self::HeaderCount => {
                "the HTTP request must have one Host, Sec-WebSocket-Key and Sec-WebSocket-Version header, and not more than one Origin"
            }
            Self::Body => "the HTTP request has a body",
            Self::NoUpgrade => {
                "the HTTP request does not ask for a WebSocket (a reverse proxy may have to be told to pass Upgrade and Connection on)"
            }
            Self::Version => "the WebSocket version is not 13",
            Self::Key => "the Sec-WebSocket-Key is not 16 bytes in base64",
            Self::Origin => {
                "the Origin of the page may not connect here (see allowed-origins of the listener)"
            }
            Self::Subprotocol => {
                "the subprotocol mqtt is not among those offered in Sec-WebSocket-Protocol"
            }
            Self::ReservedBits => "a WebSocket frame has a reserved bit set",
            Self::Opcode => "a WebSocket frame with an opcode that does not exist",
            Self::Text => "a WebSocket text frame; MQTT is sent in binary ones",
            Self::Unmasked => "a WebSocket frame of a client is not masked",
            Self::Continuation => "a WebSocket frame continues nothing, or begins a message inside another",
            Self::FragmentedControl => "a WebSocket control frame is fragmented",
            Self::ControlTooLong => "a WebSocket control frame has more than 125 bytes",
            Self::Length => "the length of a WebSocket frame is malformed",
            Self::CloseCode => "a WebSocket Close frame has a code that must not be sent",
            Self::CloseReason => "the reason in a WebSocket Close frame is not UTF-8",
        })
    }
}

impl std::error::Error for WebSocketError {}
