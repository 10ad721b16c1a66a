// SPDX-License-Identifier: Apache-2.0

//! The brokers under test: one that runs already, or one that is started for each run, pinned, and ended after it.
//!
//! Each has a port for plain MQTT, and further ones, named by their transport, where it speaks more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, getrlimit, kill_process, pidfd_open, setrlimit,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::link::Link;
use crate::transport::{Transport, Way};
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
    /// `at` is `None` where free ports take the places of `{port}`, `{port.tls}`, `{port.ws}` and `{port.wss}`.
    Spawned {
        at: Option<Endpoint>,
        words: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: IpAddr,
    /// In the order of `Transport::ALL`; plain MQTT is always there.
    ports: [Option<u16>; Transport::ALL.len()],
    /// Whose CPU time and memory are read; unknown for a broker elsewhere.
    pub(crate) pid: Option<u32>,
}

impl Endpoint {
    pub(crate) fn tcp(addr: SocketAddr, pid: Option<u32>) -> Self {
        let mut endpoint = Self {
            host: addr.ip(),
            ports: [None; Transport::ALL.len()],
            pid,
        };
        endpoint.set(Transport::Tcp, addr.port());
        endpoint
    }

    /// `host:port[,tls:PORT][,ws:PORT][,wss:PORT][,pid=PID]`
    fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let mut endpoint = Self::tcp(resolve(parts.next().unwrap_or_default())?, None);
        for part in parts {
            if let Some(pid) = part.strip_prefix("pid=") {
                endpoint.pid = Some(pid.parse().with_context(|| format!("{pid} is no pid"))?);
                continue;
            }
            let port = part.split_once(':').and_then(|(name, port)| {
                let transport = Transport::parse(name)?;
                (transport != Transport::Tcp).then_some((transport, port))
            });
            let (transport, port) = port.with_context(|| {
                format!("{part:?} is not tls:PORT, ws:PORT, wss:PORT or pid=PID")
            })?;
            let port = port
                .parse()
                .with_context(|| format!("{port} is not a port"))?;
            endpoint.set(transport, port);
        }
        Ok(endpoint)
    }

    /// Free ports on loopback for every transport that `command` has a place for.
    fn free(command: &str) -> Result<Self> {
        let draw = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        // held until all are drawn, so that no port comes twice
        let tcp = draw()?;
        let mut endpoint = Self::tcp(tcp.local_addr()?, None);
        let mut held = vec![tcp];
        for transport in Transport::ALL {
            if transport != Transport::Tcp && command.contains(&place(transport)) {
                let listener = draw()?;
                endpoint.set(transport, listener.local_addr()?.port());
                held.push(listener);
            }
        }
        Ok(endpoint)
    }

    pub(crate) fn set(&mut self, transport: Transport, port: u16) {
        self.ports[transport as usize] = Some(port);
    }

    pub(crate) fn addr(&self, transport: Transport) -> Result<SocketAddr> {
        let port = self.ports[transport as usize]
            .with_context(|| format!("no {transport} port of {} is known", self.host))?;
        Ok(SocketAddr::new(self.host, port))
    }

    fn addrs(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let ports = self.ports.iter().flatten();
        ports.map(|&port| SocketAddr::new(self.host, port))
    }

    /// As `--target` takes it.
    pub(crate) fn describe(&self, name: &str) -> String {
        let mut text = format!("{name}=");
        for transport in Transport::ALL {
            text += &match (transport, self.addr(transport)) {
                (Transport::Tcp, Ok(addr)) => addr.to_string(),
                (_, Ok(addr)) => format!(",{transport}:{}", addr.port()),
                (_, Err(_)) => String::new(),
            };
        }
        if let Some(pid) = self.pid {
            text += &format!(",pid={pid}");
        }
        text
    }

    /// `text` with this binary, host, pid and ports in the places for them.
    pub(crate) fn fill(&self, text: &str) -> Result<String> {
        let own = std::env::current_exe()?;
        let mut text = text
            .replace("{self}", &own.to_string_lossy())
            .replace("{host}", &self.host.to_string());
        if let Some(pid) = self.pid {
            text = text.replace("{pid}", &pid.to_string());
        }
        for transport in Transport::ALL {
            if let Some(port) = self.ports[transport as usize] {
                text = text.replace(&place(transport), &port.to_string());
            }
        }
        Ok(text)
    }
}

/// Where a command wants a port.
fn place(transport: Transport) -> String {
    match transport {
        Transport::Tcp => "{port}".into(),
        other => format!("{{port.{other}}}"),
    }
}

impl Target {
    /// `name=host:port[,tls:PORT][,ws:PORT][,wss:PORT][,pid=PID]`
    pub(crate) fn parse_running(text: &str) -> Result<Self> {
        let form = || {
            format!(
                "--target wants name=host:port[,tls:PORT][,ws:PORT][,wss:PORT][,pid=PID], not {text:?}"
            )
        };
        let (name, rest) = text.split_once('=').with_context(form)?;
        Ok(Self {
            name: name.into(),
            source: Source::Running(Endpoint::parse(rest).with_context(form)?),
        })
    }

