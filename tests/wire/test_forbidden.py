# SPDX-License-Identifier: Apache-2.0
"""What a connected client must not send: each case ends its connection, and 5.0 is told the reason."""

import pytest

from harness import V5, V31, V311, VERSION_NAMES, VERSIONS, unique
from harness.wire import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    ack,
    connect,
    disconnect,
    packet,
    properties,
    publish,
    subscribe,
    u16,
    unsubscribe,
    utf8,
)

MALFORMED, PROTOCOL, TOPIC_NAME, ALIAS, TOO_LARGE = 0x81, 0x82, 0x90, 0x94, 0x95
# The specification calls most of these Malformed Packet and Protocol Error in different places.
EITHER = (MALFORMED, PROTOCOL)
BAD_TOPIC = (MALFORMED, PROTOCOL, TOPIC_NAME)
V3 = (V31, V311)
ONLY5 = (V5,)

NOT_UTF8 = {
    "stray-byte": b"a\xff",
    "cut-short": b"a\xc3",
    "overlong": b"a\xc0\xaf",
    "surrogate": b"a\xed\xa0\x80",
    "beyond-unicode": b"a\xf4\x90\x80\x80",
}


def empty(version):
    """An empty property block where the version has one."""
    return b"\0" if version == V5 else b""


CASES = []


def with_flags(flags, data):
    return bytes([data[0] & 0xF0 | flags]) + data[1:]


def case(name, build, reasons=EITHER, versions=VERSIONS):
    """`build` makes the bytes for a version."""
    for version in versions:
        CASES.append(pytest.param(version, build, reasons, id=f"{VERSION_NAMES[version]}-{name}"))


def case5(name, data, reasons=EITHER):
    case(name, lambda _version: data, reasons, ONLY5)


# Fixed header. [MQTT-2.2.2-1] [MQTT-2.2.2-2] [MQTT5-2.1.3-1]; of PUBREL [MQTT-3.6.1-1] [MQTT5-3.6.1-1];
# of DISCONNECT [MQTT-3.14.1-1] [MQTT5-3.14.1-1]
for kind, right, body in (
    (PUBACK, 0, u16(1)),
    (PUBREC, 0, u16(1)),
    (PUBREL, 2, u16(1)),
    (PUBCOMP, 0, u16(1)),
    (PINGREQ, 0, b""),
    (DISCONNECT, 0, b""),
):
    for wrong in (1, 2, 4, 8, 0):
        if wrong != right:
            case(f"type-{kind}-flags-{wrong:x}", lambda _v, k=kind, w=wrong, b=body: packet(k, w, b))
for wrong in (0, 1, 3, 6, 10):
    # [MQTT-3.8.1-1] [MQTT5-3.8.1-1] and [MQTT-3.10.1-1] [MQTT5-3.10.1-1]
    # clients of 3.1 repeat these with DUP
    of = (V311, V5) if wrong == 10 else VERSIONS
    case(f"subscribe-flags-{wrong:x}", lambda v, w=wrong: with_flags(w, subscribe(v, 1, ("a", 0))), versions=of)
    case(f"unsubscribe-flags-{wrong:x}", lambda v, w=wrong: with_flags(w, unsubscribe(v, 1, "a")), versions=of)
case5("auth-flags", packet(AUTH, 1, b"\0\0"), (MALFORMED,))  # [MQTT5-3.15.1-1]
# [MQTT5-1.5.5-1]
case5("remaining-length-of-a-byte-too-many", b"\xc0\x80\0", (MALFORMED,))
case5("property-length-of-a-byte-too-many", packet(PUBLISH, 0, utf8("a") + b"\x80\0"), (MALFORMED,))
case("remaining-length-of-five-bytes", lambda _v: b"\x30\xff\xff\xff\xff\x01", (MALFORMED, TOO_LARGE))
case("type-0", lambda _v: packet(0))
case("type-15", lambda _v: packet(15), versions=V3)
for kind, body in ((CONNACK, b"\0\0"), (SUBACK, u16(1) + b"\0"), (UNSUBACK, u16(1)), (PINGRESP, b"")):
    case(f"type-{kind}-is-the-brokers", lambda v, k=kind, b=body: packet(k, 0, b + (empty(v) if k != PINGRESP else b"")))
