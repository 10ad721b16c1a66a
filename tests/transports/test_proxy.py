# SPDX-License-Identifier: Apache-2.0
"""The PROXY header (version 1 and 2 of haproxy's specification): believed from trusted networks only."""

import pytest

from harness import V5, unique
from harness.broker import SpawnedBroker
from harness.transport import PROXY2_SIGNATURE, listener, proxy_v1, proxy_v2
from harness.websocket import WebSocket
from harness.wire import CONNACK, Wire, connect

CLIENT4, TARGET4 = ("192.0.2.7", 4711), ("198.51.100.1", 1883)
CLIENT6, TARGET6 = ("2001:db8::7", 4711), ("2001:db8::1", 1883)
REMOTE4, REMOTE6 = "remote=192.0.2.7:4711", "remote=[2001:db8::7]:4711"


def trusting(transport, networks):
    return {**listener(transport), "proxy-protocol-from": networks}


@pytest.fixture(scope="module")
def broker():
    """Trusts 127.0.0.1, and no other address of this machine."""
    block = trusting("tcp", ["203.0.113.0/24", "127.0.0.1/32", "2001:db8::/32"])
    spawned = SpawnedBroker(listeners=[("tcp", block)], shards=2)
    yield spawned
    spawned.stop()


def speak(broker, header, source=None):
    """A connection whose first bytes are these."""
    made = broker.endpoint.connect(source)
    made.sendall(header)
    return Wire(broker, V5, made)


def connects(broker, client):
    """CONNECT that is accepted: the line that says where the client is."""
    client_id = unique("p")
    client.connect(client_id)
    return broker.await_line("client connected", f"client={client_id} ")


HEADERS = {
    "v1": (proxy_v1(CLIENT4, TARGET4), REMOTE4),
    "v1 ipv6": (proxy_v1(CLIENT6, TARGET6), REMOTE6),
    "v1 of the greatest length": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        "remote=[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
    ),
    "v2": (proxy_v2(CLIENT4, TARGET4), REMOTE4),
    "v2 ipv6": (proxy_v2(CLIENT6, TARGET6), REMOTE6),
    "v2 with fields behind": (proxy_v2(CLIENT4, TARGET4, extra=b"\x04\x03\xe8" + bytes(1000)), REMOTE4),
}
# the connection is the load balancer's own, or of a kind that has no address of ours
OWN_ADDRESS = {
    "v1 unknown": b"PROXY UNKNOWN\r\n",
    "v1 unknown with addresses": b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    "v2 local": proxy_v2(),
    "v2 local with addresses": proxy_v2(CLIENT4, TARGET4, command=0),
    "v2 unspecified": PROXY2_SIGNATURE + b"\x21\x00\x00\x00",
}


@pytest.mark.parametrize(("header", "remote"), HEADERS.values(), ids=HEADERS)
def test_client_is_where_the_header_says(broker, header, remote):
    with speak(broker, header).socket as made:
        assert f"{remote} " in connects(broker, Wire(broker, V5, made))


@pytest.mark.parametrize("header", OWN_ADDRESS.values(), ids=OWN_ADDRESS)
def test_header_without_a_client_leaves_the_connections_address(broker, header):
    with speak(broker, header).socket as made:
        host, port = made.getsockname()
        assert f"remote={host}:{port} " in connects(broker, Wire(broker, V5, made))


@pytest.mark.parametrize("header", [each for each, _ in HEADERS.values()], ids=HEADERS)
def test_header_and_connect_arrive_at_once(broker, header):
    client = speak(broker, header + connect(V5, unique("p")))
    assert client.expect(CONNACK).reason == 0
    client.close()


