# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: numbers by comqtt's names, health checks, and who gets what."""

import http.client
import json
import re
import socket

import pytest

from harness import DEADLINE, V5, V311, Deadline, unique
from harness.broker import SpawnedBroker
from harness.client import World
from harness.wire import CONNACK, PUBACK, Wire, connect, publish

# comqtt's names, in its order.
FIELDS = (
    "version started time uptime bytes_received bytes_sent clients_connected clients_disconnected clients_maximum"
    " clients_total messages_received messages_sent messages_dropped retained inflight inflight_dropped subscriptions"
    " packets_received packets_sent memory_alloc threads"
).split()


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def json(self):
        return json.loads(self.text)


def ask(broker, path, *, method="GET", headers=None):
    connection = http.client.HTTPConnection(*broker.http, timeout=DEADLINE)
    try:
        connection.request(method, path, headers=headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def overall(broker):
    answer = ask(broker, "/api/v1/mqtt/stat/overall")
    assert answer.status == 200, answer.text
    return answer.json


def await_numbers(broker, *, loop=None, **expected):
    """Numbers are up to 100 ms old: asks until they are as expected. `loop` meanwhile lets paho write what it owes."""
    found = {}

    def fact():
        found.update(overall(broker))
        return all(found[name] == value for name, value in expected.items())

    what = Differing(expected, found)
    if loop is not None:
        loop.until(fact, what)
        return found
    deadline = Deadline(what)
    while not fact():
        deadline.left()
    return found


class Differing:
    """Says what is not as expected, once somebody asks."""

    def __init__(self, expected, found):
        self.expected, self.found = expected, found

    def __str__(self):
        wrong = [name for name, value in self.expected.items() if self.found.get(name) != value]
        return ", ".join(f"{name} is {self.expected[name]}, not {self.found.get(name)}" for name in wrong)


def metrics(broker):
    """Series to value; each line is of Prometheus's text format."""
    answer = ask(broker, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in answer.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) [a-z_]+ .+", line), line
            continue
        match = re.fullmatch(r'([a-z_]+(?:\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})?) ([0-9.]+)', line)
        assert match, line
        assert match[1] not in found, line
        found[match[1]] = float(match[2])
    return found


def summed(found, name, **labels):
    """A metric over all shards, of the series with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for series, value in found.items()
        if series.split("{")[0] == name and all(each in series for each in wanted)
    )


@pytest.fixture
def own(spawn):
    """A broker of two shards that nobody else uses."""
    return spawn(shards=2)


def test_statistics_have_comqtts_fields_and_count_clients(own):
    before = overall(own)
    assert list(before) == FIELDS
    assert before["version"].count(".") == 2
    assert 0 <= before["time"] - before["started"] - before["uptime"] <= 1
    assert before["threads"] >= 4
    assert before["memory_alloc"] > 1 << 20
    assert all(before[name] == 0 for name in FIELDS[4:19])

    world = World(own, V5)
    subscriber, publisher = world.connect(clean=False), world.connect()
    subscriber.subscribe(world.topic("#"), qos=1)
    publisher.publish(world.topic("a"), b"x", 1, retain=True)
    subscriber.receive()
    await_numbers(
        own,
        loop=world.loop,
        clients_connected=2,
        clients_total=2,
        clients_maximum=2,
        subscriptions=1,
        messages_received=1,
        messages_sent=1,
        retained=1,
        inflight=0,
        # CONNECT twice, SUBSCRIBE, PUBLISH, PUBACK
        packets_received=5,
        # CONNACK twice, SUBACK, PUBLISH, PUBACK
        packets_sent=5,
    )
    assert ask(own, "/mqtt/stats").json.keys() == before.keys()
    assert ask(own, "/api/v1/mqtt/stat/online").json == 2
    subscriber.disconnect()
    publisher.disconnect()
    found = await_numbers(own, clients_connected=0, clients_total=1, clients_disconnected=1)
    assert found["clients_maximum"] == 2
    assert found["bytes_received"] > 0
    assert found["bytes_sent"] > 0
    world.close()


def test_messages_in_flight_are_counted_until_they_end(own, wire):
    subscriber = wire(V311, own)
    name = unique("s")
    subscriber.connect(name, clean=False)
    topic = unique("t/")
    subscriber.subscribe(topic, 1)
    publisher = wire(V311, own)
    publisher.connect()
    for pid in (1, 2):
        publisher.send(publish(V311, topic, b"x", qos=1, pid=pid))
        assert publisher.expect(PUBACK).pid == pid
        subscriber.expect_message(acknowledge=False)
    await_numbers(own, inflight=2, inflight_dropped=0)
    # its session ends, and with it what it did not acknowledge
    successor = wire(V311, own)
    successor.connect(name)
    await_numbers(own, inflight=0, inflight_dropped=2, clients_total=2)


def test_metrics_have_comqtts_names_and_labels_for_shards(own):
    world = World(own, V5)
    client = world.connect()
    client.subscribe(world.topic("#"), qos=1)
    for qos in (0, 1, 2):
        client.publish(world.topic("a"), b"x", qos)
    client.receive(3)
    await_numbers(own, loop=world.loop, messages_received=3, messages_sent=3, inflight=0)
    found = metrics(own)
    assert [name for name in FIELDS[4:] if name not in found] == []
    assert found["messages_received"] == 3
    for qos in (0, 1, 2):
        assert summed(found, "corqtt_messages_received_total", qos=qos) == 1
    for name in ("bytes_received", "bytes_sent", "packets_received", "packets_sent", "messages_sent"):
        assert summed(found, f"corqtt_{name}_total") == found[name]
    assert summed(found, "corqtt_connections", stage="live") == 1
    for shard in "01":
        assert found[f'corqtt_turn_cpu_seconds_bucket{{shard="{shard}",le="+Inf"}}'] > 0
        assert found[f'corqtt_turn_seconds_count{{shard="{shard}"}}'] > 0
    assert f'corqtt_build_info{{version="{overall(own)["version"]}"}}' in found
    world.close()


def test_drops_and_refusals_are_counted_by_reason(spawn, wire):
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      maximum-qos: 1\n")
    refused = wire(V5, own)
    refused.send(connect(V5, unique("w"), will=b"\0" + b"\0\1a" + b"\0\0", will_qos=2))
    assert refused.expect(CONNACK).reason == 0x9B
    violating = wire(V5, own)
    violating.connect()
    violating.send(publish(V5, "a", b"x", qos=2, pid=1))
    violating.expect_refused(0x9B)
    world = World(own, V5)
    sleeper, publisher = world.connect(clean=False), world.connect()
    sleeper.subscribe(world.topic(), qos=1)
    sleeper.disconnect()
    publisher.publish(world.topic(), b"x", 0)
    publisher.disconnect()
    await_numbers(own, clients_connected=0, messages_dropped=1)
    found = metrics(own)
    assert summed(found, "corqtt_connections_refused_total", reason="qos-not-supported") == 1
    assert summed(found, "corqtt_connections_closed_total", reason="qos-not-supported") == 1
    assert summed(found, "corqtt_connections_closed_total", reason="client") == 2
    assert summed(found, "corqtt_messages_dropped_total", reason="offline") == 1
    world.close()


def test_health_checks_answer_and_the_drain_is_told(spawn):
    """During the drain HTTP goes on: it is what tells a load balancer to send clients elsewhere."""
    own = spawn(shards=2)
    assert ask(own, "/healthz").json == {"status": "ok"}
    assert ask(own, "/readyz").json == {"status": "ready"}
    # a client that neither reads nor closes holds the drain up
    stubborn = Wire(own, V5)
    stubborn.connect()
    kept = http.client.HTTPConnection(*own.http, timeout=DEADLINE)
    kept.request("GET", "/readyz")
    assert Answer(kept.getresponse()).status == 200
    own.terminate()
    own.await_line("server draining")
    deadline = Deadline("/readyz answers 503")
    while True:
        kept.request("GET", "/readyz")
        answer = Answer(kept.getresponse())
        if answer.status == 503:
            break
        assert deadline.left()
    assert answer.json["error"] == "not ready"
    kept.request("GET", "/healthz")
    assert Answer(kept.getresponse()).status == 200
    kept.close()
    stubborn.close()
    own.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(own, "/healthz")


def test_errors_are_json(broker):
    for answer, status in (
        (ask(broker, "/nowhere"), 404),
        (ask(broker, "/metrics", method="POST"), 405),
        (ask(broker, "/metrics", headers={"Host": "evil.example"}), 403),
    ):
        assert answer.status == status
        assert answer.headers["content-type"] == "application/json"
        assert answer.json.keys() == {"error", "detail"}


def test_pages_of_other_origins_may_not_read_answers(broker):
    for path in ("/metrics", "/mqtt/stats", "/nowhere"):
        answer = ask(broker, path, headers={"Origin": "http://evil.example"})
        assert [name for name in answer.headers.keys() if name.lower().startswith("access-control")] == []


def test_other_machines_get_only_the_health_checks(spawn):
    """The listener is open to all; this machine's own address elsewhere stands for another machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # nothing is sent: it only picks the address that would be used
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address beside loopback")
        outer = probe.getsockname()[0]
    if outer.startswith("127."):
        pytest.skip("this machine has no address beside loopback")
    own = spawn(http=":0")
    own.await_line("HTTP answers callers from other machines only at /healthz and /readyz")
    port = own.http[1]
    own.http = ("127.0.0.1", port)
    assert ask(own, "/metrics").status == 200
    own.http = (outer, port)
    assert ask(own, "/healthz").status == 200
    assert ask(own, "/readyz").status == 200
    answer = ask(own, "/metrics")
    assert answer.status == 403
    assert "until there is a login" in answer.json["detail"]


def test_an_address_in_use_is_a_start_error(broker, spawn):
    if broker.http is None:
        pytest.skip("needs a broker whose HTTP address is known")
    taken = f"{broker.http[0]}:{broker.http[1]}"
    with pytest.raises(AssertionError, match="exited at start") as failure:
        SpawnedBroker(http=taken)
    text = str(failure.value)
    assert f"listener http cannot listen on {taken}" in text
    assert "--http=off" in text


def test_http_can_be_off(spawn):
    own = spawn(http="off")
    assert own.http is None
    world = World(own, V5)
    client = world.connect()
    client.subscribe("$SYS/broker/uptime")
    client.receive()
    world.close()


def test_bytes_that_are_no_http_end_their_connection_only(broker):
    for sent in (b"\x10\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\0" * 100_000):
        with socket.create_connection(broker.http, timeout=DEADLINE) as connection:
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            except OSError:
                pass  # it was reset
    assert ask(broker, "/healthz").status == 200
