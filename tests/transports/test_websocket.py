# SPDX-License-Identifier: Apache-2.0
"""WebSocket by hand: the upgrade, where packets and frames begin and end, and what RFC 6455 forbids."""

import os
import struct

import pytest

from harness import V5, V311, VERSIONS, unique
from harness.broker import SpawnedBroker
from harness.client import Will, World
from harness.transport import listener
from harness.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Refused,
    WebSocket,
    frame,
    request,
)
from harness.wire import (
    CONNACK,
    DISCONNECT,
    PINGRESP,
    PUBLISH,
    SUBACK,
    Wire,
    connect,
    disconnect,
    packet,
    publish,
    subscribe,
)
from harness.wire import PING as MQTT_PING


@pytest.fixture(scope="module")
def broker():
    spawned = SpawnedBroker(listeners=[("ws", listener("ws"))], shards=2)
    yield spawned
    spawned.stop()


@pytest.fixture
def upgrade():
    """Opens WebSockets: upgrade(broker, origin=...)."""
    opened = []

    def one(broker, **headers):
        below = broker.endpoint.connect()
        opened.append(below)
        return WebSocket(below, broker.endpoint.url_host, **headers)

    yield one
    for each in opened:
        each.close()


def closes_with(socket, code):
    """A Close frame with that code, and the end of the connection."""
    while (found := socket.read_frame()) is not None and found.opcode != CLOSE:
        pass
    assert found is not None, "closed without a Close frame"
    assert struct.unpack(">H", found.payload[:2])[0] == code, found
    found.payload[2:].decode()
    socket.below.sendall(frame(CLOSE, found.payload[:2]))
    assert socket.read_frame() is None


def joins_and_hears(client, *payloads):
    """CONNECT, SUBSCRIBE and PUBLISHes to that topic were sent at once: messages may overtake the SUBACK."""
    assert client.expect(CONNACK).reason == 0
    found = [client.receive() for _ in range(len(payloads) + 1)]
    (suback,) = (each for each in found if each.kind == SUBACK)
    assert suback.codes == [0]
    assert [each.payload for each in found if each.kind == PUBLISH] == list(payloads)


# the upgrade


@pytest.mark.parametrize("offered", ["mqtt", "mqttv3.1", "chat, mqtt", "mqtt,chat"])
def test_subprotocol_is_answered(broker, upgrade, offered):
    """[MQTT-6.0.0-3] [MQTT-6.0.0-4] [MQTT5-6.0.0-3] [MQTT5-6.0.0-4]; MQTT.js offers mqttv3.1 when it speaks 3.1."""
    answered = upgrade(broker, sec_websocket_protocol=offered).headers["sec-websocket-protocol"]
    assert answered == ("mqttv3.1" if offered == "mqttv3.1" else "mqtt")


