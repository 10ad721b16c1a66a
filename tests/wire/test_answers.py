# SPDX-License-Identifier: Apache-2.0
"""What the broker answers to packets that are allowed: codes, ids, order."""

import pytest

from harness import V5, V31, V311, unique
from harness.wire import (
    DISCONNECT,
    PING,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    ack,
    disconnect,
    packet,
    persistent,
    properties,
    publish,
    subscribe,
    unsubscribe,
    will_of,
)

MALFORMED_FILTERS = [
    "",
    "a#",
    "a/b#",
    "#/a",
    "a/#/b",
    "##",
    "a+",
    "+a/b",
    "a/+b",
    "++",
    "$share/g",
    "$share/g/",
    "$share//a",
    "$share/+/a",
    "$share/g#/a",
    "$share/g/a#",
]


@pytest.mark.parametrize("topic_filter", MALFORMED_FILTERS)
def test_malformed_filter_ends_the_connection(wire, version, topic_filter):
    """[MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1] [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-1]

    [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]; codes of SUBACK are for filters that are well-formed.
    """
    for ask in (
        subscribe(version, 7, (unique("t/"), 1), (topic_filter, 1)),
        unsubscribe(version, 7, unique("t/"), topic_filter),
    ):
        client = wire(version)
        client.connect()
        client.send(ask)
        if version == V5:
            assert client.expect(DISCONNECT).reason == (0x82 if topic_filter.startswith("$share/") else 0x81)
        client.expect_closed()


def test_refused_filter_and_those_beside_it(wire, version):
    """5.0 has a reason, 3.1.1 has 0x80; 3.1 can't refuse a filter, so the connection ends.

    [MQTT-3.8.4-5] [MQTT-3.9.3-1] [MQTT-3.9.3-2] [MQTT5-3.8.4-7] [MQTT5-3.9.3-1] [MQTT5-3.9.3-2]
    """
    client = wire(version)
    client.connect()
    good = unique("t/")
    # topic-levels, 128 by default
    client.send(subscribe(version, 7, ("/" * 200, 1), (good, 1)))
    if version == V31:
        client.expect_closed()
        return
    suback = client.expect(SUBACK)
    assert suback.pid == 7
    assert suback.codes == [0x8F if version == V5 else 0x80, 1]
    client.publish(good, b"x")
    assert client.expect_message().payload == b"x"


def test_suback_carries_the_packet_id_and_a_code_per_filter(wire, version):
    """[MQTT-2.3.1-7] [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-5] [MQTT-3.9.3-1]

    [MQTT5-2.2.1-6] [MQTT5-3.8.4-1] [MQTT5-3.8.4-2] [MQTT5-3.8.4-6] [MQTT5-3.8.4-7] [MQTT5-3.9.3-1]
    """
    client = wire(version)
    client.connect()
    base = unique("t/")
    client.send(subscribe(version, 65535, *((f"{base}/{index}", index % 3) for index in range(9))))
    suback = client.expect(SUBACK)
    assert suback.pid == 65535
    assert suback.codes == [0, 1, 2] * 3


def test_unsuback(wire, version):
    """[MQTT-2.3.1-7] [MQTT-3.10.4-4]

    [MQTT5-2.2.1-6] [MQTT5-3.10.4-4] [MQTT5-3.10.4-5] [MQTT5-3.11.3-1] [MQTT5-3.11.3-2]
    """
    client = wire(version)
    client.connect()
    topic = unique("t/")
    client.subscribe(topic)
    client.send(unsubscribe(version, 9, topic, unique("never/"), topic))
    unsuback = client.expect(UNSUBACK)
    assert unsuback.pid == 9
    # the third names what the first has just removed
    assert unsuback.codes == ([0x00, 0x11, 0x11] if version == V5 else [])


def test_unsuback_although_nothing_ended(wire, version):
    """[MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT5-3.10.4-5]"""
    client = wire(version)
    client.connect()
    client.send(unsubscribe(version, 65535, unique("never/"), "+/#"))
    unsuback = client.expect(UNSUBACK)
    assert unsuback.pid == 65535
    assert unsuback.codes == ([0x11, 0x11] if version == V5 else [])


def test_unsubscribing_from_several_filters_is_one_answer(wire, version):
    """[MQTT-3.10.4-6] [MQTT5-3.10.4-6]: as if each had come alone, and one UNSUBACK."""
    client = wire(version)
    client.connect()
    topics = [unique("t/") for _ in range(4)]
    for topic in topics:
        client.subscribe(topic)
    client.send(unsubscribe(version, 9, *topics[:3]))
    assert client.expect(UNSUBACK).pid == 9
    for topic in topics:
        client.publish(topic, b"x")
    assert client.expect_message().topic == topics[3]
    client.expect_alive()


