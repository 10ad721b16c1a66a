// SPDX-License-Identifier: Apache-2.0

//! A subscriber of `#` that joins many retained messages while they are being replaced.
//!
//! Every topic has a number, every message of it a version. The subscriber keeps the version that came last, as any
//! client would, and in the end that must be the newest of every topic: `behind` counts the topics where it is not.
//! An older version behind a newer one is counted too (`went_back`): until the next message the subscriber is wrong.
//! A subscriber of `#` hears others too, who are counted and otherwise ignored. Lines on stdout say when the join begins and ends, for whoever measures something beside it. A run leaves no
//! retained message behind.

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::clock::{self, SECOND_NS};
use crate::cost::Cost;
use crate::link::{Link, Poller};
use crate::load::packet_id;
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::transport::{Dial, Way};
use crate::wire::{self, Hello, Protocol, Stamp, Template, kind};

/// A run in which nothing moves for this long is over.
pub(crate) const STALL_NS: u64 = 10 * SECOND_NS;

/// When all is as it should be, an older message may still be on its way for this long.
const SETTLE_NS: u64 = SECOND_NS / 4;

const SCRATCH_BYTES: usize = 256 * 1024;

/// Publishes that wait for their PUBACK.
const UNACKED_MAX: u64 = 1000;

const PUBLISHER: usize = 0;
const SUBSCRIBER: usize = 1;

#[derive(Clone, Debug)]
pub(crate) struct Retained {
    pub(crate) way: Way,
    pub(crate) protocol: Protocol,
    pub(crate) topics: u32,
    pub(crate) payload_bytes: usize,
    /// Replaced messages per second during the join.
    pub(crate) updates: f64,
    pub(crate) qos: u8,
    pub(crate) stall_ns: u64,
}

pub(crate) fn run(endpoint: &Endpoint, retained: &Retained) -> Result<Figures> {
    let broker = endpoint.pid.map(Cost::new);
    let cpu = || broker.as_ref().map(Cost::cpu_ns).transpose();
    let dial = retained.way.to(endpoint)?;
    let mut run = Run::connect(&dial, retained)?;
    let topics = f64::from(retained.topics);
    let mut figures = Figures::default();

    let (before_ns, before_cpu) = (clock::now_ns(), cpu()?);
    for topic in 0..retained.topics {
        run.publish(topic)?;
    }
    run.drain()?;
    let load_ns = clock::now_ns() - before_ns;
    figures.put("load_per_s", topics / clock::seconds(load_ns));
    if let Some((after, before)) = cpu()?.zip(before_cpu) {
        figures.put(
            "load_cpu_us_per_message",
            after.saturating_sub(before) as f64 / 1000.0 / topics,
        );
    }

    println!("retained: joining {} topics", retained.topics);
    let before_cpu = cpu()?;
    run.join(retained.qos)?;
    let cpu_ns = cpu()?
        .zip(before_cpu)
        .map(|(after, before)| after.saturating_sub(before));
    println!("retained: joined");
    figures.put("join_ms", run.joined_ns as f64 / 1e6);
    if let Some(cpu_ns) = cpu_ns {
        figures.put("join_cpu_ms", cpu_ns as f64 / 1e6);
        figures.put("cpu_ns_per_message", cpu_ns as f64 / run.received as f64);
    }
    figures.put("received", run.received as f64);
    figures.put("updates", run.updates as f64);
    figures.put(
        "update_p50_us",
        run.latency.value_at_quantile(0.5) as f64 / 1000.0,
    );
    figures.put(
        "update_p99_us",
        run.latency.value_at_quantile(0.99) as f64 / 1000.0,
    );
    if let Some(broker) = &broker {
        figures.put("rss_mib", broker.rss_bytes()? as f64 / (1 << 20) as f64);
    }
    for (name, count, what) in [
        ("missing", run.missing(), "topics never arrived"),
        (
            "behind",
            u64::from(run.behind),
            "topics ended without their newest value",
        ),
        (
            "went_back",
            run.went_back,
            "older values arrived behind newer ones",
        ),
    ] {
        figures.put(name, count as f64);
        if count > 0 {
            figures.failures.push(format!("{count} {what}"));
        }
    }
    figures.put("of_others", run.of_others as f64);
    run.clear()?;
    Ok(figures)
}

/// `acked <= sent <= acked + unacked_max`; `behind` is the number of topics with `seen != newest + 1`.
struct Run<'a> {
    retained: &'a Retained,
    run: u32,
    /// Of all its topics.
    prefix: String,
    poller: Poller,
    /// Publisher and subscriber, by token.
    links: [Link; 2],
    scratch: Vec<u8>,
    sent: u64,
    acked: u64,
    unacked_max: u64,
    /// Versions sent per topic.
    newest: Vec<Option<u32>>,
    /// Version that the subscriber holds per topic.
    held: Vec<Option<u32>>,
    arrived: u32,
    behind: u32,
    went_back: u64,
    of_others: u64,
    received: u64,
    updates: u64,
    joined_ns: u64,
    granted: bool,
    latency: Histogram<u64>,
    moved_at_ns: u64,
}

