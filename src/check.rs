// SPDX-License-Identifier: Apache-2.0
//! `--check`: what would run with these settings, and what this build lacks for them.

use std::fmt::Write as _;

use crate::settings::{Level, Limit, Settings, SettingsError, StorageSync, StorageWay};
use crate::wiring;

/// What `--check` prints, and its exit code: 0 when these settings can be used on this machine, else 1. Addresses,
/// certificates and stores are not tried.
#[must_use]
pub fn report(read: &Result<Settings, SettingsError>) -> (String, u8) {
    let problems: Vec<String> = match read {
        Ok(settings) => {
            let missing = wiring::missing_here(settings);
            if missing.is_empty() {
                return (would_run(settings), 0);
            }
            missing.iter().map(|error| format!("{error:#}")).collect()
        }
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    };
    let mut text = String::from("corqtt would not start:\n");
    for problem in problems {
        line(&mut text, format_args!("  {problem}"));
    }
    (text, 1)
}

fn would_run(settings: &Settings) -> String {
    let mut text = format!("corqtt {} would run:\n", env!("CARGO_PKG_VERSION"));
    let mut item = |name: &str, value: std::fmt::Arguments<'_>| {
        line(&mut text, format_args!("  {name}: {value}"))
    };

    item("node", format_args!("{}", settings.node_name));
    match &settings.cluster {
        None => item("cluster", format_args!("off, a single node")),
        Some(cluster) => item(
            "cluster",
            format_args!(
                "gossip {ip}:{}, raft {ip}:{}, links {ip}:{}, {} seeds",
                cluster.gossip_port,
                cluster.raft_port,
                cluster.peer_port,
                cluster.members.len(),
                ip = cluster.bind_ip,
            ),
        ),
    }
    for listener in &settings.listeners {
        item(
            "listener",
            format_args!("{} {}", listener.id, listener.socket.address()),
        );
    }
    if let Some(http) = &settings.http {
        item("http", format_args!("{}", http.address));
    }
    match settings.shards {
        Some(shards) => item(
            "shards",
            format_args!("{shards}, {} driver", settings.runtime),
        ),
        None => item(
            "shards",
            format_args!("one per CPU, {} driver", settings.runtime),
        ),
    }
    if let Some(cpus) = &settings.cpus {
        item("cpus", format_args!("{cpus:?}"));
    }
    match (settings.storage.way, settings.storage.sync) {
        (way @ (StorageWay::Memory | StorageWay::Redis), _) => item("store", format_args!("{way}")),
        (way, sync) => {
            let path = settings.storage.path.display();
            match sync {
                StorageSync::Always => {
                    item("store", format_args!("{way} in {path}, synced always"))
                }
                StorageSync::Every(every) => item(
                    "store",
                    format_args!("{way} in {path}, synced every {every:?}"),
                ),
                StorageSync::Never => item("store", format_args!("{way} in {path}, never synced")),
            }
        }
    }
    item("clients", format_args!("{}", settings.auth.way));
    match settings.limits.connections {
        Limit::Derived => item("connections", format_args!("limit of open files less 512")),
        Limit::None => item("connections", format_args!("no limit")),
        Limit::Max(max) => item("connections", format_args!("{max}")),
    }
    if settings.log.level == Level::Off {
        item("log", format_args!("off"));
    } else {
        let files = [
            &settings.log.file,
            &settings.log.info_file,
            &settings.log.error_file,
        ];
        let console = settings.log.console.then(|| "console".to_owned());
        let files = files
            .into_iter()
            .flatten()
            .map(|file| file.display().to_string());
        let outputs: Vec<String> = console.into_iter().chain(files).collect();
        item(
            "log",
            format_args!(
                "{}, {}, to {}",
                settings.log.level.filter().as_str().to_lowercase(),
                settings.log.format,
                outputs.join(" and ")
            ),
        );
    }

    if !settings.named.is_empty() {
        text.push_str("named settings:\n");
        for named in &settings.named {
            line(
                &mut text,
                format_args!(
                    "  {} = {} ({})",
                    named.name,
                    named.value.escape_debug(),
                    named.origin
                ),
            );
        }
    }
    if !settings.missing.is_empty() {
        text.push_str("not in this build:\n");
        for missing in &settings.missing {
            line(
                &mut text,
                format_args!("  {}: {}", missing.part.name(), missing.text),
            );
        }
    }
    if !settings.notices.is_empty() {
        text.push_str("notes:\n");
        for notice in &settings.notices {
            line(&mut text, format_args!("  {}", notice.text));
        }
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // writing to a String cannot fail
    let _ = writeln!(text, "{line}");
}
