# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: everybody is told, wills are sent, what is under way arrives, and the process ends well."""

import os
import time

import pytest

from harness import V5, unique
from harness.client import NO_CONNECTION, Will, World
from harness.wire import DISCONNECT, PUBACK, Wire, publish


@pytest.fixture
def own(spawn, version):
    """Clients of each version at a broker of four shards that this test may stop."""
    world = World(spawn(shards=4), version)
    yield world
    world.close()


def test_clients_are_told_and_the_process_ends(own):
    """5.0 has the reason code 0x8B, the others just see the end."""
    clients = [own.connect() for _ in range(20)]
    own.broker.terminate()
    for client in clients:
        assert client.await_closed() == (0x8B if own.version == V5 else NO_CONNECTION)
    own.broker.stop()


def test_wills_are_sent_before_the_end(own):
    """The store is memory, so whoever has a will has it sent now, delay or not."""
    watchers = [own.connect(version=version) for version in (3, 4, 5) for _ in range(2)]
    for watcher in watchers:
        watcher.subscribe(own.topic("+"), qos=1)
    names = {own.topic(str(index)) for index in range(16)}
    for name in names:
        own.connect(will=Will(name, b"gone", 1))
    own.broker.terminate()
    for watcher in watchers:
        watcher.await_closed()
        assert {each.topic for each in watcher.inbox} == names
    own.broker.stop()


def test_delayed_wills_are_sent_before_the_end(spawn):
    world = World(spawn(shards=2), V5)
    watcher = world.connect()
    watcher.subscribe(world.topic("+"), qos=1)
    settings = {"session_expiry_interval": 600}
    connected = Will(world.topic("connected"), b"", 1, False, {"will_delay_interval": 300})
    dropped = Will(world.topic("dropped"), b"", 1, False, {"will_delay_interval": 300})
    world.connect(will=connected, **settings)
    dying = world.connect(will=dropped, **settings)
    dying.drop()
    assert watcher.fence(watcher) == []
    world.broker.terminate()
    assert watcher.await_closed() == 0x8B
    # a store has them after the next start
    kept = os.environ.get("CORQTT_STORAGE_WAY", "memory") != "memory" or bool(os.environ.get("CORQTT_TEST_DOUBLES"))
    sent = set() if kept else {world.topic("connected"), world.topic("dropped")}
    assert {each.topic for each in watcher.inbox} == sent
    world.broker.stop()


def test_acknowledged_messages_are_flushed(spawn, version):
    """What was acknowledged before the signal reaches a connected subscriber that reads."""
    broker = spawn(shards=2)
    subscriber, publisher = Wire(broker, version), Wire(broker, version)
    subscriber.connect()
    publisher.connect()
    topic = unique("t/")
    subscriber.subscribe(topic)
    count = 500
    publisher.send(*(publish(version, topic, b"x" * 1000, qos=1, pid=pid) for pid in range(1, count + 1)))
    for pid in range(1, count + 1):
        assert publisher.expect(PUBACK).pid == pid
    broker.terminate()
    for _ in range(count):
        assert len(subscriber.expect_message().payload) == 1000
    found = subscriber.receive()
    if version == V5:
        assert found.kind == DISCONNECT
        assert found.reason == 0x8B
        found = subscriber.receive()
    assert found is None
    broker.stop()


def test_queues_are_flushed_to_who_reads_late_and_slowly(spawn, mqtt5, version):
    """What is behind the out-buffer too, for as long as the client goes on reading."""
    broker = spawn(shards=2)
    subscriber, publisher = Wire(broker, version), Wire(broker, version)
    subscriber.connect()
    publisher.connect()
    topic, count = unique("t/"), 40
    subscriber.subscribe(topic, 1)
    for pid in range(1, count + 1):
        publisher.send(publish(version, topic, b"%08d" % pid + b"x" * 200_000, qos=1, pid=pid))
        assert publisher.expect(PUBACK).pid == pid
    broker.terminate()
    for pid in range(1, count + 1):
        if pid % 10 == 0:
            # longer in all than a connection lingers that takes nothing; another broker has the clock
            mqtt5.alarm(1)
        assert int(subscriber.expect_message().payload[:8]) == pid
    found = subscriber.receive()
    if version == V5:
        assert (found.kind, found.reason) == (DISCONNECT, 0x8B)
        found = subscriber.receive()
    assert found is None
    broker.stop()


def behind(broker):
    """A subscriber that has 20 MB to read."""
    subscriber, publisher = Wire(broker, V5), Wire(broker, V5)
    subscriber.connect()
    publisher.connect()
    topic = unique("t/")
    subscriber.subscribe(topic, 1)
    for pid in range(1, 101):
        publisher.send(publish(V5, topic, b"x" * 200_000, qos=1, pid=pid))
        assert publisher.expect(PUBACK).pid == pid
    return subscriber


def test_client_that_reads_nothing_does_not_hold_up_the_end_for_long(spawn):
    broker = spawn()
    _kept = behind(broker)
    broker.terminate()
    broker.await_line("do not get what waited for them")
    broker.stop()


def test_a_slow_reader_does_not_hold_up_the_end_beyond_the_drain_timeout(spawn, mqtt5):
    """It reads on, so it is not the one above that takes nothing for ten seconds."""
    broker = spawn(conf="mqtt:\n  limits:\n    drain-timeout: 2s\n")
    subscriber = behind(broker)
    started = time.monotonic()
    broker.terminate()
    for _ in range(2):
        # another broker has the clock
        mqtt5.alarm(1)
        subscriber.expect_message()
    broker.await_line("at drain-timeout with connections left")
    assert broker.wait(6) == 1
    assert 2 <= time.monotonic() - started < 8


def test_stopping_broker_takes_no_connections(spawn):
    broker = spawn()
    broker.stop()
    # a unix socket is gone with its file
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        Wire(broker, V5)


def test_idle_broker_stops_at_once(spawn):
    broker = spawn(shards=4)
    broker.terminate()
    assert broker.wait(5) == 0


def test_half_open_connection_does_not_hold_up_the_end(spawn):
    """Neither one that never sent CONNECT, nor one in the middle of a packet."""
    broker = spawn()
    silent, half = Wire(broker, V5), Wire(broker, V5)
    half.connect()
    half.send(b"\x30\x7f")
    silent.send(b"\x10")
    broker.stop()
