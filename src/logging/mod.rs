// SPDX-License-Identifier: Apache-2.0
//! Logging: lines are formatted where they are logged and written by one thread.
//!
//! ```text
//! log::info! ─> env_logger: level, format ─> lane (bounded, never waits) ─> writer thread ─> console, files
//! ```
//!
//! A full lane drops the line; the writer says later how many were dropped. Threads of this module take over the
//! signal mask of whoever calls [`start`], so signals are to be blocked before.

mod clock;
mod file;
mod format;
mod lane;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use env_logger::{Builder, Logger, Target};

use crate::settings::{LogFormat, LogSettings};
use file::RotatingFile;
pub use lane::LogHandle;
use lane::{FileSink, Levels, Sinks};

/// Longest wait of a panicking thread for its line.
const PANIC_FLUSH: Duration = Duration::from_secs(1);

/// Why logging cannot start.
#[derive(Debug)]
#[non_exhaustive]
pub enum LogError {
    /// A file cannot be opened.
    File { path: PathBuf, error: io::Error },
    /// The writer cannot be started.
    Thread(io::Error),
    /// Another logger was there first.
    Taken,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => {
                write!(f, "cannot open the log file {}: {error}", path.display())
            }
            Self::Thread(error) => {
                write!(f, "cannot start the thread that writes the log: {error}")
            }
            Self::Taken => f.write_str("logging was started twice"),
        }
    }
}

impl std::error::Error for LogError {}

/// Opens the files, starts the writer and takes over the `log` macros of the process.
///
/// # Errors
///
/// When a file cannot be opened, the writer not started, or logging was started before.
pub fn start(settings: &LogSettings) -> Result<LogHandle, LogError> {
    let console = settings
        .console
        .then(|| -> Box<dyn io::Write + Send> { Box::new(io::stdout()) });
    let (logger, handle) = logger(settings, console)?;
    let level = logger.filter();
    log::set_boxed_logger(Box::new(logger)).map_err(|_| LogError::Taken)?;
    log::set_max_level(level);
    Ok(handle)
}

/// A logger, and the handle of the writer behind it.
fn logger(
    settings: &LogSettings,
    console: Option<Box<dyn io::Write + Send>>,
) -> Result<(Logger, LogHandle), LogError> {
    let files = [
        (&settings.file, Levels::All),
        (&settings.info_file, Levels::BelowError),
        (&settings.error_file, Levels::Errors),
    ];
    let files = files
        .into_iter()
        .filter_map(|(path, levels)| Some((path.clone()?, levels)))
        .map(|(path, levels)| {
            RotatingFile::open(path.clone(), settings.rotation.clone())
                .map(|file| FileSink::new(file, levels))
                .map_err(|error| LogError::File { path, error })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let sinks = Sinks::new(console, files, settings.format);
    let (lane, handle) = lane::start(sinks, lane::LINES_MAX).map_err(LogError::Thread)?;
    let format = match settings.format {
        LogFormat::Text => format::text,
        LogFormat::Json => format::json,
    };
    let logger = Builder::new()
        .filter_level(settings.level.filter())
        .format(move |buffer, record| {
            let line = format(clock::now(), record);
            lane::write_framed(buffer, record.level(), &line)
        })
        .target(Target::Pipe(Box::new(lane)))
        .build();
    Ok((logger, handle))
}

/// Logs every panic of the process as an error, and waits until it is written, before the process may end.
pub fn log_panics(handle: &LogHandle) {
    let handle = handle.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let payload = panic.payload();
        let cause = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        log::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place = place.as_str(),
            cause = cause;
            "a thread panicked, which is a bug in this program"
        );
        if !handle.flush(PANIC_FLUSH) {
            eprintln!("corqtt: a thread panicked at {place}: {cause}");
        }
    }));
}
