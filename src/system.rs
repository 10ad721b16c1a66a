// SPDX-License-Identifier: Apache-2.0
//! The broker's own topics, `$SYS/broker/...`: retained, published anew at an interval, values as plain text.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corqtt_codec::{Message, QoS};
use corqtt_port::admin::Numbers;
use tokio::time::{MissedTickBehavior, interval};

use crate::numbers::{Snapshot, total_of};
use crate::panel::{Panel, Phase};

/// The messages of each shard: each tells of itself, and the first of the whole node too.
pub(crate) fn messages(snapshot: &Snapshot) -> Vec<VecDeque<Arc<Message>>> {
    let shards = snapshot.shards.iter().enumerate();
    let mut all: Vec<VecDeque<_>> = shards
        .map(|(number, shard)| {
            let rows = of_shard(shard).into_iter();
            rows.map(|(topic, value)| (format!("shards/{number}/{topic}"), value.to_string()))
                .map(|(topic, value)| Arc::new(message(&topic, value)))
                .collect()
        })
        .collect();
    if let Some(first) = all.first_mut() {
        let rows = of_node(snapshot).into_iter();
        first.extend(rows.map(|(topic, value)| Arc::new(message(topic, value))));
    }
    all
}

/// comqtt's topics, in the order of its documentation.
fn of_node(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let overall = &snapshot.overall;
    let numbers = [
        ("time", overall.time),
        ("uptime", overall.uptime),
        ("started", overall.started),
        ("load/bytes/received", overall.bytes_received),
        ("load/bytes/sent", overall.bytes_sent),
        ("clients/connected", overall.clients_connected),
        ("clients/disconnected", overall.clients_disconnected),
        ("clients/maximum", overall.clients_maximum),
        ("clients/total", overall.clients_total),
        ("packets/received", overall.packets_received),
        ("packets/sent", overall.packets_sent),
        ("messages/received", overall.messages_received),
        ("messages/sent", overall.messages_sent),
        ("messages/dropped", overall.messages_dropped),
        ("messages/inflight", overall.inflight),
        ("retained", overall.retained),
        ("subscriptions", overall.subscriptions),
        ("system/memory", overall.memory_alloc),
        ("system/threads", overall.threads),
    ];
    let numbers = numbers
        .into_iter()
        .map(|(topic, value)| (topic, value.to_string()));
    [("version", overall.version.to_owned())]
        .into_iter()
        .chain(numbers)
        .collect()
}

/// What a shard counts by itself.
fn of_shard(shard: &Numbers) -> [(&'static str, u64); 12] {
    [
        ("load/bytes/received", shard.bytes_received),
        ("load/bytes/sent", shard.bytes_sent),
        ("clients/connected", shard.clients_connected),
        ("clients/total", shard.clients_total),
        ("packets/received", shard.packets_received),
        ("packets/sent", shard.packets_sent),
        ("messages/received", shard.messages_received),
        ("messages/sent", shard.messages_sent),
        ("messages/dropped", total_of(&shard.dropped)),
        ("messages/inflight", shard.inflight),
        ("retained", shard.retained),
        ("subscriptions", shard.subscriptions),
    ]
}

pub(crate) fn message(topic: &str, value: String) -> Message {
    Message {
        topic: format!("$SYS/broker/{topic}").into(),
        qos: QoS::AtMostOnce,
        retain: true,
        properties: Box::default(),
        expires_at_ms: None,
        payload: Bytes::from(value),
    }
}

/// Publishes once; false, with a log line, if shards do not answer.
pub(crate) async fn publish(panel: &Panel) -> bool {
    match panel.snapshot().await {
        Ok(snapshot) => {
            let passed_over = panel.publish(messages(&snapshot)).await;
            if passed_over > 0 {
                log::debug!(shards = passed_over; "$SYS is passed over where the last one is still on its way");
            }
            true
        }
        Err(silent) => {
            log::warn!("$SYS stays as it is: {silent}");
            false
        }
    }
}

/// Publishes at every interval, until the drain.
pub(crate) async fn keep_publishing(panel: Arc<Panel>, every: Duration) {
    let mut ticks = interval(every);
    // after a pause of the machine once is enough
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // the first comes at once, and that one was published at start
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if !matches!(panel.phase(), Phase::Joining | Phase::Serving) {
            return;
        }
        publish(&panel).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::tests::snapshot;

    fn texts(messages: &VecDeque<Arc<Message>>) -> Vec<(String, String)> {
        let texts = messages.iter().map(|message| {
            assert!(message.retain && message.qos == QoS::AtMostOnce);
            let payload = String::from_utf8(message.payload.to_vec()).expect("text");
            (message.topic.to_string(), payload)
        });
        texts.collect()
    }

    fn value(messages: &[(String, String)], topic: &str) -> String {
        let found = messages.iter().find(|(name, _)| name == topic);
        found.unwrap_or_else(|| panic!("no {topic}")).1.clone()
    }

    #[test]
    fn each_shard_tells_of_itself_and_the_first_of_all() {
        let all = messages(&snapshot());
        let (first, second) = (texts(&all[0]), texts(&all[1]));
        assert_eq!(second.len(), 12);
        assert_eq!(
            value(&first, "$SYS/broker/shards/0/load/bytes/received"),
            "10"
        );
        assert_eq!(
            value(&second, "$SYS/broker/shards/1/load/bytes/received"),
            "1000"
        );
        assert_eq!(
            value(&second, "$SYS/broker/shards/1/messages/dropped"),
            "300"
        );
        assert_eq!(value(&first, "$SYS/broker/load/bytes/received"), "1010");
        assert_eq!(
            value(&first, "$SYS/broker/version"),
            env!("CARGO_PKG_VERSION")
        );
    }

    #[test]
    fn the_tree_is_comqtts() {
        let rows = of_node(&snapshot());
        let topics: Vec<_> = rows.iter().map(|(topic, _)| *topic).collect();
        assert_eq!(
            topics,
            [
                "version",
                "time",
                "uptime",
                "started",
                "load/bytes/received",
                "load/bytes/sent",
                "clients/connected",
                "clients/disconnected",
                "clients/maximum",
                "clients/total",
                "packets/received",
                "packets/sent",
                "messages/received",
                "messages/sent",
                "messages/dropped",
                "messages/inflight",
                "retained",
                "subscriptions",
                "system/memory",
                "system/threads",
            ]
        );
        let plain = |value: &str| value.bytes().all(|byte| byte.is_ascii_digit());
        assert!(rows[1..].iter().all(|(_, value)| plain(value)));
    }
}
