// SPDX-License-Identifier: Apache-2.0
//! A link: streams and requests of its dialer, marks and answers of its acceptor.
//!
//! ```text
//!  a stream's beginning      kind u8 = 1 | floor u64 | done u64 | header length u16 | header   ► received u64
//!  a request                 kind u8 = 2 | body length u32 | body                             ► answer length u32 | answer
//! ```

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Notify;

use crate::error::LinkError;
use crate::frame::{
    FRAME_HEADER_BYTES, Frame, Mark, VERDICTS_MAX, put_mark, take_frame, take_mark,
};
use crate::incoming::Incoming;
use crate::outgoing::{Outgoing, PushError};

const KIND_STREAM: u8 = 1;
const KIND_REQUEST: u8 = 2;

/// A stream's header (bytes).
const HEADER_BYTES_MAX: usize = 1 << 10;
/// A request's body, or an answer (bytes).
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Before streams, whose priority is 0: raft asks this way, and must not wait behind publishes.
const REQUEST_PRIORITY: i32 = 1;
/// What a stream gives the link at a time (bytes); it waits until the link has taken it.
const WRITE_BYTES: usize = 256 << 10;
/// Bodies below this are copied behind their header, larger ones are handed over (bytes).
const COPIED_BYTES_MAX: usize = 2 << 10;
/// What is read at a time (bytes).
const READ_BYTES: usize = 64 << 10;

/// The sending end of an ordered stream, shared between who pushes and the link that carries it.
pub struct Stream {
    outgoing: Mutex<Outgoing>,
    pushed: Notify,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outgoing().fmt(f)
    }
}

impl Stream {
    /// A stream that keeps at most `bytes_max` bytes of what the peer has not kept.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            outgoing: Mutex::new(Outgoing::new(bytes_max)),
            pushed: Notify::new(),
        }
    }

    /// Its state.
    pub fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        // no method of it can stop halfway
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends entries, see [`Outgoing::push`].
    ///
    /// # Errors
    /// When there is no room.
    pub fn push(&self, count: u32, applied: u64, body: Bytes) -> Result<u64, PushError> {
        let pushed = self.outgoing().push(count, applied, body);
        self.pushed.notify_one();
        pushed
    }

    /// See [`Outgoing::tell_applied`].
    pub fn tell_applied(&self, applied: u64) {
        self.outgoing().tell_applied(applied);
        self.pushed.notify_one();
    }

    /// The next frames as bytes, about [`WRITE_BYTES`] of them.
    fn take(&self, chunks: &mut Vec<Bytes>) {
        let mut outgoing = self.outgoing();
        let mut text = BytesMut::new();
        let mut bytes = 0;
        while bytes < WRITE_BYTES
            && let Some(frame) = outgoing.poll_frame()
        {
            bytes += FRAME_HEADER_BYTES + frame.body.len();
            frame.put_header(&mut text);
            if frame.body.len() <= COPIED_BYTES_MAX {
                text.put_slice(&frame.body);
            } else {
                chunks.push(text.split().freeze());
                chunks.push(frame.body);
            }
        }
        if !text.is_empty() {
            chunks.push(text.freeze());
        }
    }
}

/// Closes the stream when the link that carried it is gone, also when whoever waited for that is.
struct Carried<'a>(&'a Stream);

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        self.0.outgoing().handle_closed();
    }
}

/// A link that this node dialled.
#[derive(Clone, Debug)]
pub struct Link {
    connection: Connection,
    answer: Bytes,
}

/// What a link did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkNumbers {
    /// To the peer and back.
    pub round_trip: Duration,
    /// UDP payload sent (bytes).
    pub sent_bytes: u64,
    /// UDP payload received (bytes).
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_packets: u64,
    /// Of those, lost.
    pub lost_packets: u64,
}

impl Link {
    pub(crate) const fn new(connection: Connection, answer: Bytes) -> Self {
        Self { connection, answer }
    }

