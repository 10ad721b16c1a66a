# SPDX-License-Identifier: Apache-2.0
"""The attacks. Each runs in a process of its own, `python -m hostile.attacks NAME JSON`, which `stage.Attacker` starts.

An attack is a function of a `Front`: it presses on the broker once, with bounded work under a deadline, counts what
happened in `facts`, and notes what the broker did wrong in `faults`. The process repeats it until the time that it was
asked for is over; SIGUSR1 ends it after the round under way, SIGTERM in the middle of it. It writes JSON lines:
`{"pressing": true}` when the first round begins, at the end `{"rounds": .., "facts": {..}, "faults": [..]}`.
"""

import collections
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from harness import V5, V311, VERSIONS, Deadline, unique
from harness.transport import Endpoint
from harness.wire import (
    CONNACK,
    DISCONNECT,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    Wire,
    ack,
    connect,
    disconnect,
    packet,
    persistent,
    properties,
    publish,
    subscribe,
    take_packet,
    u16,
    utf8,
    varint,
    will_of,
)
from hostile import packets, retained
from hostile.swarm import READ, Swarm, drain

# How long the broker may take for an answer, or to close, when it has to (seconds).
PATIENCE = 10
FAULTS_KEPT = 20
MIB = 1 << 20


@dataclass(frozen=True)
class Attack:
    """What an attack needs, how large it is in CI and in full, and what the others may lose meanwhile."""

    name: str
    press: object
    small: dict
    full: dict
    # mqtt.limits of the broker
    limits: dict = field(default_factory=dict)
    memory_max: int = 512 * MIB
    small_memory_max: int = 256 * MIB
    # kinds of listeners beside TCP
    listeners: tuple = ()
    # hard limit of the broker's file descriptors
    descriptors: int = 0
    # clients that come while it lasts are served too
    newcomers: bool = True
    # done to the broker before, once: a function of it and the size
    prepare: object = None
    # what the probe measures of it, where that is more than the usual (seconds)
    probe_seconds: int = 0

    def size(self, small):
        return self.small if small else self.full


ATTACKS = {}


def attack(name, *, small, full, **needs):
    def register(press):
        ATTACKS[name] = Attack(name, press, small, full, **needs)
        return press

    return register


class Front:
    """One attack's view of the broker, and its notes."""

    def __init__(self, addresses, size, seconds):
        self.addresses = addresses
        self.size = size
        self.end = time.monotonic() + seconds
        self.stopped = False
        self.facts = collections.Counter()
        self.faults = []

    @property
    def endpoint(self):
        """Where `Wire` connects."""
        return Endpoint("tcp", *self.addresses["tcp"])

    def stopping(self):
        return self.stopped or time.monotonic() >= self.end

    def left(self):
        return max(1.0, self.end - time.monotonic())

    def fault(self, text):
        self.facts["faults"] += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(text)

    def swarm(self, scripts, *, width=256, kind="tcp", buffers=None):
        swarm = Swarm(self.addresses[kind], width=width, seconds=self.left(), stopping=self.stopping, buffers=buffers)
        late = swarm.run(scripts)
        self.facts["connections"] += swarm.started
        if swarm.refused:
            self.facts["not connected"] += swarm.refused
        if late:
            self.fault(f"{late} connections had not got what they waited for at the end")

    def wire(self, version=V5):
        """A blocking client."""
        return Wire(self, version)


class Frames:
    """Whole packets out of what the broker sends; that they are well-formed is checked on the way."""

    def __init__(self, version):
        self.version = version
        self.buffer = bytearray()

    def feed(self, data):
        self.buffer += data
        found = []
        while (one := take_packet(self.buffer, self.version)) is not None:
            found.append(one)
        return found


def greet(peer, frames, client_id=None, **settings):
    """CONNECT; answers the reason of CONNACK, or None when the broker closed."""
    yield connect(frames.version, unique("h") if client_id is None else client_id, **settings)
    while (data := (yield READ)) != b"":
        for each in frames.feed(data):
            assert each.kind == CONNACK, f"{each} before CONNACK"
            return each.reason
    return None


def await_packet(frames, wanted):
    """The next packet of type `wanted`, or None when the broker closed or took longer than PATIENCE; others pass."""
    until = time.monotonic() + PATIENCE
    while (left := until - time.monotonic()) > 0:
        if not (data := (yield left)):
            return None
        for each in frames.feed(data):
            if each.kind == wanted:
                return each
    return None


