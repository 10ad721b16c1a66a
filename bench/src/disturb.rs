// SPDX-License-Identifier: Apache-2.0

//! What a load does to others: the probe alone and beside the load, alternately, against one broker.
//!
//! ```text
//! round: probe ready -> go ------- quiet seconds ------- end -> latencies
//!        probe ready -> load starts (-> its line) -> go -> load ends (or its line) -> end -> latencies
//! ```
//!
//! Probe and load are processes of their own. The medians of both p99 are compared: beside the load it may be twice
//! that of the quiet broker, or 5 ms where that is more.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::cost::Cost;
use crate::report::{Table, number};
use crate::stats;
use crate::target::Endpoint;

/// What a load may do to the p99 of others.
const MOST_TIMES: f64 = 2.0;
const ALWAYS_FINE_US: f64 = 5000.0;

/// A p99 of fewer messages says nothing.
const MESSAGES_MIN: f64 = 500.0;

/// How long the probe may take to connect, and a load to say its line.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a load that is not needed any more may take to end, and again after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(60);

const FIGURES: [&str; 4] = ["p50_us", "p99_us", "max_us", "late_p99_us"];

pub(crate) struct Disturbance {
    /// A shell command, its places filled in.
    pub(crate) load: String,
    pub(crate) from: Option<String>,
    pub(crate) until: Option<String>,
    pub(crate) at_most: Duration,
    pub(crate) quiet: Duration,
    pub(crate) rounds: u32,
    /// The probe's command line.
    pub(crate) probe: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Findings {
    quiet: Vec<Value>,
    loaded: Vec<Value>,
    rss_mib: Vec<f64>,
    failures: Vec<String>,
}

impl Disturbance {
    pub(crate) fn run(&self, endpoint: &Endpoint) -> Findings {
        let mut findings = Findings::default();
        for round in 1..=self.rounds {
            let note =
                |what: &str, error: anyhow::Error| format!("round {round}, {what}: {error:#}");
            match self.run_quiet() {
                Ok(latencies) => findings.quiet.push(latencies),
                Err(error) => findings.failures.push(note("quiet", error)),
            }
            match self.run_loaded() {
                Ok(latencies) => findings.loaded.push(latencies),
                Err(error) => findings.failures.push(note("beside the load", error)),
            }
            if let Some(Ok(rss)) = endpoint.pid.map(|pid| Cost::new(pid).rss_bytes()) {
                findings.rss_mib.push(rss as f64 / (1 << 20) as f64);
            }
        }
        findings
    }

    fn run_quiet(&self) -> Result<Value> {
        let mut probe = Attended::start(&self.probe)?;
        probe.go()?;
        thread::sleep(self.quiet);
        probe.finish()
    }

    fn run_loaded(&self) -> Result<Value> {
        let mut probe = Attended::start(&self.probe)?;
        let mut load = Load::start(&self.load)?;
        if let Some(text) = &self.from {
            ensure!(
                load.read_until(Some(text), READY_WITHIN)? == Heard::Line,
                "the load never said {text:?}"
            );
        }
        probe.go()?;
        let heard = load.read_until(self.until.as_deref(), self.at_most)?;
        let latencies = probe.finish()?;
        ensure!(
            heard != Heard::End || self.until.is_none(),
            "the load ended without {:?}",
            self.until.as_deref().unwrap_or_default()
        );
        load.finish(heard)?;
        Ok(latencies)
    }
}

/// A probe that waits for a word.
struct Attended {
    child: Child,
}

impl Attended {
    fn start(words: &[String]) -> Result<Self> {
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", words.join(" ")))?;
        let mut probe = Self { child };
        let mut lines = Lines::of(probe.child.stdout.take())?;
        let ready = lines.next_before(Instant::now() + READY_WITHIN)?;
        ensure!(
            ready == Heard::Line && lines.last == "ready",
            "the probe could not connect"
        );
        probe.child.stdout = Some(lines.into_pipe()?);
        Ok(probe)
    }

