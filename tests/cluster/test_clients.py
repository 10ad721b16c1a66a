# SPDX-License-Identifier: Apache-2.0
"""Client ids that are connected to, or kept by, several nodes of a cluster."""

import pytest

from harness import V5, V311, Deadline, unique
from harness.wire import CONNACK, DISCONNECT, SUBACK, Wire, connect, disconnect, opened, persistent, properties, subscribe

TAKEN_OVER, UNAVAILABLE = 0x8E, 0x88


def let_in(node, name):
    """A persistent client, as soon as no other node holds its session; and whether it was resumed."""
    deadline = Deadline("the session is nobody's")
    while True:
        wire = Wire(node, V5)
        wire.send(connect(V5, name, **persistent(V5)))
        connack = wire.expect(CONNACK)
        if connack.reason == 0:
            return wire, connack
        assert connack.reason == UNAVAILABLE
        deadline.left()


def reason_of_connack(node, version, client_id, **settings):
    wire = Wire(node, version)
    wire.send(connect(version, client_id, **settings))
    return wire.expect(CONNACK).reason


def test_a_clean_client_that_comes_to_another_node_leaves_the_first(cluster):
    name = unique("c")
    first, _ = opened(cluster.nodes[0], V5, name)
    # a clean client is let in before the others know; behind SUBACK they do
    first.subscribe(unique("t/"))
    second, _ = opened(cluster.nodes[1], V5, name)
    assert first.expect(DISCONNECT).reason == TAKEN_OVER
    second.subscribe(unique("t/"))
    third, _ = opened(cluster.nodes[2], V5, name)
    assert second.expect(DISCONNECT).reason == TAKEN_OVER
    third.expect_alive()


@pytest.mark.parametrize("version", (V311, V5))
def test_a_session_is_held_by_the_node_that_has_it(cluster, version):
    name = unique("c")
    client, connack = opened(cluster.nodes[0], version, name, **persistent(version))
    assert not connack.resumed
    reason = reason_of_connack(cluster.nodes[1], version, name, **persistent(version))
    assert reason == (UNAVAILABLE if version == V5 else 3)
    # whoever is connected stays
    client.expect_alive()
    client.close()
    again, connack = opened(cluster.nodes[0], version, name, **persistent(version))
    assert connack.resumed
    again.expect_alive()


def test_a_clean_start_elsewhere_ends_the_session(cluster):
    name, topic = unique("c"), unique("t/")
    client, _ = opened(cluster.nodes[0], V5, name, **persistent(V5))
    client.subscribe(topic, 1)
    other, connack = opened(cluster.nodes[1], V5, name, **{**persistent(V5), "clean": True})
    assert not connack.resumed
    assert client.expect(DISCONNECT).reason == TAKEN_OVER
    other.expect_alive()
    # now it is the other node's
    assert reason_of_connack(cluster.nodes[0], V5, name, **persistent(V5)) == UNAVAILABLE


def test_a_session_that_has_ended_is_nobodys(cluster):
    name = unique("c")
    client, _ = opened(cluster.nodes[0], V5, name, **persistent(V5))
    client.send(disconnect(V5, 0, properties(session_expiry=0)))
    again, connack = let_in(cluster.nodes[2], name)
    assert not connack.resumed
    again.expect_alive()


def test_what_comes_behind_connect_is_not_forgotten(cluster):
    """CONNECT and more in one segment: nothing else would make the broker look at it."""
    name, topic = unique("c"), unique("t/")
    for node, settings in ((cluster.nodes[0], {}), (cluster.nodes[1], persistent(V5))):
        wire = Wire(node, V5)
        wire.send(connect(V5, name + str(len(settings)), **settings), subscribe(V5, 1, (topic, 1)))
        assert wire.expect(CONNACK).reason == 0
        assert wire.expect(SUBACK).codes == [1]


def test_a_session_goes_on_for_one_more_connection(cluster):
    """Clean Start 0 without an expiry interval: what waited is delivered, and then the session is over."""
    name, topic = unique("c"), unique("t/")
    client, _ = opened(cluster.nodes[1], V5, name, **persistent(V5))
    client.subscribe(topic, 1)
    client.close()
    publisher, _ = opened(cluster.nodes[1], V5, None)
    publisher.publish(topic, b"waits", qos=1)
    again, connack = opened(cluster.nodes[1], V5, name, clean=False)
    assert connack.resumed
    assert again.expect_message().payload == b"waits"
    again.expect_alive()
    again.close()
    assert not let_in(cluster.nodes[2], name)[1].resumed


def test_a_session_comes_back_to_a_node_that_lost_it_before(cluster):
    """What ended it once does not end it again, with the node's next start neither."""
    name, topic = unique("c"), unique("t/")
    first, _ = opened(cluster.nodes[2], V5, name, **persistent(V5))
    elsewhere, _ = opened(cluster.nodes[0], V5, name, **{**persistent(V5), "clean": True})
    assert first.expect(DISCONNECT).reason == TAKEN_OVER
    elsewhere.send(disconnect(V5, 0, properties(session_expiry=0)))
    back, connack = let_in(cluster.nodes[2], name)
    assert not connack.resumed
    back.subscribe(topic, 1)
    back.close()
    publisher, _ = opened(cluster.nodes[2], V5, None)
    publisher.publish(topic, b"waits", qos=1)
    cluster.nodes[2].kill()
    cluster.nodes[2] = cluster.spawn(2)
    again, connack = opened(cluster.nodes[2], V5, name, **persistent(V5))
    assert connack.resumed
    assert again.expect_message().payload == b"waits"
    again.expect_alive()
