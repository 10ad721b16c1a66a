# SPDX-License-Identifier: Apache-2.0
"""Shared subscriptions: each message to one member of each group."""

import pytest

from harness import V5, unique
from harness.client import World
from harness.wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, disconnect, persistent, properties


def shared(mqtt, group="g", *levels):
    return f"$share/{group}/{mqtt.topic(*levels)}"


@pytest.mark.parametrize("qos", (0, 1, 2))
def test_messages_are_spread_over_the_group(mqtt, qos):
    """Every message once, every member some."""
    count = 120
    members, publisher = [mqtt.connect() for _ in range(4)], mqtt.connect()
    for member in members:
        assert member.subscribe(shared(mqtt), qos=qos) == [qos]
    for number in range(count):
        publisher.send(mqtt.topic(), str(number).encode(), qos)
    got = [[int(each.payload) for each in member.fence(publisher)] for member in members]
    assert sorted(number for each in got for number in each) == list(range(count))
    assert all(got), "a member got nothing"
    assert all(each == sorted(each) for each in got), "[MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT5-4.6.0-5]"


STRATEGIES = ("round-robin", "random", "sticky", "hash-client", "hash-topic", "local-first")


@pytest.fixture
def strategic(spawn):
    """Groups that are named as their strategies; the others are sticky."""
    groups = "".join(f"      {name}: {name}\n" for name in STRATEGIES)
    world = World(spawn(shards=4, conf=f"mqtt:\n  shared:\n    strategy: sticky\n    groups:\n{groups}"), V5)
    yield world
    world.close()


@pytest.mark.parametrize("group", (*STRATEGIES, "another"))
def test_strategy_of_the_broker_and_of_a_group(strategic, group):
    """Three members; sixteen publishers, each with a message to each of thirty topics."""
    members, publishers = ([strategic.connect() for _ in range(count)] for count in (3, 16))
    for member in members:
        member.subscribe(shared(strategic, group, "+"), qos=1)
    topics = [strategic.topic(str(number)) for number in range(30)]
    sent = [(f"{index} {topic}", topic, publisher) for topic in topics for index, publisher in enumerate(publishers)]
    for text, topic, publisher in sent:
        publisher.publish(topic, text.encode(), 1)
    got = [[each.payload.decode() for each in member.fence(publishers[0])] for member in members]
    assert sorted(text for texts in got for text in texts) == sorted(text for text, _, _ in sent)
    if group in ("sticky", "another"):
        assert sorted(map(len, got)) == [0, 0, len(sent)]
        return
    # where each client lives and what its hash is, is drawn anew
    assert len([texts for texts in got if texts]) > 1, "one member got everything"
    if group in ("round-robin", "random"):
        assert all(got), "a member got nothing"
    if group == "round-robin":
        # exact for what one shard publishes
        assert max(map(len, got)) - min(map(len, got)) <= 4
    # who published, or where to, decides alone
    kinds = {"hash-client": 0, "hash-topic": 1}
    if group in kinds:
        of_members = [{text.split()[kinds[group]] for text in texts} for texts in got]
        assert sum(map(len, of_members)) == len(set().union(*of_members)), "two members have the same"


def test_each_group_gets_its_copy(mqtt):
    one, other, plain, publisher = (mqtt.connect() for _ in range(4))
    one.subscribe(shared(mqtt, "one"), qos=1)
    other.subscribe(shared(mqtt, "other"), qos=1)
    plain.subscribe(mqtt.topic(), qos=1)
    publisher.publish(mqtt.topic(), b"x", 1)
    for client in (one, other, plain):
        assert [each.payload for each in client.fence(publisher)] == [b"x"]


def test_versions_share_a_group(mqtt):
    members = [mqtt.connect(version=version) for version in (3, 4, 5)]
    for member in members:
        member.subscribe(shared(mqtt), qos=1)
    publisher = mqtt.connect()
    for number in range(60):
        publisher.send(mqtt.topic(), str(number).encode(), 1)
    got = [[int(each.payload) for each in member.fence(publisher)] for member in members]
    assert sorted(number for each in got for number in each) == list(range(60))
    assert all(got)


def test_wildcards_in_a_shared_filter(mqtt):
    members, publisher = [mqtt.connect() for _ in range(2)], mqtt.connect()
    for member in members:
        member.subscribe(shared(mqtt, "g", "+", "#"), qos=1)
    for number in range(10):
        publisher.publish(mqtt.topic("a", str(number)), b"x", 1)
    assert sum(len(member.fence(publisher)) for member in members) == 10


