// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::num::NonZeroU32;

use corqtt_codec::QoS;

use super::*;
use crate::hash::mix;

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text).expect("a filter")
}

fn topic(text: &str) -> TopicName<'_> {
    TopicName::parse(text).expect("a topic")
}

fn plain(filter: &str, any: bool, persistent: bool) -> Interest {
    Interest {
        filter: filter.into(),
        want: Want::Plain { any, persistent },
    }
}

fn group(filter: &str, online: u32, offline: u32, persistent: bool) -> Interest {
    Interest {
        filter: filter.into(),
        want: Want::Group {
            online,
            offline,
            persistent,
        },
    }
}

fn id(id: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(id)
}

/// A partition of shard 0 of 4 and what it told the others since the last look.
struct Shard {
    partition: Partition,
    changes: Vec<Interest>,
    matches: Matches,
}

impl Shard {
    /// With clients 0 to 9, connected and clean.
    fn new(strategy: Strategy) -> Self {
        let mut shard = Self {
            partition: Partition::new(A, 4, 7, strategy),
            changes: Vec::new(),
            matches: Matches::new(),
        };
        for client in 0..10 {
            shard.client(client, false, true);
        }
        shard
    }

    fn client(&mut self, client: u32, persistent: bool, online: bool) {
        self.partition
            .client_changed(ClientKey(client), persistent, online, &mut self.changes);
    }

    fn subscribe(&mut self, client: u32, text: &str, sub: Subscription) -> bool {
        self.partition
            .subscribe(ClientKey(client), filter(text), sub, &mut self.changes)
    }

    fn unsubscribe(&mut self, client: u32, text: &str) -> bool {
        self.partition
            .unsubscribe(ClientKey(client), filter(text), &mut self.changes)
    }

    fn changes(&mut self) -> Vec<Interest> {
        std::mem::take(&mut self.changes)
    }

    fn publish(&mut self, text: &str) -> &Matches {
        self.publish_from(text, Publisher::default())
    }

    fn publish_from(&mut self, text: &str, publisher: Publisher) -> &Matches {
        self.partition
            .matches(topic(text), publisher, &mut self.matches);
        &self.matches
    }

    fn clients(&mut self, text: &str) -> Vec<u32> {
        let mut clients: Vec<u32> = self
            .publish(text)
            .hits
            .iter()
            .map(|hit| hit.client.0)
            .collect();
        clients.sort_unstable();
        clients
    }

    /// Where the next message for the only matching group goes.
    fn chosen(&mut self, text: &str, publisher: Publisher) -> Choice {
        let groups = &self.publish_from(text, publisher).groups;
        assert_eq!(groups.len(), 1);
        groups[0].choice
    }

    /// The members that get `messages` messages, as digits; letters are other shards.
    fn sequence(&mut self, text: &str, messages: u32) -> String {
        (0..messages)
            .map(|_| match self.chosen(text, Publisher::default()) {
                Choice::Local { client, .. } => char::from(b'0' + client.0 as u8),
                Choice::Shard { shard, .. } => char::from(b'A' + shard.0),
            })
            .collect()
    }
}

const QOS0: Subscription = Subscription::new(QoS::AtMostOnce);
const QOS1: Subscription = Subscription::new(QoS::AtLeastOnce);
const QOS2: Subscription = Subscription::new(QoS::ExactlyOnce);

#[test]
fn an_exact_filter_matches_its_topic_only() {
    let mut shard = Shard::new(Strategy::default());
    assert!(shard.subscribe(1, "a/b", QOS0));
    assert_eq!(shard.clients("a/b"), [1]);
    assert_eq!(shard.clients("a"), []);
    assert_eq!(shard.clients("a/b/"), []);
}

// [MQTT-3.8.4-3] [MQTT5-3.8.4-3]
#[test]
fn subscribing_again_replaces_the_options() {
    let mut shard = Shard::new(Strategy::default());
    assert!(shard.subscribe(1, "a", Subscription { id: id(4), ..QOS2 }));
    assert!(!shard.subscribe(1, "a", QOS1));
    let matches = shard.publish("a");
    assert_eq!(matches.hits.len(), 1);
    assert_eq!(matches.hits[0].qos, QoS::AtLeastOnce);
    assert_eq!(matches.subscription_ids(&matches.hits[0]), []);
    assert_eq!(shard.partition.len(), 1);
}

