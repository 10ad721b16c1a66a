# SPDX-License-Identifier: Apache-2.0
"""The first packet: which CONNECTs are refused, and in which words."""

import pytest

from harness import V5, V31, V311, VERSIONS, unique
from harness.wire import (
    AUTH,
    CONNACK,
    CONNECT,
    PING,
    PUBACK,
    PUBREL,
    ack,
    binary,
    connect,
    disconnect,
    packet,
    persistent,
    properties,
    publish,
    subscribe,
    unsubscribe,
    utf8,
    will_of,
)

MALFORMED, PROTOCOL, VERSION, CLIENT_ID, TOPIC_NAME, TOO_LARGE = 0x81, 0x82, 0x84, 0x85, 0x90, 0x95
EITHER = (MALFORMED, PROTOCOL)


def expect_no_connection(client, *reasons):
    """Closed. 5.0 may be told before in a CONNACK with one of the reasons; older versions only get codes 1 to 5.

    Never in a DISCONNECT [MQTT5-3.14.0-1].
    """
    found = client.receive()
    if found is not None:
        assert found.kind == CONNACK, f"{found} without a connection"
        assert found.reason in reasons, f"reason {found.reason:#x}"
        assert not found.flags
        found = client.receive()
    assert found is None


FIRST = {
    "publish": lambda v: publish(v, "a", b"x"),
    "subscribe": lambda v: subscribe(v, 1, ("a", 0)),
    "unsubscribe": lambda v: unsubscribe(v, 1, "a"),
    "pingreq": lambda _v: PING,
    "disconnect": disconnect,
    "puback": lambda _v: ack(PUBACK, 1),
    "pubrel": lambda _v: ack(PUBREL, 1),
    "auth": lambda _v: packet(AUTH, 0, b"\x18\0"),
    "connack": lambda _v: packet(CONNACK, 0, b"\0\0"),
    "zero": lambda _v: packet(0),
    "beginning-of-a-large-publish": lambda _v: b"\x30\xff\xff\x03\0\1a",
    "http": lambda _v: b"GET / HTTP/1.1\r\nHost: broker\r\nUser-Agent: something/1.0 (long enough to be a packet)\r\n\r\n",
    "tls": lambda _v: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
}


@pytest.mark.parametrize("build", FIRST.values(), ids=FIRST.keys())
def test_first_packet_must_be_connect(wire, version, build):
    """[MQTT-3.1.0-1] [MQTT5-3.1.0-1]"""
    client = wire(version)
    client.send(build(version))
    assert client.receive() is None


@pytest.mark.parametrize("name", ["", "mqtt", "MQTTX", "MQISDP", "HTTP"])
def test_protocol_name_must_be_right(wire, version, name):
    """[MQTT-3.1.2-1] [MQTT5-3.1.2-1]"""
    client = wire(version)
    client.send(connect(version, "x", name=name))
    expect_no_connection(client, 1, VERSION, *EITHER)


@pytest.mark.parametrize("level", [0, 1, 2, 6, 7, 0x7F, 0xFF])
def test_unknown_level_is_answered_with_unsupported(wire, level):
    """[MQTT-3.1.2-2] [MQTT5-3.1.2-2]: closed, and told so if anything."""
    for version in VERSIONS:
        client = wire(version)
        client.send(connect(version, "x", level=level))
        expect_no_connection(client, 1, VERSION)


def test_level_3_answers_level_3(wire):
    """[MQTT-3.1.2-2]: level 4 with the name of 3.1 is neither."""
    client = wire(V311)
    client.send(connect(V311, "x", name="MQIsdp", level=4))
    expect_no_connection(client, 1)


MALFORMED_CONNECTS = {
    "reserved-flag": lambda v: connect(v, "x", flags=0x03),
    "will-qos-3": lambda v: connect(v, "x", will=will_of(v, "a"), will_qos=3),
    "no-client-id": lambda v: packet(CONNECT, 0, connect(v, "")[2:-2]),
    "client-id-not-utf8": lambda v: connect(v, b"\xff"),
    "client-id-longer-than-packet": lambda v: packet(CONNECT, 0, connect(v, "")[2:-2] + b"\0\4xyz"),
    "bytes-left-over": lambda v: connect(v, "x", rest=b"x"),
    "header-flags": lambda v: packet(CONNECT, 2, connect(v, "x")[2:]),
}