impl<'a> Run<'a> {
    fn connect(dial: &Dial, retained: &'a Retained) -> Result<Self> {
        let run = rustix::process::getpid().as_raw_nonzero().get() as u32 ^ clock::now_ns() as u32;
        let open = |role: char| {
            let hello = Hello {
                protocol: retained.protocol,
                client_id: format!("r{run:08x}{role}"),
                clean: true,
                keep_alive_secs: 600,
            };
            Link::open(dial, &hello)
        };
        let links = [open('p')?, open('s')?];
        let poller = Poller::new()?;
        for (token, link) in links.iter().enumerate() {
            poller.add(link, token)?;
        }
        let topics = retained.topics as usize;
        Ok(Self {
            retained,
            run,
            prefix: format!("bench/{run:08x}/"),
            poller,
            unacked_max: UNACKED_MAX.min(u64::from(links[PUBLISHER].receive_maximum)),
            links,
            scratch: vec![0; SCRATCH_BYTES],
            sent: 0,
            acked: 0,
            newest: vec![None; topics],
            held: vec![None; topics],
            arrived: 0,
            behind: 0,
            went_back: 0,
            of_others: 0,
            received: 0,
            updates: 0,
            joined_ns: 0,
            granted: false,
            latency: Histogram::new_with_bounds(1, 60 * SECOND_NS, 3)?,
            moved_at_ns: clock::now_ns(),
        })
    }

    fn topic(&self, number: u32) -> String {
        format!("{}{number:08x}", self.prefix)
    }