// [MQTT-3.3.5-1] [MQTT5-3.3.4-2]
#[test]
fn overlapping_filters_hit_once_with_the_highest_qos() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a/+", QOS1);
    shard.subscribe(1, "a/b", QOS0);
    shard.subscribe(
        1,
        "#",
        Subscription {
            retain_as_published: true,
            ..QOS2
        },
    );
    shard.subscribe(2, "#", QOS0);
    assert_eq!(shard.clients("a/b"), [1, 2]);
    let hit = *shard
        .matches
        .hits
        .iter()
        .find(|hit| hit.client == ClientKey(1))
        .expect("client 1");
    assert_eq!((hit.qos, hit.retain_as_published), (QoS::ExactlyOnce, true));
}

// [MQTT5-3.3.4-3] [MQTT5-3.3.4-4]
#[test]
fn overlapping_filters_give_all_their_identifiers() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a/+", Subscription { id: id(5), ..QOS0 });
    shard.subscribe(2, "a/+", Subscription { id: id(6), ..QOS0 });
    shard.subscribe(1, "a/b", Subscription { id: id(7), ..QOS0 });
    shard.subscribe(2, "a/b", QOS0);
    shard.subscribe(1, "#", Subscription { id: id(8), ..QOS0 });
    let matches = shard.publish("a/b");
    let mut ids: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for hit in &matches.hits {
        let mut sorted = matches.subscription_ids(hit).to_vec();
        sorted.sort_unstable();
        ids.insert(hit.client.0, sorted);
    }
    assert_eq!(ids, BTreeMap::from([(1, vec![5, 7, 8]), (2, vec![6])]));
}

// [MQTT5-3.8.3-3]
#[test]
fn no_local_leaves_out_the_publisher_only() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(
        1,
        "a",
        Subscription {
            no_local: true,
            ..QOS0
        },
    );
    let own = Publisher {
        client: Some(ClientKey(1)),
        ..Publisher::default()
    };
    let other = Publisher {
        client: Some(ClientKey(2)),
        ..Publisher::default()
    };
    assert_eq!(shard.publish_from("a", own).hits.len(), 0);
    assert_eq!(shard.publish_from("a", other).hits.len(), 1);
    assert_eq!(shard.publish("a").hits.len(), 1);
}

// [MQTT5-3.8.3-3]
#[test]
fn no_local_does_not_silence_an_overlapping_subscription() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(
        1,
        "a",
        Subscription {
            no_local: true,
            ..QOS2
        },
    );
    shard.subscribe(1, "+", QOS1);
    let own = Publisher {
        client: Some(ClientKey(1)),
        ..Publisher::default()
    };
    let hits = &shard.publish_from("a", own).hits;
    assert_eq!(
        hits.iter().map(|hit| hit.qos).collect::<Vec<_>>(),
        [QoS::AtLeastOnce]
    );
}

// [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
#[test]
fn dollar_topics_are_for_filters_that_name_them() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "#", QOS0);
    shard.subscribe(2, "+/uptime", QOS0);
    shard.subscribe(3, "$SYS/#", QOS0);
    shard.subscribe(4, "$SYS/uptime", QOS0);
    assert_eq!(shard.clients("$SYS/uptime"), [3, 4]);
}

// [MQTT-3.10.4-1] [MQTT5-3.10.4-1]
#[test]
fn unsubscribing_says_whether_there_was_a_subscription() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a", QOS0);
    shard.subscribe(1, "$share/g/a", QOS0);
    assert!(!shard.unsubscribe(2, "a"));
    assert!(!shard.unsubscribe(1, "$share/h/a"));
    assert!(shard.unsubscribe(1, "a"));
    assert!(!shard.unsubscribe(1, "a"));
    assert!(shard.unsubscribe(1, "$share/g/a"));
    assert!(shard.partition.is_empty());
}