def test_qos_of_the_members_own_subscription_holds(mqtt):
    """[MQTT5-4.8.2-3]"""
    member, publisher = mqtt.connect(), mqtt.connect()
    member.subscribe(shared(mqtt), qos=1)
    publisher.publish(mqtt.topic(), b"x", 2)
    assert member.receive().qos == 1


def test_no_retained_messages_for_shared_subscriptions(mqtt):
    publisher, member = mqtt.connect(), mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", 1, retain=True)
    member.subscribe(shared(mqtt), qos=1)
    assert member.fence(publisher) == []


def test_member_who_unsubscribes_gets_no_more(mqtt):
    leaving, staying, publisher = (mqtt.connect() for _ in range(3))
    for member in (leaving, staying):
        member.subscribe(shared(mqtt), qos=1)
    leaving.unsubscribe(shared(mqtt))
    for number in range(10):
        publisher.publish(mqtt.topic(), str(number).encode(), 1)
    assert leaving.fence(publisher) == []
    assert len(staying.fence(publisher)) == 10


def test_member_who_disconnects_gets_no_more(mqtt):
    leaving, staying, publisher = (mqtt.connect() for _ in range(3))
    for member in (leaving, staying):
        member.subscribe(shared(mqtt), qos=1)
    leaving.disconnect()
    mqtt.connect(leaving.id)
    for number in range(10):
        publisher.publish(mqtt.topic(), str(number).encode(), 1)
    assert len(staying.fence(publisher)) == 10


def test_unacked_messages_go_to_another_member(broker, wire, mqtt, version):
    """A member whose session ends gives back what it has not acknowledged: nothing is lost."""
    topic = mqtt.topic()
    lazy, publisher = wire(version), mqtt.connect()
    lazy.connect(block=properties(receive_maximum=3) if version == V5 else None)
    lazy.subscribe(f"$share/g/{topic}", 1)
    for number in range(20):
        publisher.publish(topic, str(number).encode(), 1)
    lazy.expect_message(acknowledge=False)
    heir = mqtt.connect()
    heir.subscribe(f"$share/g/{topic}", qos=1)
    lazy.close()
    assert sorted(int(each.payload) for each in heir.receive(20)) == list(range(20))
    assert heir.fence(publisher) == []


# how far a delivery at QoS 2 has come when its member goes
STARTED = ("published", "released")


def start_delivery(member, publisher, topic, version, step, **session):
    """Connects the group's only member and begins a delivery at QoS 2 to it; answers the PUBLISH."""
    member.connect(**session)
    member.subscribe(f"$share/g/{topic}", 2)
    publisher.publish(topic, b"begun", 2)
    begun = member.expect_message(acknowledge=False)
    assert (begun.payload, begun.qos) == (b"begun", 2)
    if step == "released":
        member.send(ack(PUBREC, begun.pid))
        assert member.expect(PUBREL).pid == begun.pid
    return begun


@pytest.mark.parametrize("step", STARTED)
def test_started_qos2_is_completed_with_its_member(wire, mqtt, version, step):
    """[MQTT5-4.8.2-4]: no other member gets it while its own is away, nor afterwards."""
    topic, client_id = mqtt.topic(), unique("w")
    publisher, member = mqtt.connect(), wire(version)
    begun = start_delivery(member, publisher, topic, version, step, client_id=client_id, **persistent(version))
    others = [mqtt.connect() for _ in range(3)]
    for other in others:
        other.subscribe(f"$share/g/{topic}", qos=2)
    member.send(disconnect(version))
    member.expect_closed()
    for _ in others:
        publisher.publish(topic, b"meanwhile", 2)
    meanwhile = [each.payload for other in others for each in other.fence(publisher)]
    assert meanwhile == [b"meanwhile"] * 3, "the others are served, and not with what was begun"

    again = wire(version)
    assert again.connect(client_id, **persistent(version)).resumed
    if step == "published":
        repeated = again.expect(PUBLISH)
        assert (repeated.payload, repeated.pid, repeated.dup) == (b"begun", begun.pid, True)
        again.send(ack(PUBREC, begun.pid))
    assert again.expect(PUBREL).pid == begun.pid
    again.send(ack(PUBCOMP, begun.pid))
    again.expect_alive()
    # by way of the member's own shard, which would have been the one to pass it on
    assert [other.fence(again) for other in others] == [[], [], []]


