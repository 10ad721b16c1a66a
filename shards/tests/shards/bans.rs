// SPDX-License-Identifier: Apache-2.0
//! Client ids that an operator bans.

use super::client::connect_bytes;
use super::*;

/// Asks all shards; their answers come late and in any order.
pub(super) fn ask(broker: &Broker, ask: impl Fn() -> Ask) -> Vec<Answer> {
    let (reply, replies) = lane::blocking();
    let reply = delaying(reply, 11, false);
    for (id, inbox) in (0..).zip(&broker.inboxes) {
        let (ask, reply) = (ask(), reply.clone());
        inbox.push(ToShard::Admin(Query { id, ask, reply }));
    }
    let mut all = Vec::new();
    while all.len() < broker.inboxes.len() {
        replies.wait(&mut all, Some(DEADLINE));
    }
    all.into_iter().map(|reply| reply.answer).collect()
}

/// How many shards have done it; the others have nothing to do with it.
pub(super) fn done(answers: &[Answer]) -> usize {
    let done = |answer: &&Answer| matches!(answer, Answer::Done);
    let not_here = |answer: &&Answer| matches!(answer, Answer::NotHere);
    let count = answers.iter().filter(done).count();
    assert_eq!(
        count + answers.iter().filter(not_here).count(),
        answers.len()
    );
    count
}

fn banned(broker: &Broker) -> Vec<Box<str>> {
    let lists = ask(broker, || Ask::Bans)
        .into_iter()
        .map(|answer| match answer {
            Answer::Bans(list) => list,
            other => panic!("bans were asked for: {other:?}"),
        });
    let mut all: Vec<_> = lists.flatten().collect();
    all.sort();
    all
}

/// The body of the CONNACK, or nothing, of a client with that protocol level.
fn knock(broker: &Broker, level: u8, id: &str) -> Option<Vec<u8>> {
    let mut client = Client::open(broker.address);
    client.send(&connect_bytes(level, id, 0x02, &[]));
    let answer = client.try_packet();
    answer.map(|(kind, body)| {
        assert_eq!(kind, 0x20);
        body
    })
}

#[test]
fn a_banned_client_id_is_closed_and_refused_until_it_is_let_in_again() {
    each(&SOME, |setup| {
        let broker = Broker::start(setup);
        let mut there = Client::open(broker.address);
        there.send(&connect_bytes(5, "bad", 0x02, &[]));
        assert_eq!(there.packet().0, 0x20);
        let mut other = broker.client("good");
        assert_eq!(done(&ask(&broker, || Ask::Ban("bad".into()))), 1);
        // [MQTT5-3.14.1-1] with the reason, then closed
        assert_eq!(there.packet(), (0xE0, vec![0x98]));
        there.expect_end();
        let refused = knock(&broker, 5, "bad").expect("CONNACK");
        assert_eq!(refused[..2], [0, 0x8A]);
        assert_eq!(knock(&broker, 4, "bad"), Some(vec![0, 5]));
        // once more is as good as once
        assert_eq!(done(&ask(&broker, || Ask::Ban("bad".into()))), 1);
        assert_eq!(done(&ask(&broker, || Ask::Ban("worse".into()))), 1);
        assert_eq!(
            banned(&broker),
            ["bad".into(), "worse".into()] as [Box<str>; 2]
        );
        other.send(&[0xC0, 0]);
        assert_eq!(other.packet(), (0xD0, vec![]));
        assert_eq!(done(&ask(&broker, || Ask::Unban("bad".into()))), 1);
        assert_eq!(done(&ask(&broker, || Ask::Unban("bad".into()))), 0);
        assert_eq!(knock(&broker, 4, "bad"), Some(vec![0, 0]));
        assert_eq!(banned(&broker), ["worse".into()] as [Box<str>; 1]);
    });
}