def await_close(peer, seconds):
    """Seconds until the broker closed, None if it did not; what it sends is thrown away."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        if (yield left) == b"":
            return time.monotonic() - began
    return None


# Packets


def catalogue_case(front, case, step):
    def script(peer):
        frames = Frames(case.version)
        if not case.first and (yield from greet(peer, frames)) != 0:
            front.fault(f"{case}: a good CONNECT was refused")
            return
        data = case.data + (PING if case.want == packets.ALIVE else b"")
        if step:
            for byte in data:
                yield bytes([byte])
        else:
            yield data
        if case.want == packets.LOOSE:
            peer.half_close()
        said = []
        until = time.monotonic() + PATIENCE
        while True:
            answer = yield max(0.0, until - time.monotonic())
            if answer is None:
                front.fault(f"{case}: neither answered nor closed")
                return
            if answer == b"":
                break
            if case.first and case.want == packets.LOOSE:
                # which version it is answered in depends on the byte that was changed
                continue
            try:
                said += frames.feed(answer)
            except AssertionError as wrong:
                front.fault(f"{case}: {wrong}")
                return
            if case.want == packets.ALIVE and any(each.kind == PINGRESP for each in said):
                front.facts["alive"] += 1
                return
        judge(front, case, said)

    return script


def judge(front, case, said):
    """The broker has closed: whether it should have, and whether it said the right thing before."""
    front.facts["closed"] += 1
    if case.want == packets.ALIVE:
        front.fault(f"{case}: closed, said {said}")
    if case.want != packets.REFUSED:
        return
    accepted = any(each.kind == CONNACK and each.reason == 0 for each in said)
    if case.first and accepted:
        front.fault(f"{case}: accepted")
    last = said[-1] if said else None
    if case.version == V5 and not case.first:
        # [MQTT5-4.13.2-1]
        if last is None or last.kind != DISCONNECT or last.reason < 0x80:
            front.fault(f"{case}: closed without a reason, said {said}")
    elif case.version != V5 and any(each.kind == DISCONNECT for each in said):
        front.fault(f"{case}: DISCONNECT to a client of {case.version}")


def press_catalogue(front, step):
    cases = list(packets.catalogue())[:: front.size["every"]]
    front.swarm((catalogue_case(front, case, step) for case in cases), width=front.size["width"])
    front.facts["cases"] += len(cases)


@attack("packets", small={"every": 1, "width": 128}, full={"every": 1, "width": 256})
def packets_whole(front):
    """Malformed and forbidden packets of every type and version."""
    press_catalogue(front, False)


@attack("packets-by-byte", small={"every": 3, "width": 128}, full={"every": 1, "width": 256})
def packets_by_byte(front):
    """The same, one byte at a time."""
    press_catalogue(front, True)


# Connections that do not get anywhere


def held_until_timeout(front, timeout, opening, interval=None):
    """Sends `opening`, at once or by the byte, and wants to be closed at connect-timeout."""

    def script(peer):
        began = time.monotonic()
        if interval is None:
            if opening:
                yield opening
            after = yield from await_close(peer, timeout + PATIENCE)
        else:
            after = None
            for byte in opening:
                yield bytes([byte])
                if (yield interval) == b"":
                    after = time.monotonic() - began
                    break
        if after is None:
            front.fault(f"not closed {time.monotonic() - began:.1f} s after it connected, connect-timeout is {timeout} s")
            return
        # this process may be late too, the broker is never early
        if after < timeout - 0.5:
            front.fault(f"closed after {after:.1f} s, connect-timeout is {timeout} s")
        front.facts["closed in time"] += 1
        front.facts["latest close ms"] = max(front.facts["latest close ms"], int(after * 1000))

    return script


LONG_CONNECT = connect(V5, "slow" * 20, block=properties(user_property=("a", "b" * 200)))


@attack(
    "slow-connect",
    small={"count": 100, "interval": 0.1, "timeout": 2},
    full={"count": 500, "interval": 1.0, "timeout": 10},
    limits={"connect-timeout": "{timeout}s"},
    probe_seconds=12,
)
def slow_connect(front):
    """CONNECT, one byte per interval."""
    size = front.size
    script = held_until_timeout(front, size["timeout"], LONG_CONNECT, size["interval"])
    front.swarm((script for _ in range(size["count"])), width=size["count"])


@attack(
    "half-open",
    small={"count": 500, "timeout": 2},
    full={"count": 5000, "timeout": 10},
    limits={"connect-timeout": "{timeout}s"},
    probe_seconds=12,
)
def half_open(front):
    """Connections that send nothing, or half a CONNECT."""
    size = front.size
    half = LONG_CONNECT[: len(LONG_CONNECT) // 2]
    scripts = (held_until_timeout(front, size["timeout"], half if at % 2 else b"") for at in range(size["count"]))
    front.swarm(scripts, width=size["count"])


@attack("connection-flood", small={"count": 3000, "width": 100}, full={"count": 20000, "width": 200})
def connection_flood(front):
    """Connections that are opened and closed, in every way and as fast as they can be had."""

    def closes(peer):
        return
        yield

    def resets(peer):
        peer.reset()
        return
        yield

    def greets_and_resets(peer):
        yield connect(V311, unique("f"))
        peer.reset()

    def greets_and_leaves(peer):
        yield connect(V5, unique("f")) + disconnect(V5)
        yield from drain(peer)

    def is_something_else(peer):
        yield b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        yield from drain(peer)

    ways = (closes, resets, greets_and_resets, greets_and_leaves, is_something_else)
    front.swarm((ways[at % len(ways)] for at in range(front.size["count"])), width=front.size["width"])


@attack(
    "descriptors",
    small={"count": 500, "hold": 1.0},
    full={"count": 2000, "hold": 2.0},
    limits={"connections": 0, "connect-timeout": "60s"},
    descriptors=256,
    newcomers=False,
)
def descriptors(front):
    """More connections than the broker has file descriptors for; all let go after a while."""
    held = 0

    def script(peer):
        nonlocal held
        frames = Frames(V311)
        yield connect(V311, unique("d"))
        until = time.monotonic() + front.size["hold"]
        while (left := until - time.monotonic()) > 0:
            data = yield left
            if data == b"":
                return
            if data:
                held += any(each.kind == CONNACK and each.reason == 0 for each in frames.feed(data))

    count = front.size["count"]
    front.swarm((script for _ in range(count)), width=count)
    front.facts["accepted"] += held
    # all are let go: the next one is served again
    again = front.wire(V311)
    again.connect()
    again.expect_alive()
    again.close()


# TLS and WebSocket, cut


@attack(
    "tls-cut",
    small={"every": 7, "timeout": 2},
    full={"every": 1, "timeout": 10},
    limits={"connect-timeout": "{timeout}s"},
    listeners=("tls",),
    probe_seconds=12,
)
def tls_cut(front):
    """TLS handshakes that end at every byte: closed, half closed, stalled; and with every byte of ClientHello changed."""
    import ssl

    def context():
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        return made

    shared = context()
    older = context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2

    def handshake(peer, made, budget, change=None):
        """The first `budget` bytes of the client's side; answers how many it sent, None when the broker closed."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = made.wrap_bio(incoming, outgoing, server_hostname="localhost")
        sent = 0
        while True:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                return None
            data = bytearray(outgoing.read()[: budget - sent])
            if change is not None and sent <= change < sent + len(data):
                data[change - sent] ^= 0x55
            sent += len(data)
            if data:
                yield bytes(data)
            if done or sent >= budget:
                return sent
            if not (answer := (yield PATIENCE)):
                return None
            incoming.write(answer)

    def whole(made, lengths):
        def script(peer):
            lengths.append((yield from handshake(peer, made, 1 << 20)))

        return script

    def cut(made, budget, way):
        def script(peer):
            if (yield from handshake(peer, made, budget)) is None:
                front.fault(f"closed before byte {budget} of a good handshake")
                return
            front.facts[f"cut, {way}"] += 1
            if way == "closed":
                return
            if way == "half closed":
                peer.half_close()
                after = yield from await_close(peer, PATIENCE)
            else:
                after = yield from await_close(peer, front.size["timeout"] + PATIENCE)
            if after is None:
                front.fault(f"handshake cut at byte {budget} and {way}: never closed")

        return script

    def changed(at):
        def script(peer):
            yield from handshake(peer, shared, 1 << 20, change=at)
            peer.half_close()
            if (yield from await_close(peer, PATIENCE)) is None:
                front.fault(f"ClientHello with byte {at} changed: never closed")

        return script

    for made in (shared, older):
        lengths = []
        front.swarm([whole(made, lengths)], kind="tls")
        if not lengths or lengths[0] is None:
            front.fault("a whole handshake failed")
            return
        cuts = range(0, lengths[0] + 1, front.size["every"])
        for way in ("closed", "half closed", "stalled"):
            front.swarm((cut(made, budget, way) for budget in cuts), width=256 if way != "stalled" else 2048, kind="tls")
    front.swarm((changed(at) for at in range(0, 512, front.size["every"])), kind="tls")


