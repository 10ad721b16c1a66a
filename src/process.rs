// SPDX-License-Identifier: Apache-2.0
//! The broker's process: reads settings, starts logging, then everything else, and takes every signal.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};

use crate::args::Args;
use crate::notify::{Notifier, SERVING};
use crate::settings::Settings;
use crate::wiring::{Broker, Edges};
use crate::{args, check, logging, memory, reload, settings, store};

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
    if let Some(command) = &args.store {
        return with_store(command, &settings);
    }
    memory::return_large_blocks();
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
    let notifier = Arc::new(Notifier::from_environment());
    let code = match Broker::start(&settings, edges, &notifier, &log) {
        Ok(broker) => {
            let around = Around {
                args: &args,
                settings: &settings,
                notifier: &notifier,
                log: &log,
            };
            run(broker, &signals, &around)
        }
        Err(error) => {
            log::error!("{error:#}");
            // whoever starts it looks there, wherever its lines go
            if !settings.log.console || settings.log.level == settings::Level::Off {
                eprintln!("corqtt: {error:#}");
            }
            ExitCode::FAILURE
        }
    };
    log.shutdown();
    code
}

/// `corqtt store`, on a store that no broker uses.
fn with_store(command: &args::StoreCommand, settings: &Settings) -> ExitCode {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let done = store::offline::run(command, settings.into(), &mut out)
        .and_then(|code| Ok(out.flush().map(|()| code)?));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("corqtt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// What a running broker is surrounded by.
struct Around<'a> {
    args: &'a Args,
    settings: &'a Settings,
    notifier: &'a Notifier,
    log: &'a logging::LogHandle,
}

fn run(broker: Broker, signals: &SigSet, around: &Around<'_>) -> ExitCode {
    loop {
        match signals.wait() {
            Ok(Signal::SIGHUP) => reload(&broker, around),
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
    let drain_max = around.settings.limits.drain_timeout;
    around.notifier.stopping(drain_max);
    match broker.drain(drain_max) {
        Ok(()) => {
            log::info!("server stopped");
            ExitCode::SUCCESS
        }
        Err(why) => {
            log::error!("server stopped {why}");
            ExitCode::FAILURE
        }
    }
}

/// SIGHUP: every file that may change under a running broker is read again, and what cannot be used changes nothing.
fn reload(broker: &Broker, around: &Around<'_>) {
    around.notifier.reloading();
    around.log.reopen();
    let outcomes = broker.reload();
    let of_settings = reload::settings(around.args, around.settings);
    for outcome in outcomes.iter().chain(&of_settings) {
        outcome.log();
    }
    around.notifier.ready(SERVING);
}

/// Writes to standard output; that nobody reads it is no error.
fn print(text: &str, code: u8) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::from(code)
}
