# SPDX-License-Identifier: Apache-2.0
"""A WebSocket client written by hand (RFC 6455), with no opinion on what a client may send."""

import base64
import collections
import hashlib
import os
import struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
HEAD_END = b"\r\n\r\n"

Frame = collections.namedtuple("Frame", "opcode payload fin")


def masked(data, key):
    """XORs with the key as one large number: byte by byte takes seconds for 10 MiB."""
    pad = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")


def frame(opcode, payload=b"", *, fin=True, mask=True, reserved=0):
    length = len(payload)
    bit = 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    if length < 126:
        head += bytes([bit | length])
    elif length < 1 << 16:
        head += bytes([bit | 126]) + struct.pack(">H", length)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", length)
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + masked(payload, key)


def request(to, key, *, path="/mqtt", **headers):
    """The upgrade request; headers by their names in snake case, and None leaves one out."""
    wanted = {
        "host": to,
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_key": key,
        "sec_websocket_version": "13",
        "sec_websocket_protocol": "mqtt",
        **headers,
    }
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in wanted.items() if value is not None]
    return "\r\n".join(lines).encode() + HEAD_END


class Refused(Exception):
    """An answer other than 101."""

    def __init__(self, status, head, body):
        super().__init__(f"{head!r} {body!r}")
        self.status, self.head, self.body = status, head, body


class WebSocket:
    """Looks like a socket whose bytes are MQTT: each write goes as one frame, reads take frames apart."""

    def __init__(self, below, to, *, pieces=None, **headers):
        """`to`: host and port; `pieces`: makes the list of writes out of the request."""
        self.below = below
        self.buffer = bytearray()
        self._left = bytearray()
        self.close_code = None
        key = base64.b64encode(os.urandom(16)).decode()
        whole = request(to, key, **headers)
        for piece in pieces(whole) if pieces else [whole]:
            below.sendall(piece)
        self.headers = self._read_answer(key)

    def _read_answer(self, key):
        while HEAD_END not in self.buffer:
            if not self._fill():
                raise ConnectionError(f"closed within the answer to the upgrade: {bytes(self.buffer)!r}")
        end = self.buffer.index(HEAD_END)
        head = self.buffer[:end].decode()
        del self.buffer[: end + len(HEAD_END)]
        first, *lines = head.split("\r\n")
        status = int(first.split(" ")[1])
        if status != 101:
            while self._fill():
                pass
            raise Refused(status, head, bytes(self.buffer))
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} twice in {head!r}"
            headers[name.lower()] = value.strip()
        digest = hashlib.sha1((key + GUID).encode()).digest()
        assert headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
        assert headers["upgrade"].lower() == "websocket"
        assert headers["connection"].lower() == "upgrade"
        assert "sec-websocket-extensions" not in headers, "an extension that nobody offered"
        return headers

    def _fill(self):
        try:
            data = self.below.recv(1 << 18)
        except ConnectionError:
            return False
        self.buffer += data
        return bool(data)

    # frames

    def send_frame(self, opcode, payload=b"", **bits):
        self.below.sendall(frame(opcode, payload, **bits))

    def read_frame(self):
        """The next frame, or None once the connection is closed."""
        while (found := self._whole_frame()) is None:
            if not self._fill():
                return None
        return found

    def _whole_frame(self):
        if len(self.buffer) < 2:
            return None
        first, second = self.buffer[:2]
        assert second < 0x80, "a server must not mask (RFC 6455 5.1)"
        assert first & 0x70 == 0, "reserved bits without an extension (RFC 6455 5.2)"
        length, start = second, 2
        if length >= 126:
            size = 2 if length == 126 else 8
            start += size
            if len(self.buffer) < start:
                return None
            length = int.from_bytes(self.buffer[2:start], "big")
        if len(self.buffer) < start + length:
            return None
        found = Frame(first & 15, bytes(self.buffer[start : start + length]), bool(first & 0x80))
        assert found.opcode < 8 or (found.fin and length < 126), "a control frame is whole and short (RFC 6455 5.5)"
        del self.buffer[: start + length]
        return found

    # as a socket

    def sendall(self, data):
        self.send_frame(BINARY, data)

    def recv(self, count):
        while not self._left:
            found = self.read_frame()
            if found is None:
                return b""
            if found.opcode == CLOSE:
                self.close_code = struct.unpack(">H", found.payload[:2])[0] if found.payload else 1005
                self._answer(frame(CLOSE, found.payload[:2]))
            elif found.opcode == PING:
                self._answer(frame(PONG, found.payload))
            else:
                assert found.opcode in (BINARY, CONTINUATION), f"not MQTT: {found}"
                self._left += found.payload
        taken = bytes(self._left[:count])
        del self._left[:count]
        return taken

    def _answer(self, data):
        try:
            self.below.sendall(data)
        except OSError:
            pass

    def settimeout(self, seconds):
        self.below.settimeout(seconds)

    def shutdown(self, how):
        self.below.shutdown(how)

    def close(self):
        self.below.close()
