# SPDX-License-Identifier: Apache-2.0
"""What the broker says of itself below `$SYS/`."""

import time

import pytest

from harness import V5, Deadline
from harness.client import World
from harness.wire import PUBACK, publish

TREE = """
version time uptime started load/bytes/received load/bytes/sent clients/connected clients/disconnected clients/maximum
clients/total packets/received packets/sent messages/received messages/sent messages/dropped messages/inflight retained
subscriptions system/memory system/threads
""".split()
OF_SHARD = """
load/bytes/received load/bytes/sent clients/connected clients/total packets/received packets/sent messages/received
messages/sent messages/dropped messages/inflight retained subscriptions
""".split()
PREFIX = "$SYS/broker/"


def tree(shards):
    return {PREFIX + topic for topic in TREE} | {
        f"{PREFIX}shards/{shard}/{topic}" for shard in range(shards) for topic in OF_SHARD
    }


@pytest.fixture
def own(spawn, version):
    """Clients of each version at a broker of two shards that updates `$SYS` every second."""
    world = World(spawn(shards=2, conf="mqtt:\n  options:\n    sys-topic-resend-interval: 1\n"), version)
    yield world
    world.close()


def test_the_whole_tree_is_retained_from_the_start(spawn, version):
    """Readable at once, though the next update is a day away."""
    broker = spawn(shards=3, conf="mqtt:\n  options:\n    sys-topic-resend-interval: 1d\n")
    world = World(broker, version)
    reader = world.connect()
    reader.subscribe("$SYS/#")
    expected = tree(3)
    found = {each.topic: each for each in reader.receive(len(expected))}
    assert found.keys() == expected
    assert all(each.retain for each in found.values())
    values = {topic.removeprefix(PREFIX): each.payload.decode() for topic, each in found.items()}
    assert values.pop("version").count(".") == 2
    assert all(value.isdigit() for value in values.values()), values
    assert abs(int(values["time"]) - time.time()) < 60
    assert int(values["system/threads"]) >= 5
    assert reader.fence(reader) == []
    world.close()


def test_values_are_published_anew_at_the_interval(own):
    reader = own.connect()
    reader.subscribe(PREFIX + "uptime")
    seen = [int(each.payload) for each in reader.receive(3)]
    assert seen == sorted(seen)
    assert seen[2] > seen[0]


def test_numbers_follow_what_happens(own):
    reader, publisher = own.connect(), own.connect()
    reader.subscribe(PREFIX + "messages/received", PREFIX + "clients/connected", PREFIX + "retained")
    for _ in range(5):
        publisher.publish(own.topic("a"), b"x", 1, retain=True)
    wanted = {"messages/received": "5", "clients/connected": "2", "retained": "1"}
    found, deadline = {}, Deadline(f"$SYS says {wanted}")
    while found != wanted:
        message = reader.receive(seconds=deadline.left())
        found[message.topic.removeprefix(PREFIX)] = message.payload.decode()


def test_wildcards_of_the_first_level_do_not_match(own):
    """[MQTT-4.7.2-1] [MQTT5-4.7.2-1]"""
    reader, witness = own.connect(), own.connect()
    reader.subscribe("#", "+/broker/uptime", "+/#")
    witness.subscribe(PREFIX + "uptime")
    # two updates went by
    witness.receive(3)
    assert [each for each in reader.fence(witness) if each.topic.startswith("$")] == []


def test_clients_cannot_publish_there(own, wire):
    client = wire(own.version, own.broker)
    client.connect()
    names = (PREFIX + "version", "$SYS/broker/shards/0/retained", "$SYS")
    for pid, name in enumerate(names, 1):
        client.send(publish(own.version, name, b"forged", qos=1, pid=pid, retain=True))
        ack = client.expect(PUBACK)
        assert ack.pid == pid
        assert ack.reason == (0x87 if own.version == V5 else 0)
    # QoS 0 has no answer, and an empty payload would delete
    client.send(publish(own.version, PREFIX + "version", b"", retain=True))
    client.expect_alive()
    reader = own.connect()
    reader.subscribe(PREFIX + "version", "$SYS")
    assert reader.receive().payload != b"forged"
    assert [each for each in reader.fence(reader) if each.topic == "$SYS"] == []


def test_a_session_keeps_its_subscription_to_it(own):
    sleeper = own.connect(clean=False)
    sleeper.subscribe(PREFIX + "uptime")
    sleeper.receive()
    sleeper.disconnect()
    woken = own.connect(sleeper.id, clean=False)
    assert woken.receive().topic == PREFIX + "uptime"