    /// `name[@host:port[,tls:PORT][,ws:PORT][,wss:PORT]]=COMMAND ...`, words split at spaces
    pub(crate) fn parse_spawned(text: &str) -> Result<Self> {
        let form = || {
            format!(
                "--spawn wants name[@host:port[,tls:PORT][,ws:PORT][,wss:PORT]]=COMMAND, not {text:?}"
            )
        };
        let (head, command) = text.split_once('=').with_context(form)?;
        let words: Vec<String> = command.split_whitespace().map(Into::into).collect();
        ensure!(!words.is_empty(), form());
        let (name, at) = match head.split_once('@') {
            Some((name, at)) => (name, Some(Endpoint::parse(at).with_context(form)?)),
            None => (head, None),
        };
        ensure!(
            at.is_some() || command.contains(&place(Transport::Tcp)),
            "--spawn {name} names no @host:port and its command has no {{port}}"
        );
        Ok(Self {
            name: name.into(),
            source: Source::Spawned { at, words },
        })
    }

    /// A port for it is known.
    pub(crate) fn speaks(&self, transport: Transport) -> bool {
        match &self.source {
            Source::Running(endpoint)
            | Source::Spawned {
                at: Some(endpoint), ..
            } => endpoint.addr(transport).is_ok(),
            Source::Spawned { at: None, words } => {
                words.iter().any(|word| word.contains(&place(transport)))
            }
        }
    }

    /// What runs there, for the record.
    pub(crate) fn describe(&self) -> String {
        match &self.source {
            Source::Running(endpoint) => {
                let addrs: Vec<String> = endpoint.addrs().map(|addr| addr.to_string()).collect();
                addrs.join(", ")
            }
            Source::Spawned { words, .. } => words.join(" "),
        }
    }

    /// Starts the broker if it is ours to start, pinned to `cpus` where given, and waits until it accepts CONNECT.
    pub(crate) fn start(&self, cpus: &[usize]) -> Result<Running> {
        let (at, words) = match &self.source {
            Source::Running(endpoint) => {
                return Ok(Running {
                    endpoint: *endpoint,
                    child: None,
                });
            }
            Source::Spawned { at, words } => (at, words),
        };
        let mut endpoint = at.map_or_else(|| Endpoint::free(&words.join(" ")), Ok)?;
        let words = words.iter().map(|word| endpoint.fill(word));
        let words = words.collect::<Result<Vec<_>>>()?;
        for addr in endpoint.addrs() {
            ensure!(
                TcpListener::bind(addr).is_ok(),
                "{addr} is taken by another process, {} cannot listen there",
                self.name
            );
        }

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
        endpoint.pid = Some(child.id());
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
        let dial = Way::tcp().to(&self.endpoint)?;
        let greet = || -> Result<()> {
            Link::open(&dial, &hello)?.close();
            for addr in self.endpoint.addrs() {
                TcpStream::connect(addr).with_context(|| format!("cannot connect to {addr}"))?;
            }
            Ok(())
        };
        loop {
            match greet() {
                Ok(()) => return Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_target_has_an_address_and_perhaps_more_ports_and_a_pid() {
        let target = Target::parse_running("m=127.0.0.1:1883,pid=12").expect("well formed");
        assert_eq!(target.name, "m");
        let addr = "127.0.0.1:1883".parse().expect("an address");
        assert!(
            matches!(target.source, Source::Running(endpoint) if endpoint == Endpoint::tcp(addr, Some(12)))
        );
        assert!(target.speaks(Transport::Tcp));
        assert!(!target.speaks(Transport::Tls));

        let target = Target::parse_running("m=127.0.0.1:1883,wss:4,tls:5").expect("well formed");
        let speaks = Transport::ALL.map(|transport| target.speaks(transport));
        assert_eq!(speaks, [true, true, false, true]);
        let Source::Running(endpoint) = target.source else {
            panic!("it runs")
        };
        assert_eq!(endpoint.describe("m"), "m=127.0.0.1:1883,tls:5,wss:4");
        let addr = endpoint.addr(Transport::Tls).expect("it is known");
        assert_eq!(addr.to_string(), "127.0.0.1:5");

        for wrong in [
            "m",
            "m=127.0.0.1:1,pid=x",
            "m=127.0.0.1:1,tcp:2",
            "m=127.0.0.1:1,tls:x",
        ] {
            assert!(Target::parse_running(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_spawned_target_needs_a_port_somewhere() {
        assert!(Target::parse_spawned("m=mosquitto -c x").is_err());
        let free = Target::parse_spawned("m=corqtt {port} {port.ws}").expect("well formed");
        let speaks = Transport::ALL.map(|transport| free.speaks(transport));
        assert_eq!(speaks, [true, false, true, false]);
        let target = Target::parse_spawned("m@127.0.0.1:99,tls:98=mosquitto -c x=y");
        let target = target.expect("well formed");
        assert_eq!(target.name, "m");
        assert!(target.speaks(Transport::Tls));
        assert!(
            matches!(target.source, Source::Spawned { at: Some(_), words } if words.len() == 3)
        );
    }

    #[test]
    fn every_place_for_a_port_gets_one_of_its_own() {
        let command = "x --tcp={host}:{port} --tls=:{port.tls} {port.tls} {port.wss} {pid}";
        let endpoint = Endpoint::free(command).expect("loopback has free ports");
        let port = |transport| endpoint.addr(transport).expect("drawn").port();
        let (tcp, tls, wss) = (
            port(Transport::Tcp),
            port(Transport::Tls),
            port(Transport::Wss),
        );
        assert!(tcp != tls && tls != wss && wss != tcp);
        assert!(endpoint.addr(Transport::Ws).is_err());
        assert_eq!(
            endpoint.fill(command).expect("this binary has a path"),
            format!("x --tcp=127.0.0.1:{tcp} --tls=:{tls} {tls} {wss} {{pid}}")
        );
    }
}