@pytest.mark.parametrize("build", MALFORMED_CONNECTS.values(), ids=MALFORMED_CONNECTS.keys())
def test_malformed_connect_is_closed_and_before_5_without_connack(wire, version, build):
    """[MQTT-3.1.4-1] [MQTT5-3.1.4-1] [MQTT5-3.14.0-1]"""
    if version == V31 and build is MALFORMED_CONNECTS["reserved-flag"]:
        pytest.skip("3.1 does not use this bit and says nothing of it")
    client = wire(version)
    client.send(build(version))
    if version == V5:
        expect_no_connection(client, *EITHER)
    else:
        client.expect_closed()


def test_reserved_flag(wire, version):
    """[MQTT-3.1.2-3] [MQTT5-3.1.2-3]"""
    if version == V31:
        pytest.skip("3.1 does not use this bit and says nothing of it")
    client = wire(version)
    client.send(connect(version, "x", flags=0x03))
    expect_no_connection(client, *EITHER)


@pytest.mark.parametrize(
    ("flags", "versions"),
    [
        (0x02 | 0x08, (V311, V5)),  # [MQTT-3.1.2-13] [MQTT5-3.1.2-11]
        (0x02 | 0x10, (V311, V5)),
        (0x02 | 0x20, (V311, V5)),  # [MQTT-3.1.2-15] [MQTT5-3.1.2-13]
    ],
    ids=["qos-1", "qos-2", "retain"],
)
def test_will_bits_without_will(wire, flags, versions):
    for version in versions:
        client = wire(version)
        client.send(connect(version, "x", flags=flags))
        expect_no_connection(client, *EITHER)


def test_will_bits_without_will_mean_nothing_in_3_1(wire):
    client = wire(V31)
    client.send(connect(V31, unique("w"), flags=0x02 | 0x08 | 0x20))
    assert client.expect(CONNACK).reason == 0


def test_will_qos_3(wire, version):
    """[MQTT-3.1.2-14] [MQTT5-3.1.2-12]"""
    client = wire(version)
    client.send(connect(version, "x", will=will_of(version, "a"), will_qos=3))
    expect_no_connection(client, *EITHER)


def test_password_without_user_name(wire):
    """[MQTT-3.1.2-22]: 3.1.1 forbids it, 5.0 allows it."""
    client = wire(V311)
    client.send(connect(V311, "x", password=b"secret"))
    expect_no_connection(client, 4, 5)
    wire(V5).connect(password=b"secret")


@pytest.mark.parametrize(
    "topic", ["", "#", "a/+", "a/#/b", "a\0", b"\xff", b"\xed\xa0\x80"], ids=lambda each: repr(each)
)
def test_will_topic_must_be_a_topic_name(wire, version, topic):
    """[MQTT-3.1.3-10] [MQTT-4.7.3-1] [MQTT5-3.1.3-11] [MQTT5-4.7.3-1]"""
    client = wire(version)
    client.send(connect(version, "x", will=will_of(version, topic)))
    expect_no_connection(client, *EITHER, TOPIC_NAME)


@pytest.mark.parametrize("text", [b"\xff", b"a\0b", b"\xed\xa0\x80", b"\xc0\xaf"], ids=repr)
def test_names_must_be_utf8(wire, version, text):
    """[MQTT-3.1.3-4] [MQTT-3.1.3-11] [MQTT5-3.1.3-4] [MQTT5-3.1.3-12]: client id and user name."""
    for settings in ({"client_id": text}, {"client_id": "x", "username": text}):
        client = wire(version)
        client.send(connect(version, **settings))
        expect_no_connection(client, *EITHER, CLIENT_ID, 2, 4)


@pytest.mark.parametrize("count", [1, 100])
def test_bytes_left_over(wire, version, count):
    client = wire(version)
    client.send(connect(version, "x", rest=b"x" * count))
    expect_no_connection(client, *EITHER)


UNANNOUNCED = {
    "will": (0x02, utf8("t") + binary(b"x")),  # [MQTT-3.1.2-11]
    "user-name": (0x02, utf8("u")),  # [MQTT-3.1.2-18] [MQTT5-3.1.2-16]
    "password": (0x82, utf8("u") + binary(b"p")),  # [MQTT-3.1.2-20] [MQTT5-3.1.2-18]
}


