// SPDX-License-Identifier: Apache-2.0
//! corqtt: a clustered MQTT broker. This package is the process around the crates: settings, logging, wiring.

pub mod args;
pub mod check;
mod cluster;
mod edge;
mod http;
pub mod logging;
mod memory;
pub mod notify;
mod numbers;
mod panel;
mod polled;
pub mod process;
mod random;
pub mod reload;
pub mod settings;
mod store;
mod system;
pub mod tls;
pub mod wiring;