WS_REQUEST = (
    b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: mqtt\r\n\r\n"
)


def ws_frame(payload, opcode=2, *, final=True, reserved=0, mask=b"\1\2\3\4", length=None):
    """A frame of a client; `length` puts another than the payload's."""
    size = len(payload) if length is None else length
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    bit = 0x80 if mask else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += bytes([bit | 126]) + u16(size)
    else:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    if mask:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return head + (mask or b"") + payload


def ws_violations():
    """Name and bytes of what no client may send behind the upgrade."""
    hello = connect(V311, "ws")
    yield "text frame", ws_frame(hello, 1)
    yield "frame without a mask", ws_frame(hello, mask=b"")
    for opcode in (3, 7, 0xB, 0xF):
        yield f"opcode {opcode}", ws_frame(hello, opcode)
    for bit in (0x40, 0x20, 0x10):
        yield f"reserved bit {bit:#x}", ws_frame(hello, reserved=bit)
    yield "continuation of nothing", ws_frame(hello, 0)
    yield "second start", ws_frame(hello[:5], final=False) + ws_frame(hello[5:])
    for opcode in (8, 9, 10):
        yield f"control frame {opcode} of 126 bytes", ws_frame(b"x" * 126, opcode)
        yield f"control frame {opcode} in pieces", ws_frame(b"x", opcode, final=False)
    yield "close frame of one byte", ws_frame(b"x", 8)
    yield "length beyond 63 bits", ws_frame(b"", length=1 << 63)
    yield "not MQTT", ws_frame(b"\xff" * 64)


