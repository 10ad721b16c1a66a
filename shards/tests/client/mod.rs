// SPDX-License-Identifier: Apache-2.0
//! A client that speaks MQTT by hand, over blocking sockets with deadlines.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a fact may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut left = body.len();
    loop {
        let more = if left > 127 { 0x80 } else { 0 };
        bytes.push((left % 128) as u8 | more);
        left /= 128;
        if left == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// CONNECT, without keep-alive; `rest` are the fields behind the client id.
pub(crate) fn connect_bytes(level: u8, id: &str, flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([level, flags, 0, 0]);
    if level == 5 {
        body.push(0);
    }
    body.extend(text(id));
    body.extend_from_slice(rest);
    packet(0x10, &body)
}

/// SUBSCRIBE of 3.1.1 with one filter.
pub(crate) fn subscribe_bytes(id: u16, filter: &str, qos: u8) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(text(filter));
    body.push(qos);
    packet(0x82, &body)
}

/// PUBLISH of 3.1.1; `first` has its flags.
pub(crate) fn publish_bytes(first: u8, topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if first & 0x06 != 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend_from_slice(payload);
    packet(first, &body)
}

/// Topic and payload of a PUBLISH of 3.1.1.
pub(crate) fn parse(kind: u8, body: &[u8]) -> (String, Vec<u8>) {
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = String::from_utf8(body[2..2 + length].to_vec()).expect("UTF-8");
    let id_bytes = if kind & 0x06 == 0 { 0 } else { 2 };
    (topic, body[2 + length + id_bytes..].to_vec())
}

/// A connection to the broker.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).expect("the broker listens"))
    }

    fn on(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        Self {
            reader: BufReader::with_capacity(4096, stream),
        }
    }

    /// The same connection for another thread; only one of them may read.
    pub(crate) fn same(&self) -> Self {
        assert_eq!(self.reader.buffer(), b"");
        Self::on(self.stream().try_clone().expect("a descriptor"))
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.reader
            .get_mut()
            .write_all(bytes)
            .expect("the broker reads");
    }

    /// For a connection that may be gone.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) {
        drop(self.reader.get_mut().write_all(bytes));
    }

    /// The next packet: its first byte and its body; `None` if the connection is gone instead.
    pub(crate) fn try_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = match self.byte() {
            Ok(first) => first,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came in time")
            }
            Err(_) => return None,
        };
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.byte().ok()?;
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).ok()?;
        Some((first, body))
    }

    fn byte(&mut self) -> std::io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    pub(crate) fn packet(&mut self) -> (u8, Vec<u8>) {
        self.try_packet().expect("the connection is there")
    }

    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.try_packet(), None);
    }

    /// The next packet, a PUBLISH of 3.1.1: topic and payload.
    pub(crate) fn message(&mut self) -> (String, Vec<u8>) {
        let (kind, body) = self.packet();
        assert_eq!(kind & 0xF0, 0x30);
        parse(kind, &body)
    }

    /// A clean session of 3.1.1.
    pub(crate) fn connect(&mut self, id: &str) {
        self.send(&connect_bytes(4, id, 0x02, &[]));
        assert_eq!(self.packet(), (0x20, vec![0, 0]));
    }

    pub(crate) fn subscribe(&mut self, id: u16, filter: &str, qos: u8) {
        self.send(&subscribe_bytes(id, filter, qos));
        let [high, low] = id.to_be_bytes();
        assert_eq!(self.packet(), (0x90, vec![high, low, qos]));
    }
}