@pytest.mark.parametrize(("flags", "rest"), UNANNOUNCED.values(), ids=UNANNOUNCED.keys())
def test_fields_without_their_flag(wire, version, flags, rest):
    client = wire(version)
    client.send(connect(version, "x", flags=flags, rest=rest))
    expect_no_connection(client, *EITHER)


MISSING = {
    "will": (0x06, lambda _v: b""),  # [MQTT-3.1.2-9] [MQTT5-3.1.2-9]
    "will-payload": (0x06, lambda v: will_of(v, "t")[:-2]),  # [MQTT-3.1.2-9] [MQTT5-3.1.2-9]
    "user-name": (0x82, lambda _v: b""),  # [MQTT-3.1.2-19] [MQTT5-3.1.2-17]
    "password": (0xC2, lambda _v: utf8("u")),  # [MQTT-3.1.2-21] [MQTT5-3.1.2-19]
}


@pytest.mark.parametrize(("flags", "rest"), MISSING.values(), ids=MISSING.keys())
@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5.0"])
def test_flags_without_their_field(wire, version, flags, rest):
    """3.1 lets the length of the packet prevail over its flags."""
    client = wire(version)
    client.send(connect(version, "x", flags=flags, rest=rest(version)))
    expect_no_connection(client, *EITHER)


def test_payload_fields_are_taken_in_their_order(wire, version):
    """[MQTT-3.1.3-1] [MQTT5-3.1.3-1]: client id, will topic, will payload, user name, password."""
    topic, client_id = unique("t/"), unique("w")
    watcher, client = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic)
    client.connect(
        client_id, **persistent(version), will=will_of(version, topic, b"gone"), username="user", password=b"secret"
    )
    client.close()
    assert watcher.expect_message().payload == b"gone"
    assert wire(version).connect(client_id, **persistent(version), username="user", password=b"secret").resumed


def test_client_id_must_be_there(wire, version):
    """[MQTT-3.1.3-3] [MQTT5-3.1.3-3]: an empty one is something else than none."""
    client = wire(version)
    client.send(packet(CONNECT, 0, connect(version, "")[2:-2]))
    expect_no_connection(client, *EITHER)


def test_every_shorter_connect_is_refused(wire, version):
    """The length says that the packet is whole, and it isn't."""
    # 3.1 lets the length prevail over the flags: user name and password may be missing
    login = {} if version == V31 else {"username": "u", "password": b"p"}
    whole = connect(
        version,
        "ab",
        will=will_of(version, "t", b"p"),
        **login,
        block=properties(session_expiry=1, user_property=("a", "b")) if version == V5 else None,
    )
    body = whole[2:]
    for length in range(len(body)):
        client = wire(version)
        client.send(packet(CONNECT, 0, body[:length]))
        expect_no_connection(client, 1, 2, *EITHER, VERSION)
        client.close()
    client = wire(version)
    client.send(whole)
    assert client.expect(CONNACK).reason == 0


@pytest.mark.parametrize("flags", [1, 2, 4, 8, 15])
def test_header_flags(wire, version, flags):
    """[MQTT-2.2.2-2] [MQTT5-2.1.3-1]"""
    client = wire(version)
    client.send(packet(CONNECT, flags, connect(version, "x")[2:]))
    expect_no_connection(client, *EITHER)


def test_connect_above_the_maximum(wire, version):
    client = wire(version)
    client.send(b"\x10\xff\xff\xff\x7f")
    expect_no_connection(client, TOO_LARGE)


# client ids


def test_empty_client_id_wants_a_clean_session(wire):
    """[MQTT-3.1.3-7] [MQTT-3.1.3-8] [MQTT-3.1.3-9] [MQTT-3.2.2-5]: return code 2."""
    client = wire(V311)
    client.send(connect(V311, "", clean=False))
    assert client.expect(CONNACK).reason == 2
    client.expect_closed()
    wire(V311).connect("", clean=True)
    assert wire(V5).connect("", clean=False).properties["assigned_client_id"]  # [MQTT5-3.1.3-7]


@pytest.mark.parametrize("client_id", ["", "x" * 24], ids=["empty", "24-characters"])
def test_client_ids_of_3_1_have_1_to_23_characters(wire, client_id):
    client = wire(V31)
    client.send(connect(V31, client_id))
    assert client.expect(CONNACK).reason == 2
    client.expect_closed()