    /// What the peer says of itself.
    #[must_use]
    pub fn answer(&self) -> &[u8] {
        &self.answer
    }

    /// What it did so far.
    #[must_use]
    pub fn numbers(&self) -> LinkNumbers {
        let stats = self.connection.stats();
        LinkNumbers {
            round_trip: stats.path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
        }
    }

    /// Carries a stream until the link ends, and says why. `header` (at most 1 KiB) tells the receiver which stream it
    /// is. One link at a time carries a stream: the former call has returned, or was dropped.
    pub async fn carry(
        &self,
        stream: &Stream,
        header: &[u8],
        on_mark: impl FnMut(&Mark),
    ) -> LinkError {
        match self.try_carry(stream, header, on_mark).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_carry(
        &self,
        stream: &Stream,
        header: &[u8],
        mut on_mark: impl FnMut(&Mark),
    ) -> Result<Infallible, LinkError> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        let (floor, done) = {
            let outgoing = stream.outgoing();
            (outgoing.floor(), outgoing.done())
        };
        send.write_all(&[KIND_STREAM]).await?;
        send.write_all(&floor.to_le_bytes()).await?;
        send.write_all(&done.to_le_bytes()).await?;
        write_short(&mut send, header).await?;
        let received = read_number(&mut recv).await?;
        stream.outgoing().handle_opened(received)?;
        let _carried = Carried(stream);
        tokio::select! {
            biased;
            ended = write_frames(stream, &mut send) => ended,
            ended = read_marks(stream, &mut recv, &mut on_mark) => ended,
        }
    }

    /// Asks the peer; its answer.
    ///
    /// # Errors
    /// When the link ends before, or the peer answers nothing.
    pub async fn request(&self, body: &[u8]) -> Result<Bytes, LinkError> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.set_priority(REQUEST_PRIORITY)?;
        send.write_all(&[KIND_REQUEST]).await?;
        write_long(&mut send, body).await?;
        send.finish()?;
        read_long(&mut recv, "an answer").await
    }

    /// Waits until the link is over; why.
    pub async fn closed(&self) -> LinkError {
        self.connection.closed().await.into()
    }

    /// Ends the link; the peer is told the reason.
    pub fn close(&self, reason: &str) {
        self.connection.close(0u8.into(), reason.as_bytes());
    }
}

async fn write_frames(stream: &Stream, send: &mut SendStream) -> Result<Infallible, LinkError> {
    let mut chunks = Vec::new();
    loop {
        stream.take(&mut chunks);
        if chunks.is_empty() {
            stream.pushed.notified().await;
            continue;
        }
        send.write_all_chunks(&mut chunks).await?;
        chunks.clear();
    }
}

async fn read_marks(
    stream: &Stream,
    recv: &mut RecvStream,
    on_mark: &mut impl FnMut(&Mark),
) -> Result<Infallible, LinkError> {
    let mut come = BytesMut::new();
    loop {
        while let Some(mark) = take_mark(&mut come)? {
            stream.outgoing().handle_mark(&mark)?;
            on_mark(&mark);
        }
        read_some(recv, &mut come).await?;
    }
}

/// What comes over a link that a peer dialled.
#[derive(Clone, Debug)]
pub struct Arrivals {
    connection: Connection,
}

impl Arrivals {
    pub(crate) const fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// The next stream or request. What it is, is read beside the next call.
    ///
    /// # Errors
    /// When the link is over.
    pub async fn next(&self) -> Result<Begun, LinkError> {
        let (send, recv) = self.connection.accept_bi().await?;
        Ok(Begun { send, recv })
    }

    /// Ends the link; the peer is told the reason.
    pub fn close(&self, reason: &str) {
        self.connection.close(0u8.into(), reason.as_bytes());
    }
}

/// Something has begun on a link.
#[derive(Debug)]
pub struct Begun {
    send: SendStream,
    recv: RecvStream,
}

