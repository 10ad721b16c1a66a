# SPDX-License-Identifier: Apache-2.0
"""Retained messages: kept, replaced, cleared, and which subscriptions get them."""

import pytest

from harness import V5


@pytest.mark.parametrize("qos", (0, 1, 2))
def test_new_subscription_gets_the_retained_message(mqtt, qos):
    """[MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-8] [MQTT5-3.3.1-5] [MQTT5-3.3.1-9]"""
    publisher, subscriber = mqtt.connect(), mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", qos, retain=True)
    # nothing acknowledges QoS 0: it is kept once the publisher's own, later subscription gets it
    publisher.subscribe(mqtt.topic())
    assert publisher.receive().retain
    subscriber.subscribe(mqtt.topic(), qos=2)
    message = subscriber.receive()
    assert (message.payload, message.qos, message.retain) == (b"kept", qos, True)


def test_retained_qos_is_lowered_to_the_granted(mqtt):
    publisher, subscriber = mqtt.connect(), mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", 2, retain=True)
    subscriber.subscribe(mqtt.topic(), qos=1)
    assert subscriber.receive().qos == 1


def test_live_subscribers_see_no_retain_flag(mqtt):
    """[MQTT-3.3.1-9] [MQTT5-3.3.1-12]"""
    publisher, subscriber, member = (mqtt.connect() for _ in range(3))
    subscriber.subscribe(mqtt.topic(), qos=1)
    member.subscribe(f"$share/g/{mqtt.topic()}", qos=1)
    publisher.publish(mqtt.topic(), b"live", 1, retain=True)
    assert not subscriber.receive().retain
    assert not member.receive().retain


def test_newest_retained_message_replaces_the_old(mqtt):
    """[MQTT-3.3.1-5] [MQTT5-3.3.1-5]"""
    publisher, subscriber = mqtt.connect(), mqtt.connect()
    for number in range(5):
        publisher.publish(mqtt.topic(), str(number).encode(), number % 3, retain=True)
    subscriber.subscribe(mqtt.topic(), qos=1)
    assert [each.payload for each in subscriber.fence(publisher)] == [b"4"]


@pytest.mark.parametrize("before", (0, 1, 2))
def test_retained_message_of_qos_0_replaces_the_old(mqtt, before):
    """[MQTT-3.3.1-7]"""
    client = mqtt.connect()
    client.publish(mqtt.topic(), b"old", before, retain=True)
    client.publish(mqtt.topic(), b"new", 0, retain=True)
    # nothing acknowledges QoS 0: the publisher's own, later subscription comes behind it
    client.subscribe(mqtt.topic(), qos=2)
    message = client.receive()
    assert (message.payload, message.qos, message.retain) == (b"new", 0, True)
    assert client.fence(client) == []


def test_retain_with_empty_payload_clears_topic(mqtt):
    """[MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7]: and is an ordinary message to the others."""
    publisher, live, late = (mqtt.connect() for _ in range(3))
    publisher.publish(mqtt.topic(), b"kept", 1, retain=True)
    live.subscribe(mqtt.topic(), qos=1)
    assert live.receive().payload == b"kept"
    publisher.publish(mqtt.topic(), b"", 1, retain=True)
    message = live.receive()
    assert (message.payload, message.retain) == (b"", False)
    late.subscribe(mqtt.topic(), qos=1)
    assert late.fence(publisher) == []


def test_publish_without_retain_leaves_the_retained_message(mqtt):
    """[MQTT-3.3.1-12] [MQTT5-3.3.1-8]"""
    publisher, subscriber = mqtt.connect(), mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", 1, retain=True)
    publisher.publish(mqtt.topic(), b"passing", 1)
    publisher.publish(mqtt.topic(), b"", 1)
    subscriber.subscribe(mqtt.topic(), qos=1)
    assert [each.payload for each in subscriber.fence(publisher)] == [b"kept"]