@attack(
    "ws-cut",
    small={"every": 3, "timeout": 2},
    full={"every": 1, "timeout": 10},
    limits={"connect-timeout": "{timeout}s"},
    listeners=("ws",),
    probe_seconds=12,
)
def ws_cut(front):
    """WebSocket upgrades and first frames that end at every byte, bad upgrades, bad frames."""
    whole = WS_REQUEST + ws_frame(connect(V311, "ws-cut"))

    def cut(length, way):
        def script(peer):
            if length:
                yield whole[:length]
            front.facts[f"cut, {way}"] += 1
            if way == "closed":
                return
            if way == "half closed":
                peer.half_close()
                after = yield from await_close(peer, PATIENCE)
            else:
                after = yield from await_close(peer, front.size["timeout"] + PATIENCE)
            if after is None:
                front.fault(f"WebSocket cut at byte {length} and {way}: never closed")

        return script

    def refused(name, data):
        def script(peer):
            yield data
            if (yield from await_close(peer, front.size["timeout"] + PATIENCE)) is None:
                front.fault(f"{name}: never closed")

        return script

    def by_byte(peer):
        for byte in WS_REQUEST + ws_frame(connect(V311, unique("h"))):
            yield bytes([byte])
        heard = b""
        until = time.monotonic() + PATIENCE
        while b"\x82\x04\x20\x02\x00\x00" not in heard:
            data = yield max(0.0, until - time.monotonic())
            if not data:
                front.fault(f"an upgrade and CONNECT by the byte: no CONNACK, but {heard!r}")
                return
            heard += data

    for way in ("closed", "half closed", "stalled"):
        cuts = range(0, len(whole), front.size["every"])
        front.swarm((cut(length, way) for length in cuts), width=2048, kind="ws")
    front.swarm([by_byte] * 50, kind="ws")
    front.swarm([refused(name, WS_REQUEST + data) for name, data in ws_violations()], kind="ws")
    upgrades = {
        "no key": WS_REQUEST.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
        "no version": WS_REQUEST.replace(b"Sec-WebSocket-Version: 13\r\n", b""),
        "POST": WS_REQUEST.replace(b"GET", b"POST"),
        "HTTP/1.0": WS_REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"),
        "no subprotocol": WS_REQUEST.replace(b"Sec-WebSocket-Protocol: mqtt\r\n", b""),
        "headers without an end": WS_REQUEST[:-2] + b"X-A: " + b"a" * 100_000,
        "many headers": WS_REQUEST[:-2] + b"X-A: a\r\n" * 20_000 + b"\r\n",
        "not HTTP": b"\x16\x03\x01\x02\x00\x01" * 40,
    }
    front.swarm([refused(name, data) for name, data in upgrades.items()], kind="ws")


# Those who do not read


class SmallWindow:
    """An endpoint whose connections take few bytes that are not read."""

    def __init__(self, address):
        self.address = address

    @property
    def endpoint(self):
        return self

    def open(self, _source=None):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(self.address)
        return sock


def pour(front, qos, topic, payload, total):
    """`total` bytes of payload at one QoS, 64 messages in flight, each with its whole flow."""
    wire = front.wire(V5)
    wire.connect(keep_alive=0)
    frames = Frames(V5)
    left = total // len(payload)
    flying = 0
    pid = 0
    deadline = Deadline("the publisher gets through", front.left())
    while (left or flying) and not front.stopping():
        out = []
        while left and flying < 64:
            pid = pid % 65535 + 1
            out.append(publish(V5, topic, payload, qos=qos, pid=pid if qos else None))
            left -= 1
            flying += 1 if qos else 0
            if not qos and len(out) == 64:
                break
        if out:
            wire.socket.settimeout(deadline.left())
            wire.socket.sendall(b"".join(out))
            front.facts["messages"] += len(out)
        if not flying:
            continue
        wire.socket.settimeout(deadline.left())
        if not (data := wire.socket.recv(1 << 16)):
            front.fault("the publisher was closed")
            return
        for each in frames.feed(data):
            if each.kind == PUBREC and each.reason < 0x80:
                wire.send(ack(PUBREL, each.pid))
            elif each.kind in (PUBACK, PUBREC, PUBCOMP):
                flying -= 1
            elif each.kind == DISCONNECT:
                front.fault(f"the publisher was told {each.reason:#x}")
                return
    # what was written has been handled once this is answered
    wire._buffer = frames.buffer
    wire.expect_alive()
    wire.close()


