// SPDX-License-Identifier: Apache-2.0
//! A will is asked about again when it is sent.

use std::sync::atomic::{AtomicBool, Ordering};

use corqtt_codec::ReasonCode;
use corqtt_port::auth::{Question, Verdict, Wish};

use super::*;

/// Lets everybody do everything, until publishing is forbidden.
struct Fickle {
    forbids: Arc<AtomicBool>,
    /// Where answers go that come late.
    late: Option<Sender<ToShard>>,
}

impl Auth for Fickle {
    fn checks_publish(&self) -> bool {
        true
    }

    fn checks_subscribe(&self) -> bool {
        false
    }

    fn knows_method(&self, _: &str) -> bool {
        false
    }

    fn ask(&mut self, question: Question) -> Option<Verdict> {
        let verdict = match question.wish {
            Wish::Publish(topic) if &*topic == "will" && self.forbids.load(Ordering::Relaxed) => {
                assert_eq!(&*question.identity.client_id, "testator");
                Verdict::Deny(ReasonCode::NOT_AUTHORIZED)
            }
            _ => Verdict::Allow,
        };
        let Some(late) = &self.late else {
            return Some(verdict);
        };
        let connection = question.connection;
        late.push(ToShard::Auth(corqtt_port::auth::Answer {
            connection,
            verdict,
        }));
        None
    }
}

#[test]
fn a_will_that_its_client_may_not_publish_any_more_is_not_sent() {
    for is_late in [false, true] {
        let setup = setup(1, Runtime::Epoll, false);
        let config = config(setup, |_| {});
        let (sender, inbox) = lane::polled().expect("an eventfd");
        let admission = Arc::new(Admission::new(&config));
        let forbids = Arc::new(AtomicBool::new(false));
        let auth = Fickle {
            forbids: forbids.clone(),
            late: is_late.then(|| sender.clone()),
        };
        let ports = Ports {
            auth: Box::new(auth),
            ..ports(0, setup, &[sender], inbox, &admission)
        };
        let mut shard = Shard::new(ShardId(0), config.clone(), ports).expect("a shard");
        let address = address(&config);
        let clients = std::thread::spawn(move || {
            let mut watcher = Client::open(address);
            watcher.connect("watcher");
            watcher.subscribe(1, "#", 0);
            for (is_forbidden, text) in [(false, b"1"), (true, b"2"), (false, b"3")] {
                forbids.store(is_forbidden, Ordering::Relaxed);
                let mut testator = Client::open(address);
                let will = [b"\x00\x04will\x00\x01", &text[..]].concat();
                testator.send(&connect_bytes(4, "testator", 0x06, &will));
                assert_eq!(testator.packet(), (0x20, vec![0, 0]));
                // it breaks a rule: its connection ends, which it can see, and its will is due before that
                testator.send(&[0xF0, 0]);
                testator.expect_end();
                if is_forbidden {
                    // by this turn it was asked about; had it been sent, it would come before the third
                    watcher.send(&[0xC0, 0]);
                    assert_eq!(watcher.packet().0, 0xD0);
                } else {
                    assert_eq!(watcher.message(), ("will".into(), text.to_vec()));
                }
            }
        });
        while !clients.is_finished() {
            shard
                .poll_kernel(Some(Duration::ZERO))
                .expect("the epoll descriptor");
            shard.turn();
        }
        clients.join().expect("the clients");
    }
}
