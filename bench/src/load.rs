// SPDX-License-Identifier: Apache-2.0

//! Publishers and subscribers driven by one thread and one epoll set: the load of all message scenarios.
//!
//! ```text
//! epoll_wait -> every ready link: one read, all its packets  -> verify, credit publishers, queue acks
//!            -> every credited or due publisher: PUBLISHes into its out-buffer
//!            -> every dirty link: one write
//! ```
//!
//! Closed loop: `0 <= sent - completed <= window` messages per publisher, where a message is completed when all its
//! subscribers have it. Open loop: message k of all publishers is due at `start + k / rate`; it carries that time, so
//! latency counts every wait, also the one in a generator that was itself held up.
//!
//! Subscribers that are away have subscribed and are gone: a message is completed when it is acknowledged. At the end
//! they come back, and get all of it.

use std::collections::VecDeque;
use std::mem;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::clock::{self, SECOND_NS};
use crate::cost::Cost;
use crate::link::{Flushed, Link, Poller};
use crate::target::Endpoint;
use crate::transport::{Dial, Way};
use crate::verify::{Faults, Tally};
use crate::wire::{self, Hello, Protocol, Stamp, Template, WireError, kind};

/// Read at once from one socket, unless the payload needs more.
const SCRATCH_BYTES: usize = 128 * 1024;

/// An open-loop publisher encodes no more while this much waits for its socket; what is due stays a number.
const OUT_MAX_BYTES: usize = 256 * 1024;

/// How often a run that waits looks whether anything still moves.
const TICK_NS: u64 = SECOND_NS / 10;

/// Latencies up to a minute, three significant digits.
const LATENCY_MAX_NS: u64 = 60 * SECOND_NS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Each publisher has its own topic and one subscriber; `one_client`: both are the same client.
    Pairs { pairs: u32, one_client: bool },
    /// One publisher, one topic, everyone subscribed.
    FanOut { subscribers: u32 },
    /// Own topic each, one subscriber with a wildcard, or with all names where the broker knows no wildcards.
    FanIn { publishers: u32, exact: bool },
    /// Own topic each, one shared group.
    Shared { publishers: u32, members: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    Window(u32),
    /// Messages per second over all publishers.
    Rate(f64),
}

#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) way: Way,
    pub(crate) shape: Shape,
    pub(crate) pace: Pace,
    pub(crate) protocol: Protocol,
    pub(crate) publish_qos: u8,
    pub(crate) subscribe_qos: u8,
    pub(crate) persistent: bool,
    /// Persistent subscribers are not there while it is published.
    pub(crate) away: bool,
    pub(crate) payload_bytes: usize,
    pub(crate) warmup_ns: u64,
    pub(crate) measure_ns: u64,
    /// A run in which nothing has arrived for this long is over.
    pub(crate) stall_ns: u64,
}

impl Load {
    /// What the broker delivers with.
    pub(crate) fn delivery_qos(&self) -> u8 {
        self.publish_qos.min(self.subscribe_qos)
    }
}

/// What one run measured. `delivered` and the costs belong to the measured window, `published` and `faults` to the run.
/// Of subscribers that are away, `delivered` counts acknowledgements.
pub(crate) struct Outcome {
    pub(crate) window_ns: u64,
    pub(crate) delivered: u64,
    pub(crate) published: u64,
    /// Open loop: messages that were due and could not be sent.
    pub(crate) unsent: u64,
    pub(crate) broker_cpu_ns: Option<u64>,
    pub(crate) generator_cpu_ns: u64,
    pub(crate) broker_rss_bytes: Option<u64>,
    pub(crate) latency: Histogram<u64>,
    /// Of PUBACK and PUBCOMP.
    pub(crate) ack_latency: Histogram<u64>,
    /// From the first CONNECT of a subscriber that was away to the last message of all.
    pub(crate) return_ns: u64,
    pub(crate) faults: Faults,
}

