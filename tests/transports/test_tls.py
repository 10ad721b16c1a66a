# SPDX-License-Identifier: Apache-2.0
"""TLS: versions, client certificates, resumption, and certificates that are read again at SIGHUP."""

import dataclasses
import socket
import ssl

import pytest

from harness import V5, Deadline, certificates, unique
from harness.broker import run_to_end
from harness.transport import listener
from harness.wire import CONNACK, Wire, connect, disconnect

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NAMES = {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}
BOTH = pytest.mark.parametrize("tls", [TLS12, TLS13], ids=["1.2", "1.3"])


@pytest.fixture
def own(tmp_path):
    """A CA whose files the test may change."""
    return certificates.write_all(tmp_path)


@pytest.fixture
def serve(spawn):
    """A broker with one TLS listener: serve(authority, transport="mtls", crl=path)."""

    def start(authority=None, transport="tls", *, shards=None, conf=None, **tls):
        block = listener(transport, authority)
        block["tls"].update({name.replace("_", "-"): str(value) for name, value in tls.items()})
        broker = spawn(listeners=[(transport, block)], shards=shards, conf=conf)
        broker.endpoint = dataclasses.replace(broker.endpoint, authority=authority)
        return broker

    return start


def shake_hands(broker, context, session=None, **options):
    made = broker.endpoint.connect()
    try:
        return context.wrap_socket(made, server_hostname=broker.host, session=session, **options)
    except BaseException:
        made.close()
        raise


def joined(broker, context, session=None):
    """A client that is connected; tickets of 1.3 have come by then."""
    client = Wire(broker, V5, shake_hands(broker, context, session))
    client.connect()
    return client


def refusal(broker, context, session=None):
    """The alert that ends the handshake of a client that is to be refused; None if it is let in.

    In 1.3 the client is done before the broker has looked at its certificate, so the alert comes with the first read.
    Nothing is written before it: a reset could overtake the alert.
    """
    try:
        with shake_hands(broker, context, session) as made:
            # less than connect-timeout, at which any silent client is closed
            made.settimeout(5)
            assert made.recv(1) == b"", "the broker speaks first"
            return "closed"
    except TimeoutError:
        return None
    except ssl.SSLError as error:
        return error.reason


def is_welcome(broker, context, session=None):
    client = joined(broker, context, session)
    client.expect_alive()
    client.close()


# versions


@BOTH
def test_version_is_accepted(serve, tls):
    broker = serve()
    client = joined(broker, broker.endpoint.context(oldest=tls, newest=tls))
    assert client.socket.version() == NAMES[tls]
    client.expect_alive()
    client.close()


def hello(version):
    """A ClientHello of an old version, which no library of today sends any more."""
    ciphers = b"\xc0\x09\xc0\x13\x00\x2f\x00\x35"
    groups = b"\x00\x0a\x00\x04\x00\x02\x00\x17" + b"\x00\x0b\x00\x02\x01\x00"
    body = version + bytes(range(32)) + b"\0" + len(ciphers).to_bytes(2, "big") + ciphers + b"\x01\0"
    body += len(groups).to_bytes(2, "big") + groups
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize("version", [b"\x03\x02", b"\x03\x01", b"\x03\x00"], ids=["1.1", "1.0", "ssl 3"])
def test_old_version_is_refused_with_an_alert(serve, version):
    broker = serve()
    with broker.endpoint.connect() as made:
        made.sendall(hello(version))
        answer = b""
        while data := made.recv(1000):
            answer += data
    assert answer[:1] == b"\x15", f"no alert: {answer!r}"
    # fatal, and protocol_version or handshake_failure: such a client also lacks what 1.2 has to have
    assert answer[5:7] in (b"\x02\x46", b"\x02\x28")


def test_minimum_version_refuses_what_is_older(serve):
    broker = serve(min_version="1.3")
    assert refusal(broker, broker.endpoint.context(newest=TLS12)) == "TLSV1_ALERT_PROTOCOL_VERSION"
    is_welcome(broker, broker.endpoint.context())


