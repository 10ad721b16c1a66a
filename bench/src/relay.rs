// SPDX-License-Identifier: Apache-2.0

//! The bare relay: how little a broker could cost on this kernel. Nothing to run anything on.
//!
//! One thread, one epoll set, one read per ready socket, one write per socket and turn; exact topics in a hash map.
//! It answers CONNECT, SUBSCRIBE and PINGREQ and forwards PUBLISH packets of QoS 0 byte for byte, so publishers and
//! subscribers must speak the same version. No sessions, no wildcards, no retained messages, no QoS 1 or 2: a client
//! that asks for them is closed, so that nothing is measured that was not done.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use foldhash::{HashMap, HashMapExt};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};

use crate::wire::{self, Protocol, kind};

const SCRATCH_BYTES: usize = 128 * 1024;

/// A subscriber with more than this waiting for its socket gets nothing new.
const OUT_MAX_BYTES: usize = 16 * 1024 * 1024;

const LISTENER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

pub(crate) struct Relay {
    listener: TcpListener,
    epoll: OwnedFd,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    topics: HashMap<Vec<u8>, Vec<usize>>,
    dirty: Vec<usize>,
    shed: u64,
}

struct Client {
    stream: TcpStream,
    protocol: Protocol,
    rest: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    dirty: bool,
    subscribed: Vec<Vec<u8>>,
}

impl Relay {
    pub(crate) fn bind(addr: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind(addr).with_context(|| format!("cannot listen at {addr}"))?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        Ok(Self {
            listener,
            epoll,
            clients: Vec::new(),
            free: Vec::new(),
            topics: HashMap::new(),
            dirty: Vec::new(),
            shed: 0,
        })
    }

    pub(crate) fn addr(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
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
                    LISTENER => self.accept()?,
                    token => self.serve(token as usize, flags, &mut scratch),
                }
            }
            self.flush();
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
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
            let slot = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&self.epoll, &stream, EventData::new_u64(slot as u64), flags)?;
            self.clients[slot] = Some(Client {
                stream,
                protocol: Protocol::V311,
                rest: Vec::new(),
                out: Vec::new(),
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
        if flags.contains(EventFlags::OUT) && !client.out.is_empty() && !client.dirty {
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
            let kept = client.rest.len();
            match client.stream.read(&mut scratch[kept..]) {
                Ok(0) => return self.close(slot),
                Ok(count) => {
                    scratch[..kept].copy_from_slice(&client.rest);
                    client.rest.clear();
                    let filled = kept + count;
                    if self.handle(slot, &scratch[..filled]).is_none() {
                        return self.close(slot);
                    }
                    if filled < scratch.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
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
        if rest.len() >= SCRATCH_BYTES / 2 {
            return None;
        }
        self.clients[slot].as_mut()?.rest.extend_from_slice(rest);
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
            if client.out.len() - client.written >= OUT_MAX_BYTES {
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
    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }
}
