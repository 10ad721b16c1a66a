# SPDX-License-Identifier: Apache-2.0
"""Settings that narrow what the broker grants: advertised where 5.0 has a property, and enforced."""

import pytest

from harness import V5, V311, unique
from harness.client import World
from harness.wire import CONNACK, SUBACK, Wire, connect, properties, publish, subscribe, will_of


def capabilities(**named):
    lines = [f"      {key.replace('_', '-')}: {value}\n" for key, value in named.items()]
    return "mqtt:\n  options:\n    capabilities:\n" + "".join(lines)


def limits(**named):
    return "mqtt:\n  limits:\n" + "".join(f"    {key.replace('_', '-')}: {value}\n" for key, value in named.items())


def test_subscriptions_that_are_not_available(spawn, wire):
    """Wildcards, identifiers and groups each have a reason of their own.

    [MQTT-3.8.3-2] [MQTT-3.9.3-2] [MQTT5-3.8.4-7] [MQTT5-3.9.3-2]
    """
    own = spawn(conf=capabilities(wildcard_sub_available=0, sub_id_available=0, shared_sub_available=0))
    client = wire(V5, own)
    granted = client.connect().properties
    for name in ("wildcard_available", "subscription_id_available", "shared_available"):
        assert granted[name] == 0
    client.send(subscribe(V5, 1, ("a/#", 0), ("$share/g/a", 0), ("a", 0)))
    assert client.expect(SUBACK).codes == [0xA2, 0x9E, 0x00]
    client.send(subscribe(V5, 2, ("a", 0), block=properties(subscription_id=1)))
    client.expect_refused(0xA1)
    older = wire(V311, own)
    older.connect()
    older.send(subscribe(V311, 1, ("a/#", 0), ("$share/g/a", 0), ("a", 0)))
    assert older.expect(SUBACK).codes == [0x80, 0x80, 0x00]


def test_maximum_qos_lowers_grants(spawn, wire):
    """[MQTT5-3.2.2-10]: a SUBSCRIBE with a higher QoS is still granted what there is [MQTT-3.8.4-5] [MQTT5-3.8.4-7]."""
    own = spawn(conf=capabilities(maximum_qos=1))
    for version in (V311, V5):
        client = wire(version, own)
        client.connect()
        client.send(subscribe(version, 1, ("a", 2), ("b", 1), ("c", 0)))
        assert client.expect(SUBACK).codes == [1, 1, 0]


@pytest.mark.parametrize(
    ("limit", "will", "reason"),
    [
        ({"maximum_qos": 0}, {"will_qos": 1}, 0x9B),  # [MQTT5-3.2.2-12]
        ({"retain_available": 0}, {"will_retain": True}, 0x9A),  # [MQTT5-3.2.2-13]
    ],
    ids=["qos", "retain"],
)
def test_will_beyond_the_limits_is_refused(spawn, wire, limit, will, reason):
    """[MQTT5-3.1.4-2] [MQTT-3.2.2-6]: 3.1.1 has no return code for it, so it gets none."""
    own = spawn(conf=capabilities(**limit))
    client = wire(V5, own)
    client.send(connect(V5, unique("w"), will=will_of(V5, "a"), **will))
    assert client.expect(CONNACK).reason == reason
    client.expect_closed()
    older = wire(V311, own)
    older.send(connect(V311, unique("w"), will=will_of(V311, "a"), **will))
    older.expect_closed()


def test_session_expiry_is_limited(spawn, wire):
    """The interval in use comes back if it is not the one asked for."""
    own = spawn(conf=capabilities(maximum_session_expiry_interval=100))
    block = properties(session_expiry=1000)
    assert wire(V5, own).connect(clean=False, block=block).properties["session_expiry"] == 100
    assert "session_expiry" not in wire(V5, own).connect(block=properties(session_expiry=50)).properties


def test_message_expiry_is_limited(spawn):
    world = World(spawn(conf=capabilities(maximum_message_expiry_interval=50)), V5)
    client = world.connect()
    client.subscribe(world.topic(), qos=1)
    client.publish(world.topic(), b"asks for more", 1, message_expiry_interval=1000)
    assert 40 < client.receive().property("message_expiry_interval") <= 50
    client.publish(world.topic(), b"asks for less", 1, message_expiry_interval=20)
    assert 10 < client.receive().property("message_expiry_interval") <= 20
    world.close()


@pytest.mark.parametrize(
    ("policy", "kept"), [("drop-oldest", [5, 6, 7, 8, 9]), ("drop-new", [0, 1, 2, 3, 4])], ids=str
)
def test_queue_is_bounded(spawn, policy, kept):
    """Five of ten messages stay in the queue of a sleeping session."""
    world = World(spawn(conf=limits(queue_messages=5, queue_full=policy)), V5)
    sleeper, publisher = world.connect(clean=False), world.connect()
    sleeper.subscribe(world.topic(), qos=1)
    sleeper.disconnect()
    for number in range(10):
        publisher.publish(world.topic(), str(number).encode(), 1)
    woken = world.connect(sleeper.id, clean=False)
    assert [int(each.payload) for each in woken.receive(5)] == kept
    assert woken.fence(publisher) == []
    world.close()


def test_queue_that_rejects(spawn, wire):
    """[MQTT-4.8.0-2]: 0x97 to a 5.0 publisher; the others have no word for it and are closed."""
    own = spawn(conf=limits(queue_messages=2, queue_full="reject"))
    world = World(own, V5)
    sleeper, publisher = world.connect(clean=False), world.connect()
    sleeper.subscribe(world.topic(), qos=1)
    sleeper.disconnect()
    codes = [publisher.publish(world.topic(), b"x", 1) for _ in range(4)]
    assert codes == [0, 0, 0x97, 0x97]
    older = wire(V311, own)
    older.connect()
    older.send(publish(V311, world.topic(), b"x", qos=1, pid=1))
    older.expect_closed()
    assert len(world.connect(sleeper.id, clean=False).receive(2)) == 2
    world.close()


def test_connection_limit(spawn):
    """One too many gets 0x97 (3.1.1: server unavailable), and the others stay."""
    own = spawn(conf=capabilities(maximum_clients=3))
    within = [Wire(own, V5) for _ in range(3)]
    for client in within:
        client.connect()
    for version, reasons in ((V5, (0x97, 0x89)), (V311, (3,))):
        try:
            beyond = Wire(own, version)
        except OSError:
            # closed within a handshake below MQTT
            continue
        beyond.send(connect(version, unique("w")))
        found = beyond.receive()
        assert found is None or (found.kind == CONNACK and found.reason in reasons)
        beyond.close()
    for client in within:
        client.expect_alive()
        client.close()


def test_connection_without_connect_ends(spawn, wire):
    """`connect-timeout`: neither silence nor half a CONNECT holds a place for long."""
    own = spawn(conf=limits(connect_timeout=1))
    silent, half = wire(V5, own), wire(V5, own)
    half.send(connect(V5, unique("w"))[:-3])
    silent.expect_closed(6)
    assert half.receive(6) is None


def test_topic_levels_are_limited(spawn, wire):
    own = spawn(conf=limits(topic_levels=4))
    client = wire(V5, own)
    client.connect()
    client.send(subscribe(V5, 1, ("a/b/c/d", 0), ("a/b/c/d/e", 0)))
    codes = client.expect(SUBACK).codes
    assert codes[0] == 0
    assert codes[1] >= 0x80
    client.publish("a/b/c/d", b"x")
    assert client.expect_message().topic == "a/b/c/d"
