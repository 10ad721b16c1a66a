# SPDX-License-Identifier: Apache-2.0
"""Sessions: resumed, taken over, expired; what waits in them and how it comes back."""

import pytest

from harness import V5, unique
from harness.client import NO_CONNECTION
from harness.wire import (
    CONNACK,
    DISCONNECT,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    ack,
    connect,
    persistent,
    publish,
)

# what a session keeps


def test_resumed_session_keeps_subscriptions(mqtt):
    """[MQTT-3.1.2-4] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT-4.1.0-1] [MQTT5-3.1.2-5] [MQTT5-3.1.2-6] [MQTT5-3.2.2-3]"""
    first = mqtt.connect(clean=False)
    assert first.fresh
    first.subscribe(mqtt.topic(), qos=1)
    first.disconnect()
    again = mqtt.connect(first.id, clean=False)
    assert again.resumed
    mqtt.connect().publish(mqtt.topic(), b"x", 1)
    assert again.receive().payload == b"x"


def test_clean_start_discards_the_session(mqtt):
    """[MQTT-3.1.2-6] [MQTT-3.1.4-3] [MQTT-3.2.2-1] [MQTT5-3.1.2-4] [MQTT5-3.1.4-4] [MQTT5-3.2.2-2]"""
    publisher = mqtt.connect()
    first = mqtt.connect(clean=False)
    first.subscribe(mqtt.topic(), qos=1)
    first.disconnect()
    publisher.publish(mqtt.topic(), b"queued", 1)
    again = mqtt.connect(first.id)
    assert again.fresh
    assert again.fence(publisher) == []


def test_clean_session_leaves_nothing_behind(mqtt):
    """[MQTT-3.1.2-6] [MQTT-3.2.2-3]"""
    first = mqtt.connect()
    first.subscribe(mqtt.topic(), qos=1)
    first.disconnect()
    assert mqtt.connect(first.id, clean=False).fresh


def test_queue_is_delivered_in_order_on_resume(mqtt):
    """[MQTT-3.1.2-5] [MQTT-4.5.0-1] [MQTT-4.6.0-6] [MQTT5-4.5.0-1] [MQTT5-4.6.0-5]"""
    publisher = mqtt.connect()
    sleeper = mqtt.connect(clean=False)
    sleeper.subscribe(mqtt.topic(), qos=2)
    sleeper.disconnect()
    for number in range(300):
        publisher.send(mqtt.topic(), str(number).encode(), 1 + number % 2)
    publisher.publish(mqtt.topic(), b"300", 1)
    woken = mqtt.connect(sleeper.id, clean=False)
    messages = woken.receive(301)
    assert [int(each.payload) for each in messages if each.qos == 1] == [*range(0, 300, 2), 300]
    assert [int(each.payload) for each in messages if each.qos == 2] == [*range(1, 300, 2)]
    assert not any(each.dup for each in messages), "[MQTT-3.3.1-1]: it is their first time"
    assert woken.fence(publisher) == []


def test_queue_holds_across_a_dropped_network(mqtt):
    publisher = mqtt.connect()
    sleeper = mqtt.connect(clean=False)
    sleeper.subscribe(mqtt.topic(), qos=1)
    sleeper.drop()
    publisher.publish(mqtt.topic(), b"x", 1)
    assert mqtt.connect(sleeper.id, clean=False).receive().payload == b"x"


@pytest.mark.parametrize("qos", (1, 2))
def test_what_was_acknowledged_does_not_come_again(mqtt, qos):
    publisher = mqtt.connect()
    first = mqtt.connect(clean=False)
    first.subscribe(mqtt.topic(), qos=qos)
    publisher.publish(mqtt.topic(), b"x", qos)
    first.receive()
    first.fence(publisher)
    first.disconnect()
    assert mqtt.connect(first.id, clean=False).fence(publisher) == []


def test_subscription_made_before_the_end_is_kept_with_its_options(mqtt5):
    publisher = mqtt5.connect()
    first = mqtt5.connect(clean=False)
    first.subscribe(mqtt5.topic(), qos=1, as_published=True, identifier=9)
    first.disconnect()
    again = mqtt5.connect(first.id, clean=False)
    publisher.publish(mqtt5.topic(), b"x", 2, retain=True)
    message = again.receive()
    assert (message.qos, message.retain) == (1, True)
    assert message.property("subscription_identifier") == [9]