def press_deaf(front, qos):
    wire = Wire(SmallWindow(front.addresses["tcp"]), V5)
    wire.connect(keep_alive=0)
    wire.subscribe("hostile/deaf", qos)
    pour(front, qos, "hostile/deaf", b"x" * front.size["payload"], front.size["bytes"])
    if front.stopping():
        wire.close()
        return
    # it reads at last: whole packets, and the connection is still good, unless the broker had enough of it
    wire.send(PING)
    frames, heard = Frames(V5), 0
    deadline = Deadline("the deaf one's PINGRESP", PATIENCE * 3)
    while True:
        wire.socket.settimeout(deadline.left())
        try:
            data = wire.socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            front.facts["deaf ones closed"] += 1
            break
        found = frames.feed(data)
        heard += sum(each.kind == PUBLISH for each in found)
        if qos:
            answer = PUBACK if qos == 1 else PUBREC
            wire.send(*(ack(answer, each.pid) for each in found if each.kind == PUBLISH))
            wire.send(*(ack(PUBCOMP, each.pid) for each in found if each.kind == PUBREL))
        if any(each.kind == PINGRESP for each in found):
            break
    front.facts["messages kept for it"] += heard
    wire.close()


for _qos in (0, 1, 2):
    attack(
        f"never-reads-qos-{_qos}",
        small={"bytes": 24 * MIB, "payload": 4096},
        full={"bytes": 200 * MIB, "payload": 4096},
        small_memory_max=128 * MIB,
        limits={} if _qos == 0 else {"queue-bytes": "32MiB"},
    )(lambda front, qos=_qos: press_deaf(front, qos))


@attack("unread-answers", small={"bytes": 4 * MIB, "count": 8}, full={"bytes": 64 * MIB, "count": 8})
def unread_answers(front):
    """Clients that ask for answers without end, and read none."""
    few = [("h/%d" % at, 0) for at in range(200)]
    chunks = (
        PING * 4096,
        publish(V5, "hostile/nobody", b"", qos=1, pid=1) * 1024,
        publish(V311, "hostile/nobody", b"", qos=2, pid=1) * 1024,
        packet(PUBREL, 2, u16(9)) * 4096,
        subscribe(V5, 1, *few),
    )
    versions = (V5, V5, V311, V311, V5)
    poll = select.poll()
    clients = {}
    for at in range(front.size["count"]):
        version = versions[at % len(versions)]
        wire = front.wire(version)
        wire.connect(keep_alive=0)
        wire.socket.setblocking(False)
        clients[wire.socket.fileno()] = [wire, memoryview(chunks[at % len(chunks)]), 0, front.size["bytes"]]
        poll.register(wire.socket, select.POLLOUT)
    # those whom the broker no longer reads from drop out of the set: nothing moves, and that is right
    while clients and not front.stopping():
        ready = poll.poll(500)
        if not ready:
            front.facts["no longer read from"] += len(clients)
            break
        for fd, _ in ready:
            state = clients[fd]
            wire, chunk, at, left = state
            try:
                sent = wire.socket.send(chunk[at:])
            except BlockingIOError:
                continue
            except OSError:
                front.facts["closed by the broker"] += 1
                sent = left
            state[2] = (at + sent) % len(chunk)
            state[3] = left - sent
            if state[3] <= 0:
                poll.unregister(fd)
                del clients[fd]
                wire.close()
    for wire, *_ in clients.values():
        wire.close()


# Topics


EMPTY_LEVELS = 60_000