def test_headers_are_read_whatever_their_case_and_company(broker, upgrade):
    """The helper writes the names in small letters; browsers write them as the RFC does."""
    upgrade(broker, connection="keep-alive, upgrade", upgrade="WebSocket", user_agent="x" * 500)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    with broker.endpoint.connect() as below:
        below.sendall(
            b"GET /mqtt HTTP/1.1\r\nHost: here\r\nUpgrade: WEBSOCKET\r\nConnection:Upgrade\r\n"
            b"Sec-WebSocket-Key:  " + key.encode() + b"\t\r\nSEC-WEBSOCKET-VERSION: 13\r\n"
            b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            assert (data := below.recv(1000)), answer
            answer += data
    assert answer.startswith(b"HTTP/1.1 101 ")
    # the example of RFC 6455 1.3
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer


def test_extensions_that_are_offered_are_not_taken(broker, upgrade):
    """Browsers offer permessage-deflate; the reader of the answer checks that none comes back."""
    upgrade(broker, sec_websocket_extensions="permessage-deflate; client_max_window_bits")


@pytest.mark.parametrize("path", ["/", "/mqtt", "/mqtt?token=1"])
def test_path_is_free(broker, upgrade, path):
    upgrade(broker, path=path)


REFUSED = {
    "no subprotocol": {"sec_websocket_protocol": None},
    "another subprotocol": {"sec_websocket_protocol": "chat"},
    "no key": {"sec_websocket_key": None},
    "a key of another length": {"sec_websocket_key": "c2hvcnQ="},
    "no upgrade": {"upgrade": None},
    "another upgrade": {"upgrade": "h2c"},
    "no connection": {"connection": None},
    "connection without upgrade": {"connection": "keep-alive"},
    "no host": {"host": None},
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
def test_request_that_is_no_upgrade_to_mqtt_is_refused(broker, upgrade, headers):
    with pytest.raises(Refused) as refused:
        upgrade(broker, **headers)
    assert refused.value.status in (400, 426)


def test_another_version_is_told_the_right_one(broker, upgrade):
    """RFC 6455 4.4"""
    with pytest.raises(Refused) as refused:
        upgrade(broker, sec_websocket_version="8")
    assert refused.value.status == 426
    assert "sec-websocket-version: 13" in refused.value.head.lower()


NO_REQUESTS = {
    "another method": b"POST /mqtt HTTP/1.1\r\n",
    "an old version": b"GET /mqtt HTTP/1.0\r\n",
    "no version": b"GET /mqtt\r\n",
    "mqtt": connect(V5, "abc"),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
    "a head without end": b"GET / HTTP/1.1\r\n" + b"X-Filler: " + b"x" * (1 << 20),
    "a head of very many lines": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000,
}


@pytest.mark.parametrize("start", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_closed(broker, start):
    with broker.endpoint.connect() as below:
        try:
            below.sendall(start + request("here", "dGhlIHNhbXBsZSBub25jZQ==").split(b"\r\n", 1)[1])
            below.shutdown(1)
            answered = b""
            while data := below.recv(1 << 16):
                answered += data
        except ConnectionError:
            return
    assert not answered or answered.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505 "))


def test_request_arrives_in_two_pieces(broker, upgrade):
    length = len(request(broker.endpoint.url_host, "dGhlIHNhbXBsZSBub25jZQ=="))
    for cut in range(1, length):
        client = Wire(broker, V5, upgrade(broker, pieces=lambda whole, cut=cut: [whole[:cut], whole[cut:]]))
        client.connect()
        client.close()


def test_request_arrives_byte_by_byte(broker, upgrade):
    upgrade(broker, pieces=lambda whole: [whole[at : at + 1] for at in range(len(whole))])


def test_connection_ends_within_the_request(broker, upgrade):
    whole = request(broker.endpoint.url_host, "dGhlIHNhbXBsZSBub25jZQ==")
    for cut in range(len(whole)):
        with broker.endpoint.connect() as below:
            below.sendall(whole[:cut])
            below.shutdown(1)
            try:
                assert not below.recv(1000).startswith(b"HTTP/1.1 101")
            except ConnectionResetError:
                pass
    upgrade(broker)


def test_first_packet_may_come_with_the_request(broker, upgrade):
    """A client should wait for the answer; one that does not loses nothing by it."""
    first = frame(BINARY, connect(V5, unique("w")))
    client = Wire(broker, V5, upgrade(broker, pieces=lambda whole: [whole + first]))
    assert client.expect(CONNACK).reason == 0


# the Origin that browsers name

LOOPBACK_ORIGINS = ["http://127.0.0.1:8000", "http://localhost", "https://localhost:8443", "http://[::1]:8000"]
FOREIGN_ORIGINS = [
    "http://example.org",
    "https://localhost.example.org",
    "http://127.0.0.1.example.org",
    "http://example.org:1882",
    "http://10.0.0.1",
    "null",
]


@pytest.mark.parametrize("origin", LOOPBACK_ORIGINS)
def test_page_of_this_machine_may_connect(broker, upgrade, origin):
    upgrade(broker, origin=origin)


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_foreign_page_may_not_connect_to_a_loopback_listener(broker, upgrade, origin):
    """Or any page that a browser of this machine shows could speak to its broker."""
    with pytest.raises(Refused) as refused:
        upgrade(broker, origin=origin)
    assert refused.value.status == 403


def test_allowed_origins_let_pages_in(spawn, upgrade):
    block = {**listener("ws"), "allowed-origins": ["https://app.example.org", "http://example.org:8000"]}
    broker = spawn(listeners=[("ws", block)])
    upgrade(broker, origin="https://app.example.org")
    upgrade(broker, origin="http://example.org:8000")
    upgrade(broker)
    for origin in ("http://app.example.org", "https://example.org", "http://example.org:8001", "http://example.org"):
        with pytest.raises(Refused) as refused:
            upgrade(broker, origin=origin)
        assert refused.value.status == 403


# frames and packets


def test_packets_lie_across_frames(broker, upgrade):
    """[MQTT-6.0.0-2] [MQTT5-6.0.0-2]: each place where a frame may end."""
    for cut in range(1, 40):
        topic = unique("t/")
        whole = connect(V5, unique("w")) + subscribe(V5, 1, (topic, 0)) + publish(V5, topic, b"x" * 10)
        client = Wire(broker, V5, upgrade(broker))
        client.send(whole[:cut])
        client.send(whole[cut:])
        joins_and_hears(client, b"x" * 10)


def test_many_packets_lie_in_one_frame(broker, upgrade):
    topic = unique("t/")
    client = Wire(broker, V5, upgrade(broker))
    payloads = [b"%d" % number for number in range(1000)]
    messages = [publish(V5, topic, payload) for payload in payloads]
    client.send(connect(V5, unique("w")), subscribe(V5, 1, (topic, 0)), *messages)
    joins_and_hears(client, *payloads)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_small_frames_at_once(broker, upgrade, size):
    """One segment with many frames of a byte or a few each, and empty ones between them."""
    topic = unique("t/")
    whole = connect(V5, unique("w")) + subscribe(V5, 1, (topic, 0)) + publish(V5, topic, b"x" * 300)
    socket = upgrade(broker)
    frames = [frame(BINARY, whole[at : at + size]) + frame(BINARY) for at in range(0, len(whole), size)]
    socket.below.sendall(b"".join(frames))
    client = Wire(broker, V5, socket)
    joins_and_hears(client, b"x" * 300)


def test_bytes_of_frames_arrive_one_by_one(broker, upgrade):
    topic = unique("t/")
    socket = upgrade(broker)
    client = Wire(broker, V5, socket)
    whole = connect(V5, unique("w")) + subscribe(V5, 1, (topic, 0)) + publish(V5, topic, b"x" * 200)
    for byte in frame(BINARY, whole[:20]) + frame(BINARY, whole[20:]):
        socket.below.sendall(bytes([byte]))
    joins_and_hears(client, b"x" * 200)


def test_message_in_fragments_with_pings_between(broker, upgrade):
    """RFC 6455 5.4: control frames may come within a fragmented message."""
    socket = upgrade(broker)
    whole = connect(V5, unique("w")) + MQTT_PING
    pieces = [whole[:5], whole[5:6], b"", whole[6:]]
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        socket.send_frame(CONTINUATION if index else BINARY, piece, fin=last)
        if not last:
            socket.send_frame(PING, b"between %d" % index)
            pong = socket.read_frame()
            assert (pong.opcode, pong.payload) == (PONG, b"between %d" % index)
    client = Wire(broker, V5, socket)
    assert client.expect(CONNACK).reason == 0
    client.expect(PINGRESP)


@pytest.mark.parametrize("size", [125, 126, 127, 65_535, 65_536, 65_537, 900_000])
def test_lengths_of_frames_both_ways(broker, upgrade, size):
    topic = unique("t/")
    client = Wire(broker, V311, upgrade(broker))
    client.connect()
    client.subscribe(topic)
    header = len(publish(V311, topic, b"x" * size)) - size
    payload = os.urandom(size - header)
    client.publish(topic, payload)
    assert client.expect(PUBLISH).payload == payload


def test_frame_without_end_is_read_as_it_comes(broker, upgrade):
    """A length is no reason to reserve memory or to wait: packets are taken out of the unfinished frame."""
    socket = upgrade(broker)
    key = b"\0\0\0\0"
    socket.below.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 62) + key + connect(V5, unique("w")) + MQTT_PING)
    client = Wire(broker, V5, socket)
    assert client.expect(CONNACK).reason == 0
    client.expect(PINGRESP)
    socket.below.sendall(MQTT_PING)
    client.expect(PINGRESP)


# control frames


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125], ids=len)
def test_ping_is_answered_with_its_payload(broker, upgrade, payload):
    socket = upgrade(broker)
    Wire(broker, V5, socket).connect()
    socket.send_frame(PING, payload)
    pong = socket.read_frame()
    assert (pong.opcode, pong.payload) == (PONG, payload)