    fn go(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("the probe has a stdin")?;
        stdin.write_all(b"go\n").context("the probe has ended")
    }

    /// Ends it. Its latencies, or why they do not count.
    fn finish(&mut self) -> Result<Value> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        let latencies: Value = serde_json::from_str(&text)
            .with_context(|| format!("the probe ended with {status}"))?;
        if let Some(failure) = latencies["failures"].get(0) {
            bail!("{failure}");
        }
        let sent = latencies["sent"].as_f64().unwrap_or(0.0);
        ensure!(
            sent >= MESSAGES_MIN,
            "only {sent} messages of the probe fell into the load: let it run longer"
        );
        Ok(latencies)
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A load in a process group of its own, which ends with this.
struct Load {
    child: Child,
    lines: Lines,
}

impl Load {
    fn start(command: &str) -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command}"))?;
        let lines = Lines::of(child.stdout.take())?;
        Ok(Self { child, lines })
    }

    /// Reads the load's output up to a line with `text`, to its end, or for `time`.
    fn read_until(&mut self, text: Option<&str>, time: Duration) -> Result<Heard> {
        let deadline = Instant::now() + time;
        loop {
            let heard = self.lines.next_before(deadline)?;
            let wanted = text.is_some_and(|text| self.lines.last.contains(text));
            if heard != Heard::Line || wanted {
                return Ok(heard);
            }
        }
    }

    /// Lets a load end that is over, ends one that has run for long enough.
    fn finish(mut self, heard: Heard) -> Result<()> {
        let over = heard != Heard::Nothing && self.read_until(None, END_WITHIN)? == Heard::End;
        if !over {
            self.signal(Signal::TERM);
            self.read_until(None, END_WITHIN)?;
            self.signal(Signal::KILL);
        }
        let status = self.child.wait()?;
        ensure!(
            status.success() || !over,
            "the load ended with {status}: {}",
            self.lines.last
        );
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Line,
    End,
    /// In the time allowed.
    Nothing,
}

/// Lines of a child's output, with a deadline.
struct Lines {
    pipe: BufReader<ChildStdout>,
    partial: Vec<u8>,
    last: String,
}

impl Lines {
    fn of(pipe: Option<ChildStdout>) -> Result<Self> {
        Ok(Self {
            pipe: BufReader::new(pipe.context("stdout is a pipe")?),
            partial: Vec::new(),
            last: String::new(),
        })
    }

    fn next_before(&mut self, deadline: Instant) -> Result<Heard> {
        loop {
            if self.pipe.buffer().is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: i64::from(left.subsec_nanos()),
                };
                let mut fds = [PollFd::new(self.pipe.get_ref(), PollFlags::IN)];
                if poll(&mut fds, Some(&timeout))? == 0 {
                    return Ok(Heard::Nothing);
                }
            }
            let available = self.pipe.fill_buf()?;
            if available.is_empty() {
                return Ok(Heard::End);
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(available.len(), |end| end + 1);
            self.partial.extend_from_slice(&available[..taken]);
            self.pipe.consume(taken);
            if end.is_some() {
                let line = std::mem::take(&mut self.partial);
                self.last = String::from_utf8_lossy(&line).trim_end().to_owned();
                return Ok(Heard::Line);
            }
        }
    }

    /// The pipe again; nothing of it may have been read ahead.
    fn into_pipe(self) -> Result<ChildStdout> {
        ensure!(
            self.pipe.buffer().is_empty() && self.partial.is_empty(),
            "the probe speaks out of turn"
        );
        Ok(self.pipe.into_inner())
    }
}

