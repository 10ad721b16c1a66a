# SPDX-License-Identifier: Apache-2.0
"""What a broker that was killed gives back: sessions, subscriptions, queues, packet ids, wills, retained messages."""

import os
import threading

import pytest

from harness import V5, V31, V311, unique
from harness.redis import Redis, store_flags
from harness.wire import (
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    Wire,
    ack,
    persistent,
    properties,
    publish,
    subscribe,
    unsubscribe,
    will_of,
)

WAYS = ("redb", "fjall", "redis")


class Kept:
    """A broker on a store of its own, which `restart` kills and starts again, with another number of shards."""

    def __init__(self, spawn, way, path, redis=None):
        self._spawn, self._flags = spawn, store_flags(way, path, redis)
        self.broker = None
        self.start(1)

    def start(self, shards):
        flags = self._flags
        self.broker = self._spawn(shards=shards, arguments=flags)

    def restart(self, shards=2):
        self.broker.kill()
        self.start(shards)

    def wire(self, version, client_id=None, **settings):
        """A connection and its CONNACK."""
        opened = Wire(self.broker, version)
        return opened, opened.connect(client_id, **settings)


@pytest.fixture(params=WAYS)
def kept(spawn, request, tmp_path):
    if os.environ.get("CORQTT_TEST_DOUBLES"):
        pytest.skip("the doubles keep nothing")
    if request.param != "redis":
        yield Kept(spawn, request.param, tmp_path / "store")
        return
    redis = Redis()
    kept = Kept(spawn, request.param, tmp_path / "store", redis)
    yield kept
    # it would wait for redis
    kept.broker.kill()
    redis.close()


def test_session_subscription_and_queue_survive(kept, version):
    """A subscription that was acknowledged is there after kill -9, and so is what came for it."""
    topic, name = unique("t/"), unique("w")
    client, _ = kept.wire(version, name, **persistent(version))
    client.subscribe(topic, 2)
    client.close()
    publisher, _ = kept.wire(version)
    for at in range(20):
        publisher.publish(topic, b"%d" % at, qos=1 + at % 2)
    for shards in (4, 1):
        kept.restart(shards)
    publisher, _ = kept.wire(version)
    publisher.publish(topic, b"20", qos=1)
    client, connack = kept.wire(version, name, **persistent(version))
    assert connack.resumed
    found = [client.expect_message().payload for _ in range(21)]
    for qos in (1, 2):
        of_qos = [int(payload) for payload in found if int(payload) < 20 and 1 + int(payload) % 2 == qos]
        assert of_qos == sorted(of_qos)
    assert sorted(map(int, found)) == list(range(21))


def test_what_was_in_flight_is_sent_again_with_its_packet_id(kept, version):
    """[MQTT-4.4.0-1] [MQTT5-4.4.0-1]: with DUP, in order; PUBREL for what had come to PUBREC."""
    topic, name = unique("t/"), unique("w")
    client, _ = kept.wire(version, name, **persistent(version))
    client.subscribe(topic, 2)
    publisher, _ = kept.wire(version)
    for payload in (b"1", b"2", b"3"):
        publisher.publish(topic, payload, qos=2)
    ids = [client.expect(PUBLISH).pid for _ in range(3)]
    client.send(ack(PUBREC, ids[0]))
    assert client.expect(PUBREL).pid == ids[0]
    kept.restart()
    client, connack = kept.wire(version, name, **persistent(version))
    assert connack.resumed
    assert client.expect(PUBREL).pid == ids[0]
    again = [client.expect(PUBLISH) for _ in range(2)]
    assert [(each.pid, each.payload, each.dup) for each in again] == [(ids[1], b"2", True), (ids[2], b"3", True)]
    client.send(ack(PUBCOMP, ids[0]))
    client.send(ack(PUBREC, ids[1]), ack(PUBREC, ids[2]))
    assert [client.expect(PUBREL).pid for _ in range(2)] == ids[1:]
    client.send(ack(PUBCOMP, ids[1]), ack(PUBCOMP, ids[2]))
    client.expect_alive()


def test_a_repeat_after_the_crash_is_the_same_message(kept, version):
    """PUBREC was sent, so the packet id is known; PUBCOMP was sent, so it is not."""
    topic, name, sink = unique("t/"), unique("w"), unique("w")
    subscriber, _ = kept.wire(version, sink, **persistent(version))
    subscriber.subscribe(topic, 2)
    client, _ = kept.wire(version, name, **persistent(version))
    client.publish(topic, b"done", qos=2)
    client.send(publish(version, topic, b"open", qos=2, pid=77))
    assert client.expect(PUBREC).pid == 77
    kept.restart(4)
    client, connack = kept.wire(version, name, **persistent(version))
    assert connack.resumed
    client.send(publish(version, topic, b"open", qos=2, pid=77, dup=True))
    assert client.expect(PUBREC).pid == 77
    client.send(ack(PUBREL, 77))
    assert client.expect(PUBCOMP).pid == 77
    client.publish(topic, b"last", qos=2)
    subscriber, _ = kept.wire(version, sink, **persistent(version))
    assert [subscriber.expect_message().payload for _ in range(3)] == [b"done", b"open", b"last"]
    subscriber.expect_alive()


