# SPDX-License-Identifier: Apache-2.0
"""The catalogue of malformed and forbidden packets, generated for every type and version.

Each case says what must come of it:

* REFUSED: the broker closes the connection; 5.0 clients that are connected are told a reason of 0x80 or above first
* ALIVE: the connection goes on, a PINGREQ behind it is answered
* LOOSE: either of them, or the broker waits for more bytes; when the client ends its side, so does the broker
"""

from dataclasses import dataclass

from harness import V5, V31, V311, VERSION_NAMES, VERSIONS
from harness.wire import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PROPERTIES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    binary,
    connect,
    one_property,
    packet,
    properties,
    publish,
    subscribe,
    u16,
    unsubscribe,
    utf8,
    varint,
    will_of,
)

REFUSED, ALIVE, LOOSE = "refused", "alive", "loose"
TOPIC = "hostile/catalogue"
ID = "hostile-{}"

BAD_TEXTS = {
    "nul": b"a\0b",
    "stray-byte": b"a\xff",
    "continuation": b"\x80",
    "cut-short": b"a\xc3",
    "overlong": b"a\xc0\xaf",
    "surrogate": b"a\xed\xa0\x80",
    "beyond-unicode": b"a\xf4\x90\x80\x80",
}

VALUES = {"u8": 1, "u16": 10, "u32": 10, "varint": 10, "utf8": "a", "binary": b"a", "pair": ("a", "b")}

# Which properties a client may send in which packet (section 2.2.2.2 of 5.0).
CONNECT_PROPERTIES = (
    "session_expiry",
    "auth_method",
    "auth_data",
    "request_problem_information",
    "request_response_information",
    "receive_maximum",
    "topic_alias_maximum",
    "user_property",
    "maximum_packet_size",
)
WILL_PROPERTIES = (
    "payload_format",
    "message_expiry",
    "content_type",
    "response_topic",
    "correlation_data",
    "will_delay",
    "user_property",
)
PUBLISH_PROPERTIES = (
    "payload_format",
    "message_expiry",
    "content_type",
    "response_topic",
    "correlation_data",
    "topic_alias",
    "user_property",
)
ACK_PROPERTIES = ("reason_string", "user_property")


@dataclass(frozen=True)
class Case:
    name: str
    version: int
    data: bytes
    want: str
    # it stands where CONNECT belongs
    first: bool = False

    def __str__(self):
        return f"{VERSION_NAMES[self.version]} {self.name}"


def property_of(name, value=None):
    return one_property(name, VALUES[PROPERTIES[name][1]] if value is None else value)


def block(*encoded):
    joined = b"".join(encoded)
    return varint(len(joined)) + joined


def empty(version):
    return b"\0" if version == V5 else b""


def body_of(data):
    """What stands behind the fixed header of a whole packet."""
    at = 1
    while data[at] & 0x80:
        at += 1
    return data[at + 1 :]


def with_body(data, body):
    return packet(data[0] >> 4, data[0] & 15, body)


