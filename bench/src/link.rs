// SPDX-License-Identifier: Apache-2.0

//! One connection to a broker, and the epoll set they all sit in.
//!
//! Between MQTT bytes and socket lie the layers of the transport; on TCP there are none and nothing is copied. `open` and
//! `subscribe` block, with a deadline; `begin`, and everything after `Poller::add`, only reads and writes what is ready.
//! Sockets are registered once, edge-triggered, for both directions: no `epoll_ctl` while a load runs.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use rustix::time::Timespec;

use crate::transport::{Dial, Layers};
use crate::wire::{self, Hello, Protocol, kind};

/// How long a broker may take to answer CONNECT or SUBSCRIBE.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Read at once while a link blocks: no answer to wait for is large.
const ANSWER_BYTES: usize = 64 * 1024;

pub(crate) struct Link {
    stream: TcpStream,
    layers: Layers,
    pub(crate) protocol: Protocol,
    pub(crate) receive_maximum: u16,
    /// The beginning of a packet whose end has not arrived.
    rest: Vec<u8>,
    /// `rest` may hold whole packets that came behind an awaited answer.
    leftover: bool,
    /// Packets to be sent, in one batch.
    pub(crate) out: Vec<u8>,
    /// What the layers made of packets; unused where there are none.
    wire: Vec<u8>,
    /// Bytes of `wire`, or of `out` where there are no layers, that are already gone.
    written: usize,
}

pub(crate) enum Flushed {
    All,
    Blocked,
}

