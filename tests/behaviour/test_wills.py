# SPDX-License-Identifier: Apache-2.0
"""Wills: when they are sent, when not, and what they carry."""

import pytest

from harness.client import Will


@pytest.mark.parametrize("qos", (0, 1, 2))
def test_will_is_sent_when_the_network_drops(mqtt, qos):
    """[MQTT-3.1.2-8] [MQTT-3.1.2-9] [MQTT5-3.1.2-7] [MQTT5-3.1.2-8]"""
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=2)
    dying = mqtt.connect(will=Will(mqtt.topic(), b"gone", qos))
    dying.drop()
    message = watcher.receive()
    assert (message.payload, message.qos, message.retain) == (b"gone", qos, False)
    assert watcher.fence(mqtt.connect(dying.id)) == []


def test_will_may_be_retained(mqtt):
    """[MQTT-3.1.2-17] [MQTT5-3.1.2-15]"""
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    mqtt.connect(will=Will(mqtt.topic(), b"gone", 1, True)).drop()
    assert not watcher.receive().retain
    late = mqtt.connect()
    late.subscribe(mqtt.topic(), qos=1)
    assert late.receive().retain


def test_unretained_will_is_not_kept(mqtt):
    """[MQTT-3.1.2-16] [MQTT5-3.1.2-14]"""
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    mqtt.connect(will=Will(mqtt.topic(), b"gone", 1)).drop()
    watcher.receive()
    late = mqtt.connect()
    late.subscribe(mqtt.topic(), qos=1)
    assert late.fence(watcher) == []


def test_disconnect_discards_the_will(mqtt):
    """[MQTT-3.1.2-10] [MQTT-3.14.4-3] [MQTT5-3.1.2-10] [MQTT5-3.14.4-3]"""
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    leaving = mqtt.connect(will=Will(mqtt.topic(), b"gone", 1))
    leaving.disconnect()
    # same id, same owner: what it publishes now is behind anything its end had set off
    assert watcher.fence(mqtt.connect(leaving.id), 1) == []


def test_disconnect_with_will_message_sends_it(mqtt5):
    """[MQTT5-3.1.2-8]: reason code 0x04 of DISCONNECT."""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic(), qos=1)
    mqtt5.connect(will=Will(mqtt5.topic(), b"gone", 1)).disconnect(0x04)
    assert watcher.receive().payload == b"gone"


def test_protocol_error_sends_the_will(mqtt):
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    dying = mqtt.connect(will=Will(mqtt.topic(), b"gone", 1))
    dying.paho.socket().send(b"\xf0\x00")
    dying.await_closed()
    assert watcher.receive().payload == b"gone"


def test_will_of_a_persistent_session(mqtt):
    """[MQTT-3.1.2-10] [MQTT-3.1.2-12] [MQTT5-3.1.2-10]: a will belongs to the connection, and the session stays."""
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    dying = mqtt.connect(clean=False, will=Will(mqtt.topic(), b"gone", 1))
    dying.drop()
    assert watcher.receive().payload == b"gone"
    again = mqtt.connect(dying.id, clean=False)
    assert again.resumed
    again.drop()
    assert watcher.fence(mqtt.connect(dying.id), 1) == []


def test_take_over_sends_the_will(mqtt):
    """[MQTT-3.1.4-2] [MQTT5-3.1.4-3]"""
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    old = mqtt.connect(will=Will(mqtt.topic(), b"gone", 1))
    mqtt.connect(old.id)
    old.await_closed()
    assert watcher.receive().payload == b"gone"


def test_take_over_with_delay_keeps_the_will_of_a_session_that_goes_on(mqtt5):
    """[MQTT5-3.1.3-9]"""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic(), qos=1)
    old = mqtt5.connect(clean=False, will=Will(mqtt5.topic(), b"gone", 1, False, {"will_delay_interval": 1}))
    new = mqtt5.connect(old.id, clean=False)
    old.await_closed()
    mqtt5.alarm(2)
    assert watcher.fence(new, 1) == []