/// Runs one load against one broker from the first CONNECT to the last DISCONNECT.
pub(crate) fn run(endpoint: &Endpoint, load: &Load) -> Result<Outcome> {
    let dial = load.way.to(endpoint)?;
    let mut engine = Engine::connect(&dial, load)?;
    let outcome = engine.drive(endpoint)?;
    let names = engine.disconnect();
    // a persistent session would outlive the run on the broker: a clean connection ends it
    for client_id in names {
        let hello = Hello {
            protocol: load.protocol,
            client_id,
            clean: true,
            keep_alive_secs: 60,
        };
        Link::open(&dial, &hello)?.close();
    }
    Ok(outcome)
}

struct Conn {
    link: Link,
    publisher: Option<usize>,
    subscriber: Option<usize>,
    dirty: bool,
    persistent_id: Option<String>,
}

/// `completed <= sent`, `acked <= sent`; in the closed loop `sent - completed <= window`.
struct Publisher {
    conn: usize,
    template: Template,
    sent: u64,
    completed: u64,
    acked: u64,
    /// PUBRECs seen, QoS 2.
    received: u64,
    /// When each unacknowledged message was to leave, QoS 1 and 2.
    unacked: VecDeque<u64>,
    /// Messages that the open-loop schedule has asked for.
    due: u64,
    unacked_max: u64,
    /// Closed loop: deliveries still missing per message, at `sequence % missing.len()`.
    missing: Vec<u32>,
    queued: bool,
}

/// Where this subscriber's streams and tallies start; one of each per publisher it hears.
struct Subscriber {
    first_publisher: u32,
    publishers: u32,
    first_stream: usize,
    first_tally: usize,
}

enum Phase {
    Warmup,
    Measure,
    Drain,
}

struct Engine<'a> {
    load: &'a Load,
    dial: &'a Dial,
    run: u32,
    poller: Poller,
    conns: Vec<Conn>,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// The next sequence number in order, per publisher and subscriber.
    streams: Vec<u64>,
    /// One per stream; in a shared group one per publisher.
    tallies: Vec<Tally>,
    copies: u64,
    /// Publishers that may send, links that have something to write.
    ready: Vec<usize>,
    dirty: Vec<usize>,
    scratch: Vec<u8>,

    sending: bool,
    schedule_from_ns: u64,
    scheduled: u64,
    latency: Histogram<u64>,
    /// Equal latencies of neighbouring messages are recorded at once.
    latency_same: (u64, u64),
    latency_from_ns: u64,
    latency_until_ns: u64,
    ack_latency: Histogram<u64>,

    sent: u64,
    delivered: u64,
    acked: u64,
    faults: Faults,
}

impl<'a> Engine<'a> {
    fn connect(dial: &'a Dial, load: &'a Load) -> Result<Self> {
        let run = rustix::process::getpid().as_raw_nonzero().get() as u32 ^ clock::now_ns() as u32;
        let (publishers, subscribers) = match load.shape {
            Shape::Pairs { pairs, .. } => (pairs, pairs),
            Shape::FanOut { subscribers } => (1, subscribers),
            Shape::FanIn { publishers, .. } => (publishers, 1),
            Shape::Shared {
                publishers,
                members,
            } => (publishers, members),
        };
        let packet_bytes = load.payload_bytes + 128;
        let mut engine = Self {
            load,
            dial,
            run,
            poller: Poller::new()?,
            conns: Vec::new(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            streams: Vec::new(),
            tallies: Vec::new(),
            copies: match load.shape {
                Shape::FanOut { subscribers } => u64::from(subscribers),
                _ => 1,
            },
            ready: Vec::new(),
            dirty: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES.max(2 * packet_bytes)],
            sending: true,
            schedule_from_ns: 0,
            scheduled: 0,
            latency: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            latency_same: (0, 0),
            latency_from_ns: u64::MAX,
            latency_until_ns: u64::MAX,
            ack_latency: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            sent: 0,
            delivered: 0,
            acked: 0,
            faults: Faults::default(),
        };
        for subscriber in 0..subscribers {
            engine.add_subscriber(dial, subscriber, publishers)?;
        }
        for publisher in 0..publishers {
            engine.add_publisher(dial, publisher)?;
        }
        for (token, conn) in engine.conns.iter().enumerate() {
            if !(load.away && conn.subscriber.is_some()) {
                engine.poller.add(&conn.link, token)?;
            }
        }
        Ok(engine)
    }

