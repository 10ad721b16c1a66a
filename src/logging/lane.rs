// SPDX-License-Identifier: Apache-2.0
//! The bounded lane from every thread to the one that writes the log.
//!
//! Pushing never waits: a full lane drops the line and counts it, and the writer puts a line with the count where the
//! dropped lines would have been.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use log::{Level, Record};

use super::clock;
use super::file::RotatingFile;
use super::format;
use crate::settings::LogFormat;

/// Lines that may wait for the writer. A line is at most some ten KiB, most are a hundred bytes.
pub(super) const LINES_MAX: usize = 4096;

/// Lines that are taken before the sinks are written.
const BATCH_LINES: usize = 256;

/// Longest wait for the writer when the process ends: a console that nobody reads must not hold it up.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// The name of the writer's thread.
const WRITER: &str = "log";

/// From a logging thread, or from the handle, to the writer.
enum Entry {
    /// A formatted line. Dropped and counted when the lane is full.
    Line { level: Level, line: Vec<u8> },
    /// Nothing but a wake-up. Not needed when the lane is full: the writer is awake then.
    Wake,
    /// Answer when everything before is written. Retried by the sender until its deadline.
    Flush(SyncSender<()>),
    /// As flush, then end. Retried by the sender until its deadline.
    Stop(SyncSender<()>),
}

#[derive(Default)]
struct Shared {
    /// Lines dropped since the start.
    dropped: AtomicU64,
    reopen: AtomicBool,
}

/// Starts the writer; the lane is for the logger, the handle for `main`.
pub(super) fn start(sinks: Sinks, lines_max: usize) -> io::Result<(Lane, LogHandle)> {
    let (sender, receiver) = sync_channel(lines_max);
    let shared = Arc::new(Shared::default());
    let writer = Writer {
        receiver,
        shared: Arc::clone(&shared),
        sinks,
        dropped_told: 0,
    };
    std::thread::Builder::new()
        .name(WRITER.to_owned())
        .spawn(move || writer.run())?;
    let lane = Lane {
        sender: sender.clone(),
        shared: Arc::clone(&shared),
    };
    Ok((lane, LogHandle { sender, shared }))
}

/// What the logger writes to: one write is one framed line.
pub(super) struct Lane {
    sender: SyncSender<Entry>,
    shared: Arc<Shared>,
}

/// Frames a line for the lane: the level as one byte, then the text.
pub(super) fn write_framed(mut to: impl Write, level: Level, line: &str) -> io::Result<()> {
    to.write_all(&[level as u8])?;
    to.write_all(line.as_bytes())
}

impl Write for Lane {
    fn write(&mut self, framed: &[u8]) -> io::Result<usize> {
        if let Some((&level, line)) = framed.split_first() {
            let level = Level::iter()
                .find(|known| *known as u8 == level)
                .unwrap_or(Level::Error);
            let entry = Entry::Line {
                level,
                line: line.to_vec(),
            };
            if self.sender.try_send(entry).is_err() {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(framed.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The process's hold on its log.
#[derive(Clone)]
pub struct LogHandle {
    sender: SyncSender<Entry>,
    shared: Arc<Shared>,
}

impl LogHandle {
    /// Closes the files and opens them by name again, after they were moved away; the log says what came of it. Does not
    /// wait.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        let _ = self.sender.try_send(Entry::Wake);
    }

    /// Lines that were dropped since the start, because the writer could not keep up.
    #[must_use]
    pub fn lines_dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until every line that this thread has logged is written, but no longer than this. Says whether it is.
    #[must_use]
    pub fn flush(&self, longest: Duration) -> bool {
        self.wait_for_writer(Entry::Flush, longest)
    }

    /// Writes everything out and ends the writer. Lines that are logged later go nowhere.
    pub fn shutdown(&self) {
        self.wait_for_writer(Entry::Stop, SHUTDOWN);
    }

    fn wait_for_writer(
        &self,
        entry: impl FnOnce(SyncSender<()>) -> Entry,
        longest: Duration,
    ) -> bool {
        if std::thread::current().name() == Some(WRITER) {
            return false;
        }
        let deadline = Instant::now() + longest;
        let (answer, answered) = sync_channel(1);
        let mut entry = entry(answer);
        loop {
            entry = match self.sender.try_send(entry) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(_)) if Instant::now() >= deadline => return false,
                Err(TrySendError::Full(entry)) => entry,
            };
            std::thread::park_timeout(Duration::from_millis(1));
        }
        answered
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .is_ok()
    }
}

/// Which lines a file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Levels {
    All,
    BelowError,
    Errors,
}

impl Levels {
    fn take(self, level: Level) -> bool {
        match self {
            Self::All => true,
            Self::BelowError => level > Level::Error,
            Self::Errors => level == Level::Error,
        }
    }
}

/// A file and what it takes.
pub(super) struct FileSink {
    file: RotatingFile,
    levels: Levels,
    /// The last write failed, and the operator was told.
    is_failing: bool,
}

impl FileSink {
    pub(super) fn new(file: RotatingFile, levels: Levels) -> Self {
        Self {
            file,
            levels,
            is_failing: false,
        }
    }
}

/// Where lines go.
pub(super) struct Sinks {
    console: Option<Box<dyn Write + Send>>,
    /// Lines for the console that were not written yet.
    waiting: Vec<u8>,
    files: Vec<FileSink>,
    format: LogFormat,
}

impl Sinks {
    pub(super) fn new(
        console: Option<Box<dyn Write + Send>>,
        files: Vec<FileSink>,
        format: LogFormat,
    ) -> Self {
        Self {
            console,
            waiting: Vec::new(),
            files,
            format,
        }
    }

