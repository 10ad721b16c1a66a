// SPDX-License-Identifier: Apache-2.0

//! The bare relay: how little a broker could cost on this kernel. Nothing to run anything on.
//!
//! One thread, one epoll set, one read per ready socket, one write per socket and turn; exact topics in a hash map.
//! It answers CONNECT, SUBSCRIBE and PINGREQ and forwards PUBLISH packets of QoS 0 byte for byte, so publishers and
//! subscribers must speak the same version. No sessions, no wildcards, no retained messages, no QoS 1 or 2: a client
//! that asks for them is closed, so that nothing is measured that was not done.
//!
//! A second listener may speak TLS: one rustls connection per client and nothing around it, with tickets as a broker
//! gives them out. Its CONNECTs are the floor of a handshake.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result};
use foldhash::{HashMap, HashMapExt};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustls::{ServerConfig, ServerConnection};

use crate::tls::{self, RECORD_MAX_BYTES};
use crate::wire::{self, Protocol, kind};

const SCRATCH_BYTES: usize = 128 * 1024;

/// Read at once from a socket that speaks TLS.
const RECORDS_BYTES: usize = 20 * 1024;

/// No packet is longer than this.
const PACKET_MAX_BYTES: usize = SCRATCH_BYTES / 2;

// a packet without its end, the plaintext of what was read and of a record that ends with it, and what was read
const _: () = assert!(PACKET_MAX_BYTES + 2 * RECORDS_BYTES + RECORD_MAX_BYTES < SCRATCH_BYTES);

/// A subscriber with more than this waiting for its socket gets nothing new.
const OUT_MAX_BYTES: usize = 16 * 1024 * 1024;

const STOP: u64 = u64::MAX;
const LISTENERS_FROM: u64 = u64::MAX - LISTENERS as u64;

/// Plain, and TLS where there is a certificate for it.
const LISTENERS: usize = 2;

pub(crate) struct Relay {
    listeners: Vec<Listener>,
    epoll: OwnedFd,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    topics: HashMap<Vec<u8>, Vec<usize>>,
    dirty: Vec<usize>,
    shed: u64,
}

struct Listener {
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

struct Client {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    protocol: Protocol,
    rest: Vec<u8>,
    /// Packets to be sent.
    out: Vec<u8>,
    /// Records to be sent; unused without TLS.
    wire: Vec<u8>,
    /// Bytes of `wire`, or of `out` without TLS, that are gone.
    written: usize,
    dirty: bool,
    subscribed: Vec<Vec<u8>>,
}

impl Relay {
    pub(crate) fn bind(addr: SocketAddr) -> Result<Self> {
        let mut relay = Self {
            listeners: Vec::new(),
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            free: Vec::new(),
            topics: HashMap::new(),
            dirty: Vec::new(),
            shed: 0,
        };
        relay.listen(addr, None)?;
        Ok(relay)
    }

    /// Listens for TLS as well.
    pub(crate) fn bind_tls(&mut self, addr: SocketAddr, tls: Arc<ServerConfig>) -> Result<()> {
        self.listen(addr, Some(tls))
    }

