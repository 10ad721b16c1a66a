// SPDX-License-Identifier: Apache-2.0
//! The broker's process: reads settings, starts logging, then everything else, and takes every signal.

use std::io::Write;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

use crate::settings::Settings;
use crate::wiring::{Broker, Edges};
use crate::{args, check, logging, settings};

/// Runs the broker until a signal ends it. The exit code is 0 after a drain, 1 if it could not start or drain, 2 for a
/// wrong command line.
pub fn main(edges: Edges) -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("corqtt: {error}");
            return ExitCode::from(2);
        }
    };
    if args.help {
        return print(&settings::help(), 0);
    }
    if args.version {
        return print(concat!("corqtt ", env!("CARGO_PKG_VERSION"), "\n"), 0);
    }
    let read = Settings::load(&args, std::env::vars_os());
    if args.check {
        let (text, code) = check::report(&read);
        return print(&text, code);
    }
    let settings = match read {
        Ok(settings) => settings,
        Err(error) => {
            for problem in error.problems() {
                eprintln!("corqtt: {problem}");
            }
            return ExitCode::from(error.exit_code());
        }
    };
    // before any other thread starts, so that all of them inherit it and signals come to this one only
    let signals = signals();
    if let Err(error) = signals.thread_block() {
        eprintln!("corqtt: signals cannot be blocked: {error}");
        return ExitCode::FAILURE;
    }
    let log = match logging::start(&settings.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("corqtt: {error}");
            return ExitCode::FAILURE;
        }
    };
    logging::log_panics(&log);
    // half a broker is worse than none: whichever thread panics, the process ends
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
    log::info!(version = env!("CARGO_PKG_VERSION"), node = settings.node_name; "server initializing");
    settings.log_notices();
    let code = match Broker::start(&settings, edges) {
        Ok(broker) => run(broker, &settings, &signals, &log),
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    log.shutdown();
    code
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .collect()
}

fn run(
    broker: Broker,
    settings: &Settings,
    signals: &SigSet,
    log: &logging::LogHandle,
) -> ExitCode {
    log::info!("server started");
    loop {
        match signals.wait() {
            Ok(Signal::SIGHUP) => {
                log.reopen();
                log::info!("log files reopened (SIGHUP)");
                broker.reload();
            }
            Ok(signal) => {
                log::info!(signal = signal.as_str(); "server draining");
                break;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                log::error!("waiting for signals failed: {error}");
                break;
            }
        }
    }
    if broker.drain(settings.limits.drain_timeout) {
        log::info!("server stopped");
        ExitCode::SUCCESS
    } else {
        log::error!("server stopped at drain-timeout with connections left");
        ExitCode::FAILURE
    }
}

/// Writes to standard output; that nobody reads it is no error.
fn print(text: &str, code: u8) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::from(code)
}