/// What has begun on a link.
#[derive(Debug)]
pub enum Arrival {
    /// An ordered stream.
    Stream(Opening),
    /// A question.
    Request(Request),
}

impl Begun {
    /// Reads what it is; a request, whole.
    ///
    /// # Errors
    /// When the link is over, or the peer sends what it should not.
    pub async fn read(mut self) -> Result<Arrival, LinkError> {
        let mut kind = [0];
        self.recv.read_exact(&mut kind).await?;
        if kind == [KIND_STREAM] {
            let floor = read_number(&mut self.recv).await?;
            let done = read_number(&mut self.recv).await?;
            let header = read_short(&mut self.recv, "a stream's header", HEADER_BYTES_MAX).await?;
            return Ok(Arrival::Stream(Opening {
                floor,
                done,
                header,
                begun: self,
            }));
        }
        if kind == [KIND_REQUEST] {
            let body = read_long(&mut self.recv, "a request").await?;
            let send = self.send;
            return Ok(Arrival::Request(Request { body, send }));
        }
        Err(LinkError::Unknown(kind[0]))
    }
}

/// The beginning of an ordered stream on this link.
#[derive(Debug)]
pub struct Opening {
    floor: u64,
    done: u64,
    header: Bytes,
    begun: Begun,
}

impl Opening {
    /// Which stream it is.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Lets it go on from where its receiving end is; with how many entries are missing for good.
    ///
    /// # Errors
    /// When the link is over, or the peer says what cannot be.
    pub async fn accept(self, incoming: &mut Incoming) -> Result<Accepted, LinkError> {
        let Begun { mut send, recv } = self.begun;
        let missing = incoming.handle_opening(self.floor, self.done)?;
        send.write_all(&incoming.received().to_le_bytes()).await?;
        let marks = Arc::new(Marks {
            next: Mutex::new(Some(incoming.mark())),
            set: Notify::new(),
        });
        Ok(Accepted {
            missing,
            frames: FrameReader {
                recv,
                come: BytesMut::new(),
            },
            writer: MarkWriter {
                send,
                marks: marks.clone(),
            },
            marks: MarkSender(marks),
        })
    }
}

/// An ordered stream that goes on over this link.
#[derive(Debug)]
pub struct Accepted {
    /// Entries that its sender does not have any more, and that never came.
    pub missing: u64,
    /// What comes.
    pub frames: FrameReader,
    /// What carries the marks.
    pub writer: MarkWriter,
    /// What takes them.
    pub marks: MarkSender,
}

/// Reads the frames of a stream.
#[derive(Debug)]
pub struct FrameReader {
    recv: RecvStream,
    come: BytesMut,
}

impl FrameReader {
    /// The next frame. Must not be dropped before it is there.
    ///
    /// # Errors
    /// When the link is over, or the peer sends what is no frame.
    pub async fn next(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = take_frame(&mut self.come)? {
                return Ok(frame);
            }
            read_some(&mut self.recv, &mut self.come).await?;
        }
    }
}

#[derive(Debug)]
struct Marks {
    /// What is to be sent; `None`: nothing new.
    next: Mutex<Option<Mark>>,
    set: Notify,
}

/// Says over one link how far a stream's receiver is, as [`Incoming::finish`] was told. What it says when the link is over
/// is lost, and told anew over the next one.
#[derive(Clone, Debug)]
pub struct MarkSender(Arc<Marks>);

impl MarkSender {
    /// All entries up to `done` are handled, and those up to `kept` kept, but for the verdicts. Never less than before.
    pub fn mark(&self, done: u64, kept: u64, verdicts: &[(u64, u8)]) {
        let mut next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = next.get_or_insert_default();
        mark.done = done;
        mark.kept = kept;
        mark.verdicts.extend_from_slice(verdicts);
        drop(next);
        self.0.set.notify_one();
    }
}

/// Writes a stream's marks.
#[derive(Debug)]
pub struct MarkWriter {
    send: SendStream,
    marks: Arc<Marks>,
}