impl Link {
    /// Connects and introduces itself; an error when the broker does not accept.
    pub(crate) fn open(dial: &Dial, hello: &Hello) -> Result<Self> {
        let addr = dial.addr;
        let stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)
            .with_context(|| format!("cannot connect to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut link = Self::over(stream, dial, hello.protocol)?;
        link.flush()?;
        if !link.is_open() {
            link.handshake()
                .with_context(|| format!("no handshake with {addr}"))?;
        }
        wire::connect(&mut link.out, hello);
        link.flush()?;
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

    /// Begins to connect and returns; what the layers say first is queued. The socket turns writable when it is
    /// connected, or has failed to: see `connected`.
    pub(crate) fn begin(dial: &Dial, protocol: Protocol) -> Result<Self> {
        let family = if dial.addr.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &dial.addr) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot connect to {}", dial.addr));
            }
        }
        Self::over(socket.into(), dial, protocol)
    }

    /// The result of `begin`.
    pub(crate) fn connected(&self) -> io::Result<()> {
        rustix::net::sockopt::socket_error(&self.stream)??;
        Ok(())
    }

    fn over(stream: TcpStream, dial: &Dial, protocol: Protocol) -> Result<Self> {
        Ok(Self {
            stream,
            layers: Layers::new(dial)?,
            protocol,
            receive_maximum: u16::MAX,
            rest: Vec::new(),
            leftover: false,
            out: Vec::new(),
            wire: Vec::new(),
            written: 0,
        })
    }

    /// The layers are open: packets may be queued.
    pub(crate) fn is_open(&self) -> bool {
        self.layers.is_open()
    }

    /// The TLS session is an old one.
    pub(crate) fn is_resumed(&self) -> bool {
        self.layers.is_resumed()
    }

    fn handshake(&mut self) -> Result<()> {
        let mut scratch = vec![0; ANSWER_BYTES];
        while !self.is_open() {
            let Some((filled, _)) = self.read(&mut scratch)? else {
                bail!("nothing came for {} s", ANSWER_WITHIN.as_secs());
            };
            ensure!(filled == 0, "the broker sent packets before CONNECT");
            self.flush()?;
        }
        Ok(())
    }

    /// Subscribes and waits for the grant; an error when less is granted than was asked for.
    pub(crate) fn subscribe(&mut self, filters: &[String], qos: u8) -> Result<()> {
        wire::subscribe(&mut self.out, self.protocol, 1, filters, qos);
        self.flush()?;
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

    /// Reads one packet, blocking; what follows it is left for `read`.
    fn answer(&mut self, expected: u8) -> Result<Vec<u8>> {
        let mut scratch = vec![0; ANSWER_BYTES];
        loop {
            if let Some(packet) = wire::split(&self.rest)? {
                ensure!(
                    packet.first >> 4 == expected,
                    "expected packet type {expected}, got first byte {:#04x}",
                    packet.first
                );
                let body = self.rest[packet.body..packet.end].to_vec();
                self.rest.drain(..packet.end);
                self.leftover = !self.rest.is_empty();
                return Ok(body);
            }
            let Some((filled, _)) = self.read(&mut scratch)? else {
                bail!("nothing came for {} s", ANSWER_WITHIN.as_secs());
            };
            self.keep(&scratch[..filled]);
            self.flush()?;
        }
    }

    /// Reads what is there behind the unfinished packet of the last read. The filled length of `scratch`, and whether
    /// the socket may hold more. `None` when nothing was there. The layers may have something to say after it, which
    /// counts as queued.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let kept = self.rest.len();
        let room = scratch.len().saturating_sub(kept);
        let intake = if self.layers.is_plain() {
            room
        } else {
            Layers::intake(room)
        };
        if intake == 0 {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "the broker sent a packet larger than any of this run",
            ));
        }
        let start = scratch.len() - intake;
        let count = match self.stream.read(&mut scratch[start..]) {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                if !mem::take(&mut self.leftover) {
                    return Ok(None);
                }
                scratch[..kept].copy_from_slice(&self.rest);
                self.rest.clear();
                return Ok(Some((kept, false)));
            }
            Ok(0) => return Err(closed()),
            read => read?,
        };
        let mut filled = count;
        if !self.layers.is_plain() {
            let (out, wire) = scratch.split_at_mut(start);
            filled = self.layers.handle_bytes(&wire[..count], &mut out[kept..])?;
            self.layers.poll_output(&mut self.wire)?;
            if filled == 0 && self.layers.is_ended() {
                return Err(closed());
            }
        }
        scratch[..kept].copy_from_slice(&self.rest);
        self.rest.clear();
        self.leftover = false;
        Ok(Some((kept + filled, count == intake)))
    }

    /// Keeps the unfinished packet at the end of a read for the next one.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.rest.extend_from_slice(rest);
    }

    /// Writes what is queued, in one call where the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<Flushed> {
        let pending = if self.layers.is_plain() {
            &mut self.out
        } else {
            if self.out.is_empty() {
                self.layers.poll_output(&mut self.wire)?;
            } else {
                self.layers.send(&self.out, &mut self.wire)?;
                self.out.clear();
            }
            &mut self.wire
        };
        while self.written < pending.len() {
            match self.stream.write(&pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        pending.clear();
        self.written = 0;
        Ok(Flushed::All)
    }

    /// Bytes that wait for the socket.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.out.len() + self.wire.len() - self.written
    }

    /// Says goodbye with what is queued; as much as the socket takes.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.out.extend_from_slice(&wire::DISCONNECT);
        if !self.layers.is_plain() {
            self.layers.send(&self.out, &mut self.wire)?;
            self.out.clear();
            self.layers.close(&mut self.wire)?;
        }
        self.flush()?;
        Ok(())
    }

    /// Says goodbye; the broker may have closed first, which is as good.
    pub(crate) fn close(mut self) {
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.set_write_timeout(Some(ANSWER_WITHIN));
        let _ = self.finish();
    }
}

fn closed() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the broker closed a connection")
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

    /// Reports `token` as readable when `fd` turns readable.
    pub(crate) fn watch(&self, fd: impl AsFd, token: usize) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token as u64),
            EventFlags::IN | EventFlags::ET,
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
            Err(Errno::INTR) => Ok(0),
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