#[test]
fn nothing_is_left_of_filters_that_nobody_wants() {
    let mut shard = Shard::new(Strategy::default());
    for client in 0..10 {
        for text in ["a", "a/+", "$share/g/a/+", "$share/h/a/+", "x/#"] {
            shard.subscribe(client, text, QOS0);
        }
    }
    shard.partition.apply_interest(B, &plain("a", true, false));
    shard
        .partition
        .apply_interest(B, &group("$share/h/a/+", 1, 0, false));
    for client in 0..10 {
        assert_eq!(shard.partition.subscription_count(ClientKey(client)), 5);
        shard
            .partition
            .remove_client(ClientKey(client), &mut shard.changes);
        assert_eq!(shard.partition.subscription_count(ClientKey(client)), 0);
    }
    shard.partition.apply_interest(B, &plain("a", false, false));
    shard
        .partition
        .apply_interest(B, &group("$share/h/a/+", 0, 0, false));
    assert_eq!(shard.partition.len(), 0);
    assert_eq!(shard.partition.filters.len(), 0);
    assert!(shard.partition.trie.is_empty());
    assert!(shard.publish("a/b").is_empty());
}

#[test]
fn a_client_is_removed_in_steps() {
    let mut shard = Shard::new(Strategy::default());
    for text in ["a", "b", "c"] {
        shard.subscribe(1, text, QOS0);
    }
    assert!(
        !shard
            .partition
            .remove_client_step(ClientKey(1), 2, &mut shard.changes)
    );
    assert_eq!(shard.partition.len(), 1);
    assert!(
        shard
            .partition
            .remove_client_step(ClientKey(1), 2, &mut shard.changes)
    );
    assert_eq!(shard.partition.len(), 0);
}

#[test]
fn subscriptions_are_listed_with_their_whole_filters() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a", QOS1);
    shard.subscribe(1, "$share/g/a", QOS2);
    shard.subscribe(2, "b", QOS2);
    let mut listed: Vec<_> = shard.partition.subscriptions(ClientKey(1)).collect();
    listed.sort_by_key(|(filter, _)| *filter);
    assert_eq!(listed, [("$share/g/a", QOS2), ("a", QOS1)]);
}

#[test]
fn interest_is_told_with_the_first_and_the_last_subscriber() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a/+", QOS1);
    shard.subscribe(2, "a/+", QOS1);
    assert_eq!(shard.changes(), [plain("a/+", true, false)]);
    shard.unsubscribe(1, "a/+");
    assert_eq!(shard.changes(), []);
    shard.unsubscribe(2, "a/+");
    assert_eq!(shard.changes(), [plain("a/+", false, false)]);
}

#[test]
fn persistent_interest_needs_a_persistent_session_and_qos_above_0() {
    let mut shard = Shard::new(Strategy::default());
    shard.client(1, true, true);
    shard.subscribe(1, "a", QOS0);
    shard.subscribe(2, "a", QOS1);
    assert_eq!(shard.changes(), [plain("a", true, false)]);
    shard.subscribe(1, "a", QOS1);
    assert_eq!(shard.changes(), [plain("a", true, true)]);
    shard.client(2, true, true);
    shard.client(1, false, true);
    assert_eq!(shard.changes(), []);
    shard.client(2, false, true);
    assert_eq!(shard.changes(), [plain("a", true, false)]);
}

#[test]
fn a_lone_subscriber_that_becomes_persistent_is_told() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a", QOS1);
    shard.subscribe(1, "b", QOS0);
    shard.changes();
    shard.client(1, true, false);
    assert_eq!(shard.changes(), [plain("a", true, true)]);
    shard.client(1, true, true);
    assert_eq!(shard.changes(), []);
}

#[test]
fn group_interest_counts_members() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "$share/g/a", QOS0);
    shard.subscribe(2, "$share/g/a", QOS1);
    shard.client(2, true, true);
    shard.client(2, true, false);
    shard.subscribe(2, "$share/g/a", QOS2);
    shard.unsubscribe(1, "$share/g/a");
    shard.unsubscribe(2, "$share/g/a");
    assert_eq!(
        shard.changes(),
        [
            group("$share/g/a", 1, 0, false),
            group("$share/g/a", 2, 0, false),
            group("$share/g/a", 2, 0, true),
            group("$share/g/a", 1, 1, true),
            group("$share/g/a", 0, 1, true),
            group("$share/g/a", 0, 0, false),
        ]
    );
}

