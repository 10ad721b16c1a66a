// SPDX-License-Identifier: Apache-2.0
//! A lane: the mailbox of one thread. Many push batches, one takes all at once; one wake-up per batch, and none
//! while the receiver is awake.
//!
//! The lock is held for one push or one swap of a batch. A lane itself does not refuse: who sends bounds what may
//! be outstanding (a shard by marks, an edge by the questions that it was asked), so that an answer always has room.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// How a receiver is woken.
#[derive(Debug)]
enum Waker {
    /// A shard waits for file descriptors.
    Eventfd(OwnedFd),
    /// A plain thread waits for the lane alone.
    Condvar(Condvar),
}

#[derive(Debug)]
struct Shared<T> {
    inbox: Mutex<Vec<T>>,
    /// The receiver waits, or is about to: the next push wakes it.
    armed: AtomicBool,
    /// The receiver is gone.
    closed: AtomicBool,
    waker: Waker,
}

impl<T> Shared<T> {
    fn inbox(&self) -> MutexGuard<'_, Vec<T>> {
        // a push or swap cannot leave the vector half changed
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if self.armed.swap(false, Ordering::AcqRel) {
            match &self.waker {
                // the counter cannot overflow: it is written once per arming
                Waker::Eventfd(fd) => {
                    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
                }
                Waker::Condvar(condvar) => condvar.notify_one(),
            }
        }
    }
}

/// The sending side; cheap to clone.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The receiving side; one per lane.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// A lane whose receiver waits in epoll for [`Receiver::fd`].
///
/// # Errors
/// When the process has no file descriptor left.
pub fn polled<T>() -> rustix::io::Result<(Sender<T>, Receiver<T>)> {
    let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    Ok(with(Waker::Eventfd(fd)))
}

/// A lane whose receiver is a thread that waits for nothing else ([`Receiver::wait`]).
#[must_use]
pub fn blocking<T>() -> (Sender<T>, Receiver<T>) {
    with(Waker::Condvar(Condvar::new()))
}

fn with<T>(waker: Waker) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        inbox: Mutex::new(Vec::new()),
        armed: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        waker,
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Pushes one message. It is dropped if the receiver is gone.
    pub fn push(&self, message: T) {
        if self.0.closed.load(Ordering::Acquire) {
            return;
        }
        let mut inbox = self.0.inbox();
        inbox.push(message);
        // a condition variable forgets a notification that comes before the wait: under the lock it cannot. An eventfd
        // remembers, and needs no lock.
        if matches!(self.0.waker, Waker::Condvar(_)) {
            self.0.wake();
        } else {
            drop(inbox);
            self.0.wake();
        }
    }

    /// Pushes one message that can wait until the receiver is awake anyway: it is not woken for it.
    pub fn push_quietly(&self, message: T) {
        if !self.0.closed.load(Ordering::Acquire) {
            self.0.inbox().push(message);
        }
    }
}

impl<T> Receiver<T> {
    /// Takes all that is there, behind what `into` holds.
    pub fn drain(&self, into: &mut Vec<T>) {
        let mut inbox = self.0.inbox();
        if into.is_empty() {
            std::mem::swap(&mut *inbox, into);
        } else {
            into.append(&mut inbox);
        }
    }

    /// Says that the receiver is going to wait. False if something is there already: it must not wait then.
    #[must_use]
    pub fn arm(&self) -> bool {
        self.0.armed.store(true, Ordering::SeqCst);
        let empty = self.0.inbox().is_empty();
        if !empty {
            self.0.armed.store(false, Ordering::SeqCst);
        }
        empty
    }

    /// The receiver is awake: pushes need not wake it.
    pub fn disarm(&self) {
        self.0.armed.store(false, Ordering::SeqCst);
    }

    /// Becomes readable when a push wakes the receiver, each time anew: to be watched edge-triggered; `None` for a lane made by [`blocking`].
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.waker {
            Waker::Eventfd(fd) => Some(fd.as_fd()),
            Waker::Condvar(_) => None,
        }
    }

    /// Waits until something is there or `deadline` has passed, then takes all. Only for [`blocking`] lanes.
    pub fn wait(&self, into: &mut Vec<T>, deadline: Option<std::time::Duration>) {
        let Waker::Condvar(condvar) = &self.0.waker else {
            return self.drain(into);
        };
        // under the lock: a push that comes now sees it. Armed anew after each wake-up, since the late wake-up of a
        // push that was taken before has disarmed it.
        let waiting = |inbox: &mut Vec<T>| {
            let empty = inbox.is_empty();
            self.0.armed.store(empty, Ordering::SeqCst);
            empty
        };
        let inbox = self.0.inbox();
        let mut inbox = match deadline {
            Some(limit) => {
                condvar
                    .wait_timeout_while(inbox, limit, waiting)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => condvar
                .wait_while(inbox, waiting)
                .unwrap_or_else(PoisonError::into_inner),
        };
        self.0.armed.store(false, Ordering::SeqCst);
        into.append(&mut inbox);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.inbox().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_receiver_is_woken_once() {
        let (sender, receiver) = polled().expect("an eventfd");
        assert!(receiver.arm());
        sender.push(1);
        sender.push(2);
        let mut counter = [0u8; 8];
        let fd = receiver.fd().expect("made by polled");
        assert_eq!(rustix::io::read(fd, &mut counter), Ok(8));
        assert_eq!(u64::from_ne_bytes(counter), 1);
        let mut all = Vec::new();
        receiver.drain(&mut all);
        assert_eq!(all, [1, 2]);
    }

    #[test]
    fn arming_fails_while_something_is_there() {
        let (sender, receiver) = polled().expect("an eventfd");
        sender.push(1);
        assert!(!receiver.arm());
    }

    #[test]
    fn every_message_of_many_senders_arrives_in_their_order() {
        let (sender, receiver) = blocking();
        let threads: Vec<_> = (0..4u32)
            .map(|who| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..10_000u32).for_each(|n| sender.push((who, n))))
            })
            .collect();
        let mut next = [0u32; 4];
        let mut batch = Vec::new();
        while next.iter().sum::<u32>() < 40_000 {
            receiver.wait(&mut batch, None);
            for (who, n) in batch.drain(..) {
                assert_eq!(n, next[who as usize]);
                next[who as usize] += 1;
            }
        }
        threads
            .into_iter()
            .for_each(|thread| thread.join().expect("a sender"));
    }

    #[test]
    fn a_late_wake_up_does_not_hide_the_next_push() {
        let (sender, receiver) = blocking();
        let waiter = std::thread::spawn(move || {
            let mut batch = Vec::new();
            receiver.wait(&mut batch, None);
            batch
        });
        // a push that was taken already wakes once the receiver waits again
        while !sender.0.armed.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let inbox = sender.0.inbox();
        sender.0.wake();
        drop(inbox);
        while !sender.0.armed.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        sender.push(7);
        assert_eq!(waiter.join().expect("the waiter"), [7]);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (_sender, receiver) = blocking::<u8>();
        receiver.wait(&mut Vec::new(), Some(std::time::Duration::from_millis(1)));
    }
}
