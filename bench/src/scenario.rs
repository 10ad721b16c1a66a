// SPDX-License-Identifier: Apache-2.0

//! The scenarios by name: from flags to a run, from a run to figures.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};

use crate::args::Args;
use crate::clock::{self, SECOND_NS};
use crate::connect::{self, Storm};
use crate::idle::{self, Idle};
use crate::load::{self, Load, Pace, Shape};
use crate::retained::{self, Retained};
use crate::stresser::{self, Stresser};
use crate::target::Endpoint;
use crate::transport::{Transport, Way};
use crate::wire::{Protocol, STAMP_BYTES};

#[derive(Clone, Debug)]
pub(crate) enum Scenario {
    Load(Load),
    Connect(Storm),
    Idle(Idle),
    Retained(Retained),
    Stresser(Stresser),
}

/// The numbers of one run by name, unit at the end of the name, and why the run must not pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) values: Vec<(&'static str, f64)>,
    pub(crate) failures: Vec<String>,
    /// The report in mqtt-stresser's form, for that scenario.
    pub(crate) report: Option<String>,
}

impl Figures {
    pub(crate) fn put(&mut self, name: &'static str, value: f64) {
        self.values.push((name, value));
    }

    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.values
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, value)| value)
    }
}

impl Scenario {
    pub(crate) fn parse(name: &str, args: &Args) -> Result<Self> {
        Ok(match name {
            "p2p" | "fan-out" | "fan-in" | "shared" => Self::Load(parse_load(name, args)?),
            "connect" => Self::Connect(parse_storm(args)?),
            "idle" => Self::Idle(Idle {
                way: Way::parse(args)?,
                protocol: parse_protocol(args)?,
                connections: positive(args, "connections")?,
                opening: positive(args, "opening")?,
                watch_ns: seconds_ns(args, "watch")?,
            }),
            "retained" => Self::Retained(parse_retained(args)?),
            "stresser" => Self::Stresser(Stresser {
                way: Way::parse(args)?,
                clients: positive(args, "num-clients")?,
                messages: positive(args, "num-messages")?,
            }),
            _ => bail!(
                "there is no scenario {name:?}: p2p, fan-out, fan-in, shared, connect, idle, retained, stresser"
            ),
        })
    }

    pub(crate) fn run(&self, endpoint: &Endpoint) -> Result<Figures> {
        match self {
            Self::Load(load) => Ok(load_figures(load, &load::run(endpoint, load)?)),
            Self::Connect(storm) => connect::run(endpoint, storm),
            Self::Idle(idle) => idle::run(endpoint, idle),
            Self::Retained(retained) => retained::run(endpoint, retained),
            Self::Stresser(stresser) => stresser::run(endpoint, stresser),
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        let way = match self {
            Self::Load(load) => &load.way,
            Self::Connect(storm) => &storm.way,
            Self::Idle(idle) => &idle.way,
            Self::Retained(retained) => &retained.way,
            Self::Stresser(stresser) => &stresser.way,
        };
        way.transport
    }
}

fn parse_load(name: &str, args: &Args) -> Result<Load> {
    let shape = match name {
        "p2p" => Shape::Pairs {
            pairs: positive(args, "pairs")?,
            one_client: match args.text("crossing") {
                Some("none") => true,
                Some("half") => false,
                other => bail!("--crossing is half or none, not {other:?}"),
            },
        },
        "fan-out" => Shape::FanOut {
            subscribers: positive(args, "subscribers")?,
        },
        "fan-in" => Shape::FanIn {
            publishers: positive(args, "publishers")?,
            exact: match args.text("filters") {
                Some("exact") => true,
                Some("wildcard") => false,
                other => bail!("--filters is wildcard or exact, not {other:?}"),
            },
        },
        _ => Shape::Shared {
            publishers: if args.is_given("publishers") {
                positive(args, "publishers")?
            } else {
                20
            },
            members: positive(args, "members")?,
        },
    };
    let pace = match rate(args, "rate")? {
        Some(rate) => Pace::Rate(rate),
        None => Pace::Window(positive(args, "window")?),
    };
    let publish_qos = args.number("qos")?;
    let load = Load {
        way: Way::parse(args)?,
        shape,
        pace,
        protocol: parse_protocol(args)?,
        publish_qos,
        subscribe_qos: args.optional("sub-qos")?.unwrap_or(publish_qos),
        persistent: args.switch("persistent") || args.switch("away"),
        away: args.switch("away"),
        payload_bytes: args.number("payload")?,
        warmup_ns: seconds_ns(args, "warmup")?,
        measure_ns: seconds_ns(args, "duration")?,
        stall_ns: seconds_ns(args, "stall")?,
    };
    ensure!(
        load.publish_qos <= 2 && load.subscribe_qos <= 2,
        "a quality of service is 0, 1 or 2"
    );
    ensure!(
        (STAMP_BYTES..200 << 20).contains(&load.payload_bytes),
        "--payload is from {STAMP_BYTES} bytes to 200 MiB"
    );
    ensure!(load.measure_ns > 0, "--duration is more than nothing");
    ensure!(
        !load.away || load.delivery_qos() > 0,
        "--away is for --qos=1 and 2: nothing else waits for its subscriber"
    );
    ensure!(
        !load.away
            || !matches!(
                load.shape,
                Shape::Pairs {
                    one_client: true,
                    ..
                }
            ),
        "--away wants subscribers that are not the publishers: --crossing=half"
    );
    Ok(load)
}

fn parse_storm(args: &Args) -> Result<Storm> {
    let way = Way::parse(args)?;
    let rate = rate(args, "connect-rate")?;
    let resume = args.number("resume")?;
    ensure!(
        (0.0..=1.0).contains(&resume),
        "--resume={resume} is not a share: from 0 for none to 1 for all"
    );
    ensure!(
        resume == 0.0 || way.transport.is_tls(),
        "--resume is for --transport=tls and wss"
    );
    let concurrency = match (args.is_given("concurrency"), rate) {
        (true, _) => positive(args, "concurrency")?,
        (false, None) => 100,
        (false, Some(_)) => 10_000,
    };
    Ok(Storm {
        way,
        protocol: parse_protocol(args)?,
        connects: args.number("connects")?,
        concurrency,
        rate,
        resume,
    })
}

fn parse_retained(args: &Args) -> Result<Retained> {
    let retained = Retained {
        way: Way::parse(args)?,
        protocol: parse_protocol(args)?,
        topics: positive(args, "topics")?,
        payload_bytes: args.number("join-payload")?,
        updates: args.number("updates")?,
        qos: args.number("join-qos")?,
        stall_ns: retained::STALL_NS,
    };
    ensure!(
        retained.topics <= 1_000_000,
        "--topics is at most a million"
    );
    ensure!(retained.qos <= 1, "--join-qos is 0 or 1");
    ensure!(
        (0.0..=1e6).contains(&retained.updates),
        "--updates={} is not a rate",
        retained.updates
    );
    ensure!(
        (STAMP_BYTES..64 << 10).contains(&retained.payload_bytes),
        "--join-payload is from {STAMP_BYTES} bytes to 64 KiB"
    );
    Ok(retained)
}

pub(crate) fn parse_protocol(args: &Args) -> Result<Protocol> {
    match args.text("protocol") {
        Some("5") => Ok(Protocol::V5),
        Some("4") | None => Ok(Protocol::V311),
        Some(other) => bail!("--protocol is 4 (3.1.1) or 5 (5.0), not {other}"),
    }
}

fn positive(args: &Args, name: &str) -> Result<u32> {
    let number = args.number(name)?;
    ensure!(number > 0, "--{name} is more than nothing");
    Ok(number)
}

/// Per second; an error where one is given that is none.
pub(crate) fn rate(args: &Args, name: &str) -> Result<Option<f64>> {
    let rate = args.optional::<f64>(name)?;
    ensure!(
        rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()),
        "--{name}={} is not a rate",
        rate.unwrap_or_default()
    );
    Ok(rate)
}

