// SPDX-License-Identifier: Apache-2.0
//! Asks the shards on behalf of everybody on the edge thread: HTTP, `$SYS`, the watchdog.
//!
//! * One question of a kind is on its way to a shard at a time, so a shard that is stuck gathers no more of them.
//! * Every wait has a deadline. Who asks within [`FRESH`] of the last answer gets that one, and so does who asks while
//!   an answer is on its way; a shard that did not answer is remembered as long.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use corqtt_codec::Message;
use corqtt_port::admin::{Answer, Ask, Numbers, Query, Reply};
use corqtt_port::lane::Sender;
use corqtt_shards::ToShard;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use crate::numbers::{Node, Snapshot};
use crate::polled::Polled;

/// How old numbers may be that somebody is told.
const FRESH: Duration = Duration::from_millis(100);
/// How long a shard may take to answer. A turn takes 2 ms.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Where the process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The cluster is not there yet, or not this node in it.
    Joining,
    /// Clients are welcome.
    Serving,
    /// Clients are told goodbye.
    Draining,
    /// The edge thread ends.
    Over,
}

/// Shards that did not answer in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silent(Vec<usize>);

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        let plural = if shards.len() == 1 { "" } else { "s" };
        write!(
            f,
            "no answer from shard{plural} {} within {} ms",
            shards.join(", "),
            ANSWER_MAX.as_millis()
        )
    }
}

/// What the edge thread knows of the broker.
#[derive(Debug)]
pub(crate) struct Panel {
    node: Node,
    asking: Mutex<Asking>,
    phase: watch::Receiver<Phase>,
}

#[derive(Debug)]
struct Asking {
    shards: Shards,
    last: Option<(Instant, Result<Arc<Snapshot>, Silent>)>,
}