# what was in flight


def test_unacked_qos1_comes_again_in_order_with_dup_and_its_packet_ids(broker, wire, version):
    """[MQTT-3.3.1-1] [MQTT-4.3.2-1] [MQTT-4.4.0-1] [MQTT-4.6.0-1]

    [MQTT5-3.3.1-1] [MQTT5-4.3.2-2] [MQTT5-4.3.2-3] [MQTT5-4.4.0-1] [MQTT5-4.6.0-1]
    """
    topic, client_id = unique("t/"), unique("w")
    subscriber, publisher = wire(version), wire(version)
    publisher.connect()
    subscriber.connect(client_id, **persistent(version))
    subscriber.subscribe(topic, 1)
    for number in range(5):
        publisher.publish(topic, str(number).encode(), qos=1)
    first = [subscriber.expect_message(acknowledge=False) for _ in range(5)]
    assert [each.payload for each in first] == [b"0", b"1", b"2", b"3", b"4"]
    assert not any(each.dup for each in first)
    subscriber.send(ack(PUBACK, first[0].pid))
    subscriber.expect_alive()
    subscriber.close()
    again = wire(version)
    assert again.connect(client_id, **persistent(version)).resumed
    second = [again.expect_message() for _ in range(4)]
    assert [(each.payload, each.pid) for each in second] == [(each.payload, each.pid) for each in first[1:]]
    assert all(each.dup for each in second)
    again.expect_alive()


def test_unanswered_qos2_comes_again_from_where_it_stood(broker, wire, version):
    """PUBLISH before PUBREC, PUBREL after it, and nothing after PUBCOMP.

    [MQTT-4.3.3-1] [MQTT-4.4.0-1] [MQTT5-4.3.3-2] [MQTT5-4.3.3-3] [MQTT5-4.3.3-4] [MQTT5-4.3.3-5] [MQTT5-4.3.3-6]
    [MQTT5-4.4.0-1]
    """
    topic, client_id = unique("t/"), unique("w")
    subscriber, publisher = wire(version), wire(version)
    publisher.connect()
    subscriber.connect(client_id, **persistent(version))
    subscriber.subscribe(topic, 2)
    for number in range(3):
        publisher.publish(topic, str(number).encode(), qos=2)
    first = [subscriber.expect_message(acknowledge=False) for _ in range(3)]
    assert not any(each.dup for each in first)
    subscriber.send(ack(PUBREC, first[0].pid))
    assert subscriber.expect(PUBREL).pid == first[0].pid
    subscriber.close()
    again = wire(version)
    again.connect(client_id, **persistent(version))
    resent = [again.receive() for _ in range(3)]
    assert [each.kind for each in resent] == [PUBREL, PUBLISH, PUBLISH]
    assert [each.pid for each in resent] == [each.pid for each in first]
    assert [each.payload for each in resent[1:]] == [b"1", b"2"]
    assert all(each.dup for each in resent[1:])
    again.send(ack(PUBCOMP, first[0].pid))
    for message in resent[1:]:
        again.send(ack(PUBREC, message.pid))
        assert again.expect(PUBREL).pid == message.pid
        again.send(ack(PUBCOMP, message.pid))
    again.expect_alive()
    again.close()
    third = wire(version)
    third.connect(client_id, **persistent(version))
    third.expect_alive()


def test_inbound_qos2_is_exact_across_reconnect(broker, wire, version):
    """[MQTT-4.3.3-2] [MQTT5-4.3.3-10]: a repeated packet id is not a second message."""
    topic, client_id = unique("t/"), unique("w")
    watcher, publisher = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic, 2)
    publisher.connect(client_id, **persistent(version))
    publisher.send(publish(version, topic, b"once", qos=2, pid=77))
    assert publisher.expect(PUBREC).pid == 77
    publisher.close()
    again = wire(version)
    assert again.connect(client_id, **persistent(version)).resumed
    again.send(publish(version, topic, b"once", qos=2, pid=77, dup=True))
    assert again.expect(PUBREC).pid == 77
    again.send(ack(PUBREL, 77))
    assert again.expect(PUBCOMP).pid == 77
    again.publish(topic, b"fence", qos=2)
    assert [watcher.expect_message().payload for _ in range(2)] == [b"once", b"fence"]


