// SPDX-License-Identifier: Apache-2.0
//! A lane whose receiver is a task of a tokio runtime.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use corqtt_port::lane::{self, Receiver, Sender};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The receiving side.
#[derive(Debug)]
pub(crate) struct Polled<T>(AsyncFd<Watched<T>>);

#[derive(Debug)]
struct Watched<T>(Receiver<T>);

impl<T> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd().expect("made by polled").as_raw_fd()
    }
}

impl<T> Polled<T> {
    /// A lane to a task of the runtime that this is called in.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(crate) fn lane() -> io::Result<(Sender<T>, Self)> {
        let (sender, receiver) = lane::polled()?;
        Ok((sender, Self::new(receiver)?))
    }

    /// The receiver of a lane made by [`lane::polled`], as a task of the runtime that this is called in.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub(crate) fn new(receiver: Receiver<T>) -> io::Result<Self> {
        // SAFETY: the descriptor is the lane's eventfd, which lives in the receiver and is never replaced; the receiver
        // is owned by what is made here.
        let watched =
            unsafe { AsyncFd::register_with_interest(Watched(receiver), Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Takes all that is there, behind what `into` holds.
    pub(crate) fn take(&self, into: &mut Vec<T>) {
        let Watched(receiver) = self.0.get_ref();
        receiver.disarm();
        receiver.drain(into);
    }

    /// Waits until something may be there.
    pub(crate) async fn wait(&self) {
        if !self.0.get_ref().0.arm() {
            return;
        }
        match self.0.readable().await {
            // edge-triggered: the next wake-up is an event of its own, and the counter is not looked at
            Ok(mut ready) => ready.clear_ready(),
            // the runtime is going down, and this task with it
            Err(_) => std::future::pending().await,
        }
    }
}

/// Handles what comes through a lane made by [`lane::polled`], in order; ends with the runtime that this is spawned on.
///
/// # Errors
/// When the runtime cannot watch it.
pub(crate) async fn each<T>(receiver: Receiver<T>, mut handle: impl FnMut(T)) -> io::Result<()> {
    let lane = Polled::new(receiver)?;
    let mut taken = Vec::new();
    loop {
        lane.take(&mut taken);
        taken.drain(..).for_each(&mut handle);
        // others on this thread have their turn, however much there is
        tokio::task::yield_now().await;
        lane.wait().await;
    }
}
