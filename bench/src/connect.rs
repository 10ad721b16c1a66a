// SPDX-License-Identifier: Apache-2.0

//! The connect storm: CONNECT, CONNACK, DISCONNECT, as many at once as asked for.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};
use rustix::time::Timespec;

use crate::clock::{self, SECOND_NS};
use crate::cost::Cost;
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::wire::{self, Hello, Protocol};

/// A storm in which nothing has been answered for this long is over.
const STALL_NS: u64 = 10 * SECOND_NS;

#[derive(Clone, Debug)]
pub(crate) struct Storm {
    pub(crate) protocol: Protocol,
    pub(crate) connects: u64,
    pub(crate) concurrency: u32,
    pub(crate) rate: Option<f64>,
}

struct Attempt {
    socket: OwnedFd,
    /// When it was due (with a rate) or begun.
    from_ns: u64,
    greeted: bool,
}

pub(crate) fn run(endpoint: &Endpoint, storm: &Storm) -> Result<Figures> {
    let broker = endpoint.pid.map(Cost::new);
    let cpu = || broker.as_ref().map(Cost::cpu_ns).transpose();
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut events = vec![
        Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0)
        };
        1024
    ];
    let mut attempts = HashMap::new();
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60 * SECOND_NS, 3)?;
    let (mut begun, mut done) = (0, 0);
    let run = clock::now_ns() as u32;

    let cpu_before = cpu()?;
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
            attempts.insert(begun, begin(&epoll, endpoint, begun, from_ns)?);
            begun += 1;
        }
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: if storm.rate.is_some() {
                1_000_000
            } else {
                100_000_000
            },
        };
        let ready = match epoll::wait(&epoll, &mut events[..], Some(&timeout)) {
            Err(Errno::INTR) => 0,
            ready => ready?,
        };
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
        for event in &events[..ready] {
            let number = event.data.u64();
            let Some(attempt) = attempts.get_mut(&number) else {
                continue;
            };
            if attempt.step(storm, run, number, event.flags)? {
                latency.saturating_record(now.saturating_sub(attempt.from_ns).max(1));
                attempts.remove(&number);
                done += 1;
            }
        }
    }
    let elapsed_ns = clock::now_ns() - started_ns;

    let mut figures = Figures::default();
    if let Some((after, before)) = cpu()?.zip(cpu_before) {
        figures.put(
            "cpu_us_per_connect",
            after.saturating_sub(before) as f64 / 1000.0 / storm.connects as f64,
        );
        figures.put(
            "broker_busy_percent",
            100.0 * after.saturating_sub(before) as f64 / elapsed_ns as f64,
        );
    }
    figures.put(
        "connects_per_s",
        storm.connects as f64 / clock::seconds(elapsed_ns),
    );
    figures.put("p50_us", latency.value_at_quantile(0.5) as f64 / 1000.0);
    figures.put("p99_us", latency.value_at_quantile(0.99) as f64 / 1000.0);
    figures.put("max_us", latency.max() as f64 / 1000.0);
    Ok(figures)
}

fn begin(epoll: &OwnedFd, endpoint: &Endpoint, number: u64, from_ns: u64) -> Result<Attempt> {
    let family = if endpoint.addr.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &endpoint.addr) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot connect to {}", endpoint.addr));
        }
    }
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    epoll::add(epoll, &socket, EventData::new_u64(number), flags)?;
    Ok(Attempt {
        socket,
        from_ns,
        greeted: false,
    })
}

impl Attempt {
    /// True once CONNACK has come and DISCONNECT is written; dropping the attempt closes the socket.
    fn step(&mut self, storm: &Storm, run: u32, number: u64, flags: EventFlags) -> Result<bool> {
        if !self.greeted && flags.intersects(EventFlags::OUT | EventFlags::ERR) {
            rustix::net::sockopt::socket_error(&self.socket)?
                .context("a connection was refused")?;
            let client_id = format!("c{run:08x}{number}");
            let hello = Hello {
                protocol: storm.protocol,
                client_id,
                clean: true,
                keep_alive_secs: 60,
            };
            let mut packet = Vec::with_capacity(64);
            wire::connect(&mut packet, &hello);
            // a fresh socket takes these few bytes whole
            let written = rustix::net::send(&self.socket, &packet, SendFlags::NOSIGNAL)?;
            ensure!(
                written == packet.len(),
                "a fresh socket took {written} of {} bytes",
                packet.len()
            );
            self.greeted = true;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP) {
            return Ok(false);
        }
        // a CONNACK is one small segment; one that came in pieces would fail the run below
        let mut bytes = [0; 1024];
        let (filled, _) = match rustix::net::recv(
            &self.socket,
            &mut bytes[..],
            rustix::net::RecvFlags::empty(),
        ) {
            Err(Errno::AGAIN) => return Ok(false),
            Ok((0, _)) => bail!("the broker closed a connection before CONNACK"),
            received => received?,
        };
        let packet = wire::split(&bytes[..filled])?.context("CONNACK came in pieces")?;
        ensure!(
            packet.first == wire::kind::CONNACK << 4,
            "expected CONNACK, got first byte {:#04x}",
            packet.first
        );
        let welcome = wire::connack(&bytes[packet.body..packet.end], storm.protocol)?;
        ensure!(
            welcome.code == 0,
            "the broker refused CONNECT with code {:#04x}",
            welcome.code
        );
        rustix::net::send(&self.socket, &wire::DISCONNECT, SendFlags::NOSIGNAL)?;
        Ok(true)
    }
}