@pytest.mark.parametrize("header", [HEADERS["v1"][0], HEADERS["v2 ipv6"][0], proxy_v2()], ids=["v1", "v2", "local"])
def test_header_arrives_in_two_pieces(broker, header):
    for cut in range(1, len(header) + 1):
        client = speak(broker, header[:cut])
        client.send(header[cut:] + connect(V5, unique("p")))
        assert client.expect(CONNACK).reason == 0, f"cut at {cut}"
        client.close()


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_header_arrives_byte_by_byte(broker, name):
    header, remote = HEADERS[name]
    client = speak(broker, b"")
    for byte in header:
        client.send(bytes([byte]))
    assert f"{remote} " in connects(broker, client)
    client.close()


@pytest.mark.parametrize("header", [HEADERS["v1"][0], HEADERS["v2"][0]], ids=["v1", "v2"])
def test_connection_ends_within_the_header(broker, header):
    for cut in range(len(header)):
        client = speak(broker, header[:cut])
        client.socket.shutdown(1)
        client.expect_closed()
        client.close()
    with speak(broker, HEADERS["v1"][0]).socket as made:
        connects(broker, Wire(broker, V5, made))


def test_missing_header_is_refused(broker):
    """Or a client of that network could claim to be anywhere by saying the header itself."""
    client = speak(broker, connect(V5, unique("p")))
    client.expect_closed()
    client.close()


@pytest.mark.parametrize("header", [HEADERS["v1"][0], HEADERS["v2"][0], proxy_v2()], ids=["v1", "v2", "local"])
def test_header_from_elsewhere_is_refused(broker, header):
    client = speak(broker, header + connect(V5, unique("p")), ("127.0.0.2", 0))
    client.expect_closed()
    client.close()


def test_header_on_a_listener_that_trusts_nobody_is_refused(spawn):
    plain = spawn(listeners=[("tcp", listener("tcp"))])
    client = speak(plain, HEADERS["v1"][0] + connect(V5, unique("p")))
    client.expect_closed()
    client.close()


MALFORMED = {
    "v1 line feed alone": b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 1883\n",
    "v1 without ports": b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
    "v1 port above 65535": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 1883\r\n",
    "v1 port is no number": b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 mqtt\r\n",
    "v1 address is a name": b"PROXY TCP4 localhost 198.51.100.1 4711 1883\r\n",
    "v1 address of the other family": b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 1883\r\n",
    "v1 unknown family": b"PROXY UDP4 192.0.2.7 198.51.100.1 4711 1883\r\n",
    "v1 something behind": b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 1883 1\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 4711 1883\r\n",
    "v1 small letters": b"proxy TCP4 192.0.2.7 198.51.100.1 4711 1883\r\n",
    "v1 no end": b"PROXY UNKNOWN " + b"x" * 200,
    "v2 version 1": PROXY2_SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
    "v2 command 2": PROXY2_SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
    "v2 family 4": PROXY2_SIGNATURE + b"\x21\x41\x00\x0c" + bytes(12),
    "v2 transport 3": PROXY2_SIGNATURE + b"\x21\x13\x00\x0c" + bytes(12),
    "v2 too short for its family": PROXY2_SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
    "v2 signature with a wrong byte": b"\r\n\r\n\0\r\nQUIT\r\x21\x11\x00\x0c" + bytes(12),
    "http": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_malformed_header_is_refused(broker, header):
    client = speak(broker, header + connect(V5, unique("p")))
    client.expect_closed()
    client.close()


@pytest.mark.parametrize("transport", ["tls", "ws", "wss"])
@pytest.mark.parametrize("name", ["v1", "v2 ipv6"])
def test_header_comes_before_everything_else(spawn, transport, name):
    """Before the handshakes of TLS and WebSocket, in clear."""
    broker = spawn(listeners=[(transport, trusting(transport, ["127.0.0.1/32"]))])
    header, remote = HEADERS[name]
    made = broker.endpoint.connect()
    made.sendall(header)
    if broker.endpoint.is_encrypted:
        made = broker.endpoint.context().wrap_socket(made, server_hostname=broker.host)
    if broker.endpoint.is_websocket:
        made = WebSocket(made, broker.endpoint.url_host)
    client = Wire(broker, V5, made)
    assert f"{remote} " in connects(broker, client)
    client.close()