# [MQTT-3.1.0-2] [MQTT5-3.1.0-2] [MQTT5-3.2.0-2]: there is no second CONNACK either
case("second-connect", lambda v: connect(v, unique("w")), (PROTOCOL,))
case("second-connect-of-another-level", lambda v: connect(v, unique("w"), level=9), (PROTOCOL,))
case("second-connect-of-another-name", lambda v: connect(v, unique("w"), name="HTTP"), (PROTOCOL,))
case("second-connect-cut-short", lambda v: packet(CONNECT, 0, connect(v, unique("w"))[2:9]), (PROTOCOL,))

# PUBLISH
case("publish-qos-3", lambda v: packet(PUBLISH, 6, utf8("a") + u16(1) + empty(v)))  # [MQTT-3.3.1-4] [MQTT5-3.3.1-4]
case("publish-dup-qos-0", lambda v: publish(v, "a", dup=True))  # [MQTT-3.3.1-2] [MQTT5-3.3.1-2]
for qos in (1, 2):
    # [MQTT-2.3.1-1] [MQTT5-2.2.1-3]
    case(f"publish-qos-{qos}-id-0", lambda v, q=qos: publish(v, "a", qos=q, pid=0))
    case(f"publish-qos-{qos}-without-id", lambda _v, q=qos: packet(PUBLISH, q << 1, utf8("a")))
for topic in ("#", "+", "a/#", "a/+/b", "a+", "#a"):
    # [MQTT-3.3.2-2] [MQTT-4.7.1-1] [MQTT5-3.3.2-2] [MQTT5-4.7.0-1]
    case(f"publish-topic-{topic}", lambda v, t=topic: publish(v, t), BAD_TOPIC)
case("publish-topic-empty", lambda v: publish(v, ""), BAD_TOPIC)  # [MQTT-4.7.3-1] [MQTT5-4.7.3-1]
# [MQTT-1.5.3-2] [MQTT-4.7.3-2] [MQTT5-1.5.4-2] [MQTT5-4.7.3-2]
case("publish-topic-nul", lambda v: publish(v, "a\0b"), BAD_TOPIC)
for name, text in NOT_UTF8.items():
    # [MQTT-1.5.3-1] [MQTT-3.3.2-1] [MQTT5-1.5.4-1] [MQTT5-3.3.2-1]
    case(f"publish-topic-{name}", lambda v, t=text: publish(v, t), BAD_TOPIC)
case("publish-topic-longer-than-packet", lambda _v: packet(PUBLISH, 0, u16(9) + b"abc"))
case("publish-empty-body", lambda _v: packet(PUBLISH))
case5("publish-alias-0", publish(V5, "a", block=properties(topic_alias=0)), (*EITHER, ALIAS))  # [MQTT5-3.3.2-8]
# [MQTT5-3.3.2-7]: no connection begins with a mapping
case5("publish-unknown-alias", publish(V5, "", block=properties(topic_alias=9)), (PROTOCOL, ALIAS))
case5("publish-subscription-id", publish(V5, "a", block=properties(subscription_id=1)))  # [MQTT5-3.3.4-6]
case5("publish-payload-format-2", publish(V5, "a", block=properties(payload_format=2)))
for topic in ("a/#", "+", "a\0", b"a\xff"):
    # [MQTT5-3.3.2-13] [MQTT5-3.3.2-14]
    case5(f"publish-response-topic-{topic!r}", publish(V5, "a", block=properties(response_topic=topic)), BAD_TOPIC)
case5("publish-content-type-not-utf8", publish(V5, "a", block=properties(content_type=b"\xff")))  # [MQTT5-3.3.2-19]
# [MQTT5-1.5.7-1]
case5("publish-user-property-not-utf8", publish(V5, "a", block=properties(user_property=(b"\xff", "x"))))
case5("publish-user-property-value-nul", publish(V5, "a", block=properties(user_property=("x", "\0"))))

