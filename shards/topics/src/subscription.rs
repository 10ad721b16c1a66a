// SPDX-License-Identifier: Apache-2.0
//! One client's subscription, and its 32-bit form.

use std::num::NonZeroU32;

use corqtt_codec::QoS;

/// A session's number on its shard: dense, and used again after [`crate::Partition::remove_client`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(pub u32);

/// The options of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// As granted.
    pub qos: QoS,
    /// Not the client's own messages.
    pub no_local: bool,
    /// RETAIN is passed on as published.
    pub retain_as_published: bool,
    /// Subscription Identifier, at most 268,435,455.
    pub id: Option<NonZeroU32>,
}

impl Subscription {
    /// Without options or identifier.
    #[must_use]
    pub const fn new(qos: QoS) -> Self {
        Self {
            qos,
            no_local: false,
            retain_as_published: false,
            id: None,
        }
    }
}

/// QoS in bits 0 and 1, no-local in 2, retain-as-published in 3, the identifier (28 bits on the wire) above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed(u32);

const NO_LOCAL: u32 = 1 << 2;
const RETAIN_AS_PUBLISHED: u32 = 1 << 3;
const ID_SHIFT: u32 = 4;

impl Packed {
    #[inline]
    pub(crate) fn qos(self) -> QoS {
        match self.0 & 3 {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        }
    }

    #[inline]
    pub(crate) const fn no_local(self) -> bool {
        self.0 & NO_LOCAL != 0
    }

    #[inline]
    pub(crate) const fn retain_as_published(self) -> bool {
        self.0 & RETAIN_AS_PUBLISHED != 0
    }

    #[inline]
    pub(crate) const fn id(self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.0 >> ID_SHIFT)
    }

    /// Whether a publisher must wait for it, if the session is persistent.
    #[inline]
    pub(crate) const fn acknowledged(self) -> bool {
        self.0 & 3 != 0
    }
}

impl From<Subscription> for Packed {
    fn from(sub: Subscription) -> Self {
        let id = sub.id.map_or(0, NonZeroU32::get);
        debug_assert!(id < 1 << 28, "a Variable Byte Integer has 28 bits");
        Self(
            u32::from(sub.qos.bits())
                | if sub.no_local { NO_LOCAL } else { 0 }
                | if sub.retain_as_published {
                    RETAIN_AS_PUBLISHED
                } else {
                    0
                }
                | (id << ID_SHIFT),
        )
    }
}

impl From<Packed> for Subscription {
    fn from(packed: Packed) -> Self {
        Self {
            qos: packed.qos(),
            no_local: packed.no_local(),
            retain_as_published: packed.retain_as_published(),
            id: packed.id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_option() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for id in [None, NonZeroU32::new(1), NonZeroU32::new(268_435_455)] {
                for bits in 0..4 {
                    let sub = Subscription {
                        qos,
                        no_local: bits & 1 != 0,
                        retain_as_published: bits & 2 != 0,
                        id,
                    };
                    assert_eq!(Subscription::from(Packed::from(sub)), sub);
                }
            }
        }
    }
}