impl Findings {
    pub(crate) fn holds(&self) -> bool {
        let quiet = median(&self.quiet, "p99_us");
        let loaded = median(&self.loaded, "p99_us");
        self.failures.is_empty()
            && quiet
                .zip(loaded)
                .is_some_and(|(quiet, loaded)| loaded <= allowed(quiet))
    }

    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new(1);
        let cell = |runs: &[Value], figure| median(runs, figure).map_or_else(|| "-".into(), number);
        table.row(["probe (median)", "quiet", "beside the load"].map(String::from));
        for figure in FIGURES {
            table.row([
                format!("  {figure}"),
                cell(&self.quiet, figure),
                cell(&self.loaded, figure),
            ]);
        }
        table.row([
            "  p99_us allowed".into(),
            String::new(),
            median(&self.quiet, "p99_us").map_or_else(
                || "-".into(),
                |quiet| {
                    let verdict = if self.holds() { "ok" } else { "FAILS" };
                    format!("{} {verdict}", number(allowed(quiet)))
                },
            ),
        ]);
        if let Some(&most) = self.rss_mib.iter().max_by(|a, b| a.total_cmp(b)) {
            table.row(["  broker rss_mib, most".into(), String::new(), number(most)]);
        }
        table
    }

    pub(crate) fn json(&self) -> Value {
        let p99 = |runs: &[Value]| median(runs, "p99_us");
        json!({
            "quiet": self.quiet,
            "loaded": self.loaded,
            "rss_mib": self.rss_mib,
            "quiet_p99_us": p99(&self.quiet),
            "loaded_p99_us": p99(&self.loaded),
            "allowed_p99_us": p99(&self.quiet).map(allowed),
            "failures": self.failures,
            "holds": self.holds(),
        })
    }
}

fn allowed(quiet_us: f64) -> f64 {
    (MOST_TIMES * quiet_us).max(ALWAYS_FINE_US)
}

fn median(runs: &[Value], figure: &str) -> Option<f64> {
    let values: Vec<f64> = runs.iter().filter_map(|run| run[figure].as_f64()).collect();
    stats::median(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(quiet: [f64; 3], loaded: [f64; 3]) -> Findings {
        let runs = |values: [f64; 3]| values.map(|p99| json!({ "p99_us": p99 })).to_vec();
        Findings {
            quiet: runs(quiet),
            loaded: runs(loaded),
            ..Findings::default()
        }
    }

    #[test]
    fn twice_the_quiet_median_or_five_milliseconds_are_allowed() {
        assert!(findings([100.0, 90.0, 9000.0], [4999.0, 10.0, 60_000.0]).holds());
        assert!(!findings([100.0, 90.0, 110.0], [5001.0, 5002.0, 10.0]).holds());
        assert!(findings([3000.0; 3], [6000.0; 3]).holds());
        assert!(!findings([3000.0; 3], [6001.0; 3]).holds());
    }

    #[test]
    fn a_failed_run_or_none_at_all_does_not_hold() {
        assert!(!Findings::default().holds());
        let mut failed = findings([1.0; 3], [1.0; 3]);
        failed.failures.push("lost".into());
        assert!(!failed.holds());
    }

    #[test]
    fn a_load_is_read_to_a_line_to_its_end_or_for_a_time() {
        let mut load = Load::start("printf 'one\\ntwo and more\\nthree'; exec sleep 60")
            .expect("there is a shell");
        let time = Duration::from_secs(20);
        assert_eq!(load.read_until(Some("two"), time).ok(), Some(Heard::Line));
        assert_eq!(load.lines.last, "two and more");
        let none = Duration::ZERO;
        assert_eq!(load.read_until(None, none).ok(), Some(Heard::Nothing));
        load.finish(Heard::Nothing)
            .expect("one that was ended has not failed");

        let mut load = Load::start("echo last words; exit 3").expect("there is a shell");
        let heard = load.read_until(None, time).expect("its output is read");
        assert_eq!(heard, Heard::End);
        let error = load.finish(heard).expect_err("it failed");
        assert!(error.to_string().contains("last words"), "{error}");
    }
}
