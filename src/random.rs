// SPDX-License-Identifier: Apache-2.0
//! Numbers that nobody can guess.

use anyhow::Context;
use rustix::rand::{GetRandomFlags, getrandom};

/// Draws one.
///
/// # Errors
/// When the kernel has none.
pub(crate) fn draw() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("no random numbers")?;
    Ok(u64::from_ne_bytes(bytes))
}
