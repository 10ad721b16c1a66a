// SPDX-License-Identifier: Apache-2.0

//! The brokers under test: one that runs already, or one that is started for each run, pinned, and ended after it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, getrlimit, kill_process, pidfd_open, setrlimit,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::link::Link;
use crate::wire::{Hello, Protocol};

/// A started broker must accept CONNECT within this time, and end within it after SIGTERM.
const READY_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Running(Endpoint),
    /// `addr` is `None` where a free port takes the place of `{port}`.
    Spawned {
        addr: Option<SocketAddr>,
        words: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    /// Whose CPU time and memory are read; unknown for a broker elsewhere.
    pub(crate) pid: Option<u32>,
}

impl Target {
    /// `name=host:port[,pid=PID]`
    pub(crate) fn parse_running(text: &str) -> Result<Self> {
        let form = || format!("--target wants name=host:port[,pid=PID], not {text:?}");
        let (name, rest) = text.split_once('=').with_context(form)?;
        let (addr, pid) = match rest.split_once(',') {
            Some((addr, pid)) => (
                addr,
                Some(
                    pid.strip_prefix("pid=")
                        .with_context(form)?
                        .parse()
                        .with_context(form)?,
                ),
            ),
            None => (rest, None),
        };
        Ok(Self {
            name: name.into(),
            source: Source::Running(Endpoint {
                addr: resolve(addr)?,
                pid,
            }),
        })
    }

    /// `name[@host:port]=COMMAND ...`, words split at spaces
    pub(crate) fn parse_spawned(text: &str) -> Result<Self> {
        let form = || format!("--spawn wants name[@host:port]=COMMAND, not {text:?}");
        let (head, command) = text.split_once('=').with_context(form)?;
        let words: Vec<String> = command.split_whitespace().map(Into::into).collect();
        ensure!(!words.is_empty(), form());
        let (name, addr) = match head.split_once('@') {
            Some((name, addr)) => (name, Some(resolve(addr)?)),
            None => (head, None),
        };
        ensure!(
            addr.is_some() || command.contains("{port}"),
            "--spawn {name} names no @host:port and its command has no {{port}}"
        );
        Ok(Self {
            name: name.into(),
            source: Source::Spawned { addr, words },
        })
    }

    /// What runs there, for the record.
    pub(crate) fn describe(&self) -> String {
        match &self.source {
            Source::Running(endpoint) => endpoint.addr.to_string(),
            Source::Spawned { words, .. } => words.join(" "),
        }
    }

    /// Starts the broker if it is ours to start, pinned to `cpus` where given, and waits until it accepts CONNECT.
    pub(crate) fn start(&self, cpus: &[usize]) -> Result<Running> {
        let (addr, words) = match &self.source {
            Source::Running(endpoint) => {
                return Ok(Running {
                    endpoint: *endpoint,
                    child: None,
                });
            }
            Source::Spawned { addr, words } => (addr.map_or_else(free_port, Ok)?, words),
        };
        let own = std::env::current_exe()?;
        let words = words.iter().map(|word| {
            word.replace("{port}", &addr.port().to_string())
                .replace("{self}", &own.to_string_lossy())
        });
        let words: Vec<String> = words.collect();
        ensure!(
            TcpListener::bind(addr).is_ok(),
            "{addr} is taken by another process, {} cannot listen there",
            self.name
        );

        // a child inherits the affinity of the thread that starts it
        let home = rustix::thread::sched_getaffinity(None)?;
        pin(cpus)?;
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::from(io::stderr()))
            .spawn()
            .with_context(|| format!("cannot start {}: {}", self.name, words.join(" ")));
        sched_setaffinity(None, &home)?;
        let child = child?;
        let endpoint = Endpoint {
            addr,
            pid: Some(child.id()),
        };
        let mut running = Running {
            endpoint,
            child: Some(child),
        };
        running.wait_until_ready(&self.name)?;
        Ok(running)
    }
}

/// A broker that accepts CONNECT. One that was started here is ended with it.
pub(crate) struct Running {
    pub(crate) endpoint: Endpoint,
    child: Option<Child>,
}

impl Running {
    fn wait_until_ready(&mut self, name: &str) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let hello = Hello {
            protocol: Protocol::V311,
            client_id: "bench-ready".into(),
            clean: true,
            keep_alive_secs: 60,
        };
        loop {
            match Link::open(self.endpoint.addr, &hello) {
                Ok(link) => {
                    link.close();
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("{name} did not accept CONNECT in time")));
                }
                Err(_) => {}
            }
            if self.ended_within(Duration::from_millis(10))? {
                let status = self
                    .child
                    .take()
                    .map(|mut child| child.wait())
                    .transpose()?;
                bail!(
                    "{name} ended before it accepted CONNECT: {}",
                    status.map(|s| s.to_string()).unwrap_or_default()
                );
            }
        }
    }

    fn pid(&self) -> Option<Pid> {
        self.child
            .as_ref()
            .and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?))
    }

    fn ended_within(&self, time: Duration) -> Result<bool> {
        let Some(pid) = self.pid() else {
            return Ok(false);
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        Ok(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))? > 0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = self.ended_within(READY_WITHIN).unwrap_or(false);
        if let Some(child) = &mut self.child {
            if !ended {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

/// Keeps the calling thread, and what it starts, on these CPUs. None: where it is.
pub(crate) fn pin(cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        ensure!(cpu < CpuSet::MAX_CPU, "there is no CPU {cpu}");
        set.set(cpu);
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin to CPUs {cpus:?}"))
}

/// Lets this process, and the brokers it starts, open as many sockets as the system allows.
pub(crate) fn raise_file_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

fn resolve(text: &str) -> Result<SocketAddr> {
    let found = text
        .to_socket_addrs()
        .with_context(|| format!("{text:?} is not host:port"))?
        .next();
    found.with_context(|| format!("{text:?} has no address"))
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_target_has_an_address_and_perhaps_a_pid() {
        let target = Target::parse_running("m=127.0.0.1:1883,pid=12").expect("well formed");
        assert_eq!(target.name, "m");
        let addr = "127.0.0.1:1883".parse().expect("an address");
        assert!(
            matches!(target.source, Source::Running(Endpoint { addr: a, pid: Some(12) }) if a == addr)
        );
        assert!(Target::parse_running("m").is_err());
        assert!(Target::parse_running("m=127.0.0.1:1,pid=x").is_err());
    }

    #[test]
    fn a_spawned_target_needs_a_port_somewhere() {
        assert!(Target::parse_spawned("m=mosquitto -c x").is_err());
        assert!(Target::parse_spawned("m=mosquitto -p {port}").is_ok());
        let target = Target::parse_spawned("m@127.0.0.1:99=mosquitto -c x=y").expect("well formed");
        assert_eq!(target.name, "m");
        assert!(
            matches!(target.source, Source::Spawned { addr: Some(_), words } if words.len() == 3)
        );
    }
}
