// SPDX-License-Identifier: Apache-2.0
//! Any sequence of packets, deliveries and reconnects: `cargo +nightly fuzz run session`.
//!
//! The bytes are commands to one session. The property also runs as an ordinary test of the crate.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corqtt_session::fuzzing::check(data));
