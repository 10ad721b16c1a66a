// SPDX-License-Identifier: Apache-2.0
//! Tests of the whole crate; the table also seeds the fuzz target.

#![cfg_attr(
    test,
    expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may panic"
    )
)]

#[cfg_attr(not(test), expect(dead_code, reason = "fuzzing takes the bytes only"))]
pub(crate) mod table;

#[cfg(test)]
mod codec;
#[cfg(test)]
mod frame;
#[cfg(test)]
mod fuzzed;
#[cfg(test)]
mod generated;
#[cfg(test)]
mod message;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod publish_header;
#[cfg(test)]
mod topic;
