# SPDX-License-Identifier: Apache-2.0
"""CONNECT and what the broker grants, takes and limits with it."""

import re

import pytest

from harness import V5, V31, V311, transport, unique
from harness.wire import (
    CONNACK,
    DISCONNECT,
    PUBACK,
    PUBLISH,
    PUBREC,
    SUBACK,
    Wire,
    connect,
    properties,
    publish,
    subscribe,
)

MOVED = re.compile(r"client goes to its shard client=\S+ from=(\d+) to=(\d+)")

def test_new_client_has_no_session(mqtt):
    """[MQTT-3.1.4-4] [MQTT-3.2.2-1] [MQTT5-3.1.4-5] [MQTT5-3.2.2-2]"""
    assert mqtt.connect().fresh


@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5.0"])
def test_empty_client_id_is_served(mqtt):
    """[MQTT-3.1.3-6] [MQTT5-3.1.3-6]: like any other."""
    client = mqtt.connect("")
    client.subscribe(mqtt.topic())
    client.publish(mqtt.topic(), b"x")
    assert client.receive().payload == b"x"


def test_assigned_client_ids_differ_and_resume_their_session(mqtt5):
    """[MQTT5-3.1.3-7] [MQTT5-3.2.2-16]"""
    first = mqtt5.connect("", session_expiry_interval=60)
    second = mqtt5.connect("")
    assigned = first.connack_property("assigned_client_identifier")
    assert assigned
    assert assigned != second.connack_property("assigned_client_identifier")
    first.disconnect()
    assert mqtt5.connect(assigned, clean=False, session_expiry_interval=0).resumed


def test_client_id_that_was_given_is_not_echoed(mqtt5):
    assert mqtt5.connect().connack_property("assigned_client_identifier") is None


def test_connack_states_the_limits(broker, wire):
    """What is not the protocol's own default is advertised."""
    connack = wire(V5).connect()
    assert connack.properties["receive_maximum"] == 1024
    assert connack.properties["topic_alias_maximum"] == 65535
    assert connack.properties["maximum_packet_size"] == 1 << 20
    for available in ("retain_available", "wildcard_available", "subscription_id_available", "shared_available"):
        assert connack.properties.get(available, 1) == 1
    assert "maximum_qos" not in connack.properties, "[MQTT5-3.2.2-9] 2 is never sent"


@pytest.mark.parametrize("asked", [None, 0, 1], ids=["unsaid", "0", "1"])
def test_response_information_is_the_brokers_to_give(wire, asked):
    """[MQTT5-3.1.2-28]: never unasked; whoever asks is connected, with it or without."""
    client = wire(V5)
    block = properties() if asked is None else properties(request_response_information=asked)
    connack = client.connect(block=block)
    if asked != 1:
        assert "response_information" not in connack.properties
    topic = unique("t/")
    client.subscribe(topic, 1)
    client.publish(topic, b"x")
    assert client.expect_message().payload == b"x"


def test_keep_alive_above_the_maximum_is_answered_with_the_servers(spawn, wire):
    """[MQTT5-3.2.2-21]"""
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      maximum-keepalive: 10\n")
    assert wire(V5, own).connect(keep_alive=60).properties["server_keep_alive"] == 10
    assert "server_keep_alive" not in wire(V5, own).connect(keep_alive=5).properties


def test_the_servers_keep_alive_is_the_one_that_counts(spawn, wire):
    """[MQTT5-3.1.2-21] [MQTT5-3.2.2-21]: also for a client that asked for none."""
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      maximum-keepalive: 1\n")
    clients = [wire(V5, own) for _ in range(2)]
    for client, asked in zip(clients, (60, 0), strict=True):
        assert client.connect(keep_alive=asked).properties["server_keep_alive"] == 1
    for client in clients:
        client.expect_refused(0x8D, seconds=6)


def test_minimum_protocol_version_is_enforced(spawn, wire):
    """[MQTT-3.1.2-2] [MQTT5-3.1.2-2]"""
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      minimum-protocol-version: 5\n")
    client = wire(V311, own)
    client.send(connect(V311, unique()))
    assert client.expect(CONNACK).reason == 1
    client.expect_closed()
    wire(V5, own).connect()


def test_silent_client_is_closed_after_one_and_a_half_keep_alives(broker, wire, version):
    """[MQTT-3.1.2-23] [MQTT-3.1.2-24] [MQTT5-3.1.2-20] [MQTT5-3.1.2-22] [MQTT5-3.2.2-22]"""
    client = wire(version)
    client.connect(keep_alive=1)
    client.expect_alive()
    client.expect_refused(0x8D, seconds=6)


def test_bytes_that_make_no_packet_are_no_sign_of_life(broker, wire, version):
    """[MQTT-3.1.2-24] [MQTT5-3.1.2-22]: a Control Packet has to come, not a byte of one now and then."""
    client = wire(version)
    client.connect(keep_alive=1)
    endless = publish(version, unique("t/"), b"x" * 200)
    assert client.drip((endless[i : i + 1] for i in range(100)), 0.3), "30 s of single bytes kept it open"
    client.expect_refused(0x8D)


def test_large_packet_over_a_slow_line_does_not_end_its_own_connection(broker, wire, version):
    """Keep-alive is the time from the end of one packet to the beginning of the next [MQTT-3.1.2-23] [MQTT5-3.1.2-20]."""
    client = wire(version)
    client.connect(keep_alive=1)
    slow = publish(version, unique("t/"), b"x" * 200_000, qos=1, pid=1)
    assert not client.drip((slow[i : i + 20_000] for i in range(0, 200_000, 20_000)), 0.4)
    client.send(slow[200_000:])
    assert client.expect(PUBACK).pid == 1


