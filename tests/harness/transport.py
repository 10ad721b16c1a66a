# SPDX-License-Identifier: Apache-2.0
"""The ways to a broker. CORQTT_TEST_TRANSPORT chooses the one that the shared suites take."""

import atexit
import dataclasses
import os
import shutil
import socket
import struct
import tempfile
from pathlib import Path

from . import DEADLINE, certificates
from .websocket import WebSocket

# what the log calls a listener of that transport
PROTOCOLS = {
    "tcp": "tcp",
    "tls": "tls",
    "mtls": "tls",
    "ws": "ws",
    "wss": "wss",
    "unix": "unix",
    "proxy1": "tcp",
    "proxy2": "tcp",
}
ENCRYPTED = ("tls", "mtls", "wss")
CHOSEN = os.environ.get("CORQTT_TEST_TRANSPORT") or "tcp"
LOOPBACK = "127.0.0.1"

if CHOSEN not in PROTOCOLS:
    raise ValueError(f"CORQTT_TEST_TRANSPORT={CHOSEN}: there are {', '.join(PROTOCOLS)}")


def listener(transport, authority=None):
    """A block of `mqtt.listeners` for this transport; a unix socket has a folder of its own each time."""
    authority = authority or certificates.authority()
    if transport == "unix":
        return {"kind": "unix", "address": str(socket_path())}
    block = {"kind": PROTOCOLS[transport], "address": f"{LOOPBACK}:0"}
    if transport in ENCRYPTED:
        block["tls"] = {
            "server-cert": str(authority.file("server.pem")),
            "server-key": str(authority.file("server.key")),
        }
        if transport == "mtls":
            block["tls"]["ca-cert"] = str(authority.ca)
    if transport.startswith("proxy"):
        block["proxy-protocol-from"] = ["127.0.0.0/8"]
    return block


def socket_path():
    """Where a unix socket may be. Its path has room for 107 bytes, which TMPDIR may well exceed."""
    directory = tempfile.mkdtemp(prefix="corqtt-test-", dir="/tmp")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory, "mqtt.sock")


def proxy_v1(source, target):
    family = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {family} {source[0]} {target[0]} {source[1]} {target[1]}\r\n".encode()


PROXY2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def proxy_v2(source=None, target=None, *, command=1, family=None, extra=b""):
    """A version 2 header; without addresses it is LOCAL, as load balancers send it with their own checks."""
    if source is None:
        block, family, command = b"", 0, 0
    else:
        kind = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
        block = b"".join(socket.inet_pton(kind, each[0]) for each in (source, target))
        block += struct.pack(">HH", source[1], target[1])
        if family is None:
            family = 0x21 if kind == socket.AF_INET6 else 0x11
    block += extra
    return PROXY2_SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(block)) + block


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A listener of a broker as a client sees it. `port` is 0 and `path` the socket's for unix."""

    transport: str
    host: str = LOOPBACK
    port: int = 0
    path: str = None
    authority: certificates.Authority = None

    @property
    def endpoint(self):
        return self

    @property
    def is_encrypted(self):
        return self.transport in ENCRYPTED

    @property
    def is_websocket(self):
        return self.transport in ("ws", "wss")

    @property
    def url_host(self):
        return f"{self.host}:{self.port}"

    def connect(self, source=None):
        """The bare connection, without anything said on it."""
        if self.transport == "unix":
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(DEADLINE)
            try:
                made.connect(self.path)
            except BaseException:
                made.close()
                raise
            return made
        made = socket.create_connection((self.host, self.port), DEADLINE, source)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def preface(self, made):
        """What a load balancer would say before the client's first byte: the addresses that are true anyway."""
        if self.transport == "proxy1":
            made.sendall(proxy_v1(made.getsockname(), made.getpeername()))
        elif self.transport == "proxy2":
            made.sendall(proxy_v2(made.getsockname(), made.getpeername()))
        return made

    def context(self, **options):
        """For TLS, with the client certificate where the transport wants one."""
        if self.transport == "mtls":
            options.setdefault("client", "client")
        return (self.authority or certificates.authority()).context(**options)

    def open(self, source=None):
        """A connection that carries MQTT, however it is wrapped."""
        made = self.preface(self.connect(source))
        try:
            if self.is_encrypted:
                made = self.context().wrap_socket(made, server_hostname=self.host)
            if self.is_websocket:
                return WebSocket(made, self.url_host)
        except BaseException:
            made.close()
            raise
        return made
