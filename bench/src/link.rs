// SPDX-License-Identifier: Apache-2.0

//! One connection to a broker, and the epoll set they all sit in.
//!
//! Opening and subscribing block, with a deadline; after `Poller::add` a link only reads and writes what is ready.
//! Sockets are registered once, edge-triggered, for both directions: no `epoll_ctl` while a load runs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use crate::wire::{self, Hello, Protocol, kind};

/// How long a broker may take to answer CONNECT or SUBSCRIBE.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Link {
    stream: TcpStream,
    pub(crate) protocol: Protocol,
    pub(crate) receive_maximum: u16,
    /// The beginning of a packet whose end has not arrived.
    rest: Vec<u8>,
    /// What is to be written; `written` bytes of it are already gone.
    pub(crate) out: Vec<u8>,
    written: usize,
}

pub(crate) enum Flushed {
    All,
    Blocked,
}

impl Link {
    /// Connects and introduces itself; an error when the broker does not accept.
    pub(crate) fn open(addr: SocketAddr, hello: &Hello) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)
            .with_context(|| format!("cannot connect to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut link = Self {
            stream,
            protocol: hello.protocol,
            receive_maximum: u16::MAX,
            rest: Vec::new(),
            out: Vec::new(),
            written: 0,
        };
        let mut packet = Vec::with_capacity(64);
        wire::connect(&mut packet, hello);
        link.stream.write_all(&packet)?;
        let body = link
            .answer(kind::CONNACK)
            .with_context(|| format!("{addr} did not answer CONNECT"))?;
        let welcome = wire::connack(&body, hello.protocol)?;
        ensure!(
            welcome.code == 0,
            "{addr} refused CONNECT of {} with code {:#04x}",
            hello.client_id,
            welcome.code
        );
        link.receive_maximum = welcome.receive_maximum;
        Ok(link)
    }

    /// Subscribes and waits for the grant; an error when less is granted than was asked for.
    pub(crate) fn subscribe(&mut self, filters: &[String], qos: u8) -> Result<()> {
        let mut packet = Vec::new();
        wire::subscribe(&mut packet, self.protocol, 1, filters, qos);
        self.stream.write_all(&packet)?;
        let body = self
            .answer(kind::SUBACK)
            .context("the broker did not answer SUBSCRIBE")?;
        let granted = wire::suback(&body, self.protocol)?;
        ensure!(
            granted.len() == filters.len(),
            "SUBACK carries {} codes for {} filters",
            granted.len(),
            filters.len()
        );
        if let Some(code) = granted.iter().find(|&&code| code != qos) {
            bail!("the broker granted {code:#04x} where QoS {qos} was asked for");
        }
        Ok(())
    }

    /// Reads exactly one packet, blocking; what follows it stays in the socket.
    fn answer(&mut self, expected: u8) -> Result<Vec<u8>> {
        let mut head = vec![0; 2];
        self.stream.read_exact(&mut head)?;
        while head.last().is_some_and(|byte| byte & 0x80 != 0) && head.len() < 5 {
            head.push(0);
            let last = head.len() - 1;
            self.stream.read_exact(&mut head[last..])?;
        }
        let length = head[1..]
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 7 | usize::from(byte & 0x7f));
        ensure!(
            head[0] >> 4 == expected,
            "expected packet type {expected}, got first byte {:#04x}",
            head[0]
        );
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    /// Reads what is there behind the unfinished packet of the last read. The filled length of `scratch`, and whether
    /// the socket may hold more. `None` when nothing was there.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let kept = self.rest.len();
        if kept >= scratch.len() {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "the broker sent a packet larger than any of this run",
            ));
        }
        match self.stream.read(&mut scratch[kept..]) {
            Ok(0) => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the broker closed a connection",
            )),
            Ok(count) => {
                scratch[..kept].copy_from_slice(&self.rest);
                self.rest.clear();
                Ok(Some((kept + count, kept + count == scratch.len())))
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps the unfinished packet at the end of a read for the next one.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.rest.extend_from_slice(rest);
    }

    /// Writes what is queued, in one call where the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<Flushed> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(Flushed::All)
    }

    /// Bytes that wait for the socket.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// Says goodbye; the broker may have closed first, which is as good.
    pub(crate) fn close(mut self) {
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.set_write_timeout(Some(ANSWER_WITHIN));
        let _ = self.stream.write_all(&wire::DISCONNECT);
    }
}

/// The epoll set of the generator's one thread.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let none = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: vec![none; 1024],
        })
    }

    pub(crate) fn add(&self, link: &Link, token: usize) -> io::Result<()> {
        link.stream.set_nonblocking(true)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            &link.stream,
            EventData::new_u64(token as u64),
            flags,
        )?)
    }

    /// Waits for at most `timeout_ns`, rounded up to milliseconds. The number of events to read with `event`.
    pub(crate) fn wait(&mut self, timeout_ns: u64) -> io::Result<usize> {
        let ms = timeout_ns.div_ceil(1_000_000);
        let timeout = Timespec {
            tv_sec: (ms / 1000) as i64,
            tv_nsec: (ms % 1000 * 1_000_000) as _,
        };
        match epoll::wait(&self.epoll, &mut self.events[..], Some(&timeout)) {
            Ok(count) => Ok(count),
            Err(rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Token, readable (or at its end), writable.
    pub(crate) fn event(&self, at: usize) -> (usize, bool, bool) {
        let Event { flags, data } = self.events[at];
        let readable = flags
            .intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP);
        (
            data.u64() as usize,
            readable,
            flags.contains(EventFlags::OUT),
        )
    }
}