    fn topic(&self, publisher: u32) -> String {
        format!("bench/{:08x}/{publisher}", self.run)
    }

    fn add_subscriber(&mut self, dial: &Dial, subscriber: u32, publishers: u32) -> Result<()> {
        let (first_publisher, heard, filters) = match self.load.shape {
            Shape::Pairs { .. } => (subscriber, 1, vec![self.topic(subscriber)]),
            Shape::FanOut { .. } => (0, 1, vec![self.topic(0)]),
            Shape::FanIn { exact: true, .. } => (
                0,
                publishers,
                (0..publishers).map(|at| self.topic(at)).collect(),
            ),
            Shape::FanIn { exact: false, .. } => {
                (0, publishers, vec![format!("bench/{:08x}/+", self.run)])
            }
            Shape::Shared { .. } => (
                0,
                publishers,
                vec![format!("$share/bench/bench/{:08x}/+", self.run)],
            ),
        };
        let shared = matches!(self.load.shape, Shape::Shared { .. });
        let first_stream = self.streams.len();
        self.streams.resize(first_stream + heard as usize, 0);
        let first_tally = if shared { 0 } else { first_stream };
        self.tallies.resize(
            (first_tally + heard as usize).max(self.tallies.len()),
            Tally::default(),
        );
        self.subscribers.push(Subscriber {
            first_publisher,
            publishers: heard,
            first_stream,
            first_tally,
        });

        let client_id = format!("b{:08x}s{subscriber}", self.run);
        let clean = !self.load.persistent;
        let hello = Hello {
            protocol: self.load.protocol,
            client_id: client_id.clone(),
            clean,
            keep_alive_secs: 600,
        };
        let mut link = Link::open(dial, &hello)?;
        link.subscribe(&filters, self.load.subscribe_qos)?;
        if self.load.away {
            link.finish()?;
        }
        let persistent_id = (!clean).then_some(client_id);
        let subscriber = Some(subscriber as usize);
        self.conns.push(Conn {
            link,
            publisher: None,
            subscriber,
            dirty: false,
            persistent_id,
        });
        Ok(())
    }

    fn add_publisher(&mut self, dial: &Dial, publisher: u32) -> Result<()> {
        let load = self.load;
        let conn = match load.shape {
            Shape::Pairs {
                one_client: true, ..
            } => publisher as usize,
            _ => {
                let client_id = format!("b{:08x}p{publisher}", self.run);
                let hello = Hello {
                    protocol: load.protocol,
                    client_id,
                    clean: true,
                    keep_alive_secs: 600,
                };
                let link = Link::open(dial, &hello)?;
                self.conns.push(Conn {
                    link,
                    publisher: None,
                    subscriber: None,
                    dirty: false,
                    persistent_id: None,
                });
                self.conns.len() - 1
            }
        };
        self.conns[conn].publisher = Some(publisher as usize);
        let window = match load.pace {
            Pace::Window(window) => window,
            Pace::Rate(_) => 0,
        };
        let receive_maximum = u64::from(self.conns[conn].link.receive_maximum);
        let topic = self.topic(publisher);
        self.publishers.push(Publisher {
            conn,
            template: Template::new(
                load.protocol,
                &topic,
                load.publish_qos,
                self.run,
                publisher,
                load.payload_bytes,
            ),
            sent: 0,
            completed: 0,
            acked: 0,
            received: 0,
            unacked: VecDeque::new(),
            due: 0,
            // one below 65535, so that the id after the last one in use is always free
            unacked_max: receive_maximum.min(if window == 0 {
                65_534
            } else {
                u64::from(window).min(65_534)
            }),
            missing: vec![0; window as usize],
            queued: true,
        });
        self.ready.push(publisher as usize);
        Ok(())
    }

