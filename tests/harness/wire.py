# SPDX-License-Identifier: Apache-2.0
"""MQTT written by hand: bytes in, bytes out, with no opinion on what a client may send."""

import collections
import struct

from . import V5, V31, Deadline, unique

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)

# name -> (identifier, type); types as in table 2-4 of the specification of 5.0
PROPERTIES = {
    "payload_format": (0x01, "u8"),
    "message_expiry": (0x02, "u32"),
    "content_type": (0x03, "utf8"),
    "response_topic": (0x08, "utf8"),
    "correlation_data": (0x09, "binary"),
    "subscription_id": (0x0B, "varint"),
    "session_expiry": (0x11, "u32"),
    "assigned_client_id": (0x12, "utf8"),
    "server_keep_alive": (0x13, "u16"),
    "auth_method": (0x15, "utf8"),
    "auth_data": (0x16, "binary"),
    "request_problem_information": (0x17, "u8"),
    "will_delay": (0x18, "u32"),
    "request_response_information": (0x19, "u8"),
    "response_information": (0x1A, "utf8"),
    "server_reference": (0x1C, "utf8"),
    "reason_string": (0x1F, "utf8"),
    "receive_maximum": (0x21, "u16"),
    "topic_alias_maximum": (0x22, "u16"),
    "topic_alias": (0x23, "u16"),
    "maximum_qos": (0x24, "u8"),
    "retain_available": (0x25, "u8"),
    "user_property": (0x26, "pair"),
    "maximum_packet_size": (0x27, "u32"),
    "wildcard_available": (0x28, "u8"),
    "subscription_id_available": (0x29, "u8"),
    "shared_available": (0x2A, "u8"),
}
# packet type -> reason codes that it may carry in 5.0
REASONS = {
    PUBACK: {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
    PUBREC: {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
    PUBREL: {0x00, 0x92},
    PUBCOMP: {0x00, 0x92},
    SUBACK: {0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2},
    UNSUBACK: {0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91},
}
NAMES = {identifier: (name, kind) for name, (identifier, kind) in PROPERTIES.items()}


def u16(value):
    return struct.pack(">H", value)


def u32(value):
    return struct.pack(">I", value)


def varint(value):
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def binary(data):
    return u16(len(data)) + data


def utf8(text):
    return binary(text.encode("utf-8") if isinstance(text, str) else text)


def one_property(name, value):
    identifier, kind = PROPERTIES[name]
    if kind == "pair":
        encoded = utf8(value[0]) + utf8(value[1])
    else:
        encode = {"u8": lambda v: bytes([v]), "u16": u16, "u32": u32, "varint": varint}
        encoded = encode.get(kind, utf8)(value)
    return bytes([identifier]) + encoded


def properties(*pairs, **named):
    """A property block with its length: pairs first (they may repeat), then the named ones."""
    block = b"".join(one_property(*pair) for pair in (*pairs, *named.items()))
    return varint(len(block)) + block


def packet(kind, flags=0, body=b""):
    return bytes([kind << 4 | flags]) + varint(len(body)) + body


def will_of(version, topic, payload=b"", block=None):
    """Will properties (5.0), will topic and will payload, as they stand in CONNECT."""
    head = (properties() if block is None else block) if version == V5 else b""
    return head + utf8(topic) + binary(payload)


def connect(
    version,
    client_id="",
    *,
    clean=True,
    keep_alive=60,
    flags=None,
    will=None,
    will_qos=0,
    will_retain=False,
    username=None,
    password=None,
    block=None,
    name=None,
    level=None,
    rest=b"",
):
    """CONNECT; `flags`, `name`, `level`, `block` and `rest` put something else than the rules would."""
    bits = 0x02 if clean else 0
    payload = utf8(client_id)
    if will is not None:
        bits |= 0x04 | will_qos << 3 | (0x20 if will_retain else 0)
        payload += will
    if username is not None:
        bits |= 0x80
        payload += utf8(username)
    if password is not None:
        bits |= 0x40
        payload += binary(password)
    head = utf8(("MQIsdp" if version == V31 else "MQTT") if name is None else name)
    head += bytes([version if level is None else level, bits if flags is None else flags])
    head += u16(keep_alive)
    if version == V5:
        head += properties() if block is None else block
    return packet(CONNECT, 0, head + payload + rest)


def persistent(version, expiry=600):
    """CONNECT settings of a session that outlives its connection."""
    return {"clean": False, "block": properties(session_expiry=expiry) if version == V5 else None}


def publish(version, topic, payload=b"", *, qos=0, retain=False, dup=False, pid=None, block=None):
    body = utf8(topic)
    if pid is not None:
        body += u16(pid)
    if version == V5:
        body += properties() if block is None else block
    return packet(PUBLISH, (8 if dup else 0) | qos << 1 | (1 if retain else 0), body + payload)


def ack(kind, pid, reason=None, block=None):
    body = u16(pid)
    if reason is not None:
        body += bytes([reason])
        if block is not None:
            body += block
    return packet(kind, 2 if kind == PUBREL else 0, body)


def subscribe(version, pid, *filters, block=None):
    """SUBSCRIBE to (filter, options byte) pairs."""
    body = u16(pid)
    if version == V5:
        body += properties() if block is None else block
    for topic_filter, options in filters:
        body += utf8(topic_filter) + bytes([options])
    return packet(SUBSCRIBE, 2, body)


def unsubscribe(version, pid, *filters, block=None):
    body = u16(pid)
    if version == V5:
        body += properties() if block is None else block
    return packet(UNSUBSCRIBE, 2, body + b"".join(utf8(each) for each in filters))


def disconnect(version, reason=None, block=None):
    body = b"" if reason is None else bytes([reason])
    return packet(DISCONNECT, 0, body + (block or b""))


PING = packet(PINGREQ)


class Reader:
    """Takes fields off a body, first to last."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, count):
        piece = self.data[self.at : self.at + count]
        assert len(piece) == count, f"short packet from the broker: {self.data!r}"
        self.at += count
        return piece

    def u8(self):
        return self.take(1)[0]

    def u16(self):
        return struct.unpack(">H", self.take(2))[0]

    def u32(self):
        return struct.unpack(">I", self.take(4))[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def binary(self):
        return self.take(self.u16())

    def utf8(self):
        return self.binary().decode("utf-8")

    def pair(self):
        return (self.utf8(), self.utf8())

    def rest(self):
        return self.take(len(self.data) - self.at)

    def properties(self):
        """Name -> value; a list of values for the two properties that may repeat."""
        block = Reader(self.take(self.varint()))
        found = {}
        while block.at < len(block.data):
            name, kind = NAMES[block.varint()]
            value = getattr(block, kind)()
            if name in ("user_property", "subscription_id"):
                found.setdefault(name, []).append(value)
            else:
                assert name not in found, f"the broker repeats the property {name}"
                found[name] = value
        return found


class Packet:
    """A packet from the broker with the fields that its kind has."""

    def __init__(self, version, first, body):
        self.kind, self.flags, self.body = first >> 4, first & 15, body
        self.properties = {}
        read = Reader(body)
        if self.kind == CONNACK:
            flags = read.u8()
            assert flags & 0xFE == 0, "[MQTT-3.2.2-1] [MQTT5-3.2.2-1]: reserved bits"
            # 3.1 has no such flag, so there it says nothing
            self.resumed = flags == 1 or version == V31
            self.reason = read.u8()
            if self.reason in (1, 0x84):
                # refuses the version, in the words of a version that it chooses itself
                read.rest()
            elif version == V5:
                self.properties = read.properties()
        elif self.kind == PUBLISH:
            self.qos, self.retain, self.dup = self.flags >> 1 & 3, bool(self.flags & 1), bool(self.flags & 8)
            self.topic = read.utf8()
            self.pid = read.u16() if self.qos else None
            if version == V5:
                self.properties = read.properties()
            self.payload = read.rest()
        elif self.kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
            self.pid = read.u16()
            self.reason = read.u8() if len(body) > 2 else 0
            if len(body) > 3:
                self.properties = read.properties()
            assert self.reason in REASONS[self.kind], f"a reason of another packet: {self}"
        elif self.kind in (SUBACK, UNSUBACK):
            self.pid = read.u16()
            if version == V5:
                self.properties = read.properties()
            self.codes = list(read.rest())
            allowed = REASONS[self.kind] if version == V5 else {0, 1, 2, 0x80}
            assert allowed.issuperset(self.codes), f"a reason of another packet: {self}"
        elif self.kind in (DISCONNECT, AUTH):
            self.reason = read.u8() if body else 0
            if len(body) > 1:
                self.properties = read.properties()
        assert read.at == len(body), f"the broker left bytes over: {self}"

    def __repr__(self):
        return f"Packet(kind={self.kind}, flags={self.flags:#x}, body={self.body!r})"


def take_packet(buffer, version):
    """Cuts the first packet off a bytearray, or answers None where it is not whole."""
    length = shift = 0
    for index, byte in enumerate(buffer[1:5], start=1):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            end = index + 1 + length
            if len(buffer) < end:
                return None
            whole = Packet(version, buffer[0], bytes(buffer[index + 1 : end]))
            del buffer[:end]
            return whole
    return None


class Wire:
    """One connection that speaks one version of MQTT as badly as the test wants."""

    def __init__(self, broker, version, opened=None, source=None):
        """`opened`: the connection, where a test has one already; `source`: the address that it is to come from."""
        self.version = version
        self.socket = opened or broker.endpoint.open(source and (source, 0))
        self._buffer = bytearray()
        self._early = collections.deque()
        self._next_pid = 0

    # the client's side

    def send(self, *packets):
        """Writes all of them at once. That the broker hung up is for the reads to find out."""
        try:
            self.socket.sendall(b"".join(packets))
        except OSError:
            pass

    def drip(self, parts, seconds):
        """Sends them one by one, with so much time between them; stops as soon as the broker says something, which is
        left for the next read. Answers whether it did."""
        for part in parts:
            self.send(part)
            self.socket.settimeout(seconds)
            try:
                self._buffer += self.socket.recv(1 << 16)
                return True
            except TimeoutError:
                pass
            except ConnectionError:
                return True
        return False

    def connect(self, client_id=None, **settings):
        """CONNECT that must succeed; answers the CONNACK."""
        client_id = unique("w") if client_id is None else client_id
        self.send(connect(self.version, client_id, **settings))
        connack = self.expect(CONNACK)
        assert connack.reason == 0, f"connection refused: {connack}"
        return connack

    def pid(self):
        self._next_pid += 1
        return self._next_pid

    def subscribe(self, topic_filter, options=0, block=None):
        """SUBSCRIBE to one filter that must be granted; answers the SUBACK."""
        pid = self.pid()
        self.send(subscribe(self.version, pid, (topic_filter, options), block=block))
        suback = self.expect(SUBACK)
        assert suback.pid == pid
        assert suback.codes == [options & 3]
        return suback

    def publish(self, topic, payload=b"", *, qos=0, **settings):
        """PUBLISH with the whole QoS flow; answers PUBACK, PUBREC or None."""
        pid = self.pid() if qos else None
        self.send(publish(self.version, topic, payload, qos=qos, pid=pid, **settings))
        if qos == 0:
            return None
        answer = self.expect(PUBACK if qos == 1 else PUBREC)
        assert answer.pid == pid
        if qos == 2 and answer.reason < 0x80:
            self.send(ack(PUBREL, pid))
            assert self.expect(PUBCOMP).pid == pid
        return answer

    def close(self):
        self.socket.close()

    # the broker's side

    def receive(self, seconds=None):
        """The next packet, or None once the broker has closed the connection."""
        if self._early:
            return self._early.popleft()
        return self._read(seconds)

    def buffered(self):
        """Whether something of what has been read is still to be taken."""
        return bool(self._early or self._buffer)

    def _read(self, seconds=None):
        deadline = Deadline("a packet from the broker", seconds)
        while (found := take_packet(self._buffer, self.version)) is None:
            self.socket.settimeout(deadline.left())
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                return None
            self._buffer += data
        return found

    def expect(self, kind):
        found = self.receive()
        assert found is not None, f"closed while waiting for packet type {kind}"
        assert found.kind == kind, f"wanted packet type {kind}, got {found}"
        return found

    def expect_message(self, *, acknowledge=True):
        """The next PUBLISH, with the receiver's part of its QoS flow."""
        message = self.expect(PUBLISH)
        if acknowledge and message.qos == 1:
            self.send(ack(PUBACK, message.pid))
        elif acknowledge and message.qos == 2:
            self.send(ack(PUBREC, message.pid))
            # messages may come between; they wait for whoever asks next
            while (found := self._read()) is not None and found.kind == PUBLISH:
                self._early.append(found)
            assert found is not None, "closed while waiting for PUBREL"
            assert (found.kind, found.pid) == (PUBREL, message.pid)
            self.send(ack(PUBCOMP, message.pid))
        return message

    def expect_closed(self, seconds=None):
        """The broker closes and says nothing more."""
        found = self.receive(seconds)
        assert found is None, f"wanted the connection closed, got {found}"

    def expect_refused(self, *reasons, seconds=None):
        """The broker closes; before that 5.0 says why, and no other version says anything."""
        found = self.receive(seconds)
        if self.version == V5:
            assert found is not None, f"closed without DISCONNECT, wanted one of {hexes(reasons)}"
            assert found.kind == DISCONNECT, f"wanted DISCONNECT, got {found}"
            assert found.reason in reasons, f"reason {found.reason:#x}, wanted {hexes(reasons)}"
            found = self.receive(seconds)
        assert found is None, f"wanted the connection closed, got {found}"

    def expect_alive(self):
        self.send(PING)
        self.expect(PINGRESP)


def opened(broker, version=V5, client_id=None, **settings):
    """A client that is connected, and its CONNACK."""
    wire = Wire(broker, version)
    return wire, wire.connect(client_id, **settings)


def hexes(reasons):
    return ", ".join(f"{reason:#04x}" for reason in reasons)


__all__ = [name for name in dir() if not name.startswith("_")]