def test_take_over_by_clean_start_ends_the_session_and_its_delay(mqtt5):
    """[MQTT5-3.1.2-8]: the will is sent when the delay passes or the session ends, whichever is first."""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic(), qos=1)
    old = mqtt5.connect(clean=False, will=Will(mqtt5.topic(), b"gone", 1, False, {"will_delay_interval": 600}))
    mqtt5.connect(old.id)
    old.await_closed()
    assert watcher.receive().payload == b"gone"


def test_will_waits_for_its_delay(mqtt5):
    """[MQTT5-3.1.2-8] [MQTT5-3.1.3-9]: not before its time, and not after."""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic("+"), qos=1)
    for name, delay in (("late", 2), ("soon", 1), ("now", 0)):
        mqtt5.connect(
            will=Will(mqtt5.topic(name), b"", 1, False, {"will_delay_interval": delay}), session_expiry_interval=60
        ).drop()
    assert [each.topic.rsplit("/")[-1] for each in watcher.receive(3)] == ["now", "soon", "late"]


def test_return_within_the_delay_cancels_the_will(mqtt5):
    """[MQTT5-3.1.3-9]"""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic(), qos=1)
    dying = mqtt5.connect(clean=False, will=Will(mqtt5.topic(), b"gone", 1, False, {"will_delay_interval": 1}))
    dying.drop()
    back = mqtt5.connect(dying.id, clean=False)
    mqtt5.alarm(2)
    assert watcher.fence(back, 1) == []


def test_session_end_comes_before_the_delay(mqtt5):
    """[MQTT5-3.1.2-8]"""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic(), qos=1)
    for expiry in (0, 1):
        mqtt5.connect(
            session_expiry_interval=expiry,
            will=Will(mqtt5.topic(), b"gone", 1, False, {"will_delay_interval": 600}),
        ).drop()
        assert watcher.receive().payload == b"gone"


def test_will_carries_its_properties(mqtt5):
    """[MQTT5-3.1.3-10]: and User Properties in their order."""
    watcher = mqtt5.connect()
    watcher.subscribe(mqtt5.topic(), qos=1, identifier=5)
    pairs = [("z", "1"), ("a", "2"), ("z", "1")]
    mqtt5.connect(
        will=Will(
            mqtt5.topic(),
            b"gone",
            1,
            False,
            {
                "payload_format_indicator": 1,
                "message_expiry_interval": 77,
                "content_type": "text/plain",
                "response_topic": "answer/here",
                "correlation_data": b"\x00\xff",
                "user_property": pairs,
            },
        )
    ).drop()
    message = watcher.receive()
    assert message.property("payload_format_indicator") == 1
    assert 70 <= message.property("message_expiry_interval") <= 77
    assert message.property("content_type") == "text/plain"
    assert message.property("response_topic") == "answer/here"
    assert message.property("correlation_data") == b"\x00\xff"
    assert message.property("user_property") == pairs
    assert message.property("subscription_identifier") == [5]


def test_will_reaches_queues(mqtt):
    """A will is a message like any other: a sleeping subscriber gets it later."""
    sleeper = mqtt.connect(clean=False)
    sleeper.subscribe(mqtt.topic(), qos=1)
    sleeper.disconnect()
    watcher = mqtt.connect()
    watcher.subscribe(mqtt.topic(), qos=1)
    mqtt.connect(will=Will(mqtt.topic(), b"gone", 1)).drop()
    watcher.receive()
    woken = mqtt.connect(sleeper.id, clean=False)
    assert woken.receive().payload == b"gone"


def test_retained_will_with_empty_payload_clears(mqtt):
    publisher, watcher = mqtt.connect(), mqtt.connect()
    publisher.publish(mqtt.topic(), b"kept", 1, retain=True)
    watcher.subscribe(mqtt.topic(), qos=1)
    assert watcher.receive().payload == b"kept"
    mqtt.connect(will=Will(mqtt.topic(), b"", 1, True)).drop()
    assert watcher.receive().payload == b""
    late = mqtt.connect()
    late.subscribe(mqtt.topic(), qos=1)
    assert late.fence(publisher) == []
