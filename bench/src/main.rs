// SPDX-License-Identifier: Apache-2.0

//! Load for MQTT brokers that verifies what it measures, and the bare relay that is the floor.
//!
//! ```text
//! args -> compare / suite: targets x scenarios x rounds -> report (table, JSON)
//!             |                |
//!          target           scenario: load (p2p, fan-out, fan-in, shared), connect, idle, stresser
//!       (starts, pins)         |
//!                     link, wire, verify, cost           relay: the floor, a target itself
//! ```
//!
//! The generator is one thread on one CPU and shares no code with the broker.

#![forbid(unsafe_code)]

mod args;
mod clock;
mod compare;
mod connect;
mod cost;
mod idle;
mod link;
mod load;
mod relay;
mod report;
mod scenario;
mod stats;
mod stresser;
mod suite;
mod target;
#[cfg(test)]
mod tests;
mod verify;
mod wire;

use std::net::ToSocketAddrs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use args::{Args, Asked};
use compare::{Field, Group, Plan};
use scenario::Scenario;

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
        _ => run_compare(&args),
    }
}

fn run_relay(args: &Args) -> Result<bool> {
    let listen = args.text("listen").context("--listen is missing")?;
    let addr = listen
        .to_socket_addrs()?
        .next()
        .with_context(|| format!("{listen} has no address"))?;
    let relay = relay::Relay::bind(addr)?;
    target::pin(&args.cpus("cpu")?)?;
    if addr.port() == 0 {
        eprintln!("relay at {}", relay.addr()?);
    }
    relay.run(None::<std::os::fd::OwnedFd>)?;
    Ok(true)
}

/// One scenario by its own command, or several by `compare`.
fn run_compare(args: &Args) -> Result<bool> {
    let names = match args.command.name {
        "compare" => args.positional.clone(),
        name => vec![name.to_owned()],
    };
    ensure!(
        !names.is_empty(),
        "compare wants scenarios: p2p, fan-out, fan-in, shared, connect, idle, stresser"
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
