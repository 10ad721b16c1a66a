// SPDX-License-Identifier: Apache-2.0

//! What connections cost that do nothing: memory each, CPU of all together.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::clock::{self, SECOND_NS};
use crate::cost::Cost;
use crate::link::{Link, Poller};
use crate::opening::{Opening, SCRATCH_BYTES};
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::transport::{Dial, Way};
use crate::wire::{Hello, Protocol};

/// No connection comes up for this long: the run is over.
const STALL_NS: u64 = 10 * SECOND_NS;

#[derive(Clone, Debug)]
pub(crate) struct Idle {
    pub(crate) way: Way,
    pub(crate) protocol: Protocol,
    pub(crate) connections: u32,
    /// On their way at once.
    pub(crate) opening: u32,
    pub(crate) watch_ns: u64,
}

pub(crate) fn run(endpoint: &Endpoint, idle: &Idle) -> Result<Figures> {
    let broker = endpoint
        .pid
        .map(Cost::new)
        .context("idle needs the broker's pid: spawn it or name pid=")?;
    let dial = idle.way.to(endpoint)?;
    let run = clock::now_ns() as u32;
    // one connection first, so that what a broker allocates once is not counted as theirs
    let first = open(&dial, idle, run, 'f', 1)?;
    let (rss_before, cpu_before, started_ns) =
        (broker.rss_bytes()?, broker.cpu_ns()?, clock::now_ns());
    let links = open(&dial, idle, run, 'i', idle.connections)?;
    let (cpu_opened, opened_ns) = (broker.cpu_ns()?, clock::now_ns());

    thread::sleep(Duration::from_nanos(idle.watch_ns));
    let (rss_after, cpu_after, ended_ns) = (broker.rss_bytes()?, broker.cpu_ns()?, clock::now_ns());
    for link in links.into_iter().chain(first) {
        link.close();
    }

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

/// Opens connections with one subscription each.
fn open(dial: &Dial, idle: &Idle, run: u32, role: char, connections: u32) -> Result<Vec<Link>> {
    let mut poller = Poller::new()?;
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut openings = HashMap::new();
    let mut links = Vec::with_capacity(connections as usize);
    let mut begun = 0;
    while links.len() < connections as usize {
        while begun < connections && openings.len() < idle.opening as usize {
            let hello = Hello {
                protocol: idle.protocol,
                client_id: format!("{role}{run:08x}{begun}"),
                clean: true,
                keep_alive_secs: 600,
            };
            let filter = format!("idle/{run:08x}/{role}{begun}");
            let token = begun as usize;
            let opening = Opening::begin(dial, hello, Some(filter), &poller, token)?;
            openings.insert(token, opening);
            begun += 1;
        }
        let ready = poller.wait(STALL_NS)?;
        ensure!(
            ready > 0,
            "no connection has come up for {} s, {} have",
            STALL_NS / SECOND_NS,
            links.len()
        );
        for at in 0..ready {
            let (token, readable, writable) = poller.event(at);
            let Some(opening) = openings.get_mut(&token) else {
                continue;
            };
            if opening.step(readable, writable, &mut scratch)? {
                links.extend(openings.remove(&token).map(Opening::into_link));
            }
        }
    }
    Ok(links)
}
