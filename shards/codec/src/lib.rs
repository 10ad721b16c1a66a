// SPDX-License-Identifier: Apache-2.0
//! MQTT 3.1, 3.1.1 and 5.0 between bytes and packets, without input or output.
//!
//! ```text
//!  bytes read ──► frame() ──► Frame ──► decode() ──► Packet<'_>   (borrows the bytes; nothing is copied)
//!  Packet<'_> / PublishHeader ──► encode() ──► bytes to write
//! ```
//!
//! * One packet model for all versions; the version is an argument of decoding and encoding.
//! * A decoded packet borrows from the input. Payloads that must outlive it are taken with
//!   [`bytes::Bytes::slice_ref`] where the input is a `Bytes`, else copied by the caller.
//! * Decoding never allocates and never panics on any input.
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::indexing_slicing)]

mod decode;
mod encode;
mod error;
mod frame;
mod message;
mod packet;
mod properties;
mod qos;
mod reader;
mod reason;
mod topic;
mod version;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "fuzzing"))]
mod tests;

pub use decode::{connect_version, decode, decode_ack, decode_publish};
pub use encode::{PublishHeader, SubscribeFiltersBuf, UnsubscribeFiltersBuf, encode, encode_ack};
pub use error::{DecodeError, ErrorKind};
pub use frame::{Frame, frame, frame_len, packet_type};
pub use message::{Message, MessageId, MessageRef, Payload};
pub use packet::*;
pub use properties::{
    InvalidProperty, PropertiesBuf, PublishProperties, SUBSCRIPTION_ID_MAX, SubscriptionIds,
    UserProperties, UserPropertiesIter,
};
pub use qos::QoS;
pub use reason::ReasonCode;
pub use topic::{InvalidTopic, SHARE_PREFIX, TopicFilter, TopicName};
pub use version::Version;
