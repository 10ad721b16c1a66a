// SPDX-License-Identifier: Apache-2.0
//! Any bytes of a socket, cut anywhere: `cargo +nightly fuzz run transport`.
//!
//! The first byte chooses what reads them, the second how they are cut. The seeds are written to the corpus by
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`. The property also runs as an ordinary test of the crate.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| corqtt_transport::fuzzing::check(data));