#[test]
fn other_shards_are_found_with_the_local_subscribers() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a/b", QOS0);
    shard
        .partition
        .apply_interest(ShardId(1), &plain("a/b", true, false));
    shard
        .partition
        .apply_interest(ShardId(2), &plain("a/+", true, true));
    shard
        .partition
        .apply_interest(ShardId(2), &plain("a/+", true, true));
    assert_eq!(shard.clients("a/b"), [1]);
    assert_eq!(
        (shard.matches.shards, shard.matches.shards_persistent),
        (0b110, 0b100)
    );
    shard
        .partition
        .apply_interest(ShardId(2), &plain("a/+", true, false));
    assert_eq!(shard.publish("a/b").shards_persistent, 0);
    shard
        .partition
        .apply_interest(ShardId(2), &plain("a/+", false, false));
    shard
        .partition
        .apply_interest(ShardId(3), &plain("a/+", false, false));
    assert_eq!(shard.publish("a/b").shards, 0b10);
}

#[test]
fn a_message_from_another_shard_meets_plain_local_subscribers_only() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "a", QOS0);
    shard.subscribe(2, "$share/g/a", QOS0);
    shard.partition.apply_interest(B, &plain("a", true, true));
    let mut matches = Matches::new();
    shard
        .partition
        .matches_plain(topic("a"), Publisher::default(), 0, &mut matches);
    assert_eq!(
        (matches.hits.len(), matches.shards, matches.groups.len()),
        (1, 0, 0)
    );
}

#[test]
fn interest_in_what_is_no_filter_is_ignored() {
    let mut shard = Shard::new(Strategy::default());
    shard.partition.apply_interest(B, &plain("a#", true, true));
    assert_eq!(shard.partition.filters.len(), 0);
}

#[test]
fn each_group_gets_the_message_once() {
    let mut shard = Shard::new(Strategy::default());
    shard.subscribe(1, "$share/g/a", QOS1);
    shard.subscribe(2, "$share/g/a", QOS1);
    shard.subscribe(1, "$share/h/+", QOS2);
    shard.subscribe(1, "$share/i/a", QOS0);
    let matches = shard.publish("a");
    let mut groups: Vec<_> = matches.groups.iter().map(|hit| &*hit.filter).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["$share/g/a", "$share/h/+", "$share/i/a"]);
    assert_eq!(matches.hits.len(), 0);
}

#[test]
fn round_robin_takes_members_in_turn() {
    let mut shard = Shard::new(Strategy::RoundRobin);
    for client in 1..=3 {
        shard.subscribe(client, "$share/g/a", QOS0);
    }
    assert_eq!(shard.sequence("a", 6), "123123");
}

#[test]
fn round_robin_weighs_shards_by_their_members() {
    let mut shard = Shard::new(Strategy::RoundRobin);
    shard.subscribe(1, "$share/g/a", QOS0);
    shard.subscribe(2, "$share/g/a", QOS0);
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 1, 5, false));
    assert_eq!(shard.sequence("a", 6), "12B12B");
    shard
        .partition
        .apply_interest(ShardId(2), &group("$share/g/a", 2, 0, false));
    assert_eq!(shard.sequence("a", 5), "CC12B");
}

#[test]
fn the_own_shard_has_its_place_among_the_others() {
    let mut shard = Shard::new(Strategy::RoundRobin);
    shard.partition = Partition::new(B, 4, 7, Strategy::RoundRobin);
    shard.client(5, false, true);
    shard.subscribe(5, "$share/g/a", QOS0);
    shard
        .partition
        .apply_interest(A, &group("$share/g/a", 1, 0, false));
    shard
        .partition
        .apply_interest(ShardId(3), &group("$share/g/a", 1, 0, false));
    assert_eq!(shard.sequence("a", 6), "A5DA5D");
}

#[test]
fn members_that_are_not_connected_count_when_nobody_is() {
    let mut shard = Shard::new(Strategy::RoundRobin);
    shard.client(1, true, false);
    shard.subscribe(1, "$share/g/a", QOS1);
    shard.subscribe(2, "$share/g/a", QOS1);
    assert_eq!(shard.sequence("a", 2), "22");
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 0, 1, true));
    shard.client(2, true, false);
    assert_eq!(shard.sequence("a", 3), "12B");
    assert!(matches!(
        shard.chosen("a", Publisher::default()),
        Choice::Local { online: false, .. }
    ));
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 1, 0, true));
    assert_eq!(
        shard.chosen("a", Publisher::default()),
        Choice::Shard {
            shard: B,
            persistent: true
        }
    );
}

