// SPDX-License-Identifier: Apache-2.0
//! The broker.

use std::process::ExitCode;

fn main() -> ExitCode {
    corqtt::process::main(corqtt::wiring::Edges::Real)
}