    fn drive(&mut self, endpoint: &Endpoint) -> Result<Outcome> {
        let broker = endpoint.pid.map(Cost::new);
        let broker_cpu = || broker.as_ref().map(Cost::cpu_ns).transpose();
        let generator = Cost::new(std::process::id());
        let started_ns = clock::now_ns();
        self.schedule_from_ns = started_ns;
        let mut phase = Phase::Warmup;
        let mut edge_ns = started_ns + self.load.warmup_ns;
        let mut before = (0, None, 0, 0);
        let mut outcome = None;
        let mut returning_ns = 0;
        let (mut moved, mut moved_at_ns) = (0, started_ns);
        loop {
            let now = clock::now_ns();
            if now >= edge_ns {
                match phase {
                    Phase::Warmup => {
                        before = (now, broker_cpu()?, generator.cpu_ns()?, self.counted());
                        self.latency_from_ns = now;
                        edge_ns = now + self.load.measure_ns;
                        phase = Phase::Measure;
                    }
                    Phase::Measure => {
                        self.latency_until_ns = now;
                        if let Pace::Rate(rate) = self.load.pace {
                            // what became due since the last turn was not sent, and counts as that
                            self.schedule(now, rate);
                        }
                        self.sending = false;
                        outcome = Some(Outcome {
                            window_ns: now - before.0,
                            delivered: self.counted() - before.3,
                            published: 0,
                            unsent: 0,
                            broker_cpu_ns: broker_cpu()?
                                .zip(before.1)
                                .map(|(after, before)| after.saturating_sub(before)),
                            generator_cpu_ns: generator.cpu_ns()?.saturating_sub(before.2),
                            broker_rss_bytes: broker.as_ref().map(Cost::rss_bytes).transpose()?,
                            latency: Histogram::new(3)?,
                            ack_latency: Histogram::new(3)?,
                            return_ns: 0,
                            faults: Faults::default(),
                        });
                        edge_ns = u64::MAX;
                        phase = Phase::Drain;
                    }
                    Phase::Drain => {}
                }
            }
            if matches!(phase, Phase::Drain) && self.settled() {
                break;
            }
            let is_acked = matches!(phase, Phase::Drain) && self.acked >= self.sent;
            if self.load.away && is_acked && returning_ns == 0 {
                returning_ns = now;
                self.bring_back()?;
            }
            if self.delivered + self.acked != moved {
                (moved, moved_at_ns) = (self.delivered + self.acked, now);
            } else if self.settled() || (self.load.away && self.sending && self.acked >= self.sent)
            {
                moved_at_ns = now;
            } else if now - moved_at_ns > self.load.stall_ns {
                if outcome.is_none() {
                    bail!(
                        "nothing has arrived for {} s: {} messages sent, {} of {} deliveries",
                        self.load.stall_ns / SECOND_NS,
                        self.sent,
                        self.delivered,
                        self.sent * self.copies
                    );
                }
                break;
            }
            self.turn(now, edge_ns)?;
        }
        let mut outcome = outcome.context("a run is measured before it drains")?;
        self.record_latency();
        self.faults.lost = self.sent * self.copies - self.delivered;
        if self.load.publish_qos > 0 {
            self.faults.acks_missing = self.sent - self.acked;
        }
        outcome.published = self.sent;
        outcome.unsent = self
            .publishers
            .iter()
            .map(|publisher| publisher.due.saturating_sub(publisher.sent))
            .sum();
        outcome.faults = self.faults;
        outcome.latency = self.latency.clone();
        outcome.ack_latency = self.ack_latency.clone();
        if returning_ns > 0 {
            outcome.return_ns = clock::now_ns() - returning_ns;
        }
        Ok(outcome)
    }