def samples(version):
    """Name and bytes of valid packets with every field that there is; CONNECTs, then what may follow one."""
    some = empty(version)
    rich = {}
    if version == V5:
        rich["connect"] = block(
            *(property_of(name) for name in CONNECT_PROPERTIES if not name.startswith("auth")),
        )
        rich["will"] = block(*map(property_of, WILL_PROPERTIES))
        rich["publish"] = block(*(property_of(name) for name in PUBLISH_PROPERTIES))
        rich["subscribe"] = block(property_of("subscription_id"), property_of("user_property"))
        rich["unsubscribe"] = block(property_of("user_property"))
    connects = [
        (
            "connect",
            connect(
                version,
                ID.format("full"),
                will=will_of(version, "hostile/will", b"gone", rich.get("will")),
                will_qos=1,
                username="user",
                password=b"secret",
                block=rich.get("connect"),
            ),
        )
    ]
    others = [
        *((f"publish-{qos}", publish(version, TOPIC, b"payload", qos=qos, pid=7 if qos else None)) for qos in (0, 1, 2)),
        *((name, packet(kind, 2 if kind == PUBREL else 0, u16(7))) for name, kind in ACKS),
        ("subscribe", subscribe(version, 7, (TOPIC, 0))),
        ("unsubscribe", unsubscribe(version, 7, TOPIC)),
        ("pingreq", packet(PINGREQ)),
        ("disconnect", packet(DISCONNECT)),
    ]
    if version == V5:
        others += [
            ("publish-rich", publish(version, TOPIC, b"payload", qos=1, pid=7, block=rich["publish"])),
            ("subscribe-rich", subscribe(version, 7, (TOPIC, 0), block=rich["subscribe"])),
            ("unsubscribe-rich", unsubscribe(version, 7, TOPIC, block=rich["unsubscribe"])),
            *(
                (f"{name}-rich", packet(kind, 2 if kind == PUBREL else 0, u16(7) + b"\0" + block(*map(property_of, ACK_PROPERTIES))))
                for name, kind in ACKS
            ),
            ("disconnect-rich", packet(DISCONNECT, 0, b"\0" + block(*map(property_of, ("session_expiry", "reason_string"))))),
            ("auth", packet(AUTH, 0, b"\x18" + block(property_of("auth_method"), property_of("auth_data")))),
        ]
    theirs = [
        ("connack", packet(CONNACK, 0, b"\0\0" + some)),
        ("suback", packet(SUBACK, 0, u16(7) + some + b"\0")),
        ("unsuback", packet(UNSUBACK, 0, u16(7) + some + (b"\0" if version == V5 else b""))),
        ("pingresp", packet(PINGRESP)),
    ]
    return connects, others, theirs


ACKS = (("puback", PUBACK), ("pubrec", PUBREC), ("pubrel", PUBREL), ("pubcomp", PUBCOMP))


def catalogue():
    """All cases, each name once per version."""
    for version in VERSIONS:
        yield from flags(version)
        yield from cut(version)
        yield from shortened(version)
        yield from bent(version)
        yield from lengths(version)
        yield from texts(version)
        yield from identifiers(version)
        yield from reserved(version)
        if version == V5:
            yield from property_blocks()


def flags(version):
    """Every type with every flag nibble, as the first packet and behind CONNECT."""
    connects, others, theirs = samples(version)
    bodies = {data[0] >> 4: body_of(data) for _, data in (*theirs, *others, *connects)}
    bodies[0] = b""
    bodies.setdefault(AUTH, b"")
    for kind in range(16):
        for nibble in range(16):
            body = bodies[kind]
            if kind == PUBLISH:
                body = utf8(TOPIC) + (u16(7) if nibble & 6 else b"") + empty(version) + b"payload"
            yield Case(f"type-{kind}-flags-{nibble:x}", version, packet(kind, nibble, body), nibble_wants(version, kind, nibble))
            if (kind, nibble) != (CONNECT, 0):
                yield Case(f"first-type-{kind}-flags-{nibble:x}", version, packet(kind, nibble, body), REFUSED, True)


def nibble_wants(version, kind, nibble):
    """What section 2.1.3 of 5.0 (2.2.2 of 3.1.1) says of a type with these flags behind CONNECT."""
    if kind == PUBLISH:
        qos, dup = nibble >> 1 & 3, nibble & 8
        return REFUSED if qos == 3 or (dup and not qos) else ALIVE
    if kind in (SUBSCRIBE, UNSUBSCRIBE):
        # clients of 3.1 repeat these with DUP
        return ALIVE if nibble == 2 else LOOSE if version == V31 and nibble == 10 else REFUSED
    if kind == PUBREL:
        # an unknown id is answered or ignored; 3.1 repeats with DUP
        return LOOSE if nibble == 2 or (version == V31 and nibble == 10) else REFUSED
    if nibble == 0 and kind in (PUBACK, PUBREC, PUBCOMP, DISCONNECT):
        return LOOSE
    return ALIVE if kind == PINGREQ and nibble == 0 else REFUSED


