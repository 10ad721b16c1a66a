// SPDX-License-Identifier: Apache-2.0
//! Why there is no link, or no longer.

use std::fmt;
use std::io;

use crate::frame::InvalidFrame;
use crate::incoming::OutOfOrder;
use crate::outgoing::InvalidMark;

/// Why a link could not be had, or ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum LinkError {
    /// The socket cannot be used.
    Io(io::Error),
    /// The address is none that can be dialled.
    Address(quinn::ConnectError),
    /// Nobody answers, an end closed it, or an end does not know the other's identity.
    Connection(quinn::ConnectionError),
    /// The peer does not want this node; its reason.
    Refused(String),
    /// A stream ended early.
    Ended,
    /// The peer sent what is no hello, header, frame or mark.
    Invalid(InvalidFrame),
    /// A hello, header or answer above its limit (bytes).
    TooLong {
        /// What it is.
        what: &'static str,
        /// How long it may be.
        limit: usize,
    },
    /// The peer begins something that this version does not know.
    Unknown(u8),
    /// The peer's marks are wrong.
    Mark(InvalidMark),
    /// The peer's frames are wrong.
    Order(OutOfOrder),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Address(error) => error.fmt(f),
            Self::Connection(error) => error.fmt(f),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Ended => f.write_str("a stream ended early"),
            Self::Invalid(error) => error.fmt(f),
            Self::TooLong { what, limit } => write!(f, "{what} above {limit} bytes"),
            Self::Unknown(kind) => write!(
                f,
                "the peer begins something of kind {kind}, which is not known here"
            ),
            Self::Mark(error) => error.fmt(f),
            Self::Order(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<quinn::ConnectionError> for LinkError {
    fn from(error: quinn::ConnectionError) -> Self {
        match &error {
            quinn::ConnectionError::ApplicationClosed(close)
                if close.error_code == crate::endpoint::REFUSED =>
            {
                Self::Refused(String::from_utf8_lossy(&close.reason).into_owned())
            }
            _ => Self::Connection(error),
        }
    }
}

impl From<quinn::WriteError> for LinkError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => error.into(),
            _ => Self::Ended,
        }
    }
}

impl From<quinn::ReadError> for LinkError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => error.into(),
            _ => Self::Ended,
        }
    }
}

impl From<quinn::ReadExactError> for LinkError {
    fn from(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::FinishedEarly(_) => Self::Ended,
            quinn::ReadExactError::ReadError(error) => error.into(),
        }
    }
}

impl From<quinn::ClosedStream> for LinkError {
    fn from(_: quinn::ClosedStream) -> Self {
        Self::Ended
    }
}

impl From<InvalidFrame> for LinkError {
    fn from(error: InvalidFrame) -> Self {
        Self::Invalid(error)
    }
}

impl From<InvalidMark> for LinkError {
    fn from(error: InvalidMark) -> Self {
        Self::Mark(error)
    }
}

impl From<OutOfOrder> for LinkError {
    fn from(error: OutOfOrder) -> Self {
        Self::Order(error)
    }
}