    /// Messages that the run is about.
    fn counted(&self) -> u64 {
        if self.load.away {
            self.acked
        } else {
            self.delivered
        }
    }

    /// Those who were away come for what has been kept for them.
    fn bring_back(&mut self) -> Result<()> {
        for conn in 0..self.conns.len() {
            let Some(client_id) = self.conns[conn].persistent_id.clone() else {
                continue;
            };
            let hello = Hello {
                protocol: self.load.protocol,
                client_id,
                clean: false,
                keep_alive_secs: 600,
            };
            let link = Link::open(self.dial, &hello)?;
            self.poller.add(&link, conn)?;
            self.conns[conn].link = link;
            // what came right behind CONNACK is no event any more
            self.read(conn)?;
        }
        Ok(())
    }

    /// Everything sent has arrived and is acknowledged.
    fn settled(&self) -> bool {
        let acked = self.load.publish_qos == 0 || self.acked >= self.sent;
        acked && self.delivered >= self.sent * self.copies
    }

    fn turn(&mut self, now: u64, edge_ns: u64) -> Result<()> {
        if self.sending {
            if let Pace::Rate(rate) = self.load.pace {
                self.schedule(now, rate);
            }
            let mut ready = mem::take(&mut self.ready);
            for publisher in ready.drain(..) {
                self.fill(publisher, now);
            }
            self.ready = ready;
        }
        let mut dirty = mem::take(&mut self.dirty);
        for conn in dirty.drain(..) {
            self.conns[conn].dirty = false;
            // a blocked link is flushed again when its socket turns writable
            let (Flushed::All | Flushed::Blocked) = self.conns[conn].link.flush()?;
        }
        self.dirty = dirty;

        // the open loop spins: a sleep would be late by the timer's slack
        let timeout_ns = match self.load.pace {
            Pace::Rate(_) if self.sending => 0,
            _ => edge_ns.saturating_sub(now).min(TICK_NS),
        };
        let events = self.poller.wait(timeout_ns)?;
        for at in 0..events {
            let (conn, readable, writable) = self.poller.event(at);
            if writable && self.conns[conn].link.queued_bytes() > 0 {
                self.mark_dirty(conn);
                if let Some(publisher) = self.conns[conn].publisher {
                    self.mark_ready(publisher);
                }
            }
            if readable {
                self.read(conn)?;
            }
        }
        Ok(())
    }

    /// Hands the messages that have become due to their publishers, in turn.
    fn schedule(&mut self, now: u64, rate: f64) {
        while due_ns(self.schedule_from_ns, self.scheduled, rate) <= now {
            let publisher = (self.scheduled % self.publishers.len() as u64) as usize;
            self.scheduled += 1;
            self.publishers[publisher].due += 1;
            self.mark_ready(publisher);
        }
    }

    fn mark_ready(&mut self, publisher: usize) {
        if !mem::replace(&mut self.publishers[publisher].queued, true) {
            self.ready.push(publisher);
        }
    }

    fn mark_dirty(&mut self, conn: usize) {
        if !mem::replace(&mut self.conns[conn].dirty, true) {
            self.dirty.push(conn);
        }
    }