# SUBSCRIBE
case("subscribe-no-filter", lambda v: subscribe(v, 1))  # [MQTT-3.8.3-3] [MQTT5-3.8.3-2]
case("subscribe-id-0", lambda v: subscribe(v, 0, ("a", 0)))  # [MQTT-2.3.1-1] [MQTT5-2.2.1-3]
case("subscribe-qos-3", lambda v: subscribe(v, 1, ("a", 3)))  # [MQTT-3.8.3-4] [MQTT5-3.8.3-5]
case("subscribe-reserved-bits", lambda v: subscribe(v, 1, ("a", 0x40)))  # [MQTT-3.8.3-4] [MQTT5-3.8.3-5]
case("subscribe-second-filter-bad", lambda v: subscribe(v, 1, ("a", 0), ("b", 0x83)))
for bit in (0x04, 0x08, 0x10, 0x20):
    case(f"subscribe-option-{bit:#x}", lambda v, b=bit: subscribe(v, 1, ("a", b)), versions=V3)  # [MQTT-3.8.3-4]
case5("subscribe-retain-handling-3", subscribe(V5, 1, ("a", 0x30)))
case5("subscribe-shared-no-local", subscribe(V5, 1, ("$share/g/a", 0x04)), (PROTOCOL,))  # [MQTT5-3.8.3-4]
case5("subscribe-identifier-0", subscribe(V5, 1, ("a", 0), block=properties(subscription_id=0)))
case5("subscribe-identifier-of-five-bytes", subscribe(V5, 1, ("a", 0), block=b"\x06\x0b\xff\xff\xff\xff\x01"))
for name, text in {**NOT_UTF8, "nul": b"a\0b"}.items():
    # [MQTT-3.8.3-1] [MQTT-4.7.3-2] [MQTT5-3.8.3-1] [MQTT5-4.7.3-2]
    case(f"subscribe-filter-{name}", lambda v, t=text: subscribe(v, 1, (t, 0)), (*EITHER, 0x8F))

# UNSUBSCRIBE
case("unsubscribe-no-filter", lambda v: unsubscribe(v, 1))  # [MQTT-3.10.3-2] [MQTT5-3.10.3-2]
case("unsubscribe-id-0", lambda v: unsubscribe(v, 0, "a"))  # [MQTT-2.3.1-1] [MQTT5-2.2.1-3]
for name, text in {**NOT_UTF8, "nul": b"a\0b"}.items():
    # [MQTT-3.10.3-1] [MQTT5-3.10.3-1]
    case(f"unsubscribe-filter-{name}", lambda v, t=text: unsubscribe(v, 1, t), (*EITHER, 0x8F))

# Bytes left over, and bytes missing
case("pingreq-with-body", lambda _v: packet(PINGREQ, 0, b"x"))
case("disconnect-with-body", lambda _v: packet(DISCONNECT, 0, b"\0"), versions=V3)
for kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
    flags = 2 if kind == PUBREL else 0
    case(f"type-{kind}-with-reason", lambda _v, k=kind, f=flags: packet(k, f, u16(1) + b"\0"), versions=V3)
    case(f"type-{kind}-of-one-byte", lambda _v, k=kind, f=flags: packet(k, f, b"\0"))
    case(f"type-{kind}-empty", lambda _v, k=kind, f=flags: packet(k, f))
    case5(f"type-{kind}-left-over", packet(kind, flags, u16(1) + b"\0\0x"))
    case5(f"type-{kind}-reason-string-twice", ack(kind, 1, 0, properties(("reason_string", "a"), ("reason_string", "b"))))
    # [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1]
    case5(f"type-{kind}-reason-of-another-packet", ack(kind, 1, 0x92 if kind in (PUBACK, PUBREC) else 0x10))
    case5(f"type-{kind}-foreign-property", ack(kind, 1, 0, properties(message_expiry=1)))
case("subscribe-left-over", lambda v: packet(SUBSCRIBE, 2, u16(1) + empty(v) + utf8("a") + b"\0\0"))
case("unsubscribe-left-over", lambda v: packet(UNSUBSCRIBE, 2, u16(1) + empty(v) + utf8("a") + b"\0"))
for kind, whole in ((SUBSCRIBE, lambda v: subscribe(v, 1, ("ab", 1))), (UNSUBSCRIBE, lambda v: unsubscribe(v, 1, "ab"))):
    for version in VERSIONS:
        body = whole(version)[2:]
        for length in range(len(body)):
            case(
                f"type-{kind}-cut-to-{length}",
                lambda _v, k=kind, b=body[:length]: packet(k, 2, b),
                versions=(version,),
            )