@attack("empty-levels", small={"count": 200}, full={"count": 2000})
def empty_levels(front):
    """Topics of 60,000 empty levels where 128 are allowed: refused, whoever asks."""
    topic = "/" * (EMPTY_LEVELS - 1)

    def publishes(version):
        def script(peer):
            frames = Frames(version)
            if (yield from greet(peer, frames)) != 0:
                return
            yield publish(version, topic, b"x", qos=1, pid=1)
            found = yield from await_packet(frames, PUBACK)
            if found is not None and (version != V5 or found.reason < 0x80):
                front.fault("a publish to 60,000 levels was accepted")
            front.facts["refused"] += 1

        return script

    def subscribes(version, text):
        def script(peer):
            frames = Frames(version)
            if (yield from greet(peer, frames)) != 0:
                return
            yield subscribe(version, 1, (text, 0))
            found = yield from await_packet(frames, SUBACK)
            if found is not None and found.codes[0] < 0x80:
                front.fault("a subscription to 60,000 levels was granted")
            front.facts["refused"] += 1

        return script

    scripts = []
    for version in VERSIONS:
        scripts += [publishes(version), subscribes(version, topic), subscribes(version, topic[:-1] + "#")]
    front.swarm((scripts[at % len(scripts)] for at in range(front.size["count"])), width=32)


@attack("empty-levels-allowed", small={"count": 6}, full={"count": 30}, limits={"topic-levels": 0})
def empty_levels_allowed(front):
    """The same where the operator has lifted the limit: they work, deep ones too."""
    topic = "/" * (EMPTY_LEVELS - 1)
    # none that matches other topics than those that are as deep
    filters = (topic, topic[:-1] + "/+", topic[:-1] + "#", "/" * 30_000 + "#", "+" + "/+" * 29_999)
    for _ in range(front.size["count"]):
        if front.stopping():
            return
        wire = front.wire(V5)
        wire.connect()
        for text in filters:
            wire.subscribe(text)
        late = front.wire(V311)
        late.connect()
        late.publish(topic, b"deep", qos=1, retain=True)
        # one copy for all its subscriptions, or one each
        if wire.expect_message().topic != topic:
            front.fault("a message of another topic")
        late.subscribe(topic)
        message = late.expect_message()
        if message.topic != topic or message.payload != b"deep":
            front.fault("the retained message of a deep topic is another")
        late.close()
        wire.close()
        # acknowledged, so that the next round does not find it
        tidy = front.wire(V311)
        tidy.connect()
        tidy.publish(topic, b"", qos=1, retain=True)
        tidy.close()
        front.facts["delivered"] += 1


@attack("aliases", small={"count": 50, "length": 1000}, full={"count": 1000, "length": 1000})
def aliases(front):
    """65,535 aliases with long topics: 0x97 once alias-bytes (64 KiB) are used up."""
    length = front.size["length"]

    def script(peer):
        frames = Frames(V5)
        if (yield from greet(peer, frames)) != 0:
            return
        reason = None
        for first in range(1, 65_536, 64):
            last = min(first + 64, 65_536)
            yield b"".join(
                publish(V5, f"hostile/{alias:06d}".ljust(length, "x"), block=properties(topic_alias=alias))
                for alias in range(first, last)
            )
            if first > 64 * 1024 // length + 128:
                found = yield from await_packet(frames, DISCONNECT)
                reason = found and found.reason
                break
        if reason != 0x97:
            front.fault(f"aliases without end: wanted DISCONNECT 0x97, got {reason}")
        front.facts["refused"] += 1

    front.swarm((script for _ in range(front.size["count"])), width=64)