@pytest.mark.parametrize("step", STARTED)
def test_started_qos2_ends_with_its_members_session(wire, mqtt, version, step):
    """[MQTT5-4.8.2-5]: it goes to nobody else."""
    topic, client_id = mqtt.topic(), unique("w")
    publisher, member = mqtt.connect(), wire(version)
    start_delivery(member, publisher, topic, version, step, client_id=client_id)
    others = [mqtt.connect() for _ in range(3)]
    for other in others:
        other.subscribe(f"$share/g/{topic}", qos=2)
    member.close()
    # whoever connects with the id comes after the session's end, and to the shard that would have passed it on
    successor = mqtt.connect(client_id)
    assert [other.fence(successor) for other in others] == [[], [], []]
    assert successor.fence(publisher) == []


@pytest.mark.parametrize("ending", ["dropped", "disconnected", "expired", "cleaned"])
def test_unacked_qos1_goes_on_when_its_members_session_ends(wire, mqtt, version, ending):
    """While the session lasts, it stays with its member; then it is new to another one, once."""
    if ending == "expired" and version != V5:
        pytest.skip("only 5.0 ends a session so")
    topic, client_id = mqtt.topic(), unique("w")
    publisher, member = mqtt.connect(), wire(version)
    kept = ending in ("expired", "cleaned")
    member.connect(client_id, **(persistent(version) if kept else {}))
    member.subscribe(f"$share/g/{topic}", 1)
    publisher.publish(topic, b"x", 1)
    member.expect_message(acknowledge=False)
    others = [mqtt.connect() for _ in range(3)]
    for other in others:
        other.subscribe(f"$share/g/{topic}", qos=1)
    if ending == "expired":
        member.send(disconnect(version, 0, properties(session_expiry=0)))
    elif ending != "dropped":
        member.send(disconnect(version))
    if ending != "dropped":
        member.expect_closed()
    member.close()
    if ending == "cleaned":
        assert [other.fence(publisher) for other in others] == [[], [], []]
    # whoever connects with the id comes after the session's end, and to the shard that passes the message on
    successor = mqtt.connect(client_id)
    got = [each for other in others for each in other.fence(successor)]
    assert [(each.payload, each.qos, each.dup) for each in got] == [(b"x", 1, False)]
    assert successor.fence(publisher) == []


def test_unacked_qos1_comes_again_to_its_member(wire, mqtt, version):
    """A member that is only away keeps what was sent to it."""
    topic, client_id = mqtt.topic(), unique("w")
    publisher, member, other = mqtt.connect(), wire(version), mqtt.connect()
    member.connect(client_id, **persistent(version))
    member.subscribe(f"$share/g/{topic}", 1)
    publisher.publish(topic, b"x", 1)
    first = member.expect_message(acknowledge=False)
    other.subscribe(f"$share/g/{topic}", qos=1)
    member.close()
    again = wire(version)
    assert again.connect(client_id, **persistent(version)).resumed
    second = again.expect(PUBLISH)
    assert (second.payload, second.pid, second.dup) == (b"x", first.pid, True)
    again.send(ack(PUBACK, second.pid))
    again.expect_alive()
    assert other.fence(again) == []


class Crowd:
    """Forty members of one group, so that each of a few shards has some, and publishers of 200 messages each."""

    def __init__(self, mqtt, publishers):
        self.topic, self.marker = mqtt.topic("in-turn"), mqtt.topic("marker")
        self.members = [mqtt.connect() for _ in range(40)]
        self.publishers = [mqtt.connect() for _ in range(publishers)]
        for member in self.members:
            # a marker to all of them tells where a publisher's messages end, at any member
            assert member.subscribe((f"$share/g/{self.topic}", 1), (self.marker, 1)) == [1, 1]

    def until_marker(self, *publishers):
        """What each member got before the markers that these publishers send now."""
        for publisher in publishers:
            publisher.publish(self.marker, qos=1)
        got = []
        for member in self.members:
            numbers, left = [], len(publishers)
            while left > 0:
                message = member.receive()
                if message.topic == self.marker:
                    left -= 1
                else:
                    numbers.append(int(message.payload))
            got.append(numbers)
        return got