def test_publish_answers(wire, version):
    """[MQTT-2.3.1-6] [MQTT-3.3.4-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2]

    [MQTT5-2.2.1-5] [MQTT5-3.3.4-1] [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-4.3.2-4] [MQTT5-4.3.3-8] [MQTT5-4.3.3-11]
    """
    client = wire(version)
    client.connect()
    client.send(publish(version, unique("t/"), b"x"))
    client.expect_alive()
    client.send(publish(version, unique("t/"), b"x", qos=1, pid=65535))
    puback = client.expect(PUBACK)
    assert puback.pid == 65535
    assert puback.reason == (0x10 if version == V5 else 0)
    client.send(publish(version, unique("t/"), b"x", qos=2, pid=1))
    pubrec = client.expect(PUBREC)
    assert pubrec.pid == 1
    assert pubrec.reason == (0x10 if version == V5 else 0)
    client.send(ack(PUBREL, 1))
    pubcomp = client.expect(PUBCOMP)
    assert (pubcomp.pid, pubcomp.reason) == (1, 0)
    if version != V5:
        assert len(puback.body) == len(pubrec.body) == len(pubcomp.body) == 2


def test_repeated_qos2_publish_is_delivered_once(wire, version):
    """[MQTT-4.3.3-2] [MQTT5-4.3.3-10]"""
    topic = unique("t/")
    watcher, client = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic)
    client.connect()
    for repeat in (False, True, True):
        client.send(publish(version, topic, b"once", qos=2, pid=3, dup=repeat))
        assert client.expect(PUBREC).pid == 3
    client.send(ack(PUBREL, 3))
    assert client.expect(PUBCOMP).pid == 3
    client.publish(topic, b"fence", qos=2)
    assert [watcher.expect_message().payload for _ in range(2)] == [b"once", b"fence"]


def test_publish_below_sys_at_qos_2(wire, version):
    """5.0: PUBREC 0x87 [MQTT5-3.5.2-1] and the packet id is free again [MQTT5-4.3.3-9]; older versions: as if delivered
    [MQTT-3.3.5-2].
    """
    client = wire(version)
    client.connect()
    client.send(publish(version, "$SYS/x", b"x", qos=2, pid=4))
    pubrec = client.expect(PUBREC)
    assert pubrec.pid == 4
    if version == V5:
        assert pubrec.reason == 0x87
    else:
        client.send(ack(PUBREL, 4))
        assert client.expect(PUBCOMP).pid == 4
    topic = unique("t/")
    client.subscribe(topic)
    client.send(publish(version, topic, b"x", qos=2, pid=4))
    kinds = sorted((client.receive().kind, client.receive().kind))
    assert kinds == [PUBLISH, PUBREC]


def test_acks_of_unknown_packet_ids(wire, version):
    """Nothing is in flight; PUBREL and PUBREC are answered, and 5.0 says not found.

    [MQTT-4.3.3-2] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1] [MQTT5-4.3.3-4] [MQTT5-4.3.3-11]; PUBREL has the flags of
    [MQTT-3.6.1-1] [MQTT5-3.6.1-1].
    """
    client = wire(version)
    client.connect()
    client.send(ack(PUBACK, 500), ack(PUBCOMP, 501))
    client.expect_alive()
    client.send(ack(PUBREL, 502))
    pubcomp = client.expect(PUBCOMP)
    assert pubcomp.pid == 502
    assert pubcomp.reason == (0x92 if version == V5 else 0)
    client.send(ack(PUBREC, 503))
    pubrel = client.expect(PUBREL)
    assert (pubrel.pid, pubrel.flags) == (503, 2)
    assert pubrel.reason == (0x92 if version == V5 else 0)


@pytest.mark.parametrize(
    ("qos", "before", "wrong"),
    [(1, (), PUBREC), (1, (), PUBCOMP), (2, (), PUBACK), (2, (), PUBCOMP), (2, (PUBREC,), PUBACK)],
    ids=["pubrec-qos-1", "pubcomp-qos-1", "puback-qos-2", "pubcomp-before-pubrec", "puback-after-pubrec"],
)
def test_acks_of_another_kind_than_comes_next(wire, version, qos, before, wrong):
    """[MQTT-4.8.0-1] [MQTT5-4.13.1-1]: the id is in flight, and this is not its acknowledgement."""
    client = wire(version)
    client.connect()
    topic = unique("t/")
    client.subscribe(topic, qos)
    publisher = wire(version)
    publisher.connect()
    publisher.publish(topic, b"x", qos=qos)
    message = client.expect(PUBLISH)
    for kind in before:
        client.send(ack(kind, message.pid))
        assert client.expect(PUBREL).pid == message.pid
    client.send(ack(wrong, message.pid))
    if version == V5:
        assert client.expect(DISCONNECT).reason == 0x82
    client.expect_closed()