@attack("many-filters", small={"count": 4, "filters": 20_000}, full={"count": 10, "filters": 100_000})
def many_filters(front):
    """One SUBSCRIBE with as many filters as a packet holds, granted and taken back again."""
    number = front.size["filters"]
    for at in range(front.size["count"]):
        if front.stopping():
            return
        kind = at % 3
        shape = ("f/%x", "f/+/%x", "$share/g/%x")[kind]
        number_now = min(number, (MIB - 64) // (len(shape % number) + 3))
        wire = front.wire(V5 if at % 2 else V311)
        wire.connect()
        wire.send(subscribe(wire.version, 1, *((shape % each, 0) for each in range(number_now))))
        answer = wire.expect(SUBACK)
        if len(answer.codes) != number_now:
            front.fault(f"{len(answer.codes)} codes for {number_now} filters")
        front.facts["filters"] += number_now
        # all of them go with the session
        wire.send(disconnect(wire.version))
        wire.expect_closed(PATIENCE)
        wire.close()


def every_mixture(levels):
    """Each filter with `a` or `+` per level: all of them match `a/a/../a`."""
    for bits in range(1 << levels):
        yield "/".join("+" if bits >> level & 1 else "a" for level in range(levels))


def press_matching(front, filters, topic, options=0):
    """A subscriber of all the filters, and a publisher whose messages match every one."""
    wire = front.wire(V5)
    wire.connect(keep_alive=0)
    for first in range(0, len(filters), 1000):
        wire.send(subscribe(V5, 1, *((text, options) for text in filters[first : first + 1000])))
        wire.expect(SUBACK)
    other = front.wire(V311)
    other.connect(keep_alive=0)
    for _ in range(front.size["messages"]):
        if front.stopping():
            break
        other.publish(topic, b"x", qos=1)
        # [MQTT5-3.3.4-2]: one copy or several, as the broker likes
        if wire.expect(PUBLISH).topic != topic:
            front.fault("another topic")
        front.facts["messages"] += 1
    other.close()
    wire.close()


@attack("overlapping-wildcards", small={"levels": 8, "messages": 200}, full={"levels": 14, "messages": 2000})
def overlapping_wildcards(front):
    """Thousands of filters of one client that all match the same topic."""
    levels = front.size["levels"]
    press_matching(front, list(every_mixture(levels)), "/".join("a" * levels))


@attack("deep-wildcards", small={"levels": 100, "messages": 200}, full={"levels": 127, "messages": 2000})
def deep_wildcards(front):
    """`+/+/+/...` in every depth, with `#` below, against topics as deep as they may be."""
    levels = front.size["levels"]
    filters = []
    for depth in range(1, levels):
        # below `a`, so that nobody else's topics match
        below = "/".join(["a", *["+"] * (depth - 1)])
        filters += [below, below + "/#", below + "/b", below + "/+"]
    press_matching(front, filters, "/".join("a" * levels))


# Memory


@attack(
    "half-sent",
    small={"count": 400, "bytes": 512 * 1024, "hold": 1.0},
    full={"count": 10_000, "bytes": 512 * 1024, "hold": 2.0},
    small_memory_max=96 * MIB,
    newcomers=False,
)
def half_sent(front):
    """Packets of 1 MiB of which half is sent."""
    size = front.size
    head = bytes([PUBLISH << 4]) + varint(MIB - 16) + utf8("hostile/half")
    half = head + bytes(size["bytes"] - len(head))

    def script(peer):
        frames = Frames(V5)
        reason = yield from greet(peer, frames, keep_alive=0)
        if reason != 0:
            front.facts["refused" if reason is None else f"refused {reason:#x}"] += 1
            return
        front.facts["connected"] += 1
        yield half
        if (yield from await_close(peer, size["hold"])) is not None:
            front.facts["closed by the broker"] += 1

    # not all at once with full socket buffers: what the kernel holds is not what is tested
    front.swarm((script for _ in range(size["count"])), width=size["count"], buffers=1 << 16)


@attack(
    "huge-connect",
    small={"count": 400},
    full={"count": 2000},
    memory_max=256 * MIB,
    small_memory_max=96 * MIB,
    newcomers=False,
)
def huge_connect(front):
    """CONNECT as large as a packet may be: properties without end, a will with all it can have; held a while."""
    pair = ("user_property", ("k" * 10, "v" * 10))
    many = properties(*[pair] * 40_000)
    will = will_of(V5, "hostile/will", b"x" * 60_000, properties(*[pair] * 30_000))
    plain = connect(V5, "huge", block=many)
    assert len(plain) <= MIB
    will_bytes = len(connect(V5, "huge", will=will))
    assert will_bytes <= MIB

    def script(at):
        def run(peer):
            frames = Frames(V5)
            settings = {"block": many} if at % 2 else {"will": will}
            reason = yield from greet(peer, frames, keep_alive=0, **settings)
            front.facts["refused" if reason is None else f"CONNACK {reason:#x}"] += 1
            yield from await_close(peer, 1.0)
            # leave without the will
            yield disconnect(V5)

        return run

    front.swarm((script(at) for at in range(front.size["count"])), width=front.size["count"])


@attack("retained-flood", small={"count": 20_000}, full={"count": 300_000})
def retained_flood(front):
    """Retained messages on topics of their own, then all of them cleared."""
    wire = front.wire(V5)
    wire.connect(keep_alive=0)
    payload = b"r" * 100
    for text in (payload, b""):
        for first in range(0, front.size["count"], 500):
            if front.stopping() and text:
                break
            wire.socket.settimeout(front.left())
            batch = range(first, min(first + 500, front.size["count"]))
            wire.socket.sendall(b"".join(publish(V5, f"hostile/r/{at:07d}", text, retain=True) for at in batch))
            front.facts["messages"] += len(batch)
        wire.publish("hostile/fence", b"", qos=1)
    wire.close()


for _qos in (0, 1):
    attack(
        f"retained-join-qos-{_qos}",
        small={"topics": 20_000, "updates": 2000, "state": "{directory}/newest"},
        full={"topics": 1_000_000, "updates": 2000, "state": "{directory}/newest"},
        prepare=retained.load,
    )(lambda front, qos=_qos: retained.press_join(front, qos))


# Sessions


@attack("take-over", small={"count": 1500, "width": 20}, full={"count": 20_000, "width": 50})
def take_over(front):
    """Few client ids, each taken over without end, clean and persistent, by every version."""
    ids = [unique("t") for _ in range(4)]

    def script(at):
        version = VERSIONS[at % 3]

        def run(peer):
            frames = Frames(version)
            settings = persistent(version, 5) if at % 2 else {}
            reason = yield from greet(peer, frames, ids[at % len(ids)], **settings)
            if reason is None:
                front.facts["taken over before CONNACK"] += 1
                return
            if reason:
                front.fault(f"take-over refused: {reason:#x}")
            front.facts["connected"] += 1
            yield subscribe(version, 1, ("hostile/t", 1))
            # until somebody takes it over, or long enough
            yield from await_close(peer, 0.2)

        return run

    front.swarm((script(at) for at in range(front.size["count"])), width=front.size["width"])
    # the ids belong to somebody who can be talked to
    for client_id in ids:
        wire = front.wire(V5)
        wire.connect(client_id)
        wire.expect_alive()
        wire.close()


@attack("session-storm", small={"count": 3000, "width": 100}, full={"count": 50_000, "width": 200})
def session_storm(front):
    """Persistent sessions of ids that never come back, with a subscription each; they expire after a second."""

    def script(peer):
        frames = Frames(V5)
        reason = yield from greet(peer, frames, **persistent(V5, 1))
        if reason:
            front.fault(f"refused: {reason:#x}")
            return
        yield subscribe(V5, 1, (unique("hostile/s/"), 1))
        if (yield from await_packet(frames, SUBACK)) is not None:
            front.facts["sessions"] += 1

    front.swarm((script for _ in range(front.size["count"])), width=front.size["width"])


def numbered(number):
    return f"{number:08d}".encode()


@attack(
    "queue-return",
    small={"count": 2000, "window": 50},
    full={"count": 100_000, "window": 100},
    limits={"queue-messages": 0, "queue-bytes": 0},
)
def queue_return(front):
    """A session gathers a long queue while its client is away; then that comes back and gets it in order, so many
    unacknowledged at a time as its Receive Maximum says."""
    count, window = front.size["count"], front.size["window"]
    name, topic = unique("hostile-return-"), unique("hostile/return/")

    def come(clean=False, expiry=600):
        wire = front.wire(V5)
        block = properties(session_expiry=expiry, receive_maximum=window)
        return wire, wire.connect(name, clean=clean, keep_alive=0, block=block)

    wire, _ = come(clean=True)
    wire.subscribe(topic, 1)
    wire.send(disconnect(V5))
    wire.close()
    publisher = front.wire(V5)
    publisher.connect(keep_alive=0)
    for first in range(0, count, window):
        batch = range(first, min(first + window, count))
        publisher.send(*(publish(V5, topic, numbered(number), qos=1, pid=number - first + 1) for number in batch))
        for _ in batch:
            assert publisher.expect(PUBACK).reason == 0
        if front.stopping():
            return
    publisher.close()
    wire, connack = come()
    if not connack.resumed:
        front.fault("the session is gone")
        return
    unacknowledged = []
    for number in range(count):
        found = wire.expect(PUBLISH)
        if found.payload != numbered(number):
            front.fault(f"wanted message {number}, got {found.payload}")
            return
        unacknowledged.append(found.pid)
        if len(unacknowledged) == window:
            if wire.buffered():
                # [MQTT5-3.3.4-9]
                front.fault(f"more than {window} messages are unacknowledged")
            wire.send(*(ack(PUBACK, pid) for pid in unacknowledged))
            unacknowledged.clear()
            if front.stopping():
                return
    front.facts["returned"] += count
    wire.close()
    ended, _ = come(clean=True, expiry=0)
    ended.close()


def main():
    name, given = sys.argv[1], json.loads(sys.argv[2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    addresses = {kind: tuple(where) if isinstance(where, list) else where for kind, where in given["addresses"].items()}
    front = Front(addresses, given["size"], given["seconds"])

    until = time.monotonic() + given["at_least"]

    def stop(*_):
        front.stopped = True

    def finish(*_):
        nonlocal until
        until = 0

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, finish)
    print(json.dumps({"pressing": True}), flush=True)
    rounds = 0
    while not front.stopping() and (not rounds or time.monotonic() < until):
        try:
            ATTACKS[name].press(front)
        except (AssertionError, OSError) as wrong:
            # a stop in the middle of a round breaks it off
            if not front.stopped:
                front.fault(f"{type(wrong).__name__}: {wrong}")
                break
        rounds += 1
    print(json.dumps({"rounds": rounds, "facts": front.facts, "faults": front.faults}), flush=True)
    # thousands of sockets are closed faster by the kernel
    os._exit(0)


if __name__ == "__main__":
    main()
