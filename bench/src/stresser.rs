// SPDX-License-Identifier: Apache-2.0

//! The workload of mqtt-stresser and its report.
//!
//! Each client is a publisher and a subscriber of the same topic, QoS 0, one write per PUBLISH as the Go client does.
//! All clients publish at once, a few messages of each in turn: Go's scheduler lets a goroutine and the one that writes
//! for it alternate for a while before others run (the relay finds 2 messages in a read under the Go client on one
//! CPU, 5 on two). Publishing throughput counts from a client's first write to its last. Receiving throughput counts
//! from its first write to its last delivery (the Go tool starts that clock when publishing is over, so what was
//! delivered meanwhile takes no time there).

use std::fmt::Write;

use anyhow::{Result, bail};

use crate::clock::{self, SECOND_NS};
use crate::cost::Cost;
use crate::link::{Flushed, Link, Poller};
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::transport::Way;
use crate::wire::{self, Hello, Protocol, Stamp, Template, kind};

const STALL_NS: u64 = 10 * SECOND_NS;
const SCRATCH_BYTES: usize = 128 * 1024;

/// As long as the "this is msg #42!" of the Go tool would be with room for the stamp.
const PAYLOAD_BYTES: usize = wire::STAMP_BYTES;

/// Messages that a client writes, one by one, before the next client does.
const BURST: u32 = 4;

#[derive(Clone, Debug)]
pub(crate) struct Stresser {
    pub(crate) way: Way,
    pub(crate) clients: u32,
    pub(crate) messages: u32,
}

struct Client {
    template: Template,
    sent: u32,
    received: u32,
    first_write_ns: u64,
    last_write_ns: u64,
    last_delivery_ns: u64,
}