def test_packet_id_is_free_after_pubcomp(broker, wire, version):
    """[MQTT-2.3.1-4] [MQTT-4.3.3-2] [MQTT5-2.2.1-4] [MQTT5-4.3.3-12]"""
    topic = unique("t/")
    client = wire(version)
    client.connect()
    client.subscribe(topic, 0)
    for payload in (b"1", b"2"):
        client.send(publish(version, topic, payload, qos=2, pid=5))
        answers = []
        while len(answers) < 3:
            answers.append(client.receive())
            if answers[-1].kind == PUBREC:
                client.send(ack(PUBREL, 5))
        kinds = [each.kind for each in answers]
        assert sorted(kinds) == [PUBLISH, PUBREC, PUBCOMP]
        assert kinds.index(PUBREC) < kinds.index(PUBCOMP)
        assert [each.payload for each in answers if each.kind == PUBLISH] == [payload]


def test_both_sides_use_the_same_packet_ids(broker, wire, version):
    """[MQTT-2.3.1-4] [MQTT5-2.2.1-4]: ids of the two directions have nothing to do with each other."""
    topic = unique("t/")
    client, publisher = wire(version), wire(version)
    client.connect()
    publisher.connect()
    client.subscribe(topic, 2)
    publisher.publish(topic, b"in", qos=2)
    message = client.expect_message(acknowledge=False)
    client.send(publish(version, unique("other/"), b"out", qos=2, pid=message.pid))
    assert client.expect(PUBREC).pid == message.pid
    client.send(ack(PUBREC, message.pid))
    assert client.expect(PUBREL).pid == message.pid
    client.send(ack(PUBREL, message.pid))
    assert client.expect(PUBCOMP).pid == message.pid
    client.send(ack(PUBCOMP, message.pid))
    client.expect_alive()


def test_resume_starts_after_connack(broker, wire, version):
    """[MQTT-3.2.0-1] [MQTT5-3.1.4-5] [MQTT5-3.2.0-1]: also when the queue is long."""
    topic, client_id = unique("t/"), unique("w")
    publisher, sleeper = wire(version), wire(version)
    publisher.connect()
    sleeper.connect(client_id, **persistent(version))
    sleeper.subscribe(topic, 1)
    sleeper.close()
    for number in range(100):
        publisher.publish(topic, b"x" * number, qos=1)
    woken = wire(version)
    woken.send(connect(version, client_id, **persistent(version)))
    assert woken.receive().kind == CONNACK
    for number in range(100):
        assert len(woken.expect_message().payload) == number


# two connections, one client id


def test_second_connection_takes_over(mqtt):
    """[MQTT-3.1.4-2] [MQTT5-3.1.4-3]: 5.0 is told, the others are not."""
    old = mqtt.connect()
    new = mqtt.connect(old.id)
    assert old.await_closed() == (0x8E if mqtt.version == V5 else NO_CONNECTION)
    new.subscribe(mqtt.topic())
    new.publish(mqtt.topic(), b"x")
    assert new.receive().payload == b"x"


def test_take_over_keeps_the_session(mqtt):
    publisher = mqtt.connect()
    old = mqtt.connect(clean=False, manual_ack=True)
    old.subscribe(mqtt.topic(), qos=1)
    publisher.publish(mqtt.topic(), b"unacked", 1)
    old.receive()
    new = mqtt.connect(old.id, clean=False)
    assert new.resumed
    old.await_closed()
    message = new.receive()
    assert (message.payload, message.dup) == (b"unacked", True)
    publisher.publish(mqtt.topic(), b"next", 1)
    assert new.receive().payload == b"next"


def test_take_over_across_versions(mqtt):
    for version in (3, 4, 5):
        old = mqtt.connect(clean=False)
        old.subscribe(mqtt.topic(), qos=1)
        new = mqtt.connect(old.id, version=version, clean=False)
        assert new.resumed
        old.await_closed()
        mqtt.connect().publish(mqtt.topic(), b"x", 1)
        assert new.receive().payload == b"x"
        mqtt.connect(old.id)