def test_retained_messages_survive_and_deletes_stay_deleted(kept, version):
    stays, goes = unique("t/"), unique("t/")
    client, _ = kept.wire(version)
    for payload in (b"old", b"new"):
        client.publish(stays, payload, qos=1, retain=True)
    client.publish(goes, b"x", qos=1, retain=True)
    client.publish(goes, b"", qos=1, retain=True)
    kept.restart()
    for shards in (4, None):
        client, _ = kept.wire(version)
        client.send(subscribe(version, 1, (stays, 1), (goes, 1)))
        client.expect(SUBACK)
        message = client.expect_message()
        assert (message.topic, message.payload, message.retain) == (stays, b"new", True)
        client.expect_alive()
        # what is published after the start is newer than what the store had
        publisher, _ = kept.wire(version)
        publisher.publish(stays, b"new", qos=1, retain=True)
        if shards:
            kept.restart(shards)


def test_a_clean_start_ends_what_the_store_had(kept, version):
    topic, name = unique("t/"), unique("w")
    client, _ = kept.wire(version, name, **persistent(version))
    client.subscribe(topic, 1)
    client.close()
    publisher, _ = kept.wire(version)
    publisher.publish(topic, b"x", qos=1)
    client, connack = kept.wire(version, name)
    assert version == V31 or not connack.resumed
    kept.restart()
    _, connack = kept.wire(version, name, **persistent(version))
    assert version == V31 or not connack.resumed


def test_unsubscribe_survives(kept, version):
    topic, name = unique("t/"), unique("w")
    client, _ = kept.wire(version, name, **persistent(version))
    client.subscribe(topic, 1)
    client.send(unsubscribe(version, 9, topic))
    client.expect(UNSUBACK)
    kept.restart()
    publisher, _ = kept.wire(version)
    publisher.publish(topic, b"x", qos=1)
    client, connack = kept.wire(version, name, **persistent(version))
    assert connack.resumed
    client.expect_alive()


def test_the_time_that_the_broker_was_down_counts(kept):
    """Sessions of a second are over; their subscriptions are nobody's, and what they had to say at the end is said."""
    name, topic = unique("w"), unique("t/")
    client, _ = kept.wire(V5, name, **persistent(V5, expiry=1))
    client.close()
    # of each shard some
    watcher_ids = [unique("w") for _ in range(8)]
    for watcher_id in watcher_ids:
        watcher, _ = kept.wire(V5, watcher_id, **persistent(V5))
        watcher.subscribe(topic, 1)
    wills = sorted(b"gone %d" % number for number in range(8))
    for payload in wills:
        will = will_of(V5, topic, payload, properties(("will_delay", 60)))
        kept.wire(V5, unique("w"), will=will, will_qos=1, **persistent(V5, expiry=1))
    # the end of the first is known to the broker before it is killed
    watcher.expect_alive()
    kept.broker.kill()
    # time itself is waited for
    threading.Event().wait(1.1)
    kept.start(2)
    _, connack = kept.wire(V5, name, **persistent(V5))
    assert not connack.resumed
    for watcher_id in watcher_ids:
        watcher, connack = kept.wire(V5, watcher_id, **persistent(V5))
        assert connack.resumed
        # [MQTT5-3.1.2-10] the session's end comes before the delay's; by every shard, to the subscribers of every one
        assert sorted(watcher.expect_message().payload for _ in wills) == wills


def test_a_will_with_a_delay_is_sent_after_the_restart(kept):
    topic = unique("t/")
    will = will_of(V5, topic, b"gone", properties(("will_delay", 1)))
    watcher_id = unique("w")
    watcher, _ = kept.wire(V5, watcher_id, **persistent(V5))
    watcher.subscribe(topic, 1)
    kept.wire(V5, unique("w"), will=will, will_qos=1, **persistent(V5))
    kept.restart()
    watcher, connack = kept.wire(V5, watcher_id, **persistent(V5))
    assert connack.resumed
    assert watcher.expect_message().payload == b"gone"


def test_sigterm_keeps_everything(kept):
    topic, name = unique("t/"), unique("w")
    client, _ = kept.wire(V311, name, **persistent(V311))
    client.subscribe(topic, 1)
    client.close()
    publisher, _ = kept.wire(V311)
    publisher.send(publish(V311, topic, b"x", qos=1, pid=1))
    assert publisher.expect(PUBACK).pid == 1
    kept.broker.stop()
    kept.start(2)
    client, connack = kept.wire(V311, name, **persistent(V311))
    assert connack.resumed
    assert client.expect_message().payload == b"x"


@pytest.mark.parametrize("kept", ("redb", "fjall"), indirect=True)
def test_a_second_process_is_refused(kept):
    """Of redis the last one has the store, see test_redis.py."""
    with pytest.raises(AssertionError, match=f"in use by process {kept.broker.process.pid}"):
        kept.start(1)
