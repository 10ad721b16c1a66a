# SPDX-License-Identifier: Apache-2.0
"""What 5.0 adds to a message and to a subscription."""

import pytest

from harness import V5, V31, V311, unique
from harness.wire import (
    CONNACK,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    ack,
    connect,
    packet,
    properties,
    publish,
    subscribe,
    unsubscribe,
)


def test_properties_pass_through_unchanged(mqtt5):
    """[MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] [MQTT5-3.3.2-20]"""
    subscriber, publisher = mqtt5.connect(), mqtt5.connect()
    subscriber.subscribe(mqtt5.topic(), qos=2)
    pairs = [("z", "last"), ("a", ""), ("z", "first"), ("", "é")]
    for qos in (0, 1, 2):
        publisher.publish(
            mqtt5.topic(),
            b"x",
            qos,
            payload_format_indicator=1,
            content_type="application/x",
            response_topic="answer/é",
            correlation_data=bytes(range(256)),
            user_property=pairs,
            # one that the broker writes anew, among those that it passes on
            **({"message_expiry_interval": 1000} if qos == 1 else {}),
        )
        message = subscriber.receive()
        assert message.property("payload_format_indicator") == 1
        assert message.property("content_type") == "application/x"
        assert message.property("response_topic") == "answer/é"
        assert message.property("correlation_data") == bytes(range(256))
        assert message.property("user_property") == pairs
        assert message.property("topic_alias") is None


def test_properties_survive_the_queue(mqtt5):
    publisher = mqtt5.connect()
    sleeper = mqtt5.connect(clean=False)
    sleeper.subscribe(mqtt5.topic(), qos=1, identifier=3)
    sleeper.disconnect()
    publisher.publish(mqtt5.topic(), b"x", 1, content_type="a/b", user_property=[("k", "v")])
    message = mqtt5.connect(sleeper.id, clean=False).receive()
    assert message.property("content_type") == "a/b"
    assert message.property("user_property") == [("k", "v")]
    assert message.property("subscription_identifier") == [3]


@pytest.mark.parametrize("version", [V31, V311], ids=["3.1", "3.1.1"])
def test_older_subscribers_get_the_message_without_properties(mqtt, mqtt5):
    subscriber, publisher = mqtt.connect(), mqtt5.connect()
    subscriber.subscribe(mqtt5.topic(), qos=1)
    publisher.publish(mqtt5.topic(), b"x", 1, content_type="a/b", user_property=[("k", "v")])
    assert subscriber.receive().payload == b"x"


def test_request_and_response(mqtt5):
    server, client = mqtt5.connect(), mqtt5.connect()
    server.subscribe(mqtt5.topic("request"), qos=1)
    client.subscribe(mqtt5.topic("response"), qos=1)
    client.publish(
        mqtt5.topic("request"), b"2+2", 1, response_topic=mqtt5.topic("response"), correlation_data=b"\x01"
    )
    request = server.receive()
    server.publish(
        request.property("response_topic"), b"4", 1, correlation_data=request.property("correlation_data")
    )
    response = client.receive()
    assert (response.payload, response.property("correlation_data")) == (b"4", b"\x01")


def test_no_local(mqtt5):
    """[MQTT5-3.8.3-3]"""
    client, other = mqtt5.connect(), mqtt5.connect()
    client.subscribe(mqtt5.topic(), qos=1, no_local=True)
    client.publish(mqtt5.topic(), b"own", 1)
    other.publish(mqtt5.topic(), b"other", 1)
    assert client.receive().payload == b"other"
    assert client.fence(client) == []


def test_no_local_holds_per_subscription(mqtt5):
    """Another subscription of the same client still gets what it publishes itself."""
    client = mqtt5.connect()
    client.subscribe(mqtt5.topic("a"), qos=1, no_local=True, identifier=1)
    client.subscribe(mqtt5.topic("#"), qos=0, identifier=2)
    client.publish(mqtt5.topic("a"), b"own", 1)
    (message,) = client.fence(client)
    assert message.qos == 0
    assert message.property("subscription_identifier") == [2]


def test_all_subscription_identifiers_on_one_delivery(mqtt5):
    """[MQTT5-3.3.4-3] [MQTT5-3.3.4-4]"""
    client, publisher = mqtt5.connect(), mqtt5.connect()
    client.subscribe(mqtt5.topic("a"), qos=0, identifier=1)
    client.subscribe(mqtt5.topic("+"), qos=2, identifier=268_435_455)
    client.subscribe(mqtt5.topic("#"), qos=1)
    client.subscribe("#", qos=0, identifier=1)
    publisher.publish(mqtt5.topic("a"), b"x", 2)
    (message,) = [each for each in client.fence(publisher) if each.topic == mqtt5.topic("a")]
    assert message.qos == 2
    assert sorted(message.property("subscription_identifier")) in ([1, 268_435_455], [1, 1, 268_435_455])


