# SPDX-License-Identifier: Apache-2.0
"""Client ids that are connected to, or kept by, several nodes of a cluster."""

import pytest

from harness import V5, V311, unique
from harness.wire import CONNACK, DISCONNECT, Wire, connect, disconnect, persistent, properties

TAKEN_OVER, UNAVAILABLE = 0x8E, 0x88


def opened(node, version, client_id, **settings):
    wire = Wire(node, version)
    return wire, wire.connect(client_id, **settings)


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
    again, connack = opened(cluster.nodes[2], V5, name, **persistent(V5))
    assert not connack.resumed
    again.expect_alive()
