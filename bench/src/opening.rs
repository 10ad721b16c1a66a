// SPDX-License-Identifier: Apache-2.0

//! A connection on its way: connect, the handshakes of its layers, CONNECT, and SUBSCRIBE where one is wanted.
//!
//! It never blocks, so that many can be on their way at once: `step` with every event of its socket until it is done.

use anyhow::{Context, Result, ensure};

use crate::link::{Link, Poller};
use crate::transport::Dial;
use crate::wire::{self, Hello, kind};

/// What `step` reads with; an answer is small.
pub(crate) const SCRATCH_BYTES: usize = 64 * 1024;

pub(crate) struct Opening {
    link: Link,
    hello: Hello,
    /// What it subscribes to, QoS 0.
    filter: Option<String>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// The layers have their handshakes.
    Handshake,
    /// CONNECT is sent.
    Greeting,
    /// SUBSCRIBE is sent.
    Subscribing,
    Done,
}

impl Opening {
    /// Begins to connect; its events come with `token`.
    pub(crate) fn begin(
        dial: &Dial,
        hello: Hello,
        filter: Option<String>,
        poller: &Poller,
        token: usize,
    ) -> Result<Self> {
        let link = Link::begin(dial, hello.protocol)?;
        poller.add(&link, token)?;
        Ok(Self {
            link,
            hello,
            filter,
            stage: Stage::Connecting,
        })
    }

    /// True when the last answer has come.
    pub(crate) fn step(
        &mut self,
        readable: bool,
        writable: bool,
        scratch: &mut [u8],
    ) -> Result<bool> {
        if self.stage == Stage::Connecting && (writable || readable) {
            self.link.connected().context("a connection was refused")?;
            self.stage = Stage::Handshake;
        }
        if self.stage != Stage::Connecting && readable {
            self.read(scratch)?;
        }
        if self.stage == Stage::Handshake && self.link.is_open() {
            wire::connect(&mut self.link.out, &self.hello);
            self.stage = Stage::Greeting;
        }
        // a socket that takes no more turns writable again, which is the next step
        if self.link.queued_bytes() > 0 || self.stage == Stage::Handshake {
            self.link.flush()?;
        }
        Ok(self.stage == Stage::Done)
    }

    pub(crate) fn into_link(self) -> Link {
        self.link
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<()> {
        loop {
            let read = self.link.read(scratch);
            let read = read.context("a connection ended before the broker had answered")?;
            let Some((filled, more)) = read else {
                return Ok(());
            };
            let mut at = 0;
            while let Some(packet) = wire::split(&scratch[at..filled])? {
                let body = &scratch[at + packet.body..at + packet.end];
                at += packet.end;
                self.handle(packet.first, body)?;
            }
            self.link.keep(&scratch[at..filled]);
            if !more {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, first: u8, body: &[u8]) -> Result<()> {
        let protocol = self.hello.protocol;
        match (self.stage, first >> 4) {
            (Stage::Greeting, kind::CONNACK) => {
                let welcome = wire::connack(body, protocol)?;
                ensure!(
                    welcome.code == 0,
                    "the broker refused CONNECT with code {:#04x}",
                    welcome.code
                );
                self.stage = Stage::Done;
                if let Some(filter) = self.filter.take() {
                    wire::subscribe(&mut self.link.out, protocol, 1, &[filter], 0);
                    self.stage = Stage::Subscribing;
                }
            }
            (Stage::Subscribing, kind::SUBACK) => {
                let granted = wire::suback(body, protocol)?;
                ensure!(granted == [0], "the broker granted {granted:?} for QoS 0");
                self.stage = Stage::Done;
            }
            _ => anyhow::bail!("the broker sent a packet with first byte {first:#04x}"),
        }
        Ok(())
    }
}