def cut(version):
    """The stream ends inside of a packet, at every byte."""
    connects, others, _ = samples(version)
    for group, first in ((connects, True), (others, False)):
        for name, data in group:
            for length in range(1, len(data)):
                yield Case(f"{name}-cut-at-{length}", version, data[:length], LOOSE, first)


def shortened(version):
    """Every valid body without its last bytes, the length made to fit."""
    connects, others, _ = samples(version)
    for name, data in connects:
        body = body_of(data)
        for length in range(len(body)):
            # 3.1 lets user name and password be missing though their flags are set
            ends = version == V31 and body[length:] in (binary(b"secret"), utf8("user") + binary(b"secret"))
            want = LOOSE if ends else REFUSED
            yield Case(f"{name}-body-{length}", version, with_body(data, body[:length]), want, True)
    for name, data in others:
        body = body_of(data)
        # these are whole again at some lengths: a payload has any, acks end early in 5.0
        whole = {"publish": len(body) - len(b"payload"), "subscribe": len(body), "unsubscribe": len(body)}
        limit = whole.get(name.partition("-")[0], 0)
        for length in range(len(body)):
            want = REFUSED if length < limit else LOOSE
            yield Case(f"{name}-body-{length}", version, with_body(data, body[:length]), want)


def bent(version):
    """Every byte of every valid packet replaced, one at a time; thus every length too long and too short."""
    connects, others, _ = samples(version)
    for group, first in ((connects, True), (others, False)):
        for name, data in group:
            for at, was in enumerate(data):
                for now in sorted({0, 0xFF, was ^ 0x80, (was + 1) & 0xFF, (was - 1) & 0xFF} - {was}):
                    bytes_now = data[:at] + bytes([now]) + data[at + 1 :]
                    yield Case(f"{name}-byte-{at}-is-{now:02x}", version, bytes_now, LOOSE, first)


def lengths(version):
    """Remaining lengths that are no numbers, or larger than what is accepted (1 MiB)."""
    for first in (True, False):
        place = "first-" if first else ""
        kind = 0x10 if first else 0x30
        for tail in (b"", b"\x01", b"\x7f"):
            data = bytes([kind]) + b"\xff\xff\xff\xff" + tail
            yield Case(f"{place}length-of-five-bytes-{len(tail)}{tail.hex()}", version, data, REFUSED, first)
        for size in ((1 << 20) + 1, 1 << 27, 268_435_455):
            yield Case(f"{place}length-{size}", version, bytes([kind]) + varint(size) + b"\0\4", REFUSED, first)
        for padded in (b"\x80\x00", b"\x80\x80\x80\x00"):
            yield Case(f"{place}padded-length-{padded.hex()}", version, bytes([kind]) + padded, LOOSE, first)
    # a length that swallows the packet behind
    for name, data in samples(version)[1]:
        if len(data) > 2:
            yield Case(f"{name}-length-too-long", version, data[:1] + varint(len(data) - 1) + data[2:], LOOSE)
            yield Case(f"{name}-length-too-short", version, data[:1] + varint(len(data) - 3) + data[2:], LOOSE)


