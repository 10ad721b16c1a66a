// SPDX-License-Identifier: Apache-2.0
//! The broker with edges that answer late and out of order: auth, store, and the marks between shards. The behaviour
//! suites run against it as they do against the broker itself. `CORQTT_DOUBLES_SEED` repeats a run.

use std::process::ExitCode;

fn main() -> ExitCode {
    let seed = std::env::var("CORQTT_DOUBLES_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    corqtt::process::main(corqtt::wiring::Edges::Doubles { seed })
}
