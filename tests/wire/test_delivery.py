# SPDX-License-Identifier: Apache-2.0
"""Messages from publisher to subscriber packet by packet: flags, packet ids, subscriptions that come and go."""

import pytest

from harness import V5, unique
from harness.wire import (
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    ack,
    disconnect,
    persistent,
    properties,
    publish,
    subscribe,
    unsubscribe,
)


@pytest.mark.parametrize("qos", (1, 2))
@pytest.mark.parametrize("subscribers", (1, 2))
def test_dup_of_the_publisher_is_not_passed_on(wire, version, qos, subscribers):
    """[MQTT-3.3.1-3] [MQTT5-3.3.1-3]: neither at once, to one or to several, nor out of a queue."""
    topic, sleeper_id = unique("t/"), unique("w")
    publisher, sleeper = wire(version), wire(version)
    publisher.connect()
    awake = [wire(version) for _ in range(subscribers)]
    for each in awake:
        each.connect()
        each.subscribe(topic, 2)
    # another topic: the message to a single subscriber is written in a way of its own
    sleeper.connect(sleeper_id, **persistent(version))
    sleeper.subscribe(f"{topic}/+", 2)
    sleeper.send(disconnect(version))
    sleeper.expect_closed()
    for name in (topic, f"{topic}/x"):
        publisher.send(publish(version, name, b"x", qos=qos, pid=7, dup=True))
        assert publisher.expect(PUBACK if qos == 1 else PUBREC).pid == 7
        if qos == 2:
            publisher.send(ack(PUBREL, 7))
            publisher.expect(PUBCOMP)
    assert [each.expect_message().dup for each in awake] == [False] * subscribers
    woken = wire(version)
    assert woken.connect(sleeper_id, **persistent(version)).resumed
    assert not woken.expect_message().dup


def test_retained_messages_come_behind_suback(wire, version):
    """They might come before it, but a client that stops at its first message would never have seen its SUBACK."""
    topic = unique("t/")
    publisher = wire(version)
    publisher.connect()
    names = {f"{topic}/{at}" for at in range(40)}
    for name in names:
        publisher.publish(name, b"x", qos=1, retain=True)
    for _ in range(10):
        client = wire(version)
        client.connect()
        client.send(subscribe(version, 1, (f"{topic}/+", 0)))
        client.expect(SUBACK)
        assert {client.expect_message().topic for _ in names} == names
        client.close()


@pytest.mark.parametrize("dup", (False, True))
def test_packet_id_after_puback_is_a_new_message(wire, version, dup):
    """[MQTT-4.3.2-2] [MQTT5-4.3.2-5]: whatever DUP says."""
    topic = unique("t/")
    watcher, client = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic, 1)
    client.connect()
    for payload, flag in ((b"1", False), (b"2", dup)):
        client.send(publish(version, topic, payload, qos=1, pid=5, dup=flag))
        assert client.expect(PUBACK).pid == 5
    assert [watcher.expect_message().payload for _ in range(2)] == [b"1", b"2"]


def test_qos2_exchange_outlives_the_expiry_of_its_message(wire):
    """[MQTT5-4.3.3-13]: nobody gets it any more, and its repeat and PUBREL are answered as ever."""
    topic = unique("t/")
    watcher, client = wire(V5), wire(V5)
    watcher.connect()
    watcher.subscribe(topic, 2)
    client.connect()
    block = properties(message_expiry=0)
    for dup in (False, True):
        client.send(publish(V5, topic, b"expired", qos=2, pid=8, dup=dup, block=block))
        pubrec = client.expect(PUBREC)
        assert (pubrec.pid, pubrec.reason) == (8, 0)
    client.send(ack(PUBREL, 8))
    pubcomp = client.expect(PUBCOMP)
    assert (pubcomp.pid, pubcomp.reason) == (8, 0)
    client.publish(topic, b"fence", qos=2)
    assert watcher.expect_message().payload == b"fence"


def test_acks_carry_nothing_that_could_be_too_large(wire):
    """Neither reason strings nor user properties, though the client asked for them.

    [MQTT5-3.4.2-2] [MQTT5-3.4.2-3] [MQTT5-3.5.2-2] [MQTT5-3.5.2-3] [MQTT5-3.6.2-2] [MQTT5-3.6.2-3] [MQTT5-3.7.2-2]
    [MQTT5-3.7.2-3] [MQTT5-3.9.2-1] [MQTT5-3.9.2-2] [MQTT5-3.11.2-1] [MQTT5-3.11.2-2]
    """
    client = wire(V5)
    client.connect(block=properties(maximum_packet_size=40, request_problem_information=1))
    block = properties(("user_property", ("a", "b")))
    client.send(
        publish(V5, unique("t/"), b"x", qos=1, pid=1, block=block),
        publish(V5, unique("t/"), b"x", qos=2, pid=2, block=block),
        ack(PUBREC, 3, 0, block),
        ack(PUBREL, 4, 0, block),
        subscribe(V5, 5, ("/" * 200, 0), block=block),
        unsubscribe(V5, 6, unique("t/"), block=block),
    )
    answers = {found.kind: found for found in (client.receive() for _ in range(6))}
    assert set(answers) == {PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK}
    for found in answers.values():
        code = found.codes[0] if found.kind in (SUBACK, UNSUBACK) else found.reason
        assert code > 0, "each has something to explain"
        assert not found.properties
        assert 2 + len(found.body) <= 40


