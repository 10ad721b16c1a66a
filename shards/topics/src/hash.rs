// SPDX-License-Identifier: Apache-2.0
//! Keyed hashes of text, and the fixed ones that must agree between shards.

use std::hash::Hasher;

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// A hash of text whose key a client cannot know, so that it cannot choose texts that collide.
#[derive(Clone, Debug)]
pub(crate) struct TextHash {
    seed: u64,
    shared: SharedSeed,
}

impl TextHash {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            shared: SharedSeed::from_u64(seed),
        }
    }

    #[inline]
    pub(crate) fn of(&self, text: &str) -> u64 {
        self.of_bytes(text.as_bytes())
    }

    #[inline]
    pub(crate) fn of_bytes(&self, text: &[u8]) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared);
        hasher.write(text);
        hasher.finish()
    }
}

/// Both halves of the product, so that every bit of `value` reaches the bits a hash table uses.
#[inline]
pub(crate) fn mix(value: u64) -> u64 {
    let product = u128::from(value ^ 0x9e37_79b9_7f4a_7c15) * u128::from(0xd6e8_feb8_6659_fd93_u64);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Makes numbers that are alike unlike each other (the finalizer of SplitMix64).
pub(crate) fn scatter(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The same on every shard: a choice by topic must not depend on who makes it.
pub(crate) fn stable(text: &str) -> u64 {
    let mut hasher = FoldHasher::with_seed(0, SharedSeed::global_fixed());
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// `hash` scaled down to `0..bound`; `bound > 0`.
#[inline]
pub(crate) fn reduce(hash: u64, bound: u32) -> u32 {
    ((u128::from(hash) * u128::from(bound)) >> 64) as u32
}