def test_wildcards_get_all_that_match(mqtt):
    publisher, subscriber = mqtt.connect(), mqtt.connect()
    names = {mqtt.topic("a", str(index)) for index in range(300)}
    for name in names:
        publisher.send(name, name.encode(), 1, retain=True)
    publisher.publish(mqtt.topic("b"), b"other", 1, retain=True)
    subscriber.subscribe(mqtt.topic("a", "+"), qos=1)
    messages = subscriber.fence(publisher)
    assert {each.topic for each in messages} == names
    assert len(messages) == len(names)
    assert all(each.retain and each.payload == each.topic.encode() for each in messages)


def test_subscribing_again_sends_retained_again(mqtt):
    """[MQTT-3.8.4-3] [MQTT5-3.8.4-4]"""
    client = mqtt.connect()
    client.publish(mqtt.topic(), b"kept", 1, retain=True)
    for _ in range(2):
        client.subscribe(mqtt.topic(), qos=1)
        assert client.receive().retain


@pytest.mark.parametrize(
    ("handling", "first", "again"), [(0, [b"kept"], [b"kept"]), (1, [b"kept"], []), (2, [], [])]
)
def test_retain_handling(mqtt5, handling, first, again):
    """[MQTT5-3.3.1-9] [MQTT5-3.3.1-10] [MQTT5-3.3.1-11]"""
    client = mqtt5.connect()
    client.publish(mqtt5.topic(), b"kept", 1, retain=True)
    for expected in (first, again):
        client.subscribe(mqtt5.topic(), qos=1, handling=handling)
        assert [each.payload for each in client.fence(client)] == expected
    client.unsubscribe(mqtt5.topic())
    client.subscribe(mqtt5.topic(), qos=1, handling=handling)
    assert [each.payload for each in client.fence(client)] == first


@pytest.mark.parametrize("retain", [False, True])
def test_retain_as_published_keeps_the_flag(mqtt5, retain):
    """[MQTT5-3.3.1-12] [MQTT5-3.3.1-13]"""
    keeping, member, plain, publisher = (mqtt5.connect() for _ in range(4))
    keeping.subscribe(mqtt5.topic(), as_published=True)
    member.subscribe(f"$share/g/{mqtt5.topic()}", as_published=True)
    plain.subscribe(mqtt5.topic())
    publisher.publish(mqtt5.topic(), b"x", retain=retain)
    assert keeping.receive().retain is retain
    assert member.receive().retain is retain
    assert not plain.receive().retain


def test_retained_message_outlives_its_publisher(mqtt):
    publisher = mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", 1, retain=True)
    publisher.disconnect()
    subscriber = mqtt.connect()
    subscriber.subscribe(mqtt.topic())
    assert subscriber.receive().payload == b"kept"


def test_retained_message_keeps_its_properties(mqtt5):
    """[MQTT5-3.3.2-17] [MQTT5-3.3.2-18]"""
    publisher, subscriber = mqtt5.connect(), mqtt5.connect()
    publisher.publish(
        mqtt5.topic(), b"kept", 1, retain=True, user_property=[("b", "1"), ("a", "2")], content_type="text"
    )
    subscriber.subscribe(mqtt5.topic(), identifier=7)
    message = subscriber.receive()
    assert message.property("user_property") == [("b", "1"), ("a", "2")]
    assert message.property("content_type") == "text"
    assert message.property("subscription_identifier") == [7]


def test_retained_message_expires(mqtt5):
    """[MQTT5-3.3.2-5] [MQTT5-3.3.2-6]: and until then shows what is left of its time."""
    publisher = mqtt5.connect()
    publisher.publish(mqtt5.topic("short"), b"x", 1, retain=True, message_expiry_interval=1)
    publisher.publish(mqtt5.topic("long"), b"x", 1, retain=True, message_expiry_interval=100)
    mqtt5.alarm(2)
    subscriber = mqtt5.connect()
    subscriber.subscribe(mqtt5.topic("+"), qos=1)
    (message,) = subscriber.fence(publisher)
    assert message.topic == mqtt5.topic("long")
    assert 80 < message.property("message_expiry_interval") < 100


def test_five_and_three_share_retained_messages(mqtt):
    """What one version keeps the others get."""
    publisher = mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", 1, retain=True)
    for version in (3, 4, V5):
        subscriber = mqtt.connect(version=version)
        subscriber.subscribe(mqtt.topic(), qos=1)
        assert subscriber.receive().payload == b"kept"