    fn listen(&mut self, addr: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Result<()> {
        let socket = TcpListener::bind(addr).with_context(|| format!("cannot listen at {addr}"))?;
        socket.set_nonblocking(true)?;
        let token = LISTENERS_FROM + self.listeners.len() as u64;
        assert!(token < STOP, "one listener of each kind");
        epoll::add(
            &self.epoll,
            &socket,
            EventData::new_u64(token),
            EventFlags::IN,
        )?;
        self.listeners.push(Listener { socket, tls });
        Ok(())
    }

    /// Where it listens: plain, then TLS.
    pub(crate) fn addrs(&self) -> Result<Vec<SocketAddr>> {
        let addrs = self
            .listeners
            .iter()
            .map(|listener| Ok(listener.socket.local_addr()?));
        addrs.collect()
    }

    /// Relays until `stop` becomes readable; for ever without one. The number of messages shed.
    pub(crate) fn run(mut self, stop: Option<impl AsFd>) -> Result<u64> {
        if let Some(stop) = &stop {
            epoll::add(&self.epoll, stop, EventData::new_u64(STOP), EventFlags::IN)?;
        }
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut events = vec![
            Event {
                flags: EventFlags::empty(),
                data: EventData::new_u64(0)
            };
            1024
        ];
        loop {
            let ready = match epoll::wait(&self.epoll, &mut events[..], None) {
                Err(rustix::io::Errno::INTR) => continue,
                ready => ready?,
            };
            for Event { flags, data } in events[..ready].iter().copied() {
                match data.u64() {
                    STOP => return Ok(self.shed),
                    token @ LISTENERS_FROM.. => self.accept((token - LISTENERS_FROM) as usize)?,
                    token => self.serve(token as usize, flags, &mut scratch),
                }
            }
            self.flush();
        }
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        loop {
            let Listener { socket, tls } = &self.listeners[listener];
            let stream = match socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error).context("cannot accept"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let tls = tls.as_ref().map(|config| {
                let mut tls = ServerConnection::new(Arc::clone(config))?;
                tls.set_buffer_limit(None);
                Ok::<_, rustls::Error>(Box::new(tls))
            });
            let tls = tls.transpose()?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&self.epoll, &stream, EventData::new_u64(slot as u64), flags)?;
            self.clients[slot] = Some(Client {
                stream,
                tls,
                protocol: Protocol::V311,
                rest: Vec::new(),
                out: Vec::new(),
                wire: Vec::new(),
                written: 0,
                dirty: false,
                subscribed: Vec::new(),
            });
        }
    }

    fn serve(&mut self, slot: usize, flags: EventFlags, scratch: &mut [u8]) {
        let Some(client) = &mut self.clients[slot] else {
            return;
        };
        if flags.contains(EventFlags::OUT) && client.queued_bytes() > 0 && !client.dirty {
            client.dirty = true;
            self.dirty.push(slot);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        loop {
            let Some(client) = &mut self.clients[slot] else {
                return;
            };
            match client.read(scratch) {
                Ok(Some((filled, more))) => {
                    if self.handle(slot, &scratch[..filled]).is_none() {
                        return self.close(slot);
                    }
                    if !more {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => return self.close(slot),
            }
        }
    }

    /// Takes all whole packets and keeps the rest; `None` when the client is to be closed.
    fn handle(&mut self, slot: usize, bytes: &[u8]) -> Option<()> {
        let mut at = 0;
        while let Some(packet) = wire::split(&bytes[at..]).ok()? {
            let whole = &bytes[at..at + packet.end];
            let body = &whole[packet.body..];
            at += packet.end;
            match packet.first >> 4 {
                kind::PUBLISH => self.publish(slot, packet.first, whole, body)?,
                kind::CONNECT => {
                    let client = self.clients[slot].as_mut()?;
                    client.protocol = if *body.get(6)? == 5 {
                        Protocol::V5
                    } else {
                        Protocol::V311
                    };
                    let answer: &[u8] = match client.protocol {
                        Protocol::V311 => &[kind::CONNACK << 4, 2, 0, 0],
                        Protocol::V5 => &[kind::CONNACK << 4, 3, 0, 0, 0],
                    };
                    client.out.extend_from_slice(answer);
                }
                kind::SUBSCRIBE => self.subscribe(slot, body)?,
                kind::PINGREQ => self.clients[slot]
                    .as_mut()?
                    .out
                    .extend_from_slice(&[kind::PINGRESP << 4, 0]),
                _ => return None,
            }
            if packet.first >> 4 != kind::PUBLISH {
                self.mark_dirty(slot);
            }
        }
        let rest = &bytes[at..];
        if rest.len() >= PACKET_MAX_BYTES {
            return None;
        }
        let client = self.clients[slot].as_mut()?;
        client.rest.extend_from_slice(rest);
        if client.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.mark_dirty(slot);
        }
        Some(())
    }

    fn publish(&mut self, slot: usize, first: u8, whole: &[u8], body: &[u8]) -> Option<()> {
        let delivery = wire::delivery(first, body, self.clients[slot].as_ref()?.protocol).ok()?;
        if delivery.qos > 0 {
            return None;
        }
        for &subscriber in self
            .topics
            .get(delivery.topic)
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            let Some(client) = &mut self.clients[subscriber] else {
                continue;
            };
            if client.queued_bytes() >= OUT_MAX_BYTES {
                self.shed += 1;
                continue;
            }
            client.out.extend_from_slice(whole);
            if !client.dirty {
                client.dirty = true;
                self.dirty.push(subscriber);
            }
        }
        Some(())
    }

    fn subscribe(&mut self, slot: usize, body: &[u8]) -> Option<()> {
        let client = self.clients[slot].as_mut()?;
        let (id, mut rest) = body.split_first_chunk::<2>()?;
        let mut answer = id.to_vec();
        if client.protocol == Protocol::V5 {
            // SUBSCRIBE with properties is beyond the relay
            rest = rest.strip_prefix(&[0])?;
            answer.push(0);
        }
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let topic = after.get(..length)?;
            if topic.iter().any(|byte| matches!(byte, b'+' | b'#' | b'$')) {
                return None;
            }
            if after.get(length)? & 3 != 0 {
                return None;
            }
            let subscribers = self.topics.entry(topic.to_vec()).or_default();
            if !subscribers.contains(&slot) {
                subscribers.push(slot);
                client.subscribed.push(topic.to_vec());
            }
            answer.push(0);
            rest = &after[length + 1..];
        }
        let length = u8::try_from(answer.len())
            .ok()
            .filter(|length| *length < 128)?;
        client.out.extend_from_slice(&[kind::SUBACK << 4, length]);
        client.out.extend_from_slice(&answer);
        Some(())
    }