    /// Encodes what this publisher may send now.
    fn fill(&mut self, index: usize, now: u64) {
        let publishers = self.publishers.len() as u64;
        let publisher = &mut self.publishers[index];
        let conn = publisher.conn;
        let link = &mut self.conns[conn].link;
        publisher.queued = false;
        let before = publisher.sent;
        loop {
            if self.load.publish_qos > 0
                && publisher.sent - publisher.acked >= publisher.unacked_max
            {
                break;
            }
            let intended_ns = match self.load.pace {
                Pace::Window(window) => {
                    if publisher.sent - publisher.completed >= u64::from(window) {
                        break;
                    }
                    publisher.missing[(publisher.sent % u64::from(window)) as usize] =
                        self.copies as u32;
                    now
                }
                Pace::Rate(rate) => {
                    if publisher.sent >= publisher.due || link.queued_bytes() >= OUT_MAX_BYTES {
                        break;
                    }
                    due_ns(
                        self.schedule_from_ns,
                        publisher.sent * publishers + index as u64,
                        rate,
                    )
                }
            };
            publisher.template.put(
                &mut link.out,
                packet_id(publisher.sent),
                publisher.sent,
                intended_ns,
            );
            publisher.sent += 1;
            if self.load.publish_qos > 0 {
                publisher.unacked.push_back(intended_ns);
            }
        }
        if publisher.sent > before {
            self.sent += publisher.sent - before;
            self.mark_dirty(conn);
        }
    }

    fn read(&mut self, conn: usize) -> Result<()> {
        let mut scratch = mem::take(&mut self.scratch);
        while let Some((filled, more)) = self.conns[conn].link.read(&mut scratch)? {
            let now = clock::now_ns();
            let mut at = 0;
            while let Some(packet) = wire::split(&scratch[at..filled])? {
                self.handle(
                    conn,
                    packet.first,
                    &scratch[at + packet.body..at + packet.end],
                    now,
                )?;
                at += packet.end;
            }
            self.conns[conn].link.keep(&scratch[at..filled]);
            if !more {
                break;
            }
        }
        if self.conns[conn].link.queued_bytes() > 0 {
            self.mark_dirty(conn);
        }
        self.scratch = scratch;
        Ok(())
    }

    #[inline]
    fn handle(&mut self, conn: usize, first: u8, body: &[u8], now: u64) -> Result<()> {
        match first >> 4 {
            kind::PUBLISH => Ok(self.handle_publish(conn, first, body, now)?),
            kind::PUBREL => {
                let (packet_id, _) = wire::acked(first, body)?;
                wire::ack(&mut self.conns[conn].link.out, kind::PUBCOMP, packet_id);
                Ok(())
            }
            answer @ (kind::PUBACK | kind::PUBREC | kind::PUBCOMP) => {
                Ok(self.handle_ack(conn, answer, first, body, now)?)
            }
            kind::DISCONNECT => {
                bail!(
                    "the broker sent DISCONNECT with reason {:#04x}",
                    body.first().copied().unwrap_or(0)
                )
            }
            _ => Err(WireError::Reserved(first).into()),
        }
    }

    #[inline]
    fn handle_publish(
        &mut self,
        index: usize,
        first: u8,
        body: &[u8],
        now: u64,
    ) -> Result<(), WireError> {
        let conn = &mut self.conns[index];
        let delivery = wire::delivery(first, body, self.load.protocol)?;
        match delivery.qos {
            0 => {}
            1 => wire::ack(&mut conn.link.out, kind::PUBACK, delivery.packet_id),
            _ => wire::ack(&mut conn.link.out, kind::PUBREC, delivery.packet_id),
        }
        let stamp = Stamp::read(delivery.payload).filter(|stamp| stamp.run == self.run);
        let (Some(stamp), Some(subscriber)) = (stamp, conn.subscriber) else {
            self.faults.foreign += 1;
            return Ok(());
        };
        let subscriber = &self.subscribers[subscriber];
        let offset = stamp.publisher.wrapping_sub(subscriber.first_publisher);
        if offset >= subscriber.publishers
            || stamp.sequence >= self.publishers[stamp.publisher as usize].sent
        {
            self.faults.foreign += 1;
            return Ok(());
        }
        let next = &mut self.streams[subscriber.first_stream + offset as usize];
        if !self.tallies[subscriber.first_tally + offset as usize].mark(stamp.sequence) {
            self.faults.duplicates += 1;
            return Ok(());
        }
        self.faults.misordered += u64::from(stamp.sequence < *next);
        *next = (*next).max(stamp.sequence + 1);
        self.delivered += 1;

        if stamp.intended_ns >= self.latency_from_ns && stamp.intended_ns < self.latency_until_ns {
            let latency = now.saturating_sub(stamp.intended_ns).max(1);
            if latency == self.latency_same.0 {
                self.latency_same.1 += 1;
            } else {
                self.record_latency();
                self.latency_same = (latency, 1);
            }
        }

        let publisher = &mut self.publishers[stamp.publisher as usize];
        let window = publisher.missing.len() as u64;
        if window > 0 && !self.load.away {
            publisher.missing[(stamp.sequence % window) as usize] -= 1;
            let completed = publisher.completed;
            while publisher.completed < publisher.sent
                && publisher.missing[(publisher.completed % window) as usize] == 0
            {
                publisher.completed += 1;
            }
            if publisher.completed > completed {
                self.mark_ready(stamp.publisher as usize);
            }
        }
        Ok(())
    }