@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5.0"])
def test_each_empty_client_id_is_another_client(wire, version):
    """[MQTT-3.1.3-6] [MQTT5-3.1.3-6] [MQTT5-3.1.3-7] [MQTT5-3.2.2-16]"""
    clients = [wire(version) for _ in range(5)]
    assigned = [client.connect("").properties.get("assigned_client_id") for client in clients]
    for client in clients:
        client.expect_alive()
    if version == V5:
        assert len(set(assigned)) == len(clients)
        assert all(assigned)


def test_client_id_says_which_session(wire, version):
    """[MQTT-3.1.3-2] [MQTT5-3.1.3-2]: each of two finds its own again, from wherever it connects."""
    topics = {unique("w"): unique("t/") for _ in range(2)}
    for client_id, topic in topics.items():
        client = wire(version)
        client.connect(client_id, **persistent(version))
        client.subscribe(topic, 1)
        client.send(disconnect(version))
        client.expect_closed()
    publisher = wire(version)
    publisher.connect()
    for topic in topics.values():
        publisher.publish(topic, topic.encode(), qos=1)
    for client_id, topic in topics.items():
        client = wire(version)
        assert client.connect(client_id, **persistent(version)).resumed
        assert client.expect_message().payload == topic.encode()
        client.expect_alive()


def test_client_ids_that_must_be_taken(wire, version):
    """[MQTT-3.1.3-5] [MQTT5-3.1.3-5]"""
    for client_id in ("a", unique("x" * 7), "0123456789abcdefABCDEFZ"):
        wire(version).connect(client_id)


@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5.0"])
def test_longer_client_ids_are_taken(wire, version):
    for client_id in (unique("x" * 200), unique("ünï/+#$ ")):
        wire(version).connect(client_id)


# properties

WRONG = {
    "receive-maximum-0": properties(receive_maximum=0),
    "maximum-packet-size-0": properties(maximum_packet_size=0),
    "request-response-information-2": properties(request_response_information=2),
    "request-problem-information-2": properties(request_problem_information=2),
    "auth-data-without-method": properties(auth_data=b"x"),
    "unknown-property": b"\x02\x7f\x01",
    "length-too-long": b"\x7f",
    "property-cut-off": b"\x02\x11\x00",
}
for _name, _value in {
    "session_expiry": 1,
    "receive_maximum": 1,
    "maximum_packet_size": 1000,
    "topic_alias_maximum": 1,
    "request_response_information": 1,
    "request_problem_information": 1,
    "auth_method": "x",
    "auth_data": b"x",
}.items():
    WRONG[f"{_name}-twice"] = properties((_name, _value), (_name, _value))
for _name, _value in {
    "payload_format": 1,
    "message_expiry": 1,
    "content_type": "x",
    "response_topic": "x",
    "correlation_data": b"x",
    "subscription_id": 1,
    "assigned_client_id": "x",
    "server_keep_alive": 1,
    "will_delay": 1,
    "response_information": "x",
    "server_reference": "x",
    "reason_string": "x",
    "topic_alias": 1,
    "maximum_qos": 1,
    "retain_available": 1,
    "wildcard_available": 1,
    "subscription_id_available": 1,
    "shared_available": 1,
}.items():
    WRONG[f"with-{_name}"] = properties(**{_name: _value})


@pytest.mark.parametrize("block", WRONG.values(), ids=WRONG.keys())
def test_wrong_properties(wire, block):
    """Malformed Packet or Protocol Error."""
    client = wire(V5)
    client.send(connect(V5, "x", block=block))
    expect_no_connection(client, *EITHER)


WRONG_WILL = {
    "payload-format-2": properties(payload_format=2),
    "response-topic-wildcard": properties(response_topic="a/#"),
    "unknown": b"\x02\x7f\x01",
}
for _name, _value in {
    "will_delay": 1,
    "payload_format": 1,
    "message_expiry": 1,
    "content_type": "x",
    "response_topic": "x",
    "correlation_data": b"x",
}.items():
    WRONG_WILL[f"{_name}-twice"] = properties((_name, _value), (_name, _value))
for _name, _value in {"session_expiry": 1, "topic_alias": 1, "subscription_id": 1, "receive_maximum": 1}.items():
    WRONG_WILL[f"with-{_name}"] = properties(**{_name: _value})