impl MarkWriter {
    /// Writes marks until the link is over, and says why.
    pub async fn run(mut self) -> LinkError {
        loop {
            let next = self.take();
            let written = match next {
                Some(bytes) => self.send.write_chunk(bytes).await,
                None => {
                    self.marks.set.notified().await;
                    continue;
                }
            };
            if let Err(error) = written {
                return error.into();
            }
        }
    }

    fn take(&self) -> Option<Bytes> {
        let mut next = self
            .marks
            .next
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut mark = next.take()?;
        if mark.verdicts.len() > VERDICTS_MAX {
            // a mark says what became of all entries up to it: this one ends before those that are left
            let rest = mark.verdicts.split_off(VERDICTS_MAX);
            let upto = rest[0].0.saturating_sub(1);
            *next = Some(Mark {
                done: mark.done,
                kept: mark.kept,
                verdicts: rest,
            });
            mark.done = mark.done.min(upto);
            mark.kept = mark.kept.min(upto);
        }
        let mut bytes = BytesMut::new();
        put_mark(&mark, &mut bytes);
        Some(bytes.freeze())
    }
}

/// A question of a peer.
#[derive(Debug)]
pub struct Request {
    body: Bytes,
    send: SendStream,
}

impl Request {
    /// The question.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// Answers it.
    ///
    /// # Errors
    /// When the link is over.
    pub async fn answer(mut self, body: &[u8]) -> Result<(), LinkError> {
        write_long(&mut self.send, body).await?;
        Ok(self.send.finish()?)
    }
}

/// Appends what has come; at least a byte.
async fn read_some(recv: &mut RecvStream, come: &mut BytesMut) -> Result<(), LinkError> {
    let chunk = recv.read_chunk(READ_BYTES, true).await?;
    come.extend_from_slice(&chunk.ok_or(LinkError::Ended)?.bytes);
    Ok(())
}

pub(crate) async fn write_short(send: &mut SendStream, bytes: &[u8]) -> Result<(), LinkError> {
    let length = u16::try_from(bytes.len()).map_err(|_| LinkError::TooLong {
        what: "a hello or header",
        limit: u16::MAX.into(),
    })?;
    send.write_all(&length.to_le_bytes()).await?;
    Ok(send.write_all(bytes).await?)
}

pub(crate) async fn read_short(
    recv: &mut RecvStream,
    what: &'static str,
    limit: usize,
) -> Result<Bytes, LinkError> {
    let mut length = [0; 2];
    recv.read_exact(&mut length).await?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > limit {
        return Err(LinkError::TooLong { what, limit });
    }
    let mut bytes = vec![0; length];
    recv.read_exact(&mut bytes).await?;
    Ok(bytes.into())
}

async fn read_number(recv: &mut RecvStream) -> Result<u64, LinkError> {
    let mut bytes = [0; 8];
    recv.read_exact(&mut bytes).await?;
    Ok(u64::from_le_bytes(bytes))
}

/// With its length in front: one that is given up halfway ends the stream as if it were whole.
async fn write_long(send: &mut SendStream, bytes: &[u8]) -> Result<(), LinkError> {
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|length| *length as usize <= REQUEST_BYTES_MAX);
    let length = length.ok_or(LinkError::TooLong {
        what: "a request or answer",
        limit: REQUEST_BYTES_MAX,
    })?;
    send.write_all(&length.to_le_bytes()).await?;
    Ok(send.write_all(bytes).await?)
}

async fn read_long(recv: &mut RecvStream, what: &'static str) -> Result<Bytes, LinkError> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > REQUEST_BYTES_MAX {
        return Err(LinkError::TooLong {
            what,
            limit: REQUEST_BYTES_MAX,
        });
    }
    // it grows with what comes, not with what is announced
    let mut bytes = BytesMut::new();
    while bytes.len() < length {
        read_some(recv, &mut bytes).await?;
    }
    Ok(bytes.split_to(length).freeze())
}