def texts(version):
    """Every string of every packet with what is not UTF-8, and with U+0000."""
    for name, text in BAD_TEXTS.items():
        wrong = [
            ("publish-topic", publish(version, text)),
            ("subscribe-filter", subscribe(version, 7, (text, 0))),
            ("unsubscribe-filter", unsubscribe(version, 7, text)),
        ]
        opening = [
            ("client-id", connect(version, text)),
            ("will-topic", connect(version, "", will=will_of(version, text))),
            ("username", connect(version, "", username=text)),
        ]
        if version == V5:
            pair, turned = ("user_property", (text, "x")), ("user_property", ("x", text))
            wrong += [
                *((f"publish-{key}", publish(V5, TOPIC, block=properties(**{key: text}))) for key in ("content_type", "response_topic")),
                ("publish-user-property", publish(V5, TOPIC, block=properties(pair))),
                ("publish-user-property-value", publish(V5, TOPIC, block=properties(turned))),
                ("subscribe-user-property", subscribe(V5, 7, (TOPIC, 0), block=properties(pair))),
                ("unsubscribe-user-property", unsubscribe(V5, 7, TOPIC, block=properties(pair))),
                ("disconnect-reason", packet(DISCONNECT, 0, b"\0" + properties(reason_string=text))),
                *((f"{ack}-reason", packet(kind, 2 if kind == PUBREL else 0, u16(7) + b"\0" + properties(reason_string=text))) for ack, kind in ACKS),
            ]
            opening += [
                ("connect-user-property", connect(V5, "", block=properties(pair))),
                ("connect-auth-method", connect(V5, "", block=properties(auth_method=text))),
                ("will-content-type", connect(V5, "", will=will_of(V5, "a", block=properties(content_type=text)))),
            ]
        for place, data in wrong:
            yield Case(f"{place}-{name}", version, data, REFUSED)
        for place, data in opening:
            yield Case(f"{place}-{name}", version, data, REFUSED, True)


def identifiers(version):
    """Packet ids that are zero or missing."""
    for qos in (1, 2):
        yield Case(f"publish-{qos}-id-0", version, publish(version, TOPIC, qos=qos, pid=0), REFUSED)
    yield Case("subscribe-id-0", version, subscribe(version, 0, (TOPIC, 0)), REFUSED)
    yield Case("unsubscribe-id-0", version, unsubscribe(version, 0, TOPIC), REFUSED)
    for name, kind in ACKS:
        flags_of = 2 if kind == PUBREL else 0
        yield Case(f"{name}-id-0", version, packet(kind, flags_of, u16(0)), LOOSE)
        for length in (0, 1):
            yield Case(f"{name}-of-{length}-bytes", version, packet(kind, flags_of, b"\7" * length), REFUSED)
        yield Case(f"{name}-with-more", version, packet(kind, flags_of, u16(7) + b"\0\0\0"), REFUSED)


def reserved(version):
    """Bits that the version does not know, contents where none may be, empty lists."""
    for bits in (0x03, 0x01, 0x1A, 0x22, 0x08, 0x1E):
        # reserved; will QoS or will retain without a will; will QoS 3
        will = will_of(version, "a") if bits & 4 else b""
        yield Case(f"connect-flags-{bits:02x}", version, connect(version, "", flags=bits, rest=will), REFUSED, True)
    if version != V5:
        # [MQTT-3.1.2-22]: 5.0 allows a password alone
        data = connect(version, "", flags=0x42, rest=binary(b"x"))
        yield Case("connect-password-alone", version, data, REFUSED if version == V311 else LOOSE, True)
    yield Case("connect-name", version, connect(version, "", name="MQTP"), REFUSED, True)
    for level in (0, 1, 2, 6, 0x7F, 0xFF):
        yield Case(f"connect-level-{level}", version, connect(version, "", level=level), REFUSED, True)
    for options in (0x03, 0x40, 0x80, 0xC0, 0xFF, *((0x04, 0x08, 0x10, 0x20) if version == V311 else (0x30,) if version == V5 else ())):
        yield Case(f"subscribe-options-{options:02x}", version, subscribe(version, 7, (TOPIC, options)), REFUSED)
    for kind in (PINGREQ, *((DISCONNECT,) if version != V5 else ())):
        yield Case(f"type-{kind}-with-a-body", version, packet(kind, 0, b"\0"), REFUSED)
    yield Case("subscribe-nothing", version, subscribe(version, 7), REFUSED)
    yield Case("unsubscribe-nothing", version, unsubscribe(version, 7), REFUSED)
    for topic in ("", "#", "+", "a/#", "a/+/b"):
        yield Case(f"publish-to-{topic or 'nothing'}", version, publish(version, topic), REFUSED)
    for text in ("", "#/a", "a#", "a+", "+a/b", "a/#/b"):
        yield Case(f"subscribe-{text or 'empty'}", version, subscribe(version, 7, (text, 0)), REFUSED)
        yield Case(f"unsubscribe-{text or 'empty'}", version, unsubscribe(version, 7, text), REFUSED)