    fn number_of(&self, topic: &[u8]) -> Option<u32> {
        let digits = topic.strip_prefix(self.prefix.as_bytes())?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    fn missing(&self) -> u64 {
        u64::from(self.retained.topics - self.arrived)
    }

    /// Sends the next version of a topic, once there is room for it.
    fn publish(&mut self, number: u32) -> Result<()> {
        self.make_room()?;
        let topic = self.topic(number);
        let template = Template::new(
            self.retained.protocol,
            &topic,
            1,
            self.run,
            number,
            self.retained.payload_bytes,
        );
        let newest = &mut self.newest[number as usize];
        self.behind += u32::from(*newest == self.held[number as usize]);
        let version = newest.map_or(0, |version| version + 1);
        *newest = Some(version);
        template.retained().put(
            &mut self.links[PUBLISHER].out,
            packet_id(self.sent),
            u64::from(version),
            clock::now_ns(),
        );
        self.sent += 1;
        Ok(())
    }

    fn make_room(&mut self) -> Result<()> {
        while self.sent - self.acked >= self.unacked_max {
            self.turn(SECOND_NS)?;
            ensure!(!self.is_stalled(), "the broker does not answer PUBLISH");
        }
        Ok(())
    }

    /// Waits until all that was sent is acknowledged.
    fn drain(&mut self) -> Result<()> {
        while self.acked < self.sent {
            self.turn(SECOND_NS)?;
            ensure!(!self.is_stalled(), "the broker does not answer PUBLISH");
        }
        Ok(())
    }

    fn is_stalled(&self) -> bool {
        clock::now_ns().saturating_sub(self.moved_at_ns) > self.retained.stall_ns
    }

    /// Subscribes, replaces messages until one of every topic has come, and waits for the newest of all.
    fn join(&mut self, qos: u8) -> Result<()> {
        wire::subscribe(
            &mut self.links[SUBSCRIBER].out,
            self.retained.protocol,
            1,
            &["#".to_owned()],
            qos,
        );
        let started_ns = clock::now_ns();
        let (mut grown_to, mut grown_at_ns) = (0, started_ns);
        let mut seed = u64::from(self.run);
        self.moved_at_ns = started_ns;
        let mut updating = true;
        loop {
            let now = clock::now_ns();
            if self.arrived > grown_to {
                (grown_to, grown_at_ns) = (self.arrived, now);
            }
            if updating {
                let due = clock::seconds(now - started_ns) * self.retained.updates;
                while self.updates < due as u64 {
                    seed = next_random(seed);
                    let number = ((seed >> 32) * u64::from(self.retained.topics)) >> 32;
                    self.publish(number as u32)?;
                    self.updates += 1;
                }
                if self.missing() == 0 {
                    self.joined_ns = now - started_ns;
                    updating = false;
                } else if now - grown_at_ns > self.retained.stall_ns {
                    updating = false;
                }
            }
            let settled = !updating && self.acked == self.sent && self.behind == 0;
            if settled && now.saturating_sub(self.moved_at_ns) > SETTLE_NS || self.is_stalled() {
                ensure!(self.granted, "the broker did not answer SUBSCRIBE");
                return Ok(());
            }
            self.turn(if updating { 1_000_000 } else { SECOND_NS / 20 })?;
        }
    }

    /// Takes all retained messages off the broker.
    fn clear(mut self) -> Result<()> {
        for number in 0..self.retained.topics {
            self.make_room()?;
            let topic = self.topic(number);
            wire::clear_retained(
                &mut self.links[PUBLISHER].out,
                self.retained.protocol,
                &topic,
                packet_id(self.sent),
            );
            self.sent += 1;
        }
        self.drain()?;
        for link in self.links {
            link.close();
        }
        Ok(())
    }

    fn turn(&mut self, timeout_ns: u64) -> Result<()> {
        for link in &mut self.links {
            link.flush()?;
        }
        for at in 0..self.poller.wait(timeout_ns)? {
            let (token, readable, _) = self.poller.event(at);
            if readable {
                self.read(token)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, token: usize) -> Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some((filled, more)) = self.links[token].read(&mut scratch)? {
            let now = clock::now_ns();
            self.moved_at_ns = now;
            let mut at = 0;
            while let Some(packet) = wire::split(&scratch[at..filled])? {
                let body = &scratch[at + packet.body..at + packet.end];
                at += packet.end;
                match (token, packet.first >> 4) {
                    (PUBLISHER, kind::PUBACK) => self.handle_puback(packet.first, body)?,
                    (SUBSCRIBER, kind::PUBLISH) => self.handle_publish(packet.first, body, now)?,
                    (SUBSCRIBER, kind::SUBACK) => self.handle_suback(body)?,
                    _ => bail!(
                        "the broker sent a packet with first byte {:#04x}",
                        packet.first
                    ),
                }
            }
            self.links[token].keep(&scratch[at..filled]);
            if !more {
                break;
            }
        }
        self.scratch = scratch;
        Ok(())
    }

    fn handle_puback(&mut self, first: u8, body: &[u8]) -> Result<()> {
        let (id, reason) = wire::acked(first, body)?;
        ensure!(
            self.acked < self.sent && id == packet_id(self.acked),
            "the broker acknowledged packet {id} out of order"
        );
        // 0x10: nobody has subscribed
        ensure!(
            reason < 0x80,
            "the broker refused a retained message with {reason:#04x}"
        );
        self.acked += 1;
        Ok(())
    }

    fn handle_suback(&mut self, body: &[u8]) -> Result<()> {
        let granted = wire::suback(body, self.retained.protocol)?;
        ensure!(
            granted == [self.retained.qos],
            "the broker granted {granted:?} where QoS {} was asked for",
            self.retained.qos
        );
        self.granted = true;
        Ok(())
    }

    fn handle_publish(&mut self, first: u8, body: &[u8], now: u64) -> Result<()> {
        let delivery = wire::delivery(first, body, self.retained.protocol)?;
        ensure!(delivery.qos <= 1, "a message came with QoS 2");
        if delivery.qos == 1 {
            wire::ack(
                &mut self.links[SUBSCRIBER].out,
                kind::PUBACK,
                delivery.packet_id,
            );
        }
        let Some(number) = self.number_of(delivery.topic) else {
            self.of_others += 1;
            return Ok(());
        };
        if delivery.payload.is_empty() {
            // `clear` at work
            return Ok(());
        }
        self.received += 1;
        let stamp = Stamp::read(delivery.payload).filter(|stamp| {
            stamp.run == self.run && stamp.publisher == number && number < self.retained.topics
        });
        let stamp = stamp.context("a message came on the topic of another")?;
        let number = number as usize;
        let version = u32::try_from(stamp.sequence).context("a version that was never sent")?;
        let (newest, held) = (self.newest[number], &mut self.held[number]);
        ensure!(Some(version) <= newest, "a version that was never sent");
        self.arrived += u32::from(held.is_none());
        self.went_back += u64::from(*held > Some(version));
        let (was, is) = (*held == newest, Some(version) == newest);
        *held = Some(version);
        match (was, is) {
            (false, true) => self.behind -= 1,
            (true, false) => self.behind += 1,
            _ => {}
        }
        // the first version is as old as the load
        if version > 0 {
            let latency = now.saturating_sub(stamp.intended_ns);
            self.latency.saturating_record(latency.max(1));
        }
        Ok(())
    }
}

/// Knuth's, for topics in no order.
fn next_random(seed: u64) -> u64 {
    seed.wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}
