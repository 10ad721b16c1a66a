# SPDX-License-Identifier: Apache-2.0
"""Nodes that stand still, or are gone."""

import signal

from harness import V5, Deadline, unique
from harness.cluster import get
from harness.wire import PUBACK, PUBLISH, Wire, publish


def opened(node):
    wire = Wire(node, V5)
    wire.connect()
    return wire


def test_nothing_is_acknowledged_without_a_majority(cluster):
    """A node that cannot know what others want holds what it would have to acknowledge, and serves the rest."""
    topic = unique("t/")
    watcher, publisher, other = (opened(cluster.nodes[0]) for _ in range(3))
    watcher.subscribe(topic, 1)
    for node in cluster.nodes[1:]:
        node.process.send_signal(signal.SIGSTOP)
    deadline = Deadline("the lease is over")
    while get(cluster.nodes[0], "/readyz")[0] != 503:
        deadline.left()
    publisher.send(publish(V5, topic, b"held", qos=1, pid=1))
    other.publish(topic, b"zero")
    found = watcher.expect(PUBLISH)
    assert (found.payload, found.qos) == (b"zero", 0)
    for node in cluster.nodes[1:]:
        node.process.send_signal(signal.SIGCONT)
    assert publisher.expect(PUBACK).reason == 0
    assert watcher.expect_message().payload == b"held"
