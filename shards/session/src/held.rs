// SPDX-License-Identifier: Apache-2.0
//! Messages that sessions hold, and how much memory that takes.
//!
//! A message is held once however many sessions of a shard have it in their queues or in flight; each of them adds an
//! entry. What is held is counted per thread, since all sessions of a shard live on its thread: so nothing has to be
//! handed in where a message goes, and nothing is looked through to know the sum.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use corqtt_codec::Message;

use crate::SHARED_PAYLOAD_BYTES_MIN;

/// What a session spends on a message beside the message itself (bytes).
const ENTRY_BYTES: usize = 64;
/// What a message takes beside its topic, properties and payload (bytes).
const MESSAGE_BYTES: usize = 128;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Bytes of memory that the sessions of this thread hold in their queues, in flight and as wills. Payloads that are shared by
/// counting are not among them: their buffers may be held elsewhere too.
#[must_use]
pub fn held_bytes() -> usize {
    BYTES.get()
}

/// Bytes that are counted as long as this lives, on the thread where it was made and has to stay.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    bytes: usize,
    stays: PhantomData<Rc<()>>,
}

impl Counted {
    pub(crate) fn new(bytes: usize) -> Self {
        BYTES.set(BYTES.get() + bytes);
        Self {
            bytes,
            stays: PhantomData,
        }
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(self.bytes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        BYTES.set(BYTES.get() - self.bytes);
    }
}

/// A session's hold on a message.
#[derive(Debug)]
pub struct Held(Rc<Kept>);

#[derive(Debug)]
struct Kept {
    message: Owned,
    bytes: usize,
}

#[derive(Debug)]
enum Owned {
    Here(Message),
    Elsewhere(Arc<Message>),
}

impl Held {
    pub(crate) fn new(message: Message) -> Self {
        Self::of(Owned::Here(message))
    }

    /// Holds a message that others have too.
    #[must_use]
    pub fn shared(message: Arc<Message>) -> Self {
        Self::of(Owned::Elsewhere(message))
    }

    fn of(message: Owned) -> Self {
        let kept = match &message {
            Owned::Here(message) => message,
            Owned::Elsewhere(message) => message,
        };
        let payload_bytes =
            Some(kept.payload.len()).filter(|bytes| *bytes >= SHARED_PAYLOAD_BYTES_MIN);
        let bytes = MESSAGE_BYTES + kept.size() - payload_bytes.unwrap_or(0);
        BYTES.set(BYTES.get() + bytes + ENTRY_BYTES);
        Self(Rc::new(Kept { message, bytes }))
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        BYTES.set(BYTES.get() + ENTRY_BYTES);
        Self(self.0.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        BYTES.set(BYTES.get() - ENTRY_BYTES);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        BYTES.set(BYTES.get() - self.bytes);
    }
}

impl Deref for Held {
    type Target = Message;

    fn deref(&self) -> &Message {
        match &self.0.message {
            Owned::Here(message) => message,
            Owned::Elsewhere(message) => message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corqtt_codec::{MessageRef, Payload, QoS, TopicName};

    fn message(payload_bytes: usize) -> Message {
        MessageRef {
            topic: TopicName::trusted("topic"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: &[],
            expires_at_ms: None,
            payload: Payload::borrowed(&vec![b'x'; payload_bytes]),
        }
        .to_message()
    }

    #[test]
    fn a_message_is_counted_once_and_each_hold_on_it() {
        let before = held_bytes();
        let first = Held::new(message(1000));
        assert_eq!(held_bytes() - before, MESSAGE_BYTES + 1005 + ENTRY_BYTES);
        let others: Vec<_> = (0..9).map(|_| first.clone()).collect();
        drop(first);
        assert_eq!(
            held_bytes() - before,
            MESSAGE_BYTES + 1005 + 9 * ENTRY_BYTES
        );
        drop(others);
        assert_eq!(held_bytes(), before);
    }

    #[test]
    fn a_will_is_counted_until_it_is_published() {
        let before = held_bytes();
        let will = crate::Will::of(message(5000), 0, None);
        assert!(held_bytes() - before >= 5005);
        let copy = will.clone();
        assert!(held_bytes() - before >= 2 * 5005);
        drop(copy);
        let now = crate::Now {
            mono_ms: 0,
            wall_ms: 0,
        };
        drop(will.into_message(now));
        assert_eq!(held_bytes(), before);
    }

    #[test]
    fn a_payload_that_is_shared_by_counting_is_counted_where_it_was_made() {
        let before = held_bytes();
        let large = Held::shared(Arc::new(message(SHARED_PAYLOAD_BYTES_MIN)));
        assert_eq!(held_bytes() - before, MESSAGE_BYTES + 5 + ENTRY_BYTES);
        drop(large);
        assert_eq!(held_bytes(), before);
    }
}