def test_acks_with_reasons_and_properties_are_taken(wire):
    """[MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1]"""
    topic = unique("t/")
    client, publisher = wire(V5), wire(V5)
    client.connect()
    publisher.connect()
    client.subscribe(topic, 2)
    block = properties(("user_property", ("a", "b")), ("user_property", ("a", "b")), reason_string="fine")
    for reason in (0x00, 0x10, 0x80, 0x87, 0x97, 0x99):
        publisher.publish(topic, b"x", qos=1)
        client.send(ack(PUBACK, client.expect(PUBLISH).pid, reason, block))
    publisher.publish(topic, b"x", qos=2)
    message = client.expect(PUBLISH)
    client.send(ack(PUBREC, message.pid, 0x10, block))
    assert client.expect(PUBREL).pid == message.pid
    client.send(ack(PUBCOMP, message.pid, 0, block))
    # reason without property length
    client.send(publish(V5, unique("n/"), b"x", qos=2, pid=1))
    client.expect(PUBREC)
    client.send(packet(PUBREL, 2, b"\0\1\0"))
    assert client.expect(PUBCOMP).reason == 0
    client.expect_alive()


def test_pubrec_that_refuses_ends_the_message(wire):
    """[MQTT5-4.3.3-4] [MQTT5-4.4.0-2]: no PUBREL, and nothing comes again on resume."""
    topic, client_id = unique("t/"), unique("w")
    block = properties(session_expiry=60)
    client, publisher = wire(V5), wire(V5)
    client.connect(client_id, clean=False, block=block)
    publisher.connect()
    client.subscribe(topic, 2)
    publisher.publish(topic, b"x", qos=2)
    client.send(ack(PUBREC, client.expect(PUBLISH).pid, 0x97))
    client.expect_alive()
    client.close()
    again = wire(V5)
    assert again.connect(client_id, clean=False, block=block).resumed
    again.expect_alive()