#[test]
fn sticky_keeps_its_member_until_it_goes() {
    let mut shard = Shard::new(Strategy::Sticky);
    for client in 1..=3 {
        shard.subscribe(client, "$share/g/a", QOS0);
    }
    assert_eq!(shard.sequence("a", 3), "111");
    shard.unsubscribe(2, "$share/g/a");
    assert_eq!(shard.sequence("a", 3), "111");
    shard.client(1, true, false);
    assert_eq!(shard.sequence("a", 3), "333");
    shard.client(1, true, true);
    assert_eq!(shard.sequence("a", 3), "333");
    shard.unsubscribe(3, "$share/g/a");
    assert_eq!(shard.sequence("a", 3), "111");
}

#[test]
fn sticky_keeps_its_shard_until_it_has_nobody() {
    let mut shard = Shard::new(Strategy::Sticky);
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 1, 0, false));
    assert_eq!(shard.sequence("a", 1), "B");
    shard.subscribe(1, "$share/g/a", QOS0);
    assert_eq!(shard.sequence("a", 3), "BBB");
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 0, 1, false));
    assert_eq!(shard.sequence("a", 3), "111");
}

#[test]
fn hash_client_gives_a_publisher_one_member_and_all_members_publishers() {
    let mut shard = Shard::new(Strategy::HashClient);
    for client in 1..=3 {
        shard.subscribe(client, "$share/g/a", QOS0);
    }
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 3, 0, false));
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..600 {
        let publisher = Publisher {
            client_id_hash: mix(number),
            ..Publisher::default()
        };
        let chosen = shard.chosen("a", publisher);
        assert_eq!(shard.chosen("a", publisher), chosen);
        *shares.entry(format!("{chosen:?}")).or_default() += 1;
    }
    let mut counts: Vec<_> = shares.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts.len(), 4);
    assert!(counts[0] > 60, "{counts:?}");
    assert!(counts[3] > 240, "{counts:?}");
}

#[test]
fn hash_topic_gives_a_topic_one_member() {
    let mut shard = Shard::new(Strategy::HashTopic);
    for client in 1..=3 {
        shard.subscribe(client, "$share/g/+", QOS0);
    }
    let members: Vec<_> = (0..50)
        .map(|number| shard.sequence(&format!("topic{number}"), 3))
        .collect();
    for member in &members {
        assert!(member.bytes().all(|digit| digit == member.as_bytes()[0]));
    }
    assert!(members.iter().any(|member| *member != members[0]));
}

#[test]
fn random_reaches_everybody() {
    let mut shard = Shard::new(Strategy::Random);
    shard.subscribe(1, "$share/g/a", QOS0);
    shard.subscribe(2, "$share/g/a", QOS0);
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 1, 0, false));
    let mut seen = BTreeMap::new();
    for rng in 0..300 {
        let chosen = shard.chosen(
            "a",
            Publisher {
                rng,
                ..Publisher::default()
            },
        );
        *seen.entry(format!("{chosen:?}")).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3);
    assert!(seen.values().all(|messages| *messages > 60), "{seen:?}");
}

#[test]
fn local_first_leaves_this_shard_only_when_nobody_is_here() {
    let mut shard = Shard::new(Strategy::LocalFirst);
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 2, 0, false));
    shard.subscribe(1, "$share/g/a", QOS0);
    shard.subscribe(2, "$share/g/a", QOS0);
    assert_eq!(shard.sequence("a", 4), "1212");
    shard.client(1, true, false);
    shard.unsubscribe(2, "$share/g/a");
    assert_eq!(shard.sequence("a", 2), "BB");
}

#[test]
fn a_group_can_have_its_own_strategy() {
    let mut shard = Shard::new(Strategy::RoundRobin);
    shard
        .partition
        .set_group_strategy("later", Strategy::Sticky);
    for client in 1..=2 {
        shard.subscribe(client, "$share/later/a", QOS0);
        shard.subscribe(client, "$share/now/b", QOS0);
    }
    assert_eq!(shard.sequence("a", 3), "111");
    assert_eq!(shard.sequence("b", 3), "121");
    shard.partition.set_group_strategy("now", Strategy::Sticky);
    assert_eq!(shard.sequence("b", 3), "111");
}

/// From all lanes.
fn choose_member(of: &mut Partition, filter: &str, except: &[ClientKey]) -> Option<Choice> {
    of.choose_member(filter, Publisher::default(), topic("a"), except, u64::MAX)
}