def test_subscription_identifier_is_replaced_and_dropped(mqtt5):
    """[MQTT5-3.8.4-3]"""
    client = mqtt5.connect()
    for identifier in (5, 6, None):
        client.subscribe(mqtt5.topic(), qos=1, identifier=identifier)
        client.publish(mqtt5.topic(), b"x", 1)
        expected = None if identifier is None else [identifier]
        assert client.receive().property("subscription_identifier") == expected


def test_message_expiry_reaches_the_subscriber(mqtt5):
    subscriber, publisher = mqtt5.connect(), mqtt5.connect()
    subscriber.subscribe(mqtt5.topic())
    publisher.publish(mqtt5.topic(), b"x", message_expiry_interval=1000)
    assert 990 < subscriber.receive().property("message_expiry_interval") <= 1000


def test_topic_alias_from_the_client(broker, wire):
    """[MQTT5-3.3.2-12]: set, used, changed."""
    client = wire(V5)
    client.connect()
    names = [unique("t/"), unique("t/")]
    for name in names:
        client.subscribe(name)
    client.send(
        publish(V5, names[0], b"1", block=properties(topic_alias=1)),
        publish(V5, "", b"2", block=properties(topic_alias=1)),
        publish(V5, names[1], b"3", block=properties(topic_alias=65535)),
        publish(V5, "", b"4", block=properties(topic_alias=65535)),
        publish(V5, "", b"5", block=properties(topic_alias=1)),
        publish(V5, names[1], b"6", block=properties(topic_alias=1)),
        publish(V5, "", b"7", block=properties(topic_alias=1)),
    )
    got = [client.expect_message() for _ in range(7)]
    assert [(each.topic, each.payload) for each in got] == [
        (names[0], b"1"),
        (names[0], b"2"),
        (names[1], b"3"),
        (names[1], b"4"),
        (names[0], b"5"),
        (names[1], b"6"),
        (names[1], b"7"),
    ]
    assert not any("topic_alias" in each.properties for each in got)


def test_topic_alias_ends_with_the_connection(broker, wire):
    """[MQTT5-3.3.2-7]"""
    client_id = unique("w")
    block = properties(session_expiry=60)
    first = wire(V5)
    first.connect(client_id, clean=False, block=block)
    first.publish(unique("t/"), b"x", qos=1, block=properties(topic_alias=3))
    first.close()
    again = wire(V5)
    again.connect(client_id, clean=False, block=block)
    again.send(publish(V5, "", b"x", qos=1, pid=9, block=properties(topic_alias=3)))
    again.expect_refused(0x82, 0x94)


def test_topic_alias_from_the_broker(broker, wire):
    """[MQTT5-3.1.2-26] [MQTT5-3.3.2-11]: only up to the client's maximum, and always resolvable."""
    client, publisher = wire(V5), wire(V5)
    client.connect(block=properties(topic_alias_maximum=2))
    publisher.connect()
    base = unique("t/")
    client.subscribe(f"{base}/#", 1)
    names = [f"{base}/{number % 4}" for number in range(40)]
    for name in names:
        publisher.publish(name, name.encode(), qos=1)
    aliases, got = {}, []
    for _ in names:
        message = client.expect_message()
        alias = message.properties.get("topic_alias")
        if alias is not None:
            assert 1 <= alias <= 2
            if message.topic:
                aliases[alias] = message.topic
        topic = message.topic or aliases[alias]
        assert topic.encode() == message.payload
        got.append(topic)
    assert got == names


def test_no_topic_alias_for_a_client_that_takes_none(broker, wire):
    """[MQTT5-3.1.2-27]"""
    client = wire(V5)
    client.connect()
    topic = unique("t/")
    client.subscribe(topic)
    for _ in range(20):
        client.publish(topic, b"x")
        message = client.expect_message()
        assert message.topic == topic
        assert "topic_alias" not in message.properties


def test_packets_larger_than_the_client_takes_are_left_out(broker, wire):
    """[MQTT5-3.1.2-24] [MQTT5-3.1.2-25]: as if they had been delivered."""
    topic = unique("t/")
    small, publisher = wire(V5), wire(V5)
    small.connect(block=properties(maximum_packet_size=100))
    publisher.connect()
    small.subscribe(topic, 1)
    for size in (10, 200, 20):
        publisher.publish(topic, b"x" * size, qos=1)
    assert [len(small.expect_message().payload) for _ in range(2)] == [10, 20]
    small.expect_alive()


@pytest.mark.parametrize("client_id", ["", "given"], ids=["assigned", "given"])
def test_connack_is_within_the_clients_maximum(broker, wire, client_id):
    """[MQTT5-3.1.2-24]: a client that has no room for it is closed; one with just enough is served."""
    client_id = client_id and unique(client_id)
    probe = wire(V5)
    whole = len(packet(CONNACK, 0, probe.connect(client_id).body))
    probe.close()
    for room in (1, 4, whole - 1):
        small = wire(V5)
        small.send(connect(V5, client_id, block=properties(maximum_packet_size=room)))
        small.expect_closed()
    just = wire(V5)
    just.connect(client_id, block=properties(maximum_packet_size=whole))
    just.expect_alive()


