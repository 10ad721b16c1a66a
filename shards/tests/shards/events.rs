// SPDX-License-Identifier: Apache-2.0
//! What shards tell of what happens, and what an operator asks of a client; both late where there are doubles.

use corqtt_port::admin::Client as Known;
use corqtt_port::events::Event;

use super::bans::{ask, done};
use super::*;

/// What happened, without what differs from run to run.
fn told(event: Event) -> String {
    match event {
        Event::Connected {
            client_id,
            username,
            remote,
            version,
            clean,
        } => {
            assert!(remote.starts_with("127.0.0.1:"), "{remote}");
            format!(
                "{client_id} connected {username:?} {} {clean}",
                version as u8
            )
        }
        Event::Disconnected { client_id, reason } => format!("{client_id} left {reason}"),
        Event::Published { client_id, message } => {
            let payload = String::from_utf8_lossy(&message.payload);
            format!("{client_id} published {} {payload}", message.topic)
        }
        Event::Subscribed { client_id, filters } => format!("{client_id} subscribed {filters:?}"),
        Event::Unsubscribed { client_id, filters } => {
            format!("{client_id} unsubscribed {filters:?}")
        }
    }
}

#[test]
fn what_happens_to_a_client_is_told_in_its_order() {
    each(&ALL, |setup| {
        let (events, heard) = lane::blocking();
        let to_bridge = if setup.doubles {
            delaying(events, 7, true)
        } else {
            events
        };
        let equip = |ports: &mut Ports| ports.events = Some(to_bridge.clone());
        let broker = Broker::on(setup, |_| {}, equip);
        let mut clients: Vec<_> = ["a", "b", "c"]
            .map(|id| (id, broker.subscriber(id, &format!("{id}/+"), 1)))
            .into();
        for (id, client) in &mut clients {
            client.send(&publish_bytes(0x32, &format!("{id}/1"), 2, b"hello"));
            let mut kinds = [client.packet().0, client.packet().0];
            kinds.sort_unstable();
            assert_eq!(kinds, [0x32, 0x40]);
            // UNSUBSCRIBE, then DISCONNECT
            let filter = format!("{id}/+");
            client.send(&[&[0xa2, 7, 0, 3, 0, 3], filter.as_bytes()].concat());
            assert_eq!(client.packet().0, 0xb0);
            client.send(&[0xe0, 0]);
        }
        let mut all = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while all.len() < 5 * clients.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "only {all:?}");
            heard.wait(&mut all, Some(left));
        }
        let all: Vec<String> = all.into_iter().map(told).collect();
        for (id, _) in &clients {
            let of_one = all.iter().filter(|text| text.starts_with(id));
            let expected = [
                format!("{id} connected None 4 true"),
                format!("{id} subscribed [\"{id}/+\"]"),
                format!("{id} published {id}/1 hello"),
                format!("{id} unsubscribed [\"{id}/+\"]"),
                format!("{id} left 0x00"),
            ];
            assert!(of_one.eq(&expected), "{setup:?} {all:?}");
        }
        broker.drain(clients);
    });
}

/// What the shard that has it knows of a client.
fn client(broker: &Broker, id: &str) -> Option<Known> {
    let mut found = ask(broker, || Ask::Client(id.into()))
        .into_iter()
        .filter_map(|answer| match answer {
            Answer::Client(client) => client,
            other => panic!("a client was asked for: {other:?}"),
        });
    let client = found.next();
    assert!(found.next().is_none(), "on two shards");
    client.map(|client| *client)
}

#[test]
fn an_operator_sees_a_client_ends_its_connection_and_publishes() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let mut there = broker.subscriber("there", "t/+", 1);
        let known = client(&broker, "there").expect("it is connected");
        assert!(known.online && known.remote.is_some());
        assert_eq!((&*known.client_id, known.protocol_version), ("there", 4));
        assert_eq!(known.filters, ["t/+".into()]);
        assert!(client(&broker, "nobody").is_none());
        let message = Arc::new(Message {
            topic: "t/1".into(),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Box::default(),
            expires_at_ms: None,
            payload: b"order"[..].into(),
        });
        broker.order(Ask::Publish(message));
        let (first, body) = there.packet();
        assert_eq!(
            (first, &body[..5], &body[7..]),
            (0x32, &b"\0\x03t/1"[..], &b"order"[..])
        );
        assert_eq!(done(&ask(&broker, || Ask::Disconnect("nobody".into()))), 0);
        assert_eq!(done(&ask(&broker, || Ask::Disconnect("there".into()))), 1);
        assert_eq!(there.try_packet(), None);
        broker.drain(there);
    });
}