pub(crate) fn seconds_ns(args: &Args, name: &str) -> Result<u64> {
    let seconds: f64 = args.number(name)?;
    ensure!(
        (0.0..1e6).contains(&seconds),
        "--{name}={seconds} is not a time in seconds"
    );
    Ok((seconds * SECOND_NS as f64) as u64)
}

/// `tcp://host:port` or `mqtt://host:port`, as mqtt-stresser takes it.
pub(crate) fn parse_url(url: &str) -> Result<String> {
    let rest = url
        .strip_prefix("tcp://")
        .or_else(|| url.strip_prefix("mqtt://"))
        .unwrap_or(url);
    let rest = rest.trim_end_matches('/');
    ensure!(
        !rest.contains("://"),
        "--broker={url}: only tcp:// is known"
    );
    let port = if rest.parse::<SocketAddr>().is_ok() || rest.contains(':') {
        ""
    } else {
        ":1883"
    };
    Ok(format!("broker={rest}{port}"))
}

fn load_figures(load: &Load, outcome: &load::Outcome) -> Figures {
    let mut figures = Figures::default();
    let messages = outcome.delivered as f64;
    let window = clock::seconds(outcome.window_ns);
    if let Some(cpu_ns) = outcome.broker_cpu_ns {
        figures.put("cpu_ns_per_message", cpu_ns as f64 / messages.max(1.0));
        figures.put(
            "broker_busy_percent",
            100.0 * clock::seconds(cpu_ns) / window,
        );
    }
    figures.put(
        "generator_busy_percent",
        100.0 * clock::seconds(outcome.generator_cpu_ns) / window,
    );
    figures.put("messages_per_s", messages / window);
    let micros = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1000.0;
    figures.put("p50_us", micros(0.5));
    figures.put("p90_us", micros(0.9));
    figures.put("p99_us", micros(0.99));
    figures.put("p999_us", micros(0.999));
    figures.put("max_us", outcome.latency.max() as f64 / 1000.0);
    if load.publish_qos > 0 {
        let micros = |quantile| outcome.ack_latency.value_at_quantile(quantile) as f64 / 1000.0;
        figures.put("ack_p50_us", micros(0.5));
        figures.put("ack_p99_us", micros(0.99));
    }
    if load.away {
        figures.put("return_ms", outcome.return_ns as f64 / 1e6);
    }
    if let Some(rss) = outcome.broker_rss_bytes {
        figures.put("rss_mib", rss as f64 / (1 << 20) as f64);
    }
    figures.put("published", outcome.published as f64);
    figures.put("unsent", outcome.unsent as f64);
    figures.put("lost", outcome.faults.lost as f64);
    figures.put("duplicates", outcome.faults.duplicates as f64);
    figures.put("misordered", outcome.faults.misordered as f64);
    figures.failures = outcome.faults.verdict(load.delivery_qos());
    if outcome.delivered == 0 {
        figures
            .failures
            .push("no message counted in the measured window".into());
    }
    figures
}
