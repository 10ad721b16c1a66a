# SPDX-License-Identifier: Apache-2.0
"""Settings that narrow what the broker grants: advertised where 5.0 has a property, and enforced."""

import re
import time

import pytest

from harness import V5, V311, Deadline, unique
from harness.client import World
from harness.transport import CHOSEN
from harness.wire import (
    CONNACK,
    PINGRESP,
    PUBACK,
    SUBACK,
    Wire,
    connect,
    disconnect,
    persistent,
    properties,
    publish,
    subscribe,
    unsubscribe,
    will_of,
)

QUOTA_EXCEEDED = 0x97


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


def admitted(broker, version=V5, source=None):
    """A connection that was let in, as soon as there is a place again."""
    deadline = Deadline("a place is free again")
    while True:
        deadline.left()
        try:
            client = Wire(broker, version, source=source)
        except OSError:
            # closed within a handshake below MQTT
            continue
        client.send(connect(version, unique("w")))
        found = client.receive()
        if found is not None and found.kind == CONNACK and found.reason == 0:
            return client
        client.close()


def assert_refused(broker, version, source=None):
    """Closed at once, or with CONNACK 0x97 (before 5.0: server unavailable)."""
    try:
        beyond = Wire(broker, version, source=source)
        beyond.send(connect(version, unique("w")))
    except OSError:
        # closed within a handshake below MQTT, or right behind it
        return
    found = beyond.receive()
    reason = QUOTA_EXCEEDED if version == V5 else 3
    assert found is None or (found.kind == CONNACK and found.reason == reason)
    beyond.close()


def test_connection_limit(spawn):
    """One too many is refused, the others stay, and who takes a free place is let in."""
    own = spawn(conf=capabilities(maximum_clients=3))
    within = [admitted(own) for _ in range(3)]
    for version in (V5, V311):
        assert_refused(own, version)
    own.await_line("limit=connections ")
    for client in within:
        client.expect_alive()
    within.pop().close()
    within.append(admitted(own))
    for client in within:
        client.close()


def test_refusals_are_told_by_number(spawn):
    """A hundred refusals are two or three lines, not a hundred."""
    own = spawn(conf=limits(connections=1))
    kept = admitted(own)
    for _ in range(100):
        assert_refused(own, V311)
    told = re.compile(r"limit reached.* limit=connections times=(\d+)")

    def times(lines):
        return sum(int(found.group(1)) for line in lines if (found := told.search(line)))

    own.await_lines(lambda lines: times(lines) == 100, "every refusal is told")
    lines = [line for line in own.lines if "limit=connections " in line]
    assert len(lines) <= 5, lines
    assert not any("connection refused" in line for line in own.lines)
    kept.close()


@pytest.mark.skipif(CHOSEN == "unix", reason="a unix socket's clients have no addresses")
def test_connections_per_address(spawn):
    own = spawn(conf=limits(connections_per_ip=2), shards=2)
    first, second = admitted(own), admitted(own)
    for version in (V5, V311):
        assert_refused(own, version)
    elsewhere = Wire(own, V5, source="127.0.0.2")
    elsewhere.connect()
    own.await_line("limit=connections-per-ip ")
    first.close()
    third = admitted(own)
    for client in (second, third, elsewhere):
        client.expect_alive()
        client.close()


def test_connections_of_a_listener(spawn):
    """`max-connections` of one listener says nothing about another one."""
    blocks = [{"kind": "tcp", "address": "127.0.0.1:0", "max-connections": 1}, {"kind": "tcp", "address": "127.0.0.1:0"}]
    own = spawn(listeners=[("tcp", block) for block in blocks], shards=2)
    _, other = own.endpoints
    first = admitted(own)
    for version in (V5, V311):
        assert_refused(own, version)
    own.await_line("limit=max-connections ")
    unlimited = [Wire(other, V5) for _ in range(3)]
    for client in unlimited:
        client.connect()
    first.close()
    for client in (admitted(own), *unlimited):
        client.expect_alive()
        client.close()


def test_connect_rate(spawn):
    """As many as fit into a second at once; one more gets 0x9F, before 5.0: server unavailable."""
    own = spawn(conf=limits(connect_rate=2), shards=2)
    started = time.monotonic()
    for version, refusal in ((V5, 0x9F), (V311, 3)):
        deadline = Deadline("a CONNECT is refused")
        while True:
            deadline.left()
            client = Wire(own, version)
            client.send(connect(version, unique("w")))
            found = client.expect(CONNACK)
            if found.reason != 0:
                assert found.reason == refusal
                client.expect_closed()
                break
            client.close()
    own.await_line("limit=connect-rate ")
    let_in = sum("client connected" in line for line in own.lines)
    assert 1 <= let_in <= 2 + 2 * (time.monotonic() - started)
    admitted(own).close()