pub(crate) fn run(endpoint: &Endpoint, stresser: &Stresser) -> Result<Figures> {
    let broker = endpoint.pid.map(Cost::new);
    let cpu = || broker.as_ref().map(Cost::cpu_ns).transpose();
    let cpu_before = cpu()?;
    let run = clock::now_ns() as u32;
    let hello = |client_id| Hello {
        protocol: Protocol::V311,
        client_id,
        clean: true,
        keep_alive_secs: 30,
    };
    let dial = stresser.way.to(endpoint)?;
    let mut poller = Poller::new()?;
    let mut clients = Vec::new();
    // link 2n belongs to the subscriber of client n, link 2n + 1 to its publisher
    let mut links = Vec::new();
    for number in 0..stresser.clients {
        let topic = format!("internal/mqtt-stresser/bench/worker{number}-{run:08x}");
        let mut subscriber = Link::open(&dial, &hello(format!("stresser-sub-{number}-{run:08x}")))?;
        subscriber.subscribe(std::slice::from_ref(&topic), 0)?;
        let publisher = Link::open(&dial, &hello(format!("stresser-pub-{number}-{run:08x}")))?;
        for link in [subscriber, publisher] {
            poller.add(&link, links.len())?;
            links.push(link);
        }
        clients.push(Client {
            template: Template::new(Protocol::V311, &topic, 0, run, number, PAYLOAD_BYTES),
            sent: 0,
            received: 0,
            first_write_ns: 0,
            last_write_ns: 0,
            last_delivery_ns: 0,
        });
    }
    let cpu_connected = cpu()?;

    let mut failures = Vec::new();
    let mut misordered = 0_u64;
    let mut scratch = vec![0; SCRATCH_BYTES];
    let total = u64::from(stresser.clients) * u64::from(stresser.messages);
    let (mut current, mut sent, mut received) = (0, 0, 0);
    let mut publishing = stresser.clients;
    let mut moved_at_ns = clock::now_ns();
    while received < total {
        if publishing > 0 {
            let client = &mut clients[current];
            let link = &mut links[2 * current + 1];
            current = (current + 1) % stresser.clients as usize;
            for _ in 0..BURST {
                // the rest of a write that blocked goes first
                if client.last_write_ns > 0 || is_blocked(link)? {
                    break;
                }
                let now = clock::now_ns();
                if client.sent == 0 {
                    client.first_write_ns = now;
                }
                if client.sent == stresser.messages {
                    client.last_write_ns = now;
                    publishing -= 1;
                    break;
                }
                client
                    .template
                    .put(&mut link.out, 0, u64::from(client.sent), now);
                client.sent += 1;
                sent += 1;
                is_blocked(link)?;
            }
        }
        let events = poller.wait(if publishing > 0 { 0 } else { SECOND_NS / 10 })?;
        for at in 0..events {
            // a publisher whose socket turned writable goes on when its turn comes
            let (token, readable, _) = poller.event(at);
            if !readable {
                continue;
            }
            while let Some((filled, more)) = links[token].read(&mut scratch)? {
                let now = clock::now_ns();
                let mut at = 0;
                while let Some(packet) = wire::split(&scratch[at..filled])? {
                    let body = &scratch[at + packet.body..at + packet.end];
                    at += packet.end;
                    if packet.first >> 4 != kind::PUBLISH {
                        bail!("expected PUBLISH, got first byte {:#04x}", packet.first);
                    }
                    let delivery = wire::delivery(packet.first, body, Protocol::V311)?;
                    let client = &mut clients[token / 2];
                    let stamp = Stamp::read(delivery.payload).filter(|stamp| stamp.run == run);
                    let Some(stamp) = stamp.filter(|stamp| stamp.publisher as usize == token / 2)
                    else {
                        bail!("a client received a message that was not its own");
                    };
                    misordered += u64::from(stamp.sequence != u64::from(client.received));
                    client.received += 1;
                    client.last_delivery_ns = now;
                    received += 1;
                    moved_at_ns = now;
                }
                links[token].keep(&scratch[at..filled]);
                if !more {
                    break;
                }
            }
            // what the layers of a subscriber answer; a publisher's goes with its next write
            if token % 2 == 0 && links[token].queued_bytes() > 0 {
                links[token].flush()?;
            }
        }
        if clock::now_ns() - moved_at_ns > STALL_NS {
            failures.push(format!("{} messages lost", total - received));
            break;
        }
    }
    let cpu_after = cpu()?;
    for link in links {
        link.close();
    }

    if misordered > 0 {
        failures.push(format!(
            "{misordered} messages lost, duplicated or out of order on the way"
        ));
    }
    let rate = |count: u32, from: u64, to: u64| {
        f64::from(count) / clock::seconds(to.saturating_sub(from).max(1))
    };
    let publishing: Vec<f64> = clients
        .iter()
        .map(|client| rate(client.sent, client.first_write_ns, client.last_write_ns))
        .collect();
    let done = clients
        .iter()
        .filter(|client| client.received == stresser.messages);
    let receiving: Vec<f64> = done
        .map(|client| {
            rate(
                client.received,
                client.first_write_ns,
                client.last_delivery_ns,
            )
        })
        .collect();
    let (publishing, receiving) = (Throughput::new(publishing), Throughput::new(receiving));

    let mut figures = Figures {
        failures,
        ..Figures::default()
    };
    if let Some((after, before)) = cpu_after.zip(cpu_before) {
        figures.put("cpu_ms_per_run", after.saturating_sub(before) as f64 / 1e6);
    }
    if let Some((after, before)) = cpu_after.zip(cpu_connected) {
        figures.put(
            "cpu_ns_per_message",
            after.saturating_sub(before) as f64 / total as f64,
        );
    }
    figures.put("completed", receiving.sorted.len() as f64);
    figures.put("publish_median_per_s", publishing.median());
    figures.put("receive_median_per_s", receiving.median());
    figures.report = Some(report(stresser, sent, received, &publishing, &receiving));
    Ok(figures)
}

fn is_blocked(link: &mut Link) -> Result<bool> {
    Ok(matches!(link.flush()?, Flushed::Blocked))
}

