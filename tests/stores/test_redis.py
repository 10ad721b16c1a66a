# SPDX-License-Identifier: Apache-2.0
"""A broker whose store is redis: what it does while redis is not there, and when another one writes to its store."""

import os
import socket

import pytest

from harness import DEADLINE, V5, V311, unique
from harness.redis import Redis, store_flags
from harness.transport import LOOPBACK
from harness.wire import PUBACK, PUBLISH, SUBACK, opened, persistent, publish, subscribe


@pytest.fixture
def redis():
    if os.environ.get("CORQTT_TEST_DOUBLES"):
        pytest.skip("the doubles keep nothing")
    started = Redis()
    yield started
    started.close()


@pytest.fixture
def broker(redis, spawn):
    return spawn(shards=2, arguments=store_flags("redis", None, redis))


def sleeper(broker, topic):
    """The name of a client that is away and has a subscription."""
    name = unique("w")
    client, _ = opened(broker, V5, name, **persistent(V5))
    client.subscribe(topic, 2)
    client.close()
    return name


@pytest.mark.parametrize("away", ("killed", "stopped"))
def test_publishers_wait_while_redis_is_away(redis, spawn, broker, away):
    """Nothing is acknowledged, nothing is lost, who keeps nothing does not notice, and it ends by itself."""
    topic, other = unique("t/"), unique("t/")
    name = sleeper(broker, topic)
    publisher, _ = opened(broker)
    publisher.publish(topic, b"before", qos=1)
    (redis.kill if away == "killed" else redis.pause)()
    publisher.send(publish(V5, topic, b"during", qos=1, pid=7))
    listener, _ = opened(broker)
    listener.subscribe(other, 1)
    speaker, _ = opened(broker)
    for at in range(100):
        speaker.publish(other, b"%d" % at, qos=1 + at % 2)
    assert len({listener.expect_message().payload for _ in range(100)}) == 100
    if away == "killed":
        broker.await_line("the store cannot be reached")
    # the answer to the ping overtakes nothing: PUBACK would have come before it
    publisher.expect_alive()
    (redis.start if away == "killed" else redis.resume)()
    found = publisher.expect(PUBACK)
    assert (found.pid, found.reason) == (7, 0)
    broker.kill()
    restarted = spawn(shards=1, arguments=store_flags("redis", None, redis))
    again, connack = opened(restarted, V5, name, **persistent(V5))
    assert connack.resumed
    assert [again.expect_message().payload for _ in range(2)] == [b"before", b"during"]


@pytest.mark.parametrize("version", (V311, V5))
def test_publishes_are_refused_when_redis_stays_away(broker, redis, version):
    """5.0 is told 0x97, earlier versions are closed without an acknowledgement; then it goes on."""
    topic = unique("t/")
    name = sleeper(broker, topic)
    redis.kill()
    waiting, _ = opened(broker)
    waiting.send(publish(V5, topic, b"waits", qos=1, pid=1))
    # it was taken in, before what others send below
    waiting.expect_alive()
    broker.await_line("the store cannot be reached")

    def refused():
        publisher, _ = opened(broker, version)
        publisher.send(publish(version, topic, b"late", qos=1, pid=2))
        try:
            found = publisher.receive(0.5)
        except (AssertionError, TimeoutError):
            return False
        finally:
            publisher.close()
        return found is None if version == V311 else (found.kind, found.reason) == (PUBACK, 0x97)

    for _ in range(60):
        if refused():
            break
    else:
        raise AssertionError("never refused")
    redis.start()
    assert waiting.expect(PUBACK).reason == 0
    broker.await_line("the store is reached again")
    publisher, _ = opened(broker)
    assert publisher.publish(topic, b"after", qos=1).reason == 0
    client, _ = opened(broker, V5, name, **persistent(V5))
    found = [client.expect_message().payload]
    while found[-1] != b"after":
        found.append(client.expect_message().payload)
    assert found[0] == b"waits"


def test_another_cause_is_told(broker, redis):
    """Whoever looks at the log is not left with the first reason."""
    topic = unique("t/")
    sleeper(broker, topic)
    operator = socket.create_connection((LOOPBACK, redis.port), DEADLINE)
    mark = broker.log_mark()
    operator.sendall(b"CONFIG SET requirepass other\r\nCLIENT KILL TYPE normal\r\n")
    said = b""
    while said.count(b"\r\n") < 2:
        said += operator.recv(64)
    publisher, _ = opened(broker)
    publisher.send(publish(V5, topic, b"waits", qos=1, pid=1))
    broker.await_line("the store cannot be reached", since=mark)
    broker.await_line("ERROR", "the store is still not reached", "NOAUTH", since=mark)
    operator.sendall(b"CONFIG SET requirepass \"\"\r\n")
    broker.await_line("the store is reached again", since=mark)
    operator.close()
    assert publisher.expect(PUBACK).reason == 0


def test_sessions_begin_once_redis_is_back(broker, redis):
    """CONNACK and SUBACK of a session that is kept wait for redis."""
    topic, name = unique("t/"), unique("w")
    client, _ = opened(broker, V5, name, **persistent(V5))
    redis.pause()
    client.send(subscribe(V5, 5, (topic, 1)))
    other, _ = opened(broker)
    other.publish(unique("t/"), b"x", qos=2)
    redis.resume()
    assert client.expect(SUBACK).codes == [1]
    other.publish(topic, b"x", qos=1)
    assert client.expect(PUBLISH).payload == b"x"


def test_a_second_broker_of_the_same_name_takes_over(redis, spawn, broker):
    """The first may be one that was taken for dead: it changes nothing any more, says so, and ends."""
    topic = unique("t/")
    name = sleeper(broker, topic)
    second = spawn(shards=1, arguments=store_flags("redis", None, redis))
    publisher, _ = opened(broker)
    publisher.send(publish(V5, topic, b"late", qos=1, pid=1))
    assert broker.wait() != 0
    assert any("another process has taken over comqtt:c01" in line for line in broker.lines), broker.log_tail()
    client, connack = opened(second, V5, name, **persistent(V5))
    assert connack.resumed
    client.expect_alive()


def test_no_redis_is_an_error_that_names_it(redis, spawn):
    redis.kill()
    with pytest.raises(AssertionError) as error:
        spawn(arguments=store_flags("redis", None, redis))
    text = str(error.value)
    assert redis.address in text, text
    assert "--redis" in text, text
