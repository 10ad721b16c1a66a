# SPDX-License-Identifier: Apache-2.0
"""Messages between the nodes of a cluster."""

import pytest

from harness import V5
from harness.client import World


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_reaches_subscribers_of_every_node(worlds, qos):
    topic = worlds[0].topic("a")
    subscribers = [world.connect() for world in worlds]
    for subscriber in subscribers:
        subscriber.subscribe(topic, qos=qos)
    for number, world in enumerate(worlds):
        publisher = world.connect()
        publisher.publish(topic, b"%d" % number, qos)
        for subscriber in subscribers:
            message = subscriber.receive()
            assert (message.payload, message.qos) == (b"%d" % number, qos)


def test_messages_of_one_publisher_stay_in_order(worlds):
    topic = worlds[0].topic("a")
    subscriber = worlds[1].connect()
    subscriber.subscribe(topic, qos=1)
    publisher = worlds[2].connect()
    for number in range(500):
        publisher.send(topic, b"%d" % number, qos=1)
    got = [int(message.payload) for message in subscriber.receive(500)]
    assert got == list(range(500))


def test_a_shared_group_with_members_on_every_node_gets_each_message_once(worlds):
    topic = worlds[0].topic("a")
    members = [world.connect() for world in worlds]
    for member in members:
        member.subscribe(f"$share/g/{topic}", qos=1)
    everybody = worlds[0].connect()
    everybody.subscribe(topic, qos=1)
    for number in range(60):
        worlds[number % 3].connect().publish(topic, b"%d" % number, qos=1)
    everybody.receive(60)
    loop = worlds[0].loop
    loop.until(lambda: sum(len(member.inbox) for member in members) >= 60, "60 messages for the group")
    payloads = [int(message.payload) for member in members for message in member.inbox]
    assert sorted(payloads) == list(range(60))
    assert all(member.inbox for member in members)


def test_what_the_broker_says_of_itself_stays_on_its_node(worlds):
    watchers = [world.connect() for world in worlds]
    for watcher in watchers:
        watcher.subscribe("$SYS/broker/uptime")
    for watcher in watchers:
        # nodes have not run for the same time
        seconds = [int(message.payload) for message in watcher.receive(4)]
        assert seconds == sorted(seconds)


def test_a_node_that_was_killed_comes_back(cluster, worlds):
    topic = worlds[0].topic("a")
    near = worlds[1].connect()
    near.subscribe(topic, qos=1)
    cluster.nodes[2].kill()
    publisher = worlds[0].connect()
    # what goes to others does not wait for it
    assert publisher.publish(topic, b"without it", qos=1) == 0
    assert near.receive().payload == b"without it"
    cluster.nodes[2] = cluster.spawn(2)
    again = World(cluster.nodes[2], V5)
    again.loop = worlds[0].loop
    worlds.append(again)
    far = again.connect()
    far.subscribe(topic, qos=1)
    assert publisher.publish(topic, b"with it", qos=1) == 0
    assert far.receive().payload == b"with it"
    again.connect().publish(topic, b"from it", qos=1)
    assert [near.receive().payload for _ in range(2)] == [b"with it", b"from it"]


def test_a_name_that_another_node_has_is_refused(cluster):
    with pytest.raises(AssertionError) as error:
        cluster.spawn(3, name="node2")
    text = str(error.value)
    assert "the broker stops, because this node is not in the cluster" in text, text
    assert "node2" in text
