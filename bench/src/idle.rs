// SPDX-License-Identifier: Apache-2.0

//! What connections cost that do nothing: memory each, CPU of all together.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::clock;
use crate::cost::Cost;
use crate::link::Link;
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::transport::Way;
use crate::wire::{Hello, Protocol};

#[derive(Clone, Debug)]
pub(crate) struct Idle {
    pub(crate) way: Way,
    pub(crate) protocol: Protocol,
    pub(crate) connections: u32,
    pub(crate) watch_ns: u64,
}

pub(crate) fn run(endpoint: &Endpoint, idle: &Idle) -> Result<Figures> {
    let broker = endpoint
        .pid
        .map(Cost::new)
        .context("idle needs the broker's pid: spawn it or name pid=")?;
    let dial = idle.way.to(endpoint)?;
    let run = clock::now_ns() as u32;
    let open = |role: char, number: u32| -> Result<Link> {
        let client_id = format!("{role}{run:08x}{number}");
        let hello = Hello {
            protocol: idle.protocol,
            client_id,
            clean: true,
            keep_alive_secs: 600,
        };
        let mut link = Link::open(&dial, &hello)?;
        link.subscribe(&[format!("idle/{run:08x}/{number}")], 0)?;
        Ok(link)
    };
    // one connection first, so that what a broker allocates once is not counted as theirs
    let first = open('f', u32::MAX)?;
    let (rss_before, cpu_before, started_ns) =
        (broker.rss_bytes()?, broker.cpu_ns()?, clock::now_ns());
    let links = (0..idle.connections)
        .map(|number| open('i', number))
        .collect::<Result<Vec<_>>>()?;
    let (cpu_opened, opened_ns) = (broker.cpu_ns()?, clock::now_ns());

    thread::sleep(Duration::from_nanos(idle.watch_ns));
    let (rss_after, cpu_after, ended_ns) = (broker.rss_bytes()?, broker.cpu_ns()?, clock::now_ns());
    for link in links {
        link.close();
    }
    first.close();

    let connections = f64::from(idle.connections);
    let mut figures = Figures::default();
    figures.put(
        "rss_bytes_per_connection",
        (rss_after as f64 - rss_before as f64) / connections,
    );
    figures.put(
        "idle_cpu_percent",
        100.0 * cpu_after.saturating_sub(cpu_opened) as f64 / (ended_ns - opened_ns) as f64,
    );
    figures.put(
        "open_cpu_us_per_connection",
        cpu_opened.saturating_sub(cpu_before) as f64 / 1000.0 / connections,
    );
    figures.put(
        "connects_per_s",
        connections / clock::seconds(opened_ns - started_ns),
    );
    figures.put("rss_mib", rss_after as f64 / (1 << 20) as f64);
    Ok(figures)
}