def test_pings_keep_a_connection_open(broker, wire, mqtt5):
    """[MQTT-3.12.4-1] [MQTT5-3.12.4-1]"""
    client = wire(V5)
    client.connect(keep_alive=2)
    for _ in range(3):
        mqtt5.alarm(1)
        client.expect_alive()


def test_keep_alive_zero_never_ends(broker, wire, mqtt5):
    client = wire(V311)
    client.connect(keep_alive=0)
    mqtt5.alarm(3)
    client.expect_alive()


def test_packets_arrive_byte_by_byte(broker, wire, version):
    """[MQTT-7.1.1-1] [MQTT5-4.2-1]: TCP is a stream of bytes, and packets end where they say."""
    client = wire(version)
    topic = unique("t/")
    together = b"".join(
        (
            connect(version, unique("w")),
            subscribe(version, 1, (topic, 0)),
            publish(version, topic, b"x" * 200),
        )
    )
    for byte in together:
        client.send(bytes([byte]))
    assert client.expect(CONNACK).reason == 0
    answers = answers_by_kind(client)
    assert answers[SUBACK].codes == [0]
    assert answers[PUBLISH].payload == b"x" * 200


def answers_by_kind(client):
    """Two packets in either order: a message may come before the SUBACK of its subscription."""
    return {packet.kind: packet for packet in (client.receive(), client.receive())}


@pytest.mark.parametrize("runtime", ["epoll", "glommio"])
@pytest.mark.parametrize("shards", [2, 4])
def test_first_packets_in_one_segment_work_wherever_the_client_lives(spawn, version, runtime, shards):
    """Until clients have moved, with bytes already read, from each shard to each other one; others have stayed."""
    own = spawn(shards=shards, runtime=runtime)
    # the first shard takes what comes over a unix socket
    takers = range(1 if transport.CHOSEN == "unix" else shards)
    missing = {(taker, owner) for taker in takers for owner in range(shards) if taker != owner}

    def note_moves(lines):
        moves = filter(None, map(MOVED.search, lines))
        missing.difference_update(tuple(map(int, move.groups())) for move in moves)
        return True

    for number in range(2000):
        if not missing:
            break
        qos, client_id = number % 3, unique("w")
        client = Wire(own, version)
        topic = unique("t/")
        client.send(
            connect(version, client_id),
            subscribe(version, 1, (topic, qos)),
            publish(version, topic, topic.encode(), qos=qos, pid=2 if qos else None),
        )
        assert client.expect(CONNACK).reason == 0
        answers = {packet.kind: packet for packet in (client.receive() for _ in range(3 if qos else 2))}
        assert answers[SUBACK].codes == [qos]
        assert (answers[PUBLISH].payload, answers[PUBLISH].qos) == (topic.encode(), qos)
        if qos:
            assert answers[PUBREC if qos == 2 else PUBACK].pid == 2
        client.close()
        own.await_line("client connected", client_id)
        own.await_lines(note_moves, "the log is read")
    assert not missing, "no client went from the first of these shards to the second"


def test_a_thousand_clients(mqtt):
    """Each one hears its neighbour and nobody else."""
    count = 1000
    clients = [mqtt.client() for _ in range(count)]
    for client in clients:
        client.start_connect()
    mqtt.loop.until(lambda: all(client.connack for client in clients), "1000 CONNACKs", 30)
    asked = [client.start_subscribe((mqtt.topic(str(index)), 1)) for index, client in enumerate(clients)]
    assert all(client.granted(mid) == [1] for client, mid in zip(clients, asked, strict=True))
    for index, client in enumerate(clients):
        client.send(mqtt.topic(str((index + 1) % count)), str(index).encode(), 1)
    mqtt.loop.until(lambda: all(client.inbox for client in clients), "a message at each", 30)
    for index, client in enumerate(clients):
        assert [message.payload for message in client.inbox] == [str((index - 1) % count).encode()]


@pytest.mark.parametrize("limit", [None, 0, 1], ids=["default", "off", "on"])
def test_request_problem_information(broker, wire, limit):
    """[MQTT5-3.1.2-29]: with 0, no Reason String or User Property but in PUBLISH, CONNACK, DISCONNECT."""
    client = wire(V5)
    client.connect(block=properties() if limit is None else properties(request_problem_information=limit))
    answer = client.publish(unique("nobody/"), qos=1, block=properties(("user_property", ("a", "b"))))
    assert answer.reason == 0x10
    if limit == 0:
        assert not {"reason_string", "user_property"} & answer.properties.keys()


def test_bridges_of_mosquitto_do_not_hear_themselves(broker, wire):
    """Protocol level with bit 0x80 is that level with no-local and retain-as-published."""
    for version in (V31, V311):
        topic = unique("t/")
        bridge, other = wire(version), wire(version)
        bridge.connect(level=version | 0x80)
        other.connect()
        bridge.subscribe(topic)
        bridge.publish(topic, b"own")
        bridge.expect_alive()
        other.publish(topic, b"other", retain=True)
        message = bridge.expect_message()
        # and with retain-as-published: the other side retains it too
        assert (message.payload, message.retain) == (b"other", True)


def test_drop_without_disconnect_packet_frees_the_name(mqtt):
    client = mqtt.connect()
    client.drop()
    assert mqtt.connect(client.id).connected


def test_connection_is_closed_after_disconnect(broker, wire, version):
    """[MQTT-3.14.4-1] [MQTT5-3.14.4-2] [MQTT5-4.13.2-1]: nothing follows, not even to packets behind it."""
    client = wire(version)
    client.connect()
    client.send(bytes([DISCONNECT << 4, 0]), b"\xc0\0")
    client.expect_closed()

