// SPDX-License-Identifier: Apache-2.0

//! An open loop of a few messages per second through a broker, to find out what others suffer from a load beside it.
//!
//! A process of its own with a high priority, which sleeps between messages where the load's open loop spins. A message
//! carries the time at which it was to leave; `late_p99_us` says how much of a latency the probe owes to itself.

use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::clock::{self, SECOND_NS};
use crate::link::{Link, Poller};
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::transport::Way;
use crate::wire::{self, Hello, Protocol, STAMP_BYTES, Stamp, Template, kind};

/// How long after the last one a message may arrive.
const DRAIN_NS: u64 = 10 * SECOND_NS;

const SCRATCH_BYTES: usize = 64 * 1024;
const PAYLOAD_BYTES: usize = 64;
const _: () = assert!(PAYLOAD_BYTES >= STAMP_BYTES);

const PUBLISHER: usize = 0;
const SUBSCRIBER: usize = 1;
const TIMER: usize = 2;
const STDIN: usize = 3;

#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) way: Way,
    pub(crate) protocol: Protocol,
    /// Messages per second.
    pub(crate) rate: f64,
    pub(crate) duration_ns: u64,
    /// Begin at a line on stdin, end with stdin.
    pub(crate) attended: bool,
    pub(crate) nice: i32,
}

pub(crate) fn run(endpoint: &Endpoint, probe: &Probe) -> Result<Figures> {
    // where it may not, the figures say so
    let _ = rustix::process::setpriority_process(None, probe.nice);
    let dial = probe.way.to(endpoint)?;
    let run = rustix::process::getpid().as_raw_nonzero().get() as u32 ^ clock::now_ns() as u32;
    let open = |role: char| {
        let hello = Hello {
            protocol: probe.protocol,
            client_id: format!("probe{run:08x}{role}"),
            clean: true,
            keep_alive_secs: 600,
        };
        Link::open(&dial, &hello)
    };
    let topic = format!("probe/{run:08x}");
    let (publisher, mut subscriber) = (open('p')?, open('s')?);
    subscriber.subscribe(std::slice::from_ref(&topic), 0)?;
    let mut links = [publisher, subscriber];
    let template = Template::new(probe.protocol, &topic, 0, run, 0, PAYLOAD_BYTES);
    let mut poller = Poller::new()?;
    for (token, link) in links.iter().enumerate() {
        poller.add(link, token)?;
    }
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    poller.watch(&timer, TIMER)?;
    if probe.attended {
        println!("ready");
        io::stdout().flush()?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        poller.watch(io::stdin(), STDIN)?;
    }

    let mut latency = Histogram::<u64>::new_with_bounds(1, 60 * SECOND_NS, 3)?;
    let mut late = latency.clone();
    let mut scratch = vec![0; SCRATCH_BYTES];
    let (mut sent, mut received, mut sending) = (0_u64, 0_u64, true);
    let started_ns = clock::now_ns();
    let mut until_ns = if probe.attended {
        u64::MAX
    } else {
        started_ns + probe.duration_ns
    };
    let due_ns = |number: u64| started_ns + (number as f64 * SECOND_NS as f64 / probe.rate) as u64;
    loop {
        let now = clock::now_ns();
        while sending && due_ns(sent) <= now {
            if due_ns(sent) >= until_ns {
                sending = false;
                break;
            }
            late.saturating_record((now - due_ns(sent)).max(1));
            template.put(&mut links[PUBLISHER].out, 0, sent, due_ns(sent));
            sent += 1;
        }
        for link in &mut links {
            link.flush()?;
        }
        if !sending && (received == sent || now > until_ns.saturating_add(DRAIN_NS)) {
            break;
        }
        let wake_ns = if sending {
            due_ns(sent)
        } else {
            until_ns + DRAIN_NS
        };
        arm(&timer, wake_ns)?;
        // the timer ends the wait: that of epoll is too coarse
        for at in 0..poller.wait(DRAIN_NS)? {
            let (token, readable, _) = poller.event(at);
            match token {
                PUBLISHER | SUBSCRIBER if readable => {
                    let link = &mut links[token];
                    while let Some((filled, more)) = link.read(&mut scratch)? {
                        let now = clock::now_ns();
                        let mut at = 0;
                        while let Some(packet) = wire::split(&scratch[at..filled])? {
                            let body = &scratch[at + packet.body..at + packet.end];
                            at += packet.end;
                            let stamp = stamp_of(packet.first, body, probe.protocol)?;
                            if stamp.run != run || stamp.sequence < received {
                                bail!("the probe received a message twice, or one of others");
                            }
                            // what was left out is lost
                            received = received.max(stamp.sequence) + 1;
                            let ns = now.saturating_sub(stamp.intended_ns);
                            latency.saturating_record(ns.max(1));
                        }
                        link.keep(&scratch[at..filled]);
                        if !more {
                            break;
                        }
                    }
                }
                STDIN if sending && is_at_end()? => {
                    (sending, until_ns) = (false, clock::now_ns());
                }
                _ => {}
            }
        }
    }
    for link in links {
        link.close();
    }

    let mut figures = Figures::default();
    for (name, quantile) in [("p50_us", 0.5), ("p99_us", 0.99), ("max_us", 1.0)] {
        figures.put(name, latency.value_at_quantile(quantile) as f64 / 1000.0);
    }
    figures.put("late_p99_us", late.value_at_quantile(0.99) as f64 / 1000.0);
    let lost = sent - latency.len();
    figures.put("sent", sent as f64);
    figures.put("lost", lost as f64);
    figures.put(
        "nice",
        f64::from(rustix::process::getpriority_process(None)?),
    );
    if lost > 0 {
        figures
            .failures
            .push(format!("{lost} of the probe's {sent} messages were lost"));
    }
    if latency.is_empty() {
        figures
            .failures
            .push("nothing came back to the probe".into());
    }
    Ok(figures)
}

fn stamp_of(first: u8, body: &[u8], protocol: Protocol) -> Result<Stamp> {
    if first >> 4 != kind::PUBLISH {
        bail!("the probe expected PUBLISH, got first byte {first:#04x}");
    }
    let delivery = wire::delivery(first, body, protocol)?;
    Stamp::read(delivery.payload).context("a message without stamp")
}

/// Sets the timer to a time of the generator's clock; that also takes back that it has run out.
fn arm(timer: impl AsFd, at_ns: u64) -> io::Result<()> {
    let time = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: Timespec {
            tv_sec: (at_ns / SECOND_NS) as i64,
            tv_nsec: (at_ns % SECOND_NS) as _,
        },
    };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &time)?;
    Ok(())
}

/// Whether stdin has ended; what is written there after the first line means nothing.
fn is_at_end() -> io::Result<bool> {
    let stdin = io::stdin();
    loop {
        let mut byte = [0; 64];
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut fds, Some(&none))? == 0 {
            return Ok(false);
        }
        if rustix::io::read(&stdin, &mut byte)? == 0 {
            return Ok(true);
        }
    }
}
