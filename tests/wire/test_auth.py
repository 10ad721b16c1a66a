# SPDX-License-Identifier: Apache-2.0
"""Extended authentication (section 4.12 of 5.0), with the method of the doubles; and what a panic does."""

import os
import signal

import pytest

from harness import V5, unique
from harness.wire import AUTH, CONNACK, PUBACK, connect, packet, properties, publish

METHOD = "corqtt-double"

pytestmark = pytest.mark.skipif(
    not os.environ.get("CORQTT_TEST_DOUBLES"), reason="the broker itself has no method yet; its doubles have one"
)


def auth(reason, data=b"", method=METHOD):
    block = properties(auth_method=method, auth_data=data)
    return packet(AUTH, 0, bytes([reason]) + block)


def begin(wire, **limits):
    """CONNECT by the method, answered by a challenge."""
    client = wire(V5)
    client.send(connect(V5, unique("auth"), block=properties(auth_method=METHOD, auth_data=b"hi", **limits)))
    challenge = client.expect(AUTH)
    assert challenge.reason == 0x18
    assert challenge.properties["auth_method"] == METHOD
    assert challenge.properties["auth_data"] == b"who?"
    return client


def login(wire):
    client = begin(wire)
    client.send(auth(0x18, b"me"))
    answer = client.expect(CONNACK)
    assert answer.reason == 0
    assert answer.properties["auth_method"] == METHOD
    assert answer.properties["auth_data"] == b"welcome"
    return client


def test_exchange_ends_with_connack(wire):
    """[MQTT5-4.12.0-2] [MQTT5-4.12.0-3] [MQTT5-4.12.0-5]"""
    client = login(wire)
    client.send(publish(V5, unique("topic"), b"x", qos=1, pid=7))
    assert client.expect(PUBACK).pid == 7


def test_wrong_proof_is_refused(wire):
    """[MQTT5-4.12.0-4]"""
    client = begin(wire)
    client.send(auth(0x18, b"you"))
    assert client.expect(CONNACK).reason == 0x87
    client.expect_closed()


@pytest.mark.parametrize("answer", [auth(0x18, b"me", "another"), auth(0x19, b"me")], ids=["method", "reason"])
def test_answer_must_follow_the_exchange(wire, answer):
    """[MQTT5-4.12.0-3] [MQTT5-4.12.0-5]"""
    client = begin(wire)
    client.send(answer)
    assert client.expect(CONNACK).reason == 0x82
    client.expect_closed()


def test_auth_is_within_the_clients_maximum(wire):
    """[MQTT5-3.1.2-24]: type, length, reason, length of the block, method and data are 27 bytes."""
    size = 2 + 1 + 1 + 3 + len(METHOD) + 3 + len(b"who?")
    client = wire(V5)
    block = properties(auth_method=METHOD, auth_data=b"hi", maximum_packet_size=size - 1)
    client.send(connect(V5, unique("auth"), block=block))
    client.expect_closed()
    # CONNACK is larger, so a live client has room for any AUTH of this method
    begin(wire, maximum_packet_size=size)


def test_nothing_but_auth_before_connack(wire):
    """[MQTT5-3.1.2-30]"""
    client = begin(wire)
    client.send(publish(V5, unique("topic"), b"x"))
    assert client.expect(CONNACK).reason == 0x82
    client.expect_closed()


def test_live_client_authenticates_anew(wire):
    """[MQTT5-4.12.1-1]"""
    client = login(wire)
    client.send(auth(0x19, b"me"))
    answer = client.expect(AUTH)
    assert answer.reason == 0
    assert answer.properties["auth_data"] == b"welcome"
    client.expect_alive()


def test_reauthentication_in_several_steps(wire):
    """[MQTT5-4.12.0-2] [MQTT5-4.12.0-3] [MQTT5-4.12.1-1]: and other packets between them are served."""
    client = login(wire)
    client.send(auth(0x19, b"again"))
    challenge = client.expect(AUTH)
    assert (challenge.reason, challenge.properties["auth_data"]) == (0x18, b"who?")
    client.expect_alive()
    client.send(auth(0x18, b"me"))
    assert client.expect(AUTH).reason == 0
    client.send(auth(0x19, b"me"))
    assert client.expect(AUTH).reason == 0
    client.expect_alive()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, auth(0x00, b"me")),  # [MQTT5-4.12.1-1]
        (None, auth(0x18, b"me")),  # [MQTT5-4.12.1-1]
        (None, auth(0x19, b"me", "another")),  # [MQTT5-4.12.0-5] [MQTT5-4.12.1-1]
        (None, packet(AUTH)),  # [MQTT5-4.12.0-5]
        (auth(0x19, b"again"), auth(0x00, b"me")),  # [MQTT5-4.12.0-3]
        (auth(0x19, b"again"), auth(0x19, b"me")),  # [MQTT5-4.12.0-3]
        (auth(0x19, b"again"), auth(0x18, b"me", "another")),  # [MQTT5-4.12.0-5]
    ],
    ids=[
        "success",
        "continue-nothing",
        "method",
        "empty",
        "success-to-a-challenge",
        "begin-anew",
        "method-to-a-challenge",
    ],
)
def test_live_auth_out_of_turn_ends_the_connection(wire, first, second):
    client = login(wire)
    if first is not None:
        client.send(first)
        assert client.expect(AUTH).reason == 0x18
    client.send(second)
    client.expect_refused(0x82)


def test_failed_reauthentication_ends_the_connection(wire):
    """[MQTT5-4.12.1-2]"""
    client = login(wire)
    client.send(auth(0x19, b"you"))
    client.expect_refused(0x87)


def test_panic_of_a_shard_ends_the_process(spawn, wire):
    """Half a broker is worse than none."""
    broker = spawn(shards=2)
    wire(V5, broker).send(connect(V5, "corqtt-double-panic"))
    assert broker.wait() == -signal.SIGABRT
    assert "a thread panicked" in broker.log_tail()
    assert "the client was too much" in broker.log_tail()