    fn take(&mut self, level: Level, line: &[u8]) {
        if self.console.is_some() {
            self.waiting.extend_from_slice(line);
        }
        for sink in self.files.iter_mut().filter(|sink| sink.levels.take(level)) {
            sink.file.take(line);
        }
    }

    /// Writes what waits, with as few system calls as may be.
    fn write(&mut self) {
        let mut troubles = Vec::new();
        for sink in &mut self.files {
            match sink.file.write() {
                Ok(true) => sink.is_failing = false,
                // writing nothing works on a full disk too
                Ok(false) => {}
                Err(error) if !sink.is_failing => {
                    sink.is_failing = true;
                    troubles.push(format!(
                        "cannot write the log file {}: {error}",
                        sink.file.path().display()
                    ));
                }
                Err(_) => {}
            }
        }
        for trouble in troubles {
            if self.console.is_some() {
                self.waiting
                    .extend(self.own_line(Level::Error, &trouble).into_bytes());
            } else {
                eprintln!("corqtt: {trouble}");
            }
        }
        if let Some(console) = &mut self.console {
            // nobody is left to tell when the console is gone
            let _ = console
                .write_all(&self.waiting)
                .and_then(|()| console.flush());
            self.waiting.clear();
        }
    }

    /// A line of the writer itself, which does not pass through the lane.
    fn own_line(&self, level: Level, message: &str) -> String {
        let now = clock::now();
        let form = match self.format {
            LogFormat::Text => format::text,
            LogFormat::Json => format::json,
        };
        form(
            now,
            &Record::builder()
                .level(level)
                .args(format_args!("{message}"))
                .build(),
        )
    }

    fn say(&mut self, level: Level, message: &str) {
        let line = self.own_line(level, message);
        self.take(level, line.as_bytes());
    }

    fn reopen(&mut self) {
        let mut troubles = Vec::new();
        for sink in &mut self.files {
            if let Err(error) = sink.file.reopen() {
                troubles.push(format!(
                    "cannot reopen the log file {}, it stays as it is: {error}",
                    sink.file.path().display()
                ));
            }
        }
        if troubles.is_empty() && log::max_level() >= Level::Info {
            self.say(Level::Info, "log files reopened (SIGHUP)");
        }
        for trouble in troubles {
            self.say(Level::Error, &trouble);
        }
    }

    fn finish(&mut self) {
        for sink in &mut self.files {
            sink.file.finish();
        }
    }
}

/// The thread that writes.
struct Writer {
    receiver: Receiver<Entry>,
    shared: Arc<Shared>,
    sinks: Sinks,
    /// Of the dropped lines, those that the log tells of.
    dropped_told: u64,
}

impl Writer {
    fn run(mut self) {
        while let Ok(first) = self.receiver.recv() {
            let mut answers = Vec::new();
            let mut stop = false;
            let mut entry = Some(first);
            let mut lines = 0;
            while let Some(next) = entry {
                match next {
                    Entry::Line { level, line } => {
                        self.sinks.take(level, &line);
                        lines += 1;
                    }
                    Entry::Wake => {}
                    Entry::Flush(answer) => answers.push(answer),
                    Entry::Stop(answer) => {
                        answers.push(answer);
                        stop = true;
                    }
                }
                let more = !stop && lines < BATCH_LINES;
                entry = more.then(|| self.receiver.try_recv().ok()).flatten();
            }
            let total = self.shared.dropped.load(Ordering::Relaxed);
            let dropped = total - self.dropped_told;
            if dropped > 0 {
                self.dropped_told = total;
                let message = format!(
                    "{dropped} log lines were dropped, because the log could not be written fast enough"
                );
                self.sinks.say(Level::Warn, &message);
            }
            self.sinks.write();
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.sinks.reopen();
                self.sinks.write();
            }
            if stop {
                self.sinks.finish();
            }
            for answer in answers {
                let _ = answer.try_send(());
            }
            if stop {
                return;
            }
        }
    }
}