@pytest.mark.parametrize("kind", [SUBACK, UNSUBACK], ids=["suback", "unsuback"])
def test_codes_are_within_the_clients_maximum(broker, wire, kind):
    """[MQTT5-3.1.2-24]: a fixed header of 2 bytes, an id, an empty block and 95 codes are 100 bytes."""
    client = wire(V5)
    client.connect(block=properties(maximum_packet_size=100))
    names = [unique("t/") for _ in range(96)]
    build = unsubscribe if kind == UNSUBACK else lambda v, pid, *each: subscribe(v, pid, *((name, 0) for name in each))
    client.send(build(V5, 1, *names[:95]))
    assert len(client.expect(kind).codes) == 95
    client.send(build(V5, 2, *names))
    client.expect_refused(0x95)


def test_packet_of_exactly_the_maximum_is_delivered(broker, wire):
    topic = unique("t/")
    client = wire(V5)
    client.connect(block=properties(maximum_packet_size=100))
    client.subscribe(topic)
    # one byte of type, one of length, two of topic length, one of property length
    room = 100 - 5 - len(topic)
    client.publish(topic, b"x" * room)
    assert len(client.expect_message().payload) == room
    client.publish(topic, b"x" * (room + 1))
    client.expect_alive()


def test_too_large_messages_do_not_hold_the_window(broker, wire):
    """A message that can't be sent takes no part of Receive Maximum."""
    topic = unique("t/")
    client, publisher = wire(V5), wire(V5)
    client.connect(block=properties(maximum_packet_size=100, receive_maximum=1))
    publisher.connect()
    client.subscribe(topic, 2)
    for _ in range(5):
        publisher.publish(topic, b"x" * 200, qos=2)
    publisher.publish(topic, b"fits", qos=2)
    assert client.expect_message().payload == b"fits"


def test_receive_maximum_of_the_client_is_kept(broker, wire):
    """[MQTT5-3.3.4-9] [MQTT5-3.3.4-10] [MQTT5-4.9.0-2]: QoS 0 and other packets pass by, the rest waits for acks."""
    topic = unique("t/")
    client, publisher = wire(V5), wire(V5)
    client.connect(block=properties(receive_maximum=3))
    publisher.connect()
    client.subscribe(topic, 2)
    for number in range(6):
        publisher.publish(topic, str(number).encode(), qos=1 + number % 2)
    publisher.publish(topic, b"passing")
    window = [client.expect(PUBLISH) for _ in range(4)]
    assert [each.payload for each in window] == [b"0", b"1", b"2", b"passing"]
    client.expect_alive()
    client.send(ack(PUBACK, window[0].pid))
    fourth = client.expect(PUBLISH)
    assert fourth.payload == b"3"
    # PUBREC alone frees nothing, PUBCOMP does
    client.send(ack(PUBREC, window[1].pid))
    assert client.expect(PUBREL).pid == window[1].pid
    client.expect_alive()
    client.send(ack(PUBCOMP, window[1].pid))
    assert client.expect(PUBLISH).payload == b"4"
    # and so does a PUBREC that refuses
    client.send(ack(PUBREC, fourth.pid, 0x80))
    assert client.expect(PUBLISH).payload == b"5"


def test_resume_respects_a_smaller_receive_maximum(broker, wire):
    """[MQTT5-3.3.4-9]"""
    topic, client_id = unique("t/"), unique("w")
    first, publisher = wire(V5), wire(V5)
    first.connect(client_id, clean=False, block=properties(session_expiry=60))
    publisher.connect()
    first.subscribe(topic, 1)
    for number in range(5):
        publisher.publish(topic, str(number).encode(), qos=1)
    for _ in range(5):
        first.expect(PUBLISH)
    first.close()
    again = wire(V5)
    again.connect(client_id, clean=False, block=properties(session_expiry=60, receive_maximum=1))
    again_first = again.expect_message(acknowledge=False)
    assert again_first.payload == b"0"
    again.expect_alive()
    again.send(ack(PUBACK, again_first.pid))
    assert [again.expect_message().payload for _ in range(4)] == [b"1", b"2", b"3", b"4"]


def test_client_above_the_brokers_receive_maximum_is_closed(spawn, wire):
    """[MQTT5-3.3.4-7] [MQTT5-4.9.0-1]: 0x93."""
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      receive-maximum: 5\n")
    client = wire(V5, own)
    assert client.connect().properties["receive_maximum"] == 5
    topic = unique("t/")
    for pid in range(1, 6):
        client.send(publish(V5, topic, b"x", qos=2, pid=pid))
        assert client.receive().pid == pid
    client.expect_alive()
    client.send(publish(V5, topic, b"x", qos=2, pid=6))
    client.expect_refused(0x93)