    fn record_latency(&mut self) {
        let (latency, count) = self.latency_same;
        self.latency.saturating_record_n(latency, count);
    }

    #[inline]
    fn handle_ack(
        &mut self,
        index: usize,
        answer: u8,
        first: u8,
        body: &[u8],
        now: u64,
    ) -> Result<(), WireError> {
        let (packet_id, reason) = wire::acked(first, body)?;
        let conn = &mut self.conns[index];
        let Some(publisher_index) = conn.publisher else {
            // a subscriber's own PUBREC has no answer but PUBREL: anything else nobody asked for
            self.faults.foreign += 1;
            return Ok(());
        };
        let publisher = &mut self.publishers[publisher_index];
        let answered = if answer == kind::PUBREC {
            &mut publisher.received
        } else {
            &mut publisher.acked
        };
        if *answered >= publisher.sent {
            self.faults.foreign += 1;
            return Ok(());
        }
        // acknowledgements come in the order of the PUBLISH packets:
        // [MQTT-4.6.0-2] [MQTT5-4.6.0-2] for PUBACK, [MQTT-4.6.0-3] [MQTT5-4.6.0-3] for PUBREC
        self.faults.acks_misordered += u64::from(packet_id != self::packet_id(*answered));
        *answered += 1;
        let refused = reason >= 0x80;
        self.faults.refused += u64::from(refused);
        let ends = match answer {
            kind::PUBREC if !refused => {
                wire::ack(&mut conn.link.out, kind::PUBREL, packet_id);
                false
            }
            kind::PUBREC => {
                publisher.acked += 1;
                true
            }
            _ => true,
        };
        if ends {
            self.acked += 1;
            if let Some(intended_ns) = publisher.unacked.pop_front()
                && intended_ns >= self.latency_from_ns
                && intended_ns < self.latency_until_ns
            {
                let latency = now.saturating_sub(intended_ns).max(1);
                self.ack_latency.saturating_record(latency);
            }
            if self.load.away {
                publisher.completed += 1;
            }
            self.mark_ready(publisher_index);
        }
        Ok(())
    }

    /// Ends all connections. The client ids whose sessions outlive them.
    fn disconnect(self) -> Vec<String> {
        let mut names = Vec::new();
        for conn in self.conns {
            names.extend(conn.persistent_id);
            conn.link.close();
        }
        names
    }
}

/// Ids go round from 1 to 65535; acknowledgements in order keep the next one free.
pub(crate) fn packet_id(sequence: u64) -> u16 {
    (sequence % 65_535) as u16 + 1
}

/// When message `number` of all publishers is to leave.
fn due_ns(from_ns: u64, number: u64, rate: f64) -> u64 {
    from_ns + (number as f64 * (SECOND_NS as f64 / rate)) as u64
}