def test_acks_come_in_the_order_of_what_they_acknowledge(wire, version):
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT5-4.6.0-2] [MQTT5-4.6.0-3]: per kind of ack, however late an answer is."""
    client, watcher = wire(version), wire(version)
    client.connect()
    watcher.connect()
    base = unique("t/")
    watcher.subscribe(f"{base}/+", 1)
    count = 200
    packets = []
    for pid in range(1, count + 1):
        if pid % 10 == 0:
            packets.append(subscribe(version, pid, (f"{base}/{pid}/x", 1)))
        elif pid % 10 == 5:
            packets.append(unsubscribe(version, pid, f"{base}/{pid - 5}/x"))
        else:
            packets.append(publish(version, f"{base}/{pid % 3}", b"%d" % pid, qos=1 + pid % 2, pid=pid))
    client.send(*packets)
    seen = {PUBACK: [], PUBREC: [], SUBACK: [], UNSUBACK: []}
    for _ in range(count):
        found = client.receive()
        seen[found.kind].append(found.pid)
    for pids in seen.values():
        assert pids == sorted(pids)
    assert sum(map(len, seen.values())) == count
    client.send(*(ack(PUBREL, pid) for pid in seen[PUBREC]))
    assert [client.expect(PUBCOMP).pid for _ in seen[PUBREC]] == seen[PUBREC]
    got = [int(watcher.expect_message().payload) for _ in seen[PUBACK] + seen[PUBREC]]
    for level in range(3):
        for pids in (seen[PUBACK], seen[PUBREC]):
            assert [pid for pid in got if pid % 3 == level and pid in pids] == [
                pid for pid in pids if pid % 3 == level
            ]


def test_byte_order_mark_is_a_character(wire, version):
    """[MQTT-1.5.3-3] [MQTT5-1.5.4-3]: it stays in a topic, and a topic without it is another one."""
    name = unique("t/")
    client = wire(version)
    client.connect()
    client.subscribe("\ufeff" + name)
    client.publish(name, b"without")
    client.publish("\ufeff" + name, b"with")
    message = client.expect_message()
    assert (message.topic, message.payload) == ("\ufeff" + name, b"with")


def test_nothing_behind_disconnect_is_served(wire, version):
    """[MQTT-3.14.4-1] [MQTT-3.14.4-2] [MQTT5-3.14.4-1]: and nothing answers it."""
    topic = unique("t/")
    watcher, client = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic)
    client.connect()
    client.send(disconnect(version), publish(version, topic, b"x"), PING)
    client.expect_closed()
    watcher.publish(topic, b"fence")
    assert watcher.expect_message().payload == b"fence"


@pytest.mark.parametrize("reason", [0x80, 0x81, 0x97])
def test_disconnect_with_an_error_ends_the_connection(wire, reason):
    """[MQTT5-4.13.2-1] [MQTT5-3.1.2-8]: only 0x00 takes the will back."""
    topic = unique("t/")
    watcher, client = wire(V5), wire(V5)
    watcher.connect()
    watcher.subscribe(topic)
    client.connect(will=will_of(V5, topic, b"gone"))
    client.send(disconnect(V5, reason))
    client.expect_closed()
    assert watcher.expect_message().payload == b"gone"


def test_disconnect_from_the_broker_has_no_properties(wire):
    """[MQTT5-3.14.2-2] [MQTT5-3.14.2-3] [MQTT5-3.14.2-4]: no Session Expiry Interval, although the session has one."""
    client_id = unique("w")
    old, new = wire(V5), wire(V5)
    old.connect(client_id, **persistent(V5))
    new.connect(client_id, **persistent(V5))
    found = old.expect(DISCONNECT)
    assert (found.reason, found.properties) == (0x8E, {})
    old.expect_closed()


def test_retained_messages_outlive_the_session_of_their_publisher(wire, version):
    """[MQTT-3.1.2-7]"""
    topic = unique("t/")
    publisher, client = wire(version), wire(version)
    publisher.connect()
    publisher.publish(topic, b"kept", qos=1, retain=True)
    publisher.send(disconnect(version))
    publisher.expect_closed()
    client.connect()
    client.subscribe(topic)
    assert client.expect_message().payload == b"kept"
    client.publish(topic, retain=True)


def test_pubrels_follow_the_order_of_pubrecs(wire, version):
    """[MQTT-4.6.0-4] [MQTT5-4.6.0-4]"""
    topic = unique("t/")
    client, publisher = wire(version), wire(version)
    client.connect()
    publisher.connect()
    client.subscribe(topic, 2)
    for _ in range(20):
        publisher.publish(topic, b"x", qos=2)
    pids = [client.expect(PUBLISH).pid for _ in range(20)]
    assert len(set(pids)) == 20
    assert 0 not in pids
    client.send(*(ack(PUBREC, pid) for pid in pids))
    assert [client.expect(PUBREL).pid for _ in pids] == pids
    client.send(*(ack(PUBCOMP, pid) for pid in pids))
    client.expect_alive()


def test_packets_in_one_segment_are_served_in_order(wire, version):
    """SUBSCRIBE, PUBLISH, UNSUBSCRIBE, PUBLISH: the first is heard, the second is not."""
    topic = unique("t/")
    client = wire(version)
    client.connect()
    client.send(
        subscribe(version, 1, (topic, 0)),
        publish(version, topic, b"heard"),
        unsubscribe(version, 2, topic),
        publish(version, topic, b"unheard"),
    )
    found = [client.receive() for _ in range(3)]
    assert {each.kind for each in found} == {SUBACK, PUBLISH, UNSUBACK}
    assert [each.payload for each in found if each.kind == PUBLISH] == [b"heard"]
    client.expect_alive()


@pytest.mark.parametrize("version", [V31, V311], ids=["3.1", "3.1.1"])
def test_a_dead_publisher_does_not_disturb(wire, version):
    """A connection that ends in the middle of a packet leaves the others alone."""
    topic = unique("t/")
    watcher, dying = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic)
    dying.connect()
    dying.send(publish(version, topic, b"whole"), publish(version, topic, b"half")[:-2])
    dying.close()
    assert watcher.expect_message().payload == b"whole"
    watcher.publish(topic, b"fence")
    assert watcher.expect_message().payload == b"fence"


def test_slow_reader_does_not_hold_up_others(wire, version):
    """One subscriber reads nothing while others take many megabytes of the same topic."""
    topic = unique("t/")
    stuck, reader, publisher = wire(version), wire(version), wire(version)
    for client in (stuck, reader):
        client.connect()
        client.subscribe(topic)
    publisher.connect()
    payload = b"x" * 100_000
    for _ in range(200):
        publisher.publish(topic, payload)
        assert len(reader.expect_message().payload) == len(payload)