#[test]
fn a_choice_for_another_shard_prefers_members_here() {
    let mut shard = Shard::new(Strategy::RoundRobin);
    shard.client(3, true, false);
    for client in 1..=3 {
        shard.subscribe(client, "$share/g/a", QOS1);
    }
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 5, 0, false));
    let mut choose =
        |except: &[ClientKey]| choose_member(&mut shard.partition, "$share/g/a", except);
    let local = |client, online| {
        Some(Choice::Local {
            client: ClientKey(client),
            sub: QOS1,
            online,
        })
    };
    assert_eq!(choose(&[]), local(1, true));
    assert_eq!(choose(&[]), local(2, true));
    assert_eq!(choose(&[ClientKey(1)]), local(2, true));
    assert_eq!(
        choose(&[ClientKey(1), ClientKey(2)]),
        Some(Choice::Shard {
            shard: B,
            persistent: false
        })
    );
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 0, 5, false));
    let mut choose =
        |except: &[ClientKey]| choose_member(&mut shard.partition, "$share/g/a", except);
    assert_eq!(choose(&[ClientKey(1), ClientKey(2)]), local(3, false));
    let all = [ClientKey(1), ClientKey(2), ClientKey(3)];
    assert_eq!(
        choose(&all),
        Some(Choice::Shard {
            shard: B,
            persistent: false
        })
    );
    shard
        .partition
        .apply_interest(B, &group("$share/g/a", 0, 0, false));
    assert_eq!(
        choose_member(&mut shard.partition, "$share/g/a", &all),
        None
    );
    assert_eq!(choose_member(&mut shard.partition, "$share/h/a", &[]), None);
}

#[test]
fn identifiers_of_many_overlapping_filters_are_gathered_in_linear_time() {
    let mut shard = Shard::new(Strategy::default());
    let mut filters = vec![String::new()];
    for _ in 0..12 {
        filters = filters
            .iter()
            .flat_map(|text| [format!("{text}/+"), format!("{text}/a")])
            .collect();
    }
    for client in [1, 2] {
        for (number, text) in filters.iter().enumerate() {
            shard.subscribe(
                client,
                text,
                Subscription {
                    id: id(number as u32 + 1),
                    ..QOS0
                },
            );
        }
    }
    let matches = shard.publish("/a/a/a/a/a/a/a/a/a/a/a/a");
    assert_eq!(matches.hits.len(), 2);
    for hit in &matches.hits {
        assert_eq!(matches.subscription_ids(hit).len(), 4096);
    }
}

/// A naive partition: a list of everything.
struct Model {
    subs: BTreeMap<(u32, String), Subscription>,
    persistent: [bool; CLIENTS],
    online: [bool; CLIENTS],
    remotes: BTreeMap<(u8, String), Want>,
}

const CLIENTS: usize = 60;

impl Model {
    fn want(&self, text: &str) -> Want {
        let of_filter = || {
            self.subs
                .iter()
                .filter(|((_, filter), _)| filter == text)
                .map(|((c, _), sub)| (*c, sub))
        };
        let persistent =
            of_filter().any(|(c, sub)| self.persistent[c as usize] && sub.qos != QoS::AtMostOnce);
        if filter(text).group().is_none() {
            return Want::Plain {
                any: of_filter().count() > 0,
                persistent,
            };
        }
        let online = of_filter()
            .filter(|(c, _)| self.online[*c as usize])
            .count() as u32;
        Want::Group {
            online,
            offline: of_filter().count() as u32 - online,
            persistent,
        }
    }
}

