// SPDX-License-Identifier: Apache-2.0
//! Doubles that answer late and out of order, from a seed: for running the behaviour suites against them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use corqtt_codec::ReasonCode;

use crate::auth::{Answer, Auth, Question, Verdict, Wish};
use crate::lane::{self, Sender};
use crate::store::{self, Batch, Store, Token};

/// Longest delay of an answer.
const DELAY_MAX: Duration = Duration::from_millis(20);

/// A small generator (xorshift64*), so that a run can be repeated by its seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins with a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// A sender that holds each message back for a random time; later ones may overtake earlier ones unless `in_order`.
///
/// # Panics
/// If no thread can be started.
#[must_use]
pub fn delaying<T: Send + 'static>(to: Sender<T>, seed: u64, in_order: bool) -> Sender<T> {
    struct Late<T>(Reverse<Instant>, T);
    impl<T> PartialEq for Late<T> {
        fn eq(&self, other: &Self) -> bool {
            self.0 == other.0
        }
    }
    impl<T> Eq for Late<T> {}
    impl<T> PartialOrd for Late<T> {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl<T> Ord for Late<T> {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            self.0.cmp(&other.0)
        }
    }

    let (sender, receiver) = lane::blocking::<T>();
    let work = move || {
        let mut dice = Dice::new(seed);
        let mut waiting = BinaryHeap::<Late<T>>::new();
        let mut batch = Vec::new();
        let mut last = Instant::now();
        loop {
            let next = waiting
                .peek()
                .map(|late| late.0.0.saturating_duration_since(Instant::now()));
            receiver.wait(&mut batch, next);
            let now = Instant::now();
            for message in batch.drain(..) {
                let micros = dice.roll() % DELAY_MAX.as_micros() as u64;
                let mut due = now + Duration::from_micros(micros);
                if in_order {
                    due = due.max(last + Duration::from_nanos(1));
                    last = due;
                }
                waiting.push(Late(Reverse(due), message));
            }
            while waiting.peek().is_some_and(|late| late.0.0 <= now) {
                if let Some(late) = waiting.pop() {
                    to.push(late.1);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("double".into())
        .spawn(work)
        .expect("a thread for the double");
    sender
}

/// Allows everything, but is asked about everything and answers later.
///
/// It knows the authentication method [`METHOD`]: CONNECT and `again` are answered by the challenge `who?`, `me` is
/// accepted with `welcome`, anything else is refused. A client that connects as [`PANIC`] makes it panic, to see what becomes of the
/// process.
#[derive(Debug)]
pub struct LateAuth<T> {
    to: Sender<T>,
    wrap: fn(Answer) -> T,
}

/// A method of extended authentication.
pub const METHOD: &str = "corqtt-double";
/// The client id of a client that is too much.
pub const PANIC: &str = "corqtt-double-panic";

impl<T: Send + 'static> LateAuth<T> {
    /// Answers go to `to`, which delays them.
    #[must_use]
    pub fn new(to: Sender<T>, wrap: fn(Answer) -> T) -> Self {
        Self { to, wrap }
    }
}

impl<T: Send + 'static> Auth for LateAuth<T> {
    fn checks_publish(&self) -> bool {
        true
    }

    fn checks_subscribe(&self) -> bool {
        true
    }

    fn knows_method(&self, method: &str) -> bool {
        method == METHOD
    }

    fn ask(&mut self, question: Question) -> Option<Verdict> {
        assert!(
            &*question.identity.client_id != PANIC,
            "the client was too much"
        );
        let verdict = match question.wish {
            Wish::Connect {
                method: Some(_), ..
            } => Verdict::Continue {
                data: (*b"who?").into(),
            },
            Wish::Continue { data: Some(data) } if *data == *b"me" => Verdict::Authenticated {
                data: (*b"welcome").into(),
            },
            Wish::Continue { data: Some(data) } if *data == *b"again" => Verdict::Continue {
                data: (*b"who?").into(),
            },
            Wish::Continue { .. } => Verdict::Deny(ReasonCode::NOT_AUTHORIZED),
            _ => Verdict::Allow,
        };
        let answer = Answer {
            connection: question.connection,
            verdict,
        };
        self.to.push((self.wrap)(answer));
        None
    }
}

/// Keeps nothing and says later that it did.
#[derive(Debug)]
pub struct LateStore<T> {
    to: Sender<T>,
    wrap: fn(store::Answer) -> T,
}

impl<T: Send + 'static> LateStore<T> {
    /// Answers go to `to`, which delays them.
    #[must_use]
    pub fn new(to: Sender<T>, wrap: fn(store::Answer) -> T) -> Self {
        Self { to, wrap }
    }
}

impl<T: Send + 'static> Store for LateStore<T> {
    fn records(&self) -> bool {
        true
    }

    fn put(&mut self, batch: Batch) -> Option<Token> {
        self.to.push((self.wrap)(store::Answer::Kept(batch.token)));
        None
    }
}
