// SPDX-License-Identifier: Apache-2.0
//! corqtt: a clustered MQTT broker. This package is the process around the crates: settings, logging, wiring.

pub mod args;
pub mod check;
pub mod logging;
mod memory;
pub mod process;
pub mod settings;
pub mod tls;
pub mod wiring;