# Properties
for name, value in {
    "payload_format": 1,
    "message_expiry": 1,
    "content_type": "x",
    "response_topic": "x",
    "correlation_data": b"x",
    "topic_alias": 1,
}.items():
    case5(f"publish-{name}-twice", publish(V5, "a", block=properties((name, value), (name, value))))
case5(
    "subscribe-identifier-twice",
    subscribe(V5, 1, ("a", 0), block=properties(("subscription_id", 1), ("subscription_id", 2))),
)
for name, value in {
    "session_expiry": 1,
    "assigned_client_id": "x",
    "server_keep_alive": 1,
    "auth_method": "x",
    "auth_data": b"x",
    "request_problem_information": 1,
    "will_delay": 1,
    "request_response_information": 1,
    "response_information": "x",
    "server_reference": "x",
    "reason_string": "x",
    "receive_maximum": 1,
    "topic_alias_maximum": 1,
    "maximum_qos": 1,
    "retain_available": 1,
    "maximum_packet_size": 100,
    "wildcard_available": 1,
    "subscription_id_available": 1,
    "shared_available": 1,
}.items():
    block = properties(**{name: value})
    case5(f"publish-with-{name}", publish(V5, "a", block=block))
    case5(f"subscribe-with-{name}", subscribe(V5, 1, ("a", 0), block=block))
    case5(f"unsubscribe-with-{name}", unsubscribe(V5, 1, "a", block=block))
    if name not in ("session_expiry", "reason_string", "server_reference"):
        case5(f"disconnect-with-{name}", disconnect(V5, 0, block))
case5("unsubscribe-with-identifier", unsubscribe(V5, 1, "a", block=properties(subscription_id=1)))
case5("publish-unknown-property", publish(V5, "a", block=b"\x02\x7f\x01"))
case5("publish-property-0", publish(V5, "a", block=b"\x02\x00\x01"))
case5("publish-properties-longer-than-packet", packet(PUBLISH, 0, utf8("a") + b"\x7f"))
case5("publish-property-cut-off", publish(V5, "a", block=b"\x02\x02\x00"))
case5("publish-property-crosses-the-end-of-the-block", publish(V5, "a", block=b"\x03\x03\x00\x05hello"))
case5("publish-without-property-length", packet(PUBLISH, 0, utf8("a")))  # [MQTT5-2.2.2-1]

# DISCONNECT and AUTH
case5("disconnect-expiry-twice", disconnect(V5, 0, properties(("session_expiry", 0), ("session_expiry", 0))))
case5("disconnect-left-over", packet(DISCONNECT, 0, b"\0\0x"))
# the connection has session expiry 0, which DISCONNECT can't raise
case5("disconnect-raises-expiry", disconnect(V5, 0, properties(session_expiry=1)), (PROTOCOL,))
# [MQTT5-3.14.2-1]
case5("disconnect-unknown-reason", disconnect(V5, 0x01))
# [MQTT5-4.12.0-7]
case5("auth-unasked", packet(AUTH, 0, b"\x18" + properties(auth_method="x")), (PROTOCOL,))
case5("auth-without-method", packet(AUTH, 0, b"\x18\0"))
case5("auth-empty", packet(AUTH))

for code in (0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x9D, 0xA0):
    case(f"disconnect-of-a-server-{code:#x}", lambda version, code=code: disconnect(version, code), (PROTOCOL,), ONLY5)
case(
    "disconnect-with-server-reference",
    lambda version: disconnect(version, 0, properties(server_reference="elsewhere")),
    (PROTOCOL,),
    ONLY5,
)


@pytest.mark.parametrize(("version", "build", "reasons"), CASES)
def test_forbidden_packet_ends_the_connection(wire, version, build, reasons):
    """[MQTT-4.8.0-1] [MQTT5-3.14.4-1] [MQTT5-3.14.4-2] [MQTT5-4.13.1-1] [MQTT5-4.13.2-1]

    5.0 is told why and nothing else, the others are told nothing.
    """
    client = wire(version)
    client.connect()
    client.send(build(version))
    client.expect_refused(*reasons)