@pytest.mark.parametrize("step", ("published", "received"))
def test_unsubscribe_completes_what_was_begun(wire, version, step):
    """[MQTT-3.10.4-2] [MQTT-3.10.4-3] [MQTT5-3.10.4-2] [MQTT5-3.10.4-3]: and begins nothing more."""
    topic, marker, client_id = unique("t/"), unique("marker/"), unique("w")
    client, publisher = wire(version), wire(version)
    publisher.connect()
    client.connect(client_id, **persistent(version))
    client.subscribe(topic, 2)
    client.subscribe(marker, 2)
    for qos in (1, 2):
        publisher.publish(topic, b"begun", qos=qos)
    begun = [client.expect_message(acknowledge=False) for _ in range(2)]
    if step == "received":
        client.send(ack(PUBREC, begun[1].pid))
        assert client.expect(PUBREL).pid == begun[1].pid
    client.send(unsubscribe(version, 100, topic))
    assert client.expect(UNSUBACK).pid == 100
    for qos in (0, 1, 2):
        publisher.publish(topic, b"too late", qos=qos)
    publisher.publish(marker, b"", qos=1)
    message = client.expect(PUBLISH)
    assert (message.topic, message.payload) == (marker, b"")
    client.send(ack(PUBACK, message.pid))
    client.expect_alive()
    client.close()
    again = wire(version)
    assert again.connect(client_id, **persistent(version)).resumed
    first, second = again.receive(), again.receive()
    assert (first.kind, first.pid, first.dup, first.payload) == (PUBLISH, begun[0].pid, True, b"begun")
    again.send(ack(PUBACK, first.pid))
    if step == "published":
        assert (second.kind, second.pid, second.dup, second.payload) == (PUBLISH, begun[1].pid, True, b"begun")
        again.send(ack(PUBREC, second.pid))
        second = again.receive()
    assert (second.kind, second.pid) == (PUBREL, begun[1].pid)
    again.send(ack(PUBCOMP, second.pid))
    again.expect_alive()


def test_filters_of_one_subscribe_are_taken_one_after_the_other(wire, version):
    """[MQTT-3.8.4-4] [MQTT5-3.8.4-5]: the same filter twice is a subscription that is replaced; one SUBACK."""
    topic = unique("t/")
    client = wire(version)
    client.connect()
    client.send(subscribe(version, 1, (topic, 2), (f"{topic}/+", 1), (topic, 0)))
    assert client.expect(SUBACK).codes == [2, 1, 0]
    client.expect_alive()
    client.publish(topic, b"x")
    client.publish(f"{topic}/y", b"y")
    assert [(each.payload, each.qos) for each in (client.expect(PUBLISH), client.expect(PUBLISH))] == [
        (b"x", 0),
        (b"y", 0),
    ]
    publisher = wire(version)
    publisher.connect()
    publisher.publish(topic, b"x", qos=2)
    publisher.publish(f"{topic}/y", b"y", qos=2)
    assert [(each.payload, each.qos) for each in (client.expect_message(), client.expect_message())] == [
        (b"x", 0),
        (b"y", 1),
    ]


def test_long_filters_of_one_subscribe(wire, version):
    """[MQTT-3.8.4-4] [MQTT5-3.8.4-6] [MQTT-3.10.4-6]: as short ones, though they are not all taken at once."""
    client = wire(version)
    client.connect()
    topics = [unique("t/") + "x" * 5_000 for _ in range(40)]
    for topic in topics[::13]:
        client.publish(topic, b"retained", retain=True)
    client.expect_alive()
    client.send(subscribe(version, 1, *((topic, index % 3) for index, topic in enumerate(topics))))
    assert client.expect(SUBACK).codes == [index % 3 for index in range(40)]
    assert sorted(client.expect_message().topic for _ in topics[::13]) == sorted(topics[::13])
    client.send(unsubscribe(version, 2, *topics[1:]))
    assert client.expect(UNSUBACK).codes == ([0] * 39 if version == V5 else [])
    for topic in reversed(topics):
        client.publish(topic, b"x")
    message = client.expect_message()
    assert (message.topic, message.payload) == (topics[0], b"x")
    client.expect_alive()


def test_pubrel_does_not_wait_for_receive_maximum(wire):
    """[MQTT5-3.3.4-10]: a resume with room for one PUBLISH sends that one, and the PUBREL behind the next."""
    topic, client_id = unique("t/"), unique("w")
    first, publisher = wire(V5), wire(V5)
    publisher.connect()
    first.connect(client_id, **persistent(V5))
    first.subscribe(topic, 2)
    for payload, qos in ((b"1", 1), (b"2", 1), (b"3", 2)):
        publisher.publish(topic, payload, qos=qos)
    begun = [first.expect_message(acknowledge=False) for _ in range(3)]
    first.send(ack(PUBREC, begun[2].pid))
    assert first.expect(PUBREL).pid == begun[2].pid
    first.close()
    again = wire(V5)
    again.connect(client_id, clean=False, block=properties(session_expiry=60, receive_maximum=1))
    found = [again.receive() for _ in range(2)]
    assert [(each.kind, each.pid) for each in found] == [(PUBLISH, begun[0].pid), (PUBREL, begun[2].pid)]
    again.expect_alive()
    again.send(ack(PUBACK, begun[0].pid))
    assert again.expect(PUBLISH).payload == b"2"