impl Panel {
    /// For use in the runtime that this is called in.
    pub(crate) fn new(
        inboxes: Vec<Sender<ToShard>>,
        node: Node,
        phase: watch::Receiver<Phase>,
    ) -> io::Result<Self> {
        let asking = Asking {
            shards: Shards::new(inboxes)?,
            last: None,
        };
        Ok(Self {
            node,
            asking: Mutex::new(asking),
            phase,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The numbers of all shards, none older than [`FRESH`].
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, Silent> {
        let mut asking = self.asking.lock().await;
        if let Some((at, outcome)) = &asking.last
            && at.elapsed() < FRESH
        {
            return outcome.clone();
        }
        let numbers = asking.shards.numbers().await;
        let outcome = numbers.map(|numbers| Arc::new(Snapshot::new(&self.node, numbers)));
        asking.last = Some((Instant::now(), outcome.clone()));
        outcome
    }

    /// Hands each shard its messages, to be published below `$SYS/`; returns how many shards are still at the last
    /// ones and get none.
    pub(crate) async fn publish(&self, messages: Vec<VecDeque<Arc<Message>>>) -> usize {
        self.asking.lock().await.shards.publish(messages)
    }

    /// Returns once everything that shards were given before can be seen by every client.
    pub(crate) async fn settle(&self) -> Result<(), Silent> {
        let mut asking = self.asking.lock().await;
        // the first answer says that a turn has handled what came before; the second comes from a later turn, so what
        // that one had for other shards is in their inboxes
        for _ in 0..2 {
            asking.shards.numbers().await?;
        }
        Ok(())
    }
}

/// Kinds of questions, for a shard each has one bit.
const NUMBERS: u64 = 0;
const SYSTEM: u64 = 1;
const KINDS: u64 = 2;

#[derive(Debug)]
struct Shards {
    inboxes: Vec<Sender<ToShard>>,
    reply: Sender<Reply>,
    replies: Polled<Reply>,
    /// By shard and kind: a question is on its way.
    asked: Vec<[bool; KINDS as usize]>,
}

impl Shards {
    fn new(inboxes: Vec<Sender<ToShard>>) -> io::Result<Self> {
        let (reply, replies) = Polled::lane()?;
        Ok(Self {
            asked: vec![[false; KINDS as usize]; inboxes.len()],
            inboxes,
            reply,
            replies,
        })
    }

    /// Asks unless such a question is on its way already; false then.
    fn ask(&mut self, shard: usize, kind: u64, ask: Ask) -> bool {
        let asked = &mut self.asked[shard][kind as usize];
        if std::mem::replace(asked, true) {
            return false;
        }
        self.inboxes[shard].push(ToShard::Admin(Query {
            id: shard as u64 * KINDS + kind,
            ask,
            reply: self.reply.clone(),
        }));
        true
    }

    /// Takes what has come. Numbers go to `answers`.
    fn take(&mut self, answers: &mut [Option<Numbers>]) {
        let mut replies = Vec::new();
        self.replies.take(&mut replies);
        for reply in replies {
            let shard = (reply.id / KINDS) as usize;
            self.asked[shard][(reply.id % KINDS) as usize] = false;
            if let Answer::Numbers(numbers) = reply.answer {
                answers[shard] = Some(*numbers);
            }
        }
    }

    async fn numbers(&mut self) -> Result<Vec<Numbers>, Silent> {
        let count = self.inboxes.len();
        // what comes late from an earlier round is too old
        self.take(&mut vec![None; count]);
        let mut answers = vec![None; count];
        for shard in 0..count {
            self.ask(shard, NUMBERS, Ask::Numbers);
        }
        let all = async {
            while answers.iter().any(Option::is_none) {
                self.replies.wait().await;
                self.take(&mut answers);
            }
        };
        // who did not answer is seen below
        let _ = timeout(ANSWER_MAX, all).await;
        let silent: Vec<_> = (0..count).filter(|at| answers[*at].is_none()).collect();
        if silent.is_empty() {
            Ok(answers.into_iter().flatten().collect())
        } else {
            Err(Silent(silent))
        }
    }

    fn publish(&mut self, messages: Vec<VecDeque<Arc<Message>>>) -> usize {
        self.take(&mut vec![None; self.inboxes.len()]);
        let mut passed_over = 0;
        for (shard, messages) in messages.into_iter().enumerate() {
            if !messages.is_empty() && !self.ask(shard, SYSTEM, Ask::System(messages)) {
                passed_over += 1;
            }
        }
        passed_over
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use corqtt_port::lane::{self, Receiver};

    use super::*;

    /// A panel and what its shards get. The panel lives in a runtime whose clock is the test's.
    pub(crate) struct Rig {
        pub(crate) panel: Arc<Panel>,
        inboxes: Vec<Receiver<ToShard>>,
        pub(crate) phase: watch::Sender<Phase>,
    }

    impl Rig {
        pub(crate) fn new(shards: usize) -> Self {
            let lanes = (0..shards).map(|_| lane::polled().expect("an eventfd"));
            let (senders, inboxes) = lanes.unzip();
            let (tell, phase) = watch::channel(Phase::Serving);
            let node = Node::start(Arc::default());
            Self {
                panel: Arc::new(Panel::new(senders, node, phase).expect("a panel")),
                inboxes,
                phase: tell,
            }
        }

        /// The questions that a shard has got since the last look.
        fn questions(&self, shard: usize) -> Vec<Query> {
            let mut taken = Vec::new();
            self.inboxes[shard].drain(&mut taken);
            taken
                .into_iter()
                .map(|message| match message {
                    ToShard::Admin(query) => query,
                    other => panic!("a panel only asks: {other:?}"),
                })
                .collect()
        }

        /// Answers what a shard was asked; returns how many questions that were.
        pub(crate) fn answer(&self, shard: usize, bytes_received: u64) -> usize {
            let questions = self.questions(shard);
            for query in &questions {
                let numbers = Numbers {
                    bytes_received,
                    ..Numbers::default()
                };
                let answer = match query.ask {
                    Ask::Numbers => Answer::Numbers(Box::new(numbers)),
                    _ => Answer::Done,
                };
                let id = query.id;
                query.reply.push(Reply { id, answer });
            }
            questions.len()
        }

        /// Asks, and lets these shards answer.
        async fn snapshot(&self, answering: &[usize]) -> Result<Arc<Snapshot>, Silent> {
            let answers = async {
                // the question is asked in the first poll of the other
                for shard in answering {
                    self.answer(*shard, 7);
                }
            };
            tokio::join!(self.panel.snapshot(), answers).0
        }
    }

    pub(crate) fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    #[test]
    fn all_shards_are_asked_and_summed() {
        run(async {
            let rig = Rig::new(3);
            let snapshot = rig.snapshot(&[0, 1, 2]).await.expect("all answer");
            assert_eq!(snapshot.overall.bytes_received, 21);
            assert_eq!(snapshot.shards.len(), 3);
        });
    }

    #[test]
    fn who_asks_soon_again_gets_the_same_numbers() {
        run(async {
            let rig = Rig::new(1);
            let first = rig.snapshot(&[0]).await.expect("it answers");
            tokio::time::advance(FRESH / 2).await;
            let second = rig.panel.snapshot().await.expect("it answered");
            assert!(Arc::ptr_eq(&first, &second));
            assert!(rig.questions(0).is_empty());
            tokio::time::advance(FRESH).await;
            rig.snapshot(&[0]).await.expect("it answers again");
        });
    }

    #[test]
    fn a_stuck_shard_is_named_after_the_deadline_and_not_asked_again() {
        run(async {
            let rig = Rig::new(2);
            let begun = Instant::now();
            let silent = rig.snapshot(&[0]).await.expect_err("one is stuck");
            assert_eq!(silent.to_string(), "no answer from shard 1 within 1000 ms");
            assert!(begun.elapsed() >= ANSWER_MAX && begun.elapsed() < 2 * ANSWER_MAX);
            for _ in 0..3 {
                tokio::time::advance(FRESH).await;
                assert!(rig.snapshot(&[0]).await.is_err());
            }
            // it comes back: the one old answer is thrown away, and it is asked anew
            assert_eq!(rig.answer(1, 1), 1);
            tokio::time::advance(FRESH).await;
            let snapshot = rig.snapshot(&[0, 1]).await.expect("both answer");
            assert_eq!(snapshot.overall.bytes_received, 14);
        });
    }

    #[test]
    fn who_stops_waiting_leaves_nothing_behind() {
        run(async {
            let rig = Rig::new(1);
            let impatient = timeout(ANSWER_MAX / 4, rig.panel.snapshot()).await;
            assert!(impatient.is_err());
            // the question is still on its way, and its answer will do
            let snapshot = rig.snapshot(&[0]).await.expect("it answers");
            assert_eq!(snapshot.overall.bytes_received, 7);
        });
    }

    #[test]
    fn a_shard_that_is_still_publishing_gets_no_more() {
        run(async {
            let rig = Rig::new(1);
            let message = Arc::new(crate::system::message("uptime", "1".to_owned()));
            let rows = || vec![VecDeque::from([message.clone()])];
            assert_eq!(rig.panel.publish(rows()).await, 0);
            assert_eq!(rig.panel.publish(rows()).await, 1);
            assert_eq!(rig.answer(0, 0), 1);
            assert_eq!(rig.panel.publish(rows()).await, 0);
        });
    }
}