def test_storm_of_take_overs_leaves_one(wire, version):
    """Twenty connections race for one id: whichever the broker saw last is served, and no other."""
    client_id = unique("w")
    racers = [wire(version) for _ in range(20)]
    for racer in racers:
        racer.send(connect(version, client_id))
    # once each has its CONNACK, or lost before that, the race is over
    for racer in racers:
        found = racer.receive()
        assert found is None or found.kind in (CONNACK, DISCONNECT)
    alive = 0
    for racer in racers:
        racer.send(PING)
        while (found := racer.receive()) is not None:
            if found.kind == PINGRESP:
                alive += 1
                break
            assert (found.kind, found.reason) == (DISCONNECT, 0x8E)
    assert alive == 1


# how a session ends


def test_session_expires(mqtt5):
    """[MQTT5-3.1.2-23] [MQTT5-4.1.0-2]"""
    publisher = mqtt5.connect()
    short = mqtt5.connect(clean=False, session_expiry_interval=1)
    long = mqtt5.connect(clean=False, session_expiry_interval=100)
    for client in (short, long):
        client.subscribe(mqtt5.topic(), qos=1)
        client.drop()
    mqtt5.alarm(2)
    publisher.publish(mqtt5.topic(), b"x", 1)
    back = mqtt5.connect(short.id, clean=False)
    assert back.fresh
    assert back.fence(publisher) == []
    assert mqtt5.connect(long.id, clean=False).resumed


def test_expired_session_takes_its_subscriptions_along(mqtt5):
    """The broker has no subscriber left, and says so."""
    publisher = mqtt5.connect()
    short = mqtt5.connect(clean=False, session_expiry_interval=1)
    short.subscribe(mqtt5.topic(), qos=1)
    short.drop()
    assert publisher.publish(mqtt5.topic(), b"x", 1) == 0
    mqtt5.alarm(2)
    assert publisher.publish(mqtt5.topic(), b"x", 1) == 0x10


def test_expiry_starts_when_the_connection_ends(mqtt5):
    """[MQTT5-4.1.0-1]"""
    client = mqtt5.connect(clean=False, session_expiry_interval=1)
    mqtt5.alarm(2)
    client.drop()
    assert mqtt5.connect(client.id, clean=False).resumed


@pytest.mark.parametrize(("at_connect", "at_disconnect", "present"), [(600, 0, False), (1, 600, True)])
def test_disconnect_changes_the_expiry(mqtt5, at_connect, at_disconnect, present):
    """Session Expiry Interval of DISCONNECT replaces that of CONNECT."""
    client = mqtt5.connect(clean=False, session_expiry_interval=at_connect)
    client.disconnect(session_expiry_interval=at_disconnect)
    if present:
        mqtt5.alarm(2)
    assert mqtt5.connect(client.id, clean=False).resumed is present


def test_reconnect_replaces_the_expiry(mqtt5):
    client = mqtt5.connect(clean=False, session_expiry_interval=600)
    client.disconnect()
    client = mqtt5.connect(client.id, clean=False, session_expiry_interval=0)
    assert client.resumed
    client.disconnect()
    assert mqtt5.connect(client.id, clean=False).fresh


def test_queued_message_expires(mqtt5):
    """[MQTT5-3.3.2-5] [MQTT5-3.3.2-6]: and one that does not shows what is left of its time."""
    publisher = mqtt5.connect()
    sleeper = mqtt5.connect(clean=False)
    sleeper.subscribe(mqtt5.topic(), qos=1)
    sleeper.disconnect()
    publisher.publish(mqtt5.topic(), b"short", 1, message_expiry_interval=1)
    publisher.publish(mqtt5.topic(), b"long", 1, message_expiry_interval=100)
    publisher.publish(mqtt5.topic(), b"endless", 1)
    mqtt5.alarm(2)
    woken = mqtt5.connect(sleeper.id, clean=False)
    messages = woken.fence(publisher)
    assert [each.payload for each in messages] == [b"long", b"endless"]
    assert 80 < messages[0].property("message_expiry_interval") < 100
    assert messages[1].property("message_expiry_interval") is None