def test_what_is_not_tls_is_closed(serve):
    broker = serve()
    for start in (connect(V5, "abc"), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000), bytes(1000)):
        with broker.endpoint.connect() as made:
            try:
                made.sendall(start)
                while made.recv(1000):
                    pass
            except ConnectionError:
                pass
    is_welcome(broker, broker.endpoint.context())


def test_handshake_in_pieces(serve):
    """Byte by byte, and cut at every byte of the ClientHello: the broker waits for the rest or notices the end."""
    broker = serve()
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = broker.endpoint.context().wrap_bio(into, out, server_hostname=broker.host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    first = out.read()
    for cut in range(len(first)):
        with broker.endpoint.connect() as made:
            made.sendall(first[:cut])
            made.shutdown(socket.SHUT_WR)
            while made.recv(1000):
                pass
    with broker.endpoint.connect() as made:
        for byte in first:
            made.sendall(bytes([byte]))
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                made.sendall(out.read())
                into.write(made.recv(1 << 16))
        for byte in out.read():
            made.sendall(bytes([byte]))
        client.write(connect(V5, unique("w")))
        for byte in out.read():
            made.sendall(bytes([byte]))
        answer = b""
        while not answer:
            try:
                answer = client.read(1000)
            except ssl.SSLWantReadError:
                into.write(made.recv(1 << 16))
    assert answer[0] == CONNACK << 4


@BOTH
def test_end_is_told_before_the_connection_closes(serve, tls):
    """close_notify: without it the client can't tell an end from a cut."""
    broker = serve()
    context = broker.endpoint.context(oldest=tls, newest=tls)
    client = Wire(broker, V5, shake_hands(broker, context, suppress_ragged_eofs=False))
    client.connect()
    client.send(disconnect(V5))
    client.expect_closed()
    client.close()


# client certificates

REFUSED = {
    None: {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"},
    "stranger": {"TLSV1_ALERT_UNKNOWN_CA"},
    "expired": {"SSLV3_ALERT_CERTIFICATE_EXPIRED"},
    "revoked": {"SSLV3_ALERT_CERTIFICATE_REVOKED"},
    # a certificate of that CA, made for another purpose
    "server": {"SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "SSLV3_ALERT_BAD_CERTIFICATE"},
}


@BOTH
@pytest.mark.parametrize("client", REFUSED, ids=str)
def test_client_without_a_good_certificate_is_refused(serve, own, tls, client):
    broker = serve(own, "mtls", crl=own.file("crl.pem"))
    assert refusal(broker, own.context(client, oldest=tls, newest=tls)) in REFUSED[client]
    is_welcome(broker, own.context("client", oldest=tls, newest=tls))


def test_certificate_is_not_asked_for_without_a_ca(serve):
    broker = serve()
    is_welcome(broker, broker.endpoint.context())
    is_welcome(broker, broker.endpoint.context(client="stranger"))


# resumption


@BOTH
@pytest.mark.parametrize("transport", ["tls", "mtls"])
def test_session_is_resumed_at_every_shard(serve, own, tls, transport):
    broker = serve(own, transport, shards=4)
    context = broker.endpoint.context(oldest=tls, newest=tls)
    first = joined(broker, context)
    assert not first.socket.session_reused
    for _ in range(16):
        again = joined(broker, context, first.socket.session)
        assert again.socket.session_reused
        again.expect_alive()
        again.close()
    first.close()


# certificates are read again


def reload(broker):
    """SIGHUP; returns once the broker says that it has read its certificates."""
    mark = broker.log_mark()
    broker.reload()
    return broker.await_line("certificates read again", since=mark)


def shown(broker, context=None):
    """The serial number of the certificate that a new client sees."""
    with shake_hands(broker, context or broker.endpoint.authority.context("client")) as made:
        return int(made.getpeercert()["serialNumber"], 16)


@BOTH
@pytest.mark.parametrize("transport", ["tls", "mtls"])
def test_new_certificate_is_shown_and_nobody_is_dropped(serve, own, tls, transport):
    broker = serve(own, transport, shards=4)
    context = broker.endpoint.context(oldest=tls, newest=tls)
    before = [joined(broker, context) for _ in range(8)]
    old, new = shown(broker), own.issue_server()
    assert old != new
    reload(broker)
    deadline = Deadline("the new certificate at every shard")
    seen = []
    while seen[-16:] != [new] * 16:
        deadline.left()
        seen.append(shown(broker))
    for client in before:
        client.expect_alive()
        client.close()


@BOTH
@pytest.mark.parametrize("transport", ["tls", "mtls"])
def test_sessions_are_resumed_after_certificates_were_read_again(serve, own, tls, transport):
    broker = serve(own, transport, shards=4)
    context = broker.endpoint.context(oldest=tls, newest=tls)
    first = joined(broker, context)
    reload(broker)
    for _ in range(8):
        again = joined(broker, context, first.socket.session)
        assert again.socket.session_reused
        again.close()
    first.expect_alive()
    first.close()


BAD = {
    "empty": lambda path, _own: path.write_text(""),
    "no pem": lambda path, _own: path.write_text("nothing of the kind"),
    "cut": lambda path, _own: path.write_bytes(path.read_bytes()[:100]),
    "gone": lambda path, _own: path.unlink(),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem", "crl.pem"])
def test_bad_file_keeps_what_was_there_and_is_named(serve, own, name, spoil):
    broker = serve(own, "mtls", crl=own.file("crl.pem"))
    context, revoked = own.context("client"), own.context("revoked")
    before, serial = joined(broker, context), shown(broker, context)
    good = own.file(name).read_bytes()
    spoil(own.file(name), own)
    mark = broker.log_mark()
    broker.reload()
    broker.await_line(str(own.file(name)), since=mark)
    assert shown(broker, context) == serial
    is_welcome(broker, context)
    assert refusal(broker, revoked) is not None
    before.expect_alive()
    before.close()
    # a good file is taken again
    own.file(name).write_bytes(good)
    new = own.issue_server()
    broker.reload()
    deadline = Deadline("the new certificate")
    while shown(broker, context) != new:
        deadline.left()


def test_key_of_another_certificate_keeps_what_was_there(serve, own):
    broker = serve(own)
    serial = shown(broker)
    own.issue_server("other")
    own.file("server.key").write_bytes(own.file("other.key").read_bytes())
    mark = broker.log_mark()
    broker.reload()
    broker.await_line(str(own.file("server.key")), since=mark)
    assert shown(broker) == serial


@BOTH
def test_client_revoked_meanwhile_does_not_come_back(serve, own, tls):
    """Neither with its certificate, nor by a session that it began when it was still good."""
    own.revoke()
    broker = serve(own, "mtls", shards=4, crl=own.file("crl.pem"))
    context = own.context("client", oldest=tls, newest=tls)
    other = own.context("revoked", oldest=tls, newest=tls)
    first, good = joined(broker, context), joined(broker, other)
    session = first.socket.session
    resumed = joined(broker, context, session)
    assert resumed.socket.session_reused
    resumed.close()
    own.revoke("client")
    reload(broker)
    for _ in range(8):
        assert refusal(broker, context) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        assert refusal(broker, context, session) is not None
        is_welcome(broker, other)
        is_welcome(broker, other, good.socket.session)
    for client in (first, good):
        client.close()


def test_client_of_a_ca_that_was_replaced_does_not_come_back(serve, own):
    broker = serve(own, "mtls", shards=4)
    context = own.context("client")
    first = joined(broker, context)
    session = first.socket.session
    own.file("ca.pem").write_bytes(own.file("another-ca.pem").read_bytes())
    reload(broker)
    for _ in range(8):
        assert refusal(broker, context) == "TLSV1_ALERT_UNKNOWN_CA"
        assert refusal(broker, context, session) is not None
    first.close()


# at start


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem", "crl.pem"])
def test_bad_file_at_start_is_an_error_that_names_it(own, tmp_path, name, spoil):
    block = listener("mtls", own)
    block["tls"]["crl"] = str(own.file("crl.pem"))
    spoil(own.file(name), own)
    status, said = run_to_end([block], tmp_path)
    assert status == 1, said
    assert str(own.file(name)) in said
    assert "panicked" not in said