@pytest.mark.parametrize("block", WRONG_WILL.values(), ids=WRONG_WILL.keys())
def test_wrong_will_properties(wire, block):
    client = wire(V5)
    client.send(connect(V5, "x", will=will_of(V5, "a", b"x", block)))
    expect_no_connection(client, *EITHER, TOPIC_NAME)


def test_unknown_authentication_method(wire):
    """[MQTT5-3.1.4-2] [MQTT5-3.2.2-7] [MQTT5-4.12.0-1] [MQTT5-4.13.2-1]: 0x8C."""
    client = wire(V5)
    client.send(connect(V5, unique("w"), block=properties(auth_method="UNKNOWN", auth_data=b"x")))
    assert client.expect(CONNACK).reason == 0x8C
    client.expect_closed()


def test_all_of_connect_at_once(wire, version):
    """Every field and every property that may be there."""
    block = will = None
    if version == V5:
        block = properties(
            ("user_property", ("a", "1")),
            ("user_property", ("a", "1")),
            session_expiry=5,
            receive_maximum=1,
            maximum_packet_size=1000,
            topic_alias_maximum=5,
            request_response_information=1,
            request_problem_information=1,
        )
        will = will_of(
            V5,
            "a",
            b"x",
            properties(
                ("user_property", ("a", "1")),
                ("user_property", ("", "")),
                will_delay=1,
                payload_format=1,
                message_expiry=1,
                content_type="x",
                response_topic="x",
                correlation_data=b"x",
            ),
        )
    else:
        will = will_of(version, "a", b"x")
    client = wire(version)
    client.connect(
        clean=False, will=will, will_qos=2, will_retain=True, username="üser", password=b"\xff\0", block=block
    )
    client.send(disconnect(version))
    client.expect_closed()


def test_no_authentication_for_a_client_that_names_no_method(wire):
    """[MQTT5-4.12.0-6]: CONNACK comes first, and has neither method nor data."""
    client = wire(V5)
    client.send(connect(V5, unique("w")))
    connack = client.expect(CONNACK)
    assert not {"auth_method", "auth_data"} & connack.properties.keys()


def test_connack_of_older_versions_has_two_bytes(wire):
    """[MQTT-3.1.4-4] [MQTT-3.2.2-1]"""
    for version in (V31, V311):
        client = wire(version)
        client.send(connect(version, unique("w")))
        assert client.expect(CONNACK).body == b"\0\0"


def test_refusal_never_says_session_present(wire):
    """[MQTT-3.2.2-4] [MQTT5-3.2.2-6]"""
    client_id = unique("w")
    block = properties(session_expiry=60)
    first = wire(V5)
    first.connect(client_id, clean=False, block=block)
    first.send(disconnect(V5))
    first.expect_closed()
    again = wire(V5)
    again.send(connect(V5, client_id, clean=False, block=properties(auth_method="UNKNOWN")))
    refusal = again.expect(CONNACK)
    assert refusal.body[0] == 0
    assert refusal.reason == 0x8C
    again.expect_closed()


def test_packets_behind_a_refused_connect_are_not_served(wire, version):
    """[MQTT-3.1.4-5] [MQTT5-3.1.4-6]"""
    topic = unique("t/")
    watcher, client = wire(version), wire(version)
    watcher.connect()
    watcher.subscribe(topic)
    refused = connect(version, "x" * 24 if version == V31 else "a\0")
    client.send(refused, connect(version, unique("w")), publish(version, topic, b"x"))
    while (found := client.receive()) is not None:
        assert (found.kind, found.reason != 0) == (CONNACK, True)
    watcher.publish(topic, b"fence")
    assert watcher.expect_message().payload == b"fence"


def test_headers_of_every_length_encoding(wire, version):
    """[MQTT5-1.5.5-1]: lengths around the borders of one, two and three bytes."""
    client = wire(version)
    client.connect()
    topic = unique("t/")
    client.subscribe(topic)
    head = len(publish(version, topic)) - 2
    for length in (head, 127, 128, 16_383, 16_384, 100_000):
        client.publish(topic, b"x" * (length - head))
        assert len(client.expect_message().payload) == length - head


def test_name_length_cannot_reach_beyond_the_packet(wire, version):
    client = wire(version)
    client.send(packet(CONNECT, 0, b"\xff\xff" + utf8("MQTT") + binary(b"x" * 50)))
    expect_no_connection(client, *EITHER, VERSION, 1)