def test_3_1_may_repeat_with_dup(wire):
    """3.1 resends SUBSCRIBE, UNSUBSCRIBE and PUBREL with DUP set."""
    client = wire(V31)
    client.connect()
    client.send(with_flags(10, subscribe(V31, 1, ("a", 0))))
    assert client.expect(SUBACK).pid == 1
    client.send(with_flags(10, unsubscribe(V31, 2, "a")))
    assert client.expect(UNSUBACK).pid == 2
    client.send(publish(V31, unique("t/"), b"x", qos=2, pid=3))
    assert client.expect(PUBREC).pid == 3
    client.send(with_flags(10, ack(PUBREL, 3)))
    assert client.expect(PUBCOMP).pid == 3


@pytest.mark.parametrize("split", [1, 2, 3])
def test_verdict_does_not_depend_on_segments(wire, version, split):
    """Reserved flags of a SUBSCRIBE that arrives in pieces."""
    client = wire(version)
    client.connect()
    whole = with_flags(0, subscribe(version, 1, ("a/b", 0)))
    client.send(whole[:split])
    client.send(whole[split:])
    client.expect_refused(*EITHER)


def test_good_packets_before_a_bad_one_count(wire, version):
    """In one segment: the publish is served, then the connection ends."""
    topic = unique("t/")
    watcher, client = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic)
    client.connect()
    client.send(publish(version, topic, b"good"), publish(version, "#", b"bad"), publish(version, topic, b"late"))
    client.expect_refused(*BAD_TOPIC)
    assert watcher.expect_message().payload == b"good"
    watcher.publish(topic, b"fence")
    # a slow route may deliver the first message last, but never the one behind the bad packet
    assert watcher.expect_message().payload == b"fence"


def test_packet_above_the_maximum_is_refused_by_its_header(wire, version):
    """[MQTT5-3.2.2-15]: 0x95 as soon as the length is known; nothing is read in vain."""
    client = wire(version)
    client.connect()
    client.send(b"\x30\xff\xff\xff\x7f")
    client.expect_refused(TOO_LARGE)


def test_packet_of_exactly_the_maximum_is_taken(spawn, wire, version):
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      maximum-packet-size: 300\n")
    client = wire(version, own)
    client.connect()
    head = len(publish(version, "a", b"x" * 200)) - 200
    client.publish("a", b"x" * (300 - head))
    client.expect_alive()
    client.publish("a", b"x" * (301 - head))
    client.expect_refused(TOO_LARGE)


def test_alias_where_the_broker_takes_none(spawn, wire):
    """[MQTT5-3.2.2-18]: what CONNACK leaves out is 0."""
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      topic-alias-maximum: 0\n")
    client = wire(V5, own)
    assert "topic_alias_maximum" not in client.connect().properties
    client.publish("a", block=properties(topic_alias=1))
    client.expect_refused(ALIAS)


def test_alias_above_the_brokers_maximum(spawn, wire):
    """[MQTT5-3.2.2-17] [MQTT5-3.3.2-9] [MQTT5-3.3.2-12]"""
    own = spawn(conf="mqtt:\n  options:\n    capabilities:\n      topic-alias-maximum: 10\n")
    client = wire(V5, own)
    assert client.connect().properties["topic_alias_maximum"] == 10
    client.publish("a", block=properties(topic_alias=10))
    client.expect_alive()
    client.publish("a", block=properties(topic_alias=11))
    client.expect_refused(ALIAS)


CAPABILITIES = [
    # key, value, CONNACK property, packet that it forbids, reason
    ("maximum-qos", 1, "maximum_qos", publish(V5, "a", qos=2, pid=1), 0x9B),  # [MQTT5-3.2.2-11]
    ("retain-available", 0, "retain_available", publish(V5, "a", b"x", retain=True), 0x9A),  # [MQTT5-3.2.2-14]
]


@pytest.mark.parametrize(("key", "value", "name", "data", "reason"), CAPABILITIES, ids=["maximum-qos", "retain"])
def test_capability_that_is_off_is_advertised_and_enforced(spawn, wire, key, value, name, data, reason):
    """[MQTT5-3.2.2-9]: what a client is told it must not send ends its connection."""
    own = spawn(conf=f"mqtt:\n  options:\n    capabilities:\n      {key}: {value}\n")
    client = wire(V5, own)
    assert client.connect().properties[name] == value
    client.send(data)
    client.expect_refused(reason)