    fn mark_dirty(&mut self, slot: usize) {
        if let Some(client) = self.clients[slot].as_mut().filter(|client| !client.dirty) {
            client.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn flush(&mut self) {
        for slot in std::mem::take(&mut self.dirty) {
            let Some(client) = &mut self.clients[slot] else {
                continue;
            };
            client.dirty = false;
            if client.flush().is_err() {
                self.close(slot);
            }
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(client) = self.clients[slot].take() else {
            return;
        };
        for topic in client.subscribed {
            if let Some(subscribers) = self.topics.get_mut(&topic) {
                subscribers.retain(|&subscriber| subscriber != slot);
                if subscribers.is_empty() {
                    self.topics.remove(&topic);
                }
            }
        }
        self.free.push(slot);
    }
}

impl Client {
    /// One read. The filled length of `scratch`, and whether the socket may hold more; `None` when nothing was there.
    fn read(&mut self, scratch: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let kept = self.rest.len();
        let start = match self.tls {
            Some(_) => scratch.len() - RECORDS_BYTES,
            None => kept,
        };
        let count = match self.stream.read(&mut scratch[start..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(None);
            }
            read => read?,
        };
        let more = start + count == scratch.len();
        let mut filled = count;
        if let Some(tls) = &mut self.tls {
            let (out, records) = scratch.split_at_mut(start);
            let ended;
            (filled, ended) = tls::decrypt(tls, &records[..count], &mut out[kept..])?;
            if ended && filled == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        scratch[..kept].copy_from_slice(&self.rest);
        self.rest.clear();
        Ok(Some((kept + filled, more)))
    }

    fn queued_bytes(&self) -> usize {
        self.out.len() + self.wire.len() - self.written
    }

    fn flush(&mut self) -> io::Result<()> {
        let pending = match &mut self.tls {
            Some(tls) => {
                tls::encrypt(tls, &self.out)?;
                self.out.clear();
                tls::take_records(tls, &mut self.wire)?;
                &mut self.wire
            }
            None => &mut self.out,
        };
        while self.written < pending.len() {
            match self.stream.write(&pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        pending.clear();
        self.written = 0;
        Ok(())
    }
}
