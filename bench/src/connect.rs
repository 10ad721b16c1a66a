// SPDX-License-Identifier: Apache-2.0

//! The connect storm: handshakes of the transport, CONNECT, CONNACK, DISCONNECT, as many at once as asked for.
//!
//! With a rate it is an open loop: connection k is due at `start + k / rate` and its latency counts from there.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::clock::{self, SECOND_NS};
use crate::cost::Cost;
use crate::link::{Link, Poller};
use crate::opening::{Opening, SCRATCH_BYTES};
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::tls::Tickets;
use crate::transport::{Dial, Way};
use crate::wire::{Hello, Protocol};

/// A storm in which nothing has been answered for this long is over.
const STALL_NS: u64 = 10 * SECOND_NS;

/// Tickets collected before a storm, where fewer connections are allowed at once fewer: each that is used brings another.
const TICKETS: usize = 256;

/// Of the sessions that were to be resumed, so many may have begun anew.
const NOT_RESUMED_MAX: f64 = 0.01;

#[derive(Clone, Debug)]
pub(crate) struct Storm {
    pub(crate) way: Way,
    pub(crate) protocol: Protocol,
    pub(crate) connects: u64,
    pub(crate) concurrency: u32,
    pub(crate) rate: Option<f64>,
    /// Share of the connections that resume a TLS session.
    pub(crate) resume: f64,
}

impl Storm {
    fn hello(&self, client_id: String) -> Hello {
        Hello {
            protocol: self.protocol,
            client_id,
            clean: true,
            keep_alive_secs: 60,
        }
    }

    /// Whether connection `number` is one of those that resume: they are spread evenly.
    fn resumes(&self, number: u64) -> bool {
        let before = (number as f64 * self.resume) as u64;
        ((number + 1) as f64 * self.resume) as u64 > before
    }
}

struct Attempt {
    opening: Opening,
    /// When it was due (with a rate) or begun.
    from_ns: u64,
}

pub(crate) fn run(endpoint: &Endpoint, storm: &Storm) -> Result<Figures> {
    let broker = endpoint.pid.map(Cost::new);
    let generator = Cost::new(std::process::id());
    let cpu = || broker.as_ref().map(Cost::cpu_ns).transpose();
    let mut poller = Poller::new()?;
    let mut attempts = HashMap::new();
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60 * SECOND_NS, 3)?;
    let mut scratch = vec![0; SCRATCH_BYTES];
    let (mut begun, mut done, mut resumed) = (0, 0, 0_u64);
    let run = clock::now_ns() as u32;
    let dial = storm.way.to(endpoint)?;
    let resuming = prime(endpoint, storm, run)?;

    let cpu_before = cpu()?;
    let generator_before = generator.cpu_ns()?;
    let started_ns = clock::now_ns();
    let mut moved_at_ns = started_ns;
    while done < storm.connects {
        let now = clock::now_ns();
        while begun < storm.connects && attempts.len() < storm.concurrency as usize {
            let from_ns = match storm.rate {
                Some(rate) => started_ns + (begun as f64 * SECOND_NS as f64 / rate) as u64,
                None => now,
            };
            if from_ns > now {
                break;
            }
            let dial = match &resuming {
                Some(resuming) if storm.resumes(begun) => resuming,
                _ => &dial,
            };
            let hello = storm.hello(format!("c{run:08x}{begun}"));
            let opening = Opening::begin(dial, hello, None, &poller, begun as usize)?;
            attempts.insert(begun, Attempt { opening, from_ns });
            begun += 1;
        }
        let timeout_ns = if storm.rate.is_some() {
            SECOND_NS / 1000
        } else {
            SECOND_NS / 10
        };
        let ready = poller.wait(timeout_ns)?;
        let now = clock::now_ns();
        if ready > 0 || attempts.is_empty() {
            moved_at_ns = now;
        } else if now - moved_at_ns > STALL_NS {
            bail!(
                "no CONNECT has been answered for {} s; {done} of {} done",
                STALL_NS / SECOND_NS,
                storm.connects
            );
        }
        for at in 0..ready {
            let (number, readable, writable) = poller.event(at);
            let number = number as u64;
            let Some(attempt) = attempts.get_mut(&number) else {
                continue;
            };
            if attempt.opening.step(readable, writable, &mut scratch)? {
                latency.saturating_record(now.saturating_sub(attempt.from_ns).max(1));
                if let Some(Attempt { opening, .. }) = attempts.remove(&number) {
                    let mut link = opening.into_link();
                    resumed += u64::from(link.is_resumed());
                    link.finish()?;
                }
                done += 1;
            }
        }
    }
    let elapsed_ns = clock::now_ns() - started_ns;
    let connects = storm.connects as f64;

    let mut figures = Figures::default();
    if let Some((after, before)) = cpu()?.zip(cpu_before) {
        let cpu_ns = after.saturating_sub(before) as f64;
        figures.put("cpu_us_per_connect", cpu_ns / 1000.0 / connects);
        figures.put(
            "connects_per_core_s",
            connects * SECOND_NS as f64 / cpu_ns.max(1.0),
        );
        figures.put("broker_busy_percent", 100.0 * cpu_ns / elapsed_ns as f64);
    }
    figures.put(
        "generator_busy_percent",
        100.0 * generator.cpu_ns()?.saturating_sub(generator_before) as f64 / elapsed_ns as f64,
    );
    figures.put("connects_per_s", connects / clock::seconds(elapsed_ns));
    figures.put("p50_us", latency.value_at_quantile(0.5) as f64 / 1000.0);
    figures.put("p99_us", latency.value_at_quantile(0.99) as f64 / 1000.0);
    figures.put("max_us", latency.max() as f64 / 1000.0);
    if resuming.is_some() {
        let wanted = (0..storm.connects)
            .filter(|&number| storm.resumes(number))
            .count();
        figures.put("resumed_percent", 100.0 * resumed as f64 / connects);
        if (resumed as f64) < wanted as f64 * (1.0 - NOT_RESUMED_MAX) {
            figures.failures.push(format!(
                "the broker resumed {resumed} sessions where {wanted} were offered"
            ));
        }
    }
    Ok(figures)
}

/// Where sessions are to be resumed: a way to the broker with tickets to begin with.
fn prime(endpoint: &Endpoint, storm: &Storm, run: u32) -> Result<Option<Dial>> {
    if storm.resume <= 0.0 {
        return Ok(None);
    }
    let tickets = Arc::new(Tickets::default());
    let dial = storm.way.resuming(endpoint, Some(Arc::clone(&tickets)))?;
    let wanted = TICKETS.min(storm.concurrency as usize);
    let mut before = 0;
    while before < wanted {
        let hello = storm.hello(format!("t{run:08x}{before}"));
        Link::open(&dial, &hello)?.close();
        let after = tickets.len();
        ensure!(after > before, "the broker gives no ticket to resume with");
        before = after;
    }
    tickets.give_out();
    Ok(Some(dial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_resume_are_the_share_asked_for() {
        let count = |resume: f64| {
            let storm = Storm {
                way: Way::tcp(),
                protocol: Protocol::V311,
                connects: 1000,
                concurrency: 1,
                rate: None,
                resume,
            };
            (0..1000).filter(|&number| storm.resumes(number)).count()
        };
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(count), [0, 250, 500, 1000]);
    }
}