def test_publish_rate(spawn, version):
    """Beyond it a client is not read: nothing is lost, and keep-alive does not end it."""
    own = spawn(conf=limits(publish_rate=10), shards=2)
    reader, writer = Wire(own, version), Wire(own, version)
    reader.connect()
    reader.subscribe("t")
    writer.connect(keep_alive=1)
    started = time.monotonic()
    writer.send(*(publish(version, "t", str(n).encode(), qos=1, pid=n) for n in range(1, 31)))
    writer.send(b"\xc0\0")
    for number in range(1, 31):
        assert writer.expect(PUBACK).pid == number
    writer.expect(PINGRESP)
    assert time.monotonic() - started > 1.8, "ten at once, and ten a second"
    assert [int(reader.expect_message().payload) for _ in range(30)] == list(range(1, 31))
    own.await_line("limit=publish-rate ")
    for client in (reader, writer):
        client.close()


def test_retained_messages_are_limited(spawn, wire):
    """What cannot be retained is delivered all the same; 0x97 (before 5.0: closed) tells its publisher."""
    own = spawn(conf=limits(retained_messages=2), shards=2)
    client, reader = wire(V5, own), wire(V5, own)
    client.connect()
    reader.connect()
    reader.subscribe("r/+", 1)
    assert client.publish("r/1", b"1", qos=1, retain=True).reason == 0
    assert client.publish("r/2", b"2", qos=2, retain=True).reason == 0
    assert client.publish("r/3", b"3", qos=1, retain=True).reason == QUOTA_EXCEEDED
    assert client.publish("r/4", b"4", qos=2, retain=True).reason == QUOTA_EXCEEDED
    assert [reader.expect_message().payload for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    own.await_line("limit=retained-messages ")
    older = wire(V311, own)
    older.connect()
    older.send(publish(V311, "r/5", b"5", qos=1, pid=1, retain=True))
    older.expect_closed()
    # the new value of a topic that has one, and one in the place of another
    assert client.publish("r/1", b"new", qos=1, retain=True).reason == 0
    client.publish("r/2", b"", qos=1, retain=True)
    assert client.publish("r/6", b"6", qos=1, retain=True).reason == 0
    late = wire(V5, own)
    late.connect()
    late.subscribe("r/+")
    found = [late.expect_message() for _ in range(2)]
    assert sorted((each.topic, each.payload) for each in found) == [("r/1", b"new"), ("r/6", b"6")]
    late.expect_alive()


def test_retained_bytes_are_limited(spawn, wire):
    own = spawn(conf=limits(retained_bytes=20))
    client = wire(V5, own)
    client.connect()

    def retain(topic, payload):
        return client.publish(topic, payload, qos=1, retain=True).reason

    assert retain("a", b"123456789") < 0x80
    assert retain("b", b"123456789") < 0x80
    assert retain("b", b"1234567890") == QUOTA_EXCEEDED
    assert retain("b", b"1") < 0x80
    assert retain("b", b"123456789") < 0x80
    own.await_line("limit=retained-bytes ")


def test_subscriptions_are_limited(spawn, wire):
    own = spawn(conf=limits(subscriptions=2))
    client = wire(V5, own)
    client.connect()
    client.send(subscribe(V5, 1, ("a", 0), ("b", 0), ("c", 0), ("a", 1)))
    assert client.expect(SUBACK).codes == [0, 0, QUOTA_EXCEEDED, 1]
    client.send(unsubscribe(V5, 2, "b"))
    client.receive()
    client.send(subscribe(V5, 3, ("c", 0), ("b", 0)))
    assert client.expect(SUBACK).codes == [0, QUOTA_EXCEEDED]
    older = wire(V311, own)
    older.connect()
    older.send(subscribe(V311, 1, ("a", 0), ("b", 0), ("c", 0)))
    assert older.expect(SUBACK).codes == [0, 0, 0x80]
    own.await_line("limit=subscriptions ")


def test_alias_bytes_are_limited(spawn, wire):
    """64 KiB of topics unless the setting says otherwise; one byte more ends the connection with 0x97."""
    own = spawn(conf=limits(alias_bytes=10))

    def aliased(alias, topic):
        return publish(V5, topic, block=properties(topic_alias=alias))

    client = wire(V5, own)
    client.connect()
    client.send(aliased(1, "12345"), aliased(2, "67890"), aliased(1, "54321"))
    client.expect_alive()
    client.send(aliased(3, "x"))
    client.expect_refused(QUOTA_EXCEEDED)
    own.await_line("limit=alias-bytes ")


def test_queue_bytes_are_limited(spawn):
    """Three payloads of 30 bytes and their topics fit, a fourth sends the oldest away."""
    world = World(spawn(conf=limits(queue_bytes=3 * (30 + 17))), V5)
    sleeper, publisher = world.connect(clean=False), world.connect()
    sleeper.subscribe(world.topic(), qos=1)
    sleeper.disconnect()
    assert len(world.topic()) == 17
    for number in range(4):
        publisher.publish(world.topic(), f"{number:030}".encode(), 1)
    woken = world.connect(sleeper.id, clean=False)
    assert [int(each.payload) for each in woken.receive(3)] == [1, 2, 3]
    assert woken.fence(publisher) == []
    world.close()


def test_queue_that_disconnects(spawn, wire):
    """The subscriber whose queue is full is closed with 0x97; what is in the queue stays."""
    own = spawn(conf=limits(queue_messages=2, queue_full="disconnect"))
    slow, publisher = wire(V5, own), wire(V5, own)
    slow.connect("slow", clean=False, block=properties(session_expiry=600, receive_maximum=1))
    slow.subscribe("t", 1)
    publisher.connect()
    for number in range(4):
        publisher.publish("t", str(number).encode(), qos=1)
    assert slow.expect_message(acknowledge=False).payload == b"0"
    slow.expect_refused(QUOTA_EXCEEDED)
    again = wire(V5, own)
    again.connect("slow", **persistent(V5))
    assert [again.expect_message().payload for _ in range(3)] == [b"0", b"1", b"2"]


def test_writes_pending_are_limited(spawn, wire):
    """Who does not read loses QoS 0 beyond so many messages, whoever reads loses none."""
    own = spawn(
        conf=capabilities(maximum_client_writes_pending=10)
        + "  limits:\n    out-buffer: 1073741824\n",
    )
    slow, quick, publisher = (wire(V5, own) for _ in range(3))
    for client in (slow, quick, publisher):
        client.connect()
    slow.subscribe("t")
    slow.subscribe("end", 1)
    quick.subscribe("t")
    payload = b"x" * 60_000
    for number in range(400):
        publisher.publish("t", b"%06d" % number + payload)
        assert quick.expect_message().payload[:6] == b"%06d" % number
    assert publisher.publish("end", qos=1).reason == 0
    count = 0
    while (message := slow.expect_message()).topic == "t":
        count += 1
    # what the kernel buffers on both sides, and ten
    assert message.topic == "end"
    assert 10 <= count < 300


def test_half_sent_packets_are_limited_by_memory(spawn):
    """The largest are closed (0x97) until what is held is below `memory-max`; who asks for little is served."""
    own = spawn(
        conf=limits(memory_max=4194304) + "  options:\n    capabilities:\n      maximum-packet-size: 4194304\n",
        shards=2,
    )
    honest = Wire(own, V5)
    honest.connect()
    half = publish(V5, "t", b"x" * (1 << 20))[: 3 << 18]
    attackers = []
    for _ in range(20):
        attacker = Wire(own, V5)
        attacker.send(connect(V5, unique("w")))
        found = attacker.receive()
        if found is not None and found.kind == CONNACK and found.reason == 0:
            attacker.send(half)
            attackers.append(attacker)
    assert len(attackers) > 5
    own.await_line("limit=memory-max-read ")
    honest.expect_alive()
    late = admitted(own)
    late.expect_alive()
    for client in (honest, late, *attackers):
        client.close()


def test_memory_that_is_full_refuses_clients(spawn, wire):
    """Queues count as full, new clients get 0x97, and who comes for what is queued is let in."""
    own = spawn(conf=limits(memory_max=1048576, queue_full="reject"))
    sleeper, publisher = wire(V5, own), wire(V5, own)
    sleeper.connect("sleeper", **persistent(V5))
    sleeper.subscribe("t", 1)
    sleeper.send(disconnect(V5))
    sleeper.expect_closed()
    publisher.connect()
    accepted = 0
    while publisher.publish("t", b"x" * 1000, qos=1).reason == 0:
        accepted += 1
        assert accepted < 2000
    assert 700 < accepted < 1100
    for version, reason in ((V5, QUOTA_EXCEEDED), (V311, 3)):
        refused = wire(version, own)
        refused.send(connect(version, unique("w")))
        assert refused.expect(CONNACK).reason == reason
        refused.expect_closed()
    own.await_line("limit=memory-max-connection ")
    awake = wire(V5, own)
    assert awake.connect("sleeper", **persistent(V5)).resumed
    for _ in range(accepted):
        awake.expect_message()
    admitted(own).close()
    assert publisher.publish("t", b"x" * 1000, qos=1).reason == 0


def test_connection_without_connect_ends(spawn, wire):
    """`connect-timeout`: neither silence nor half a CONNECT holds a place for long."""
    own = spawn(conf=limits(connect_timeout=1))
    silent, half = wire(V5, own), wire(V5, own)
    half.send(connect(V5, unique("w"))[:-3])
    silent.expect_closed(6)
    assert half.receive(6) is None
    own.await_line("limit=connect-timeout ")


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
    client.send(publish(V5, "a/b/c/d/e", b"x"))
    client.expect_refused(0x90)
    own.await_line("limit=topic-levels ")