def property_blocks():
    """5.0: properties twice, in the wrong packet, unknown, with values that are not allowed, cut, and blocks of a wrong length."""
    for place, allowed, make, first in property_places():
        for name, (_, kind) in PROPERTIES.items():
            one = property_of(name)
            if name not in allowed:
                # table 2-4 has it for DISCONNECT, section 3.14.2.2.5 only for the broker's
                if (place, name) == ("disconnect", "server_reference"):
                    continue
                yield Case(f"{place}-has-{name}", V5, make(block(one)), REFUSED, first)
                continue
            if name != "user_property":
                yield Case(f"{place}-{name}-twice", V5, make(block(one, one)), REFUSED, first)
            for length in range(1, len(one)):
                yield Case(f"{place}-{name}-cut-at-{length}", V5, make(block(one[:length])), REFUSED, first)
            if kind in ("utf8", "binary", "pair"):
                long = one[:1] + b"\xff\xff" + one[3:]
                yield Case(f"{place}-{name}-too-long", V5, make(block(long)), REFUSED, first)
        for unknown in (0x00, 0x04, 0x2B, 0x7F, 0x80):
            identifier = varint(unknown)
            yield Case(f"{place}-unknown-{unknown:02x}", V5, make(block(identifier + b"\0")), REFUSED, first)
        for size in (b"\x7f", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x01"):
            yield Case(f"{place}-block-of-{size.hex()}", V5, make(size), REFUSED, first)
    for name, value in (
        ("topic_alias", 0),
        ("payload_format", 2),
        ("response_topic", "a/#"),
        ("response_topic", "+"),
    ):
        yield Case(f"publish-{name}-{value}", V5, publish(V5, TOPIC, block=block(property_of(name, value))), REFUSED)
    yield Case("publish-unknown-alias", V5, publish(V5, "", block=block(property_of("topic_alias", 9))), REFUSED)
    for value in (0, 268_435_455):
        want = ALIVE if value else REFUSED
        yield Case(f"subscribe-identifier-{value}", V5, subscribe(V5, 7, (TOPIC, 0), block=block(property_of("subscription_id", value))), want)
    yield Case("subscribe-shared-no-local", V5, subscribe(V5, 7, ("$share/g/a", 4)), REFUSED)
    for name, value in (
        ("receive_maximum", 0),
        ("maximum_packet_size", 0),
        ("request_problem_information", 2),
        ("request_response_information", 2),
        ("auth_data", b"x"),
        ("auth_method", "unknown"),
    ):
        yield Case(f"connect-{name}-{value}", V5, connect(V5, "", block=block(property_of(name, value))), REFUSED, True)


def property_places():
    """Where a property block stands: name, what is allowed, a packet around a block, whether it is the first."""
    yield "connect", CONNECT_PROPERTIES, lambda b: connect(V5, "", block=b), True
    yield "will", WILL_PROPERTIES, lambda b: connect(V5, "", will=will_of(V5, "a", b"", b)), True
    yield "publish", PUBLISH_PROPERTIES, lambda b: publish(V5, TOPIC, block=b), False
    yield "subscribe", ("subscription_id", "user_property"), lambda b: subscribe(V5, 7, (TOPIC, 0), block=b), False
    yield "unsubscribe", ("user_property",), lambda b: unsubscribe(V5, 7, TOPIC, block=b), False
    for name, kind in ACKS:
        flags_of = 2 if kind == PUBREL else 0
        yield name, ACK_PROPERTIES, lambda b, k=kind, f=flags_of: packet(k, f, u16(7) + b"\0" + b), False
    yield "disconnect", ("session_expiry", "reason_string", "user_property"), lambda b: packet(DISCONNECT, 0, b"\0" + b), False
    yield "auth", ("auth_method", "auth_data", "reason_string", "user_property"), lambda b: packet(AUTH, 0, b"\x18" + b), False
