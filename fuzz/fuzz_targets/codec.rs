// SPDX-License-Identifier: Apache-2.0
//! Any bytes as a packet: `cargo +nightly fuzz run codec`.
//!
//! The seeds, which are the packets of the codec's own table, are written to the corpus by
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`. The property also runs as an ordinary test of the codec.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corqtt_codec::fuzzing::check(data));
