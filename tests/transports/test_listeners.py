# SPDX-License-Identifier: Apache-2.0
"""Listeners beside each other: of every kind, two of a kind, each with a limit of its own."""

import os

import pytest
import yaml

from harness import LARGE_DEADLINE, V5, V311, Deadline, unique
from harness.broker import SpawnedBroker
from harness.client import World
from harness.transport import LOOPBACK, PROTOCOLS, listener, socket_path
from harness.wire import CONNACK, Wire, connect

TRANSPORTS = list(PROTOCOLS)
ROOMY = "mqtt:\n  options:\n    capabilities:\n      maximum-packet-size: 16777216\n"


def one_of_each():
    return [(transport, listener(transport)) for transport in TRANSPORTS]


def test_two_of_each_kind_serve_the_same_topics(spawn):
    broker = spawn(listeners=one_of_each() + one_of_each(), shards=2)
    names = [line.split(" id=")[1].split()[0] for line in broker.lines if "attached listener" in line]
    assert sorted(names) == sorted(
        f"{kind}{suffix}"
        for kind, count in {"tcp": 6, "tls": 4, "ws": 2, "wss": 2, "unix": 2, "http": 1}.items()
        for suffix in ["", *(f"-{number}" for number in range(2, count + 1))]
    )
    world = World(broker, V5)
    clients = [World(endpoint, V5) for endpoint in broker.endpoints]
    topic = world.topic()
    for each in clients:
        each.connect().subscribe(topic, qos=1)
    sender = world.connect()
    sender.publish(topic, b"to all", 1)
    for each in clients:
        assert each.clients[0].receive().payload == b"to all"
        each.close()
    world.close()


def test_flags_name_listeners_too(spawn):
    """Those with TLS show the certificate of `mqtt.tls`."""
    shown = listener("tls")["tls"]
    flags = {each: f"{LOOPBACK}:0" for each in ("tcp", "ws", "tls", "wss")} | {"unix": str(socket_path())}
    broker = spawn(conf=yaml.safe_dump({"mqtt": {"tls": shown}}), listeners=[], flags=flags)
    for endpoint in broker.endpoints:
        client = Wire(endpoint, V5)
        client.connect()
        client.expect_alive()
        client.close()


@pytest.fixture(scope="module")
def everywhere():
    """A broker with a listener of each kind that takes packets up to 16 MiB."""
    broker = SpawnedBroker(conf=ROOMY, listeners=one_of_each(), shards=2)
    yield broker
    broker.stop()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ten_mebibytes_from_one_transport_to_each(everywhere, transport):
    """No block of the payload is like another, so that a misplaced one shows."""
    payload = os.urandom(10 << 20)
    source = everywhere.endpoints[TRANSPORTS.index(transport)]
    world = World(source, V5)
    topic = world.topic()
    publisher = world.connect()
    for endpoint in everywhere.endpoints:
        target = World(endpoint, V5)
        subscriber = target.connect()
        subscriber.subscribe(topic, qos=1)
        assert publisher.publish(topic, payload, 1) == 0
        assert subscriber.receive(seconds=LARGE_DEADLINE).payload == payload, f"from {transport} to {endpoint.transport}"
        target.close()
    world.close()


def refused(endpoint, version):
    """Whether the broker takes no more here: no connection, none that is answered, or one that is refused."""
    try:
        client = Wire(endpoint, version)
    except OSError:
        return True
    try:
        client.send(connect(version, unique("w")))
        found = client.receive()
        if found is None:
            return True
        assert found.kind == CONNACK
        assert found.reason in ((0, 0x97, 0x89) if version == V5 else (0, 3))
        return found.reason != 0
    finally:
        client.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("shards", [1, 4])
def test_a_listener_has_a_limit_of_its_own(spawn, transport, shards):
    """The others go on, and a place that is left is free again."""
    limited = {**listener(transport), "max-connections": 2}
    broker = spawn(listeners=[(transport, limited), ("tcp", listener("tcp"))], shards=shards)
    narrow, wide = broker.endpoints
    within = [Wire(narrow, V5) for _ in range(2)]
    for client in within:
        client.connect()
    for version in (V5, V311):
        for _ in range(4):
            assert refused(narrow, version)
        assert not refused(wide, version)
    for client in within:
        client.expect_alive()
    within.pop().close()
    deadline = Deadline("the place of a client that left")
    while refused(narrow, V5):
        deadline.left()
    within[0].expect_alive()
    within[0].close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("said", ["nothing", "a byte"])
def test_whoever_does_not_begin_is_closed(spawn, transport, said):
    """`connect-timeout` counts from accept: the handshakes of TLS, WebSocket and PROXY are within it."""
    broker = spawn(
        conf="mqtt:\n  limits:\n    connect-timeout: 1\n", listeners=[(transport, listener(transport))]
    )
    first = {"tls": b"\x16", "mtls": b"\x16", "wss": b"\x16", "ws": b"G", "proxy1": b"P", "proxy2": b"\r"}
    with broker.endpoint.connect() as silent:
        if said == "a byte":
            silent.sendall(first.get(transport, b"\x10"))
        while True:
            try:
                if not silent.recv(1 << 16):
                    break
            except ConnectionResetError:
                break