def test_ping_is_answered_before_connect(broker, upgrade):
    socket = upgrade(broker)
    socket.send_frame(PING, b"early")
    assert socket.read_frame().payload == b"early"


def test_unasked_pong_means_nothing(broker, upgrade):
    """RFC 6455 5.5.3"""
    socket = upgrade(broker)
    client = Wire(broker, V5, socket)
    client.connect()
    socket.send_frame(PONG, b"heartbeat")
    client.expect_alive()


@pytest.mark.parametrize("when", ["before connect", "connected", "within a message"])
def test_close_is_answered_and_ends(broker, upgrade, when):
    socket = upgrade(broker)
    if when != "before connect":
        Wire(broker, V5, socket).connect()
    if when == "within a message":
        socket.send_frame(BINARY, MQTT_PING[:1], fin=False)
    socket.send_frame(CLOSE, struct.pack(">H", 1000) + b"enough")
    found = socket.read_frame()
    assert found.opcode == CLOSE
    assert struct.unpack(">H", found.payload[:2])[0] == 1000
    assert socket.read_frame() is None


def test_close_without_a_code_is_answered(broker, upgrade):
    socket = upgrade(broker)
    Wire(broker, V5, socket).connect()
    socket.send_frame(CLOSE)
    assert socket.read_frame().opcode == CLOSE
    assert socket.read_frame() is None