/// Random calls against the model; what other shards know is put together from the changes alone.
fn run(seed: u64, steps: u32) {
    let mut random = seed;
    let mut draw = |below: u64| {
        random = mix(random.wrapping_add(1));
        random % below
    };
    let mut shard = Shard::new(Strategy::RoundRobin);
    let mut model = Model {
        subs: BTreeMap::new(),
        persistent: [false; CLIENTS],
        online: [true; CLIENTS],
        remotes: BTreeMap::new(),
    };
    let mut told: BTreeMap<String, Want> = BTreeMap::new();
    for client in 0..CLIENTS {
        shard.client(client as u32, false, true);
    }
    let levels = ["a", "b", "", "+", "$s"];
    for step in 0..steps {
        let mut text: Vec<&str> = (0..=draw(3)).map(|_| levels[draw(5) as usize]).collect();
        if draw(4) == 0 {
            text.push("#");
        }
        let mut text = text.join("/");
        if draw(4) == 0 {
            text = format!("$share/{}/{text}", ["g", "h"][draw(2) as usize]);
        }
        // Few clients and filters some of the time, so that lists get long and short.
        let clients = if draw(3) == 0 { 2 } else { CLIENTS as u64 };
        let client = draw(clients) as u32;
        let Ok(parsed) = TopicFilter::parse(&text) else {
            continue;
        };
        match draw(20) {
            0 => {
                let (persistent, online) = (draw(2) == 0, draw(2) == 0);
                model.persistent[client as usize] = persistent;
                model.online[client as usize] = online;
                shard.client(client, persistent, online);
            }
            1 if draw(3) == 0 => {
                model.subs.retain(|(owner, _), _| *owner != client);
                model.persistent[client as usize] = false;
                model.online[client as usize] = true;
                shard
                    .partition
                    .remove_client(ClientKey(client), &mut shard.changes);
                shard.client(client, false, true);
            }
            2..=6 => {
                let existed = model.subs.remove(&(client, text.clone())).is_some();
                assert_eq!(
                    shard.unsubscribe(client, &text),
                    existed,
                    "seed {seed} step {step}"
                );
            }
            7 | 8 => {
                let from = 1 + draw(3) as u8;
                let want = if parsed.group().is_some() {
                    Want::Group {
                        online: draw(2) as u32,
                        offline: draw(2) as u32,
                        persistent: draw(2) == 0,
                    }
                } else {
                    let any = draw(2) == 0;
                    Want::Plain {
                        any,
                        persistent: any && draw(2) == 0,
                    }
                };
                shard.partition.apply_interest(
                    ShardId(from),
                    &Interest {
                        filter: text.as_str().into(),
                        want,
                    },
                );
                model.remotes.insert((from, text.clone()), want);
            }
            _ => {
                let sub = Subscription {
                    qos: QoS::from_bits(draw(3) as u8).expect("a QoS"),
                    no_local: parsed.group().is_none() && draw(4) == 0,
                    retain_as_published: draw(4) == 0,
                    id: id(draw(4) as u32),
                };
                let new = model.subs.insert((client, text.clone()), sub).is_none();
                assert_eq!(
                    shard.subscribe(client, &text, sub),
                    new,
                    "seed {seed} step {step}"
                );
            }
        }
        for Interest { filter, want } in shard.changes() {
            assert_ne!(
                told.insert(filter.to_string(), want),
                Some(want),
                "seed {seed} step {step}: told twice"
            );
        }
        if step % 16 == 0 {
            for (text, want) in &told {
                assert_eq!(*want, model.want(text), "seed {seed} step {step} {text}");
            }
            assert_eq!(shard.partition.len(), model.subs.len());
        }
        let name: Vec<&str> = (0..=draw(4))
            .map(|_| ["a", "b", "", "$s"][draw(4) as usize])
            .collect();
        let name = name.join("/");
        if name.is_empty() {
            continue;
        }
        let publisher = draw(CLIENTS as u64) as u32;
        check(
            &mut shard,
            &model,
            &name,
            publisher,
            &format!("seed {seed} step {step} {name}"),
        );
    }
    for client in 0..CLIENTS as u32 {
        let mut listed: Vec<_> = shard
            .partition
            .subscriptions(ClientKey(client))
            .map(|(f, s)| (f.to_owned(), s))
            .collect();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let modelled: Vec<_> = model
            .subs
            .iter()
            .filter(|((owner, _), _)| *owner == client)
            .map(|((_, filter), sub)| (filter.clone(), *sub))
            .collect();
        assert_eq!(listed, modelled, "seed {seed}");
    }
}

