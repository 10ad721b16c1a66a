// SPDX-License-Identifier: Apache-2.0

//! Load for MQTT brokers that verifies what it measures, and the bare relay that is the floor.
//!
//! ```text
//! args -> compare / suite: targets x scenarios x rounds -> report (table, JSON)
//!             |                |
//!          target           scenario: load (p2p, fan-out, fan-in, shared), connect, idle, retained, stresser
//!       (starts, pins)         |
//!                     link, wire, verify, cost           relay: the floor, a target itself
//!                       |
//!           transport: nothing, tls, websocket           disturb -> probe, a load beside it
//!
//! fsync: what the disk does by itself
//! ```
//!
//! The generator is one thread on one CPU and shares no code with the broker.

#![forbid(unsafe_code)]

mod args;
mod certificates;
mod clock;
mod compare;
mod connect;
mod cost;
mod disturb;
mod fsync;
mod idle;
mod link;
mod load;
mod opening;
mod probe;
mod relay;
mod report;
mod retained;
mod scenario;
mod stats;
mod stresser;
mod suite;
mod target;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod verify;
mod websocket;
mod wire;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use args::{Args, Asked};
use compare::{Field, Group, Plan};
use disturb::Disturbance;
use probe::Probe;
use scenario::Scenario;
use transport::Way;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("corqtt-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// False when a run failed its checks or a limit does not hold.
fn run() -> Result<bool> {
    let args = match args::parse(std::env::args().skip(1))? {
        Asked::Run(args) => args,
        Asked::Help(help) => {
            print!("{help}");
            return Ok(true);
        }
    };
    target::raise_file_limit()?;
    match args.command.name {
        "relay" => run_relay(&args),
        "suite" => run_suite(&args),
        "probe" => run_probe(&args),
        "disturb" => run_disturb(&args),
        "fsync" => run_fsync(&args),
        "certificates" => make_certificates(&args),
        _ => run_compare(&args),
    }
}

fn run_relay(args: &Args) -> Result<bool> {
    let listen = |name: &str| -> Result<Option<SocketAddr>> {
        let Some(listen) = args.text(name) else {
            return Ok(None);
        };
        let addr = listen.to_socket_addrs()?.next();
        Ok(Some(
            addr.with_context(|| format!("{listen} has no address"))?,
        ))
    };
    let addr = listen("listen")?.context("--listen is missing")?;
    let mut relay = relay::Relay::bind(addr)?;
    if let Some(addr) = listen("tls")? {
        let path = |name: &str| {
            let path = args.text(name).map(Path::new);
            path.with_context(|| format!("--tls wants --{name}=FILE as well"))
        };
        let config = tls::server_config(path("server-cert")?, path("server-key")?)?;
        relay.bind_tls(addr, config)?;
    }
    target::pin(&args.cpus("cpu")?)?;
    if addr.port() == 0 {
        let addrs = relay.addrs()?;
        let addrs: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        eprintln!("relay at {}", addrs.join(", "));
    }
    relay.run(None::<std::os::fd::OwnedFd>)?;
    Ok(true)
}

fn make_certificates(args: &Args) -> Result<bool> {
    let [dir] = args.positional.as_slice() else {
        anyhow::bail!("certificates wants one directory");
    };
    certificates::write(Path::new(dir))?;
    Ok(true)
}

/// The figures of the disk as one line of JSON.
fn run_fsync(args: &Args) -> Result<bool> {
    let [dir] = args.positional.as_slice() else {
        anyhow::bail!("fsync wants one directory");
    };
    let for_ns = scenario::seconds_ns(args, "seconds")?;
    let outcome = fsync::run(Path::new(dir), args.number("bytes")?, for_ns)?;
    let micros = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1000.0;
    let figures = json!({
        "per_s": outcome.per_s,
        "p50_us": micros(0.5),
        "p99_us": micros(0.99),
        "max_us": outcome.latency.max() as f64 / 1000.0,
    });
    println!("{figures}");
    Ok(true)
}

/// The figures of one probe as one line of JSON.
fn run_probe(args: &Args) -> Result<bool> {
    let probe = Probe {
        way: Way::parse(args)?,
        protocol: scenario::parse_protocol(args)?,
        rate: scenario::rate(args, "probe-rate")?.context("--probe-rate is missing")?,
        duration_ns: scenario::seconds_ns(args, "seconds")?,
        attended: args.switch("attended"),
        nice: args.number("nice")?,
    };
    let field = Field::parse(args)?;
    let broker = field.start_one()?;
    let figures = probe::run(&broker.endpoint, &probe)?;
    let mut values: serde_json::Map<String, Value> = figures
        .values
        .iter()
        .map(|&(name, value)| (name.to_owned(), json!(value)))
        .collect();
    values.insert("failures".into(), json!(figures.failures));
    println!("{}", Value::Object(values));
    Ok(figures.failures.is_empty())
}

fn run_disturb(args: &Args) -> Result<bool> {
    let seconds = |name: &str| {
        Ok::<_, anyhow::Error>(Duration::from_nanos(scenario::seconds_ns(args, name)?))
    };
    let load = args.text("load").context("--load is missing")?;
    let field = Field::parse(args)?;
    begin(args, &field)?;
    let broker = field.start_one()?;
    let endpoint = &broker.endpoint;
    let mut probe = vec![
        std::env::current_exe()?.to_string_lossy().into_owned(),
        "probe".into(),
        "--attended".into(),
        format!("--target={}", endpoint.describe("broker")),
    ];
    // found out here rather than by the first probe
    Way::parse(args)?.to(endpoint)?;
    for name in ["probe-rate", "nice", "protocol", "transport", "ca", "cpu"] {
        if let Some(value) = args.text(name) {
            probe.push(format!("--{name}={value}"));
        }
    }
    let disturbance = Disturbance {
        load: endpoint.fill(load)?,
        from: args.text("from").map(Into::into),
        until: args.text("until").map(Into::into),
        at_most: seconds("at-most")?,
        quiet: seconds("seconds")?,
        rounds: args.number("rounds")?,
        probe,
    };
    println!("load: {}\n", disturbance.load);
    let findings = disturbance.run(endpoint);
    println!("{}", findings.table());
    for failure in findings.failures() {
        eprintln!("{failure}");
    }
    if let Some(path) = args.text("json") {
        let all = json!({
            "machine": report::Machine::read().json(),
            "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
            "findings": findings.json(),
        });
        std::fs::write(path, format!("{all:#}\n"))
            .with_context(|| format!("cannot write {path}"))?;
    }
    Ok(findings.holds())
}

/// One scenario by its own command, or several by `compare`.
fn run_compare(args: &Args) -> Result<bool> {
    let names = match args.command.name {
        "compare" => args.positional.clone(),
        name => vec![name.to_owned()],
    };
    ensure!(
        !names.is_empty(),
        "compare wants scenarios: p2p, fan-out, fan-in, shared, connect, idle, retained, stresser"
    );
    let field = Field::parse(args)?;
    let baseline = args
        .text("baseline")
        .map_or(Ok(0), |name| field.position(name))?;
    let mut plans = Vec::new();
    for name in names {
        let scenario = Scenario::parse(&name, args)?;
        let scenarios = field
            .targets
            .iter()
            .map(|_| Some(scenario.clone()))
            .collect();
        plans.push(Plan {
            command: name.clone(),
            name,
            rounds: args.number("rounds")?,
            scenarios,
        });
    }
    begin(args, &field)?;
    let groups = field.run(plans);
    let names = field.names();
    for group in &groups {
        for (name, cell) in names.iter().zip(&group.cells) {
            for report in cell.runs.iter().filter_map(|run| run.report.as_ref()) {
                println!("## {name}\n\n{report}");
            }
        }
        println!("{}", report::scenario_table(group, &names, baseline));
    }
    write_json(args, &groups, &names, Value::Null)?;
    Ok(print_failures(&groups, &names))
}

fn run_suite(args: &Args) -> Result<bool> {
    if args.switch("list") {
        print!("{}", suite::list());
        return Ok(true);
    }
    let field = Field::parse(args)?;
    begin(args, &field)?;
    let suite = suite::run(args, &field)?;
    for group in &suite.groups {
        println!(
            "{}",
            report::scenario_table(group, suite.names(), suite.baseline())
        );
    }
    println!("{}", suite.table());
    write_json(args, &suite.groups, suite.names(), suite.verdicts_json())?;
    let passed = print_failures(&suite.groups, suite.names());
    Ok(passed && suite.holds())
}

/// Says what is measured where, and finds out before a long run whether its result can be written.
fn begin(args: &Args, field: &Field) -> Result<()> {
    println!("{}", report::Machine::read());
    for line in field.describe() {
        println!("{line}");
    }
    println!();
    match args.text("json") {
        Some(path) => std::fs::write(path, "").with_context(|| format!("cannot write {path}")),
        None => Ok(()),
    }
}

/// True when there are none.
fn print_failures(groups: &[Group], names: &[String]) -> bool {
    let mut passed = true;
    for group in groups {
        for (name, cell) in names.iter().zip(&group.cells) {
            for failure in &cell.failures {
                eprintln!("{} {name}: {failure}", group.name);
                passed = false;
            }
        }
    }
    passed
}

fn write_json(args: &Args, groups: &[Group], names: &[String], verdicts: Value) -> Result<()> {
    let Some(path) = args.text("json") else {
        return Ok(());
    };
    let scenarios: Vec<Value> = groups
        .iter()
        .map(|group| report::group_json(group, names))
        .collect();
    let all = json!({
        "machine": report::Machine::read().json(),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "scenarios": scenarios,
        "verdicts": verdicts,
    });
    std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {path}"))
}