@pytest.mark.parametrize("version", VERSIONS)
def test_close_without_disconnect_sends_the_will(broker, upgrade, version):
    """[MQTT-3.1.2-8] [MQTT5-3.1.2-8]: a good end of the WebSocket is not one of MQTT."""
    world = World(broker, version)
    watcher = world.connect()
    watcher.subscribe(world.topic(), qos=1)
    dying = world.connect(will=Will(world.topic(), b"gone", 1))
    with dying.paho.kernel_socket as below:
        below.sendall(frame(CLOSE, struct.pack(">H", 1000)))
    assert watcher.receive().payload == b"gone"
    world.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_disconnect_closes_the_websocket_too(broker, upgrade, version):
    socket = upgrade(broker)
    client = Wire(broker, version, socket)
    client.connect()
    client.send(disconnect(version))
    closes_with(socket, 1000)


def test_draining_broker_says_goodbye_in_both_protocols(spawn, upgrade):
    broker = spawn(listeners=[("ws", listener("ws"))])
    socket = upgrade(broker)
    client = Wire(broker, V5, socket)
    client.connect()
    broker.terminate()
    assert client.expect(DISCONNECT).reason == 0x8B
    client.expect_closed()
    assert socket.close_code in (1000, 1001)
    broker.stop()


# what is forbidden

FORBIDDEN = {
    # [MQTT-6.0.0-1] [MQTT5-6.0.0-1]: other data frames end the connection
    "text": (frame(TEXT, b"\x10"), 1003),
    "empty text": (frame(TEXT), 1003),
    "first fragment of text": (frame(TEXT, b"\x10", fin=False), 1003),
    "unmasked": (frame(BINARY, MQTT_PING, mask=False), 1002),
    "unmasked ping": (frame(PING, mask=False), 1002),
    "opcode 3": (frame(3), 1002),
    "opcode 11": (frame(11), 1002),
    "reserved bit 1": (frame(BINARY, MQTT_PING, reserved=4), 1002),
    "reserved bit 2": (frame(BINARY, MQTT_PING, reserved=2), 1002),
    "reserved bit 3": (frame(PING, reserved=1), 1002),
    "ping in fragments": (frame(PING, b"x", fin=False), 1002),
    "long ping": (frame(PING, b"x" * 126), 1002),
    "long close": (frame(CLOSE, struct.pack(">H", 1000) + b"x" * 124), 1002),
    "continuation of nothing": (frame(CONTINUATION, MQTT_PING), 1002),
    "a message within a message": (frame(BINARY, MQTT_PING, fin=False) + frame(BINARY, MQTT_PING), 1002),
    "length with the top bit": (b"\x82\xff\x80" + bytes(7) + bytes(4), 1002),
    "length in eight bytes that fits in two": (b"\x82\xff" + struct.pack(">Q", 126) + bytes(4) + bytes(126), 1002),
    "length in two bytes that fits in the first": (b"\x82\xfe\0\x02" + bytes(4) + MQTT_PING, 1002),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "close with a code that is not sent": (frame(CLOSE, struct.pack(">H", 1005)), 1002),
    "close with no code of a kind": (frame(CLOSE, struct.pack(">H", 999)), 1002),
}


@pytest.mark.parametrize("when", ["before connect", "connected"])
@pytest.mark.parametrize(("frames", "code"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbidden_frame_ends_the_connection_with_its_code(broker, upgrade, frames, code, when):
    socket = upgrade(broker)
    if when == "connected":
        Wire(broker, V5, socket).connect()
    socket.below.sendall(frames)
    closes_with(socket, code)


def test_malformed_packet_ends_the_websocket_too(broker, upgrade):
    """5.0 is told why in MQTT's words, and then by a Close frame."""
    socket = upgrade(broker)
    client = Wire(broker, V5, socket)
    client.connect()
    client.send(packet(0))
    assert client.expect(DISCONNECT).reason in (0x81, 0x82)
    client.expect_closed()
    assert socket.close_code is not None