fn check(shard: &mut Shard, model: &Model, name: &str, publisher: u32, context: &str) {
    let own = Publisher {
        client: Some(ClientKey(publisher)),
        ..Publisher::default()
    };
    let found = shard.publish_from(name, own);
    let mut expected: BTreeMap<u32, (QoS, bool, Vec<u32>)> = BTreeMap::new();
    let mut groups: Vec<String> = Vec::new();
    for ((client, text), sub) in &model.subs {
        if !filter(text).matches(topic(name)) {
            continue;
        }
        if filter(text).group().is_some() {
            groups.push(text.clone());
        } else if !(sub.no_local && *client == publisher) {
            let hit = expected.entry(*client).or_default();
            hit.0 = hit.0.max(sub.qos);
            hit.1 |= sub.retain_as_published;
            hit.2.extend(sub.id.map(NonZeroU32::get));
        }
    }
    let (mut shards, mut persistent_shards) = (0, 0);
    for ((from, text), want) in &model.remotes {
        if !filter(text).matches(topic(name)) {
            continue;
        }
        match want {
            Want::Plain { any, persistent } => {
                shards |= u64::from(*any) << from;
                persistent_shards |= u64::from(*persistent) << from;
            }
            Want::Group {
                online: 0,
                offline: 0,
                ..
            } => {}
            Want::Group { .. } => groups.push(text.clone()),
        }
    }
    for (_, _, ids) in expected.values_mut() {
        ids.sort_unstable();
    }
    groups.sort_unstable();
    groups.dedup();

    assert_eq!(
        found.hits.len(),
        expected.len(),
        "{context}: a client was hit twice or not at all"
    );
    for hit in &found.hits {
        let mut ids = found.subscription_ids(hit).to_vec();
        ids.sort_unstable();
        let seen = (hit.qos, hit.retain_as_published, ids);
        assert_eq!(
            Some(&seen),
            expected.get(&hit.client.0),
            "{context} client {:?}",
            hit.client
        );
    }
    assert_eq!(
        (found.shards, found.shards_persistent),
        (shards, persistent_shards),
        "{context}"
    );
    let mut found_groups: Vec<_> = found
        .groups
        .iter()
        .map(|hit| hit.filter.to_string())
        .collect();
    found_groups.sort_unstable();
    assert_eq!(found_groups, groups, "{context}");
    for hit in &found.groups {
        let text = hit.filter.to_string();
        let somebody_online = model.remotes.iter().any(|((_, filter), want)| {
            *filter == text && matches!(want, Want::Group { online: 1.., .. })
        }) || matches!(model.want(&text), Want::Group { online: 1.., .. });
        match hit.choice {
            Choice::Local {
                client,
                sub,
                online,
            } => {
                assert_eq!(model.subs.get(&(client.0, text)), Some(&sub), "{context}");
                assert_eq!(online, model.online[client.0 as usize], "{context}");
                assert_eq!(online, somebody_online, "{context}");
            }
            Choice::Shard { shard, persistent } => {
                let Some(Want::Group {
                    online,
                    offline,
                    persistent: told,
                }) = model.remotes.get(&(shard.0, text))
                else {
                    panic!("{context}: chose a shard without members");
                };
                assert!(
                    if somebody_online {
                        *online > 0
                    } else {
                        *offline > 0
                    },
                    "{context}"
                );
                assert_eq!(persistent, *told, "{context}");
            }
        }
    }
}

#[test]
fn random_calls_agree_with_a_naive_list_of_filters() {
    for seed in 0..20 {
        run(seed, 1_500);
    }
}

#[test]
fn a_client_leaves_its_groups_first_and_keeps_the_rest() {
    let (mut partition, mut changes) = (
        Partition::new(ShardId(0), 1, 7, Strategy::RoundRobin),
        Vec::new(),
    );
    let client = ClientKey(3);
    partition.client_changed(client, true, true, &mut changes);
    let sub = Subscription {
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        id: None,
    };
    let filters = ["a", "$share/g/a", "b/+", "$share/g/b", "$share/h/b", "c"];
    for filter in filters {
        let filter = TopicFilter::parse(filter).expect("a filter");
        partition.subscribe(client, filter, sub, &mut changes);
    }
    assert!(!partition.leave_groups_step(client, 2, &mut changes));
    assert_eq!(partition.subscription_count(client), 4);
    assert!(partition.leave_groups_step(client, 2, &mut changes));
    assert!(partition.leave_groups_step(client, 2, &mut changes));
    let mut left: Vec<_> = partition
        .subscriptions(client)
        .map(|(filter, _)| filter.to_owned())
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["a", "b/+", "c"]);
    for filter in filters {
        let filter = TopicFilter::parse(filter).expect("a filter");
        let is_plain = !filter.is_shared();
        assert_eq!(partition.is_subscribed(client, filter), is_plain);
        assert_eq!(
            partition.unsubscribe(client, filter, &mut changes),
            is_plain
        );
    }
    assert!(partition.is_empty());
}