fn report(
    stresser: &Stresser,
    sent: u64,
    received: u64,
    publishing: &Throughput,
    receiving: &Throughput,
) -> String {
    let clients = u64::from(stresser.clients);
    let total = clients * u64::from(stresser.messages);
    let completed = receiving.sorted.len() as u64;
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let mut text = String::new();
    let _ = writeln!(text, "# Configuration");
    let _ = writeln!(text, "Concurrent Clients: {clients}");
    let _ = writeln!(text, "Messages / Client:  {total}\n");
    let _ = writeln!(text, "# Results");
    let _ = writeln!(
        text,
        "Published Messages: {sent} ({:.0}%)",
        percent(sent, total)
    );
    let _ = writeln!(
        text,
        "Received Messages:  {received} ({:.0}%)",
        percent(received, sent)
    );
    let _ = writeln!(
        text,
        "Completed:          {completed} ({:.0}%)",
        percent(completed, clients)
    );
    let errors = clients - completed;
    let _ = writeln!(
        text,
        "Errors:             {errors} ({:.0}%)",
        percent(errors, clients)
    );
    for (title, throughput) in [("Publishing", publishing), ("Receiving", receiving)] {
        let _ = write!(text, "\n# {title} Throughput\n{throughput}");
    }
    text
}

/// Messages per second of each client, slowest first.
struct Throughput {
    sorted: Vec<f64>,
}

impl Throughput {
    fn new(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Self { sorted: rates }
    }

    fn median(&self) -> f64 {
        crate::stats::median(&self.sorted).unwrap_or(0.0)
    }

    /// Upper bounds of ten equal steps from slowest to fastest, and the share of clients up to there; empty steps are
    /// left out.
    fn histogram(&self) -> Vec<(f64, f64)> {
        const STEPS: usize = 10;
        let (Some(slowest), Some(fastest)) = (self.sorted.first(), self.sorted.last()) else {
            return Vec::new();
        };
        let step = (fastest - slowest) / STEPS as f64;
        let mut shares = Vec::new();
        let mut below = 0;
        for number in 1..=STEPS {
            let bound = slowest + step * number as f64;
            // rounding must not leave the fastest client out
            let upto = if number == STEPS {
                self.sorted.len()
            } else {
                self.sorted.partition_point(|&rate| rate < bound)
            };
            if upto > below {
                shares.push((bound, upto as f64 / self.sorted.len() as f64));
                below = upto;
            }
        }
        shares
    }
}

impl std::fmt::Display for Throughput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "Fastest: {:.0} msg/sec",
            self.sorted.last().unwrap_or(&0.0)
        )?;
        writeln!(
            f,
            "Slowest: {:.0} msg/sec",
            self.sorted.first().unwrap_or(&0.0)
        )?;
        writeln!(f, "Median: {:.0} msg/sec\n", self.median())?;
        for (bound, share) in self.histogram() {
            writeln!(f, "  < {bound:.0} msg/sec  {:.0}%", share * 100.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_grows_to_all_clients() {
        let throughput = Throughput::new((0..=100).rev().map(f64::from).collect());
        let histogram = throughput.histogram();
        assert_eq!(histogram.len(), 10);
        assert_eq!(histogram[0], (10.0, 10.0 / 101.0));
        assert_eq!(histogram[9], (100.0, 1.0));
        assert!((throughput.median() - 50.0).abs() < f64::EPSILON);
    }

    #[test]
    fn equal_clients_fill_one_step() {
        assert_eq!(Throughput::new(vec![5.0; 3]).histogram(), [(5.0, 1.0)]);
        assert!(Throughput::new(Vec::new()).histogram().is_empty());
    }

    #[test]
    fn the_report_has_the_form_of_mqtt_stresser() {
        let stresser = Stresser {
            way: Way::tcp(),
            clients: 2,
            messages: 5,
        };
        let rates = || Throughput::new(vec![100.0, 200.0]);
        let text = report(&stresser, 10, 10, &rates(), &rates());
        for line in [
            "Concurrent Clients: 2",
            "Published Messages: 10 (100%)",
            "Completed:          2 (100%)",
            "# Receiving Throughput",
            "Median: 150 msg/sec",
            "  < 200 msg/sec  100%",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line:?} is missing in\n{text}"
            );
        }
    }
}