def test_a_thousand_messages_in_turn(mqtt):
    """Each message once, and each member as many from each publisher."""
    crowd = Crowd(mqtt, publishers=5)
    for index, publisher in enumerate(crowd.publishers):
        numbers = range(index * 200, (index + 1) * 200)
        for number in numbers:
            publisher.send(crowd.topic, str(number).encode(), 1)
        # one publisher after the other: the turn is a shard's, and publishers that share it would mix
        got = crowd.until_marker(publisher)
        assert sorted(number for each in got for number in each) == list(numbers)
        assert {len(each) for each in got} == {5}
        assert all(each == sorted(each) for each in got)


def test_publishers_at_once_load_the_members_equally(mqtt):
    """Whatever order their thousand messages come in: each message once, and each member as many."""
    crowd = Crowd(mqtt, publishers=5)
    for number in range(1000):
        crowd.publishers[number % 5].send(crowd.topic, str(number).encode(), 1)
    got = crowd.until_marker(*crowd.publishers)
    assert sorted(number for each in got for number in each) == list(range(1000))
    assert {len(each) for each in got} == {25}


def test_sleeping_members_get_nothing_while_others_are_awake(mqtt):
    sleeper = mqtt.connect(clean=False)
    awake, publisher = mqtt.connect(), mqtt.connect()
    for member in (sleeper, awake):
        member.subscribe(shared(mqtt), qos=1)
    sleeper.disconnect()
    for number in range(10):
        publisher.publish(mqtt.topic(), str(number).encode(), 1)
    assert len(awake.fence(publisher)) == 10
    assert mqtt.connect(sleeper.id, clean=False).fence(publisher) == []


def test_group_that_sleeps_as_a_whole_keeps_its_messages(mqtt):
    sleepers, publisher = [mqtt.connect(clean=False) for _ in range(2)], mqtt.connect()
    for member in sleepers:
        member.subscribe(shared(mqtt), qos=1)
    for member in sleepers:
        member.disconnect()
    for number in range(10):
        publisher.publish(mqtt.topic(), str(number).encode(), 1)
    woken = [mqtt.connect(member.id, clean=False) for member in sleepers]
    got = [int(each.payload) for member in woken for each in member.fence(publisher)]
    assert sorted(got) == list(range(10))


def test_shared_beside_plain_subscription_of_one_client(mqtt):
    """Two subscriptions, two reasons to get it."""
    client, publisher = mqtt.connect(), mqtt.connect()
    client.subscribe(mqtt.topic(), shared(mqtt), qos=1)
    publisher.publish(mqtt.topic(), b"x", 1)
    assert [each.payload for each in client.fence(publisher)] == [b"x", b"x"]


def test_copies_of_several_subscriptions_have_an_identifier_each(mqtt5):
    """[MQTT5-3.3.4-5]"""
    client, publisher = mqtt5.connect(), mqtt5.connect()
    client.subscribe(mqtt5.topic(), qos=1, identifier=1)
    client.subscribe(shared(mqtt5, "one"), qos=1, identifier=2)
    client.subscribe(shared(mqtt5, "two"), qos=1)
    publisher.publish(mqtt5.topic(), b"x", 1)
    found = [each.property("subscription_identifier") or [] for each in client.fence(publisher)]
    assert sorted(found) == [[], [1], [2]]


def test_subscription_identifier_of_the_member(mqtt5):
    """[MQTT5-3.3.4-3]"""
    member, publisher = mqtt5.connect(), mqtt5.connect()
    member.subscribe(shared(mqtt5), qos=1, identifier=11)
    publisher.publish(mqtt5.topic(), b"x", 1)
    assert member.receive().property("subscription_identifier") == [11]


def test_group_names_do_not_mix(mqtt):
    """Same filter, same group: one group. Another filter in a group of that name: another group."""
    a, b, publisher = (mqtt.connect() for _ in range(3))
    a.subscribe(shared(mqtt, "g", "a"), qos=1)
    b.subscribe(shared(mqtt, "g", "+"), qos=1)
    publisher.publish(mqtt.topic("a"), b"x", 1)
    assert len(a.fence(publisher)) == 1
    assert len(b.fence(publisher)) == 1


def test_publish_to_a_share_name_is_only_a_topic(mqtt5):
    """A `$share/` topic name is nobody's subscription to the topic behind it."""
    member, publisher = mqtt5.connect(), mqtt5.connect()
    member.subscribe(shared(mqtt5), qos=1)
    assert publisher.publish(f"$share/{unique()}", b"x", 1) in (0x10, 0x87, 0x90)
    assert member.fence(publisher) == []
