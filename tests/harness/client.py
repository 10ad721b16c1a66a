# SPDX-License-Identifier: Apache-2.0
"""paho-mqtt clients, all of one test driven by one loop in the test's own thread.

Nothing happens between two calls, so a test reads as the order of events that it is.
"""

import collections
import os
import selectors
import socket
import ssl

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from . import V5, V31, V311, Deadline, unique

PROTOCOLS = {V31: paho.MQTTv31, V311: paho.MQTTv311, V5: paho.MQTTv5}
NO_CONNECTION = "closed"

Will = collections.namedtuple("Will", "topic payload qos retain properties", defaults=(b"", 0, False, {}))


def properties(kind, named):
    """paho's property object from snake case names: message_expiry_interval=3."""
    found = Properties(kind)
    for name, value in named.items():
        setattr(found, "".join(part.capitalize() for part in name.split("_")), value)
    return found


class Message:
    """What the application gets: the fields of PUBLISH; properties by their snake case names."""

    def __init__(self, message):
        self.topic = message.topic
        self.payload = message.payload
        self.qos = message.qos
        self.retain = bool(message.retain)
        self.dup = bool(message.dup)
        self.mid = message.mid
        self._properties = message.properties

    def property(self, name):
        found = "".join(part.capitalize() for part in name.split("_"))
        return getattr(self._properties, found, None)

    def __repr__(self):
        return f"Message({self.topic!r}, {self.payload[:40]!r}, qos={self.qos}, retain={self.retain})"


class Paho(paho.Client):
    """paho over the transport of an endpoint; what it cannot do itself is the PROXY header."""

    def __init__(self, endpoint, *args, **settings):
        self._endpoint = endpoint
        transport = "websockets" if endpoint.is_websocket else "unix" if endpoint.path else "tcp"
        super().__init__(*args, transport=transport, **settings)
        if endpoint.is_encrypted:
            self.tls_set_context(endpoint.context())

    def _create_socket_connection(self):
        return self._endpoint.preface(super()._create_socket_connection())

    def _create_socket(self):
        made = super()._create_socket()
        if self._endpoint.is_websocket:
            send_some = made.send

            def send(data):
                # paho 2.2 forgets a packet of which the kernel took only a part, unless it hears that it has to wait:
                # https://github.com/eclipse-paho/paho.mqtt.python/issues/887
                if (sent := send_some(data)) == 0:
                    raise BlockingIOError
                return sent

            made.send = send
        return made

    @property
    def kernel_socket(self):
        """The socket below WebSocket and TLS, as a descriptor of its own."""
        return socket.socket(fileno=os.dup(self.socket().fileno()))

    @property
    def has_more(self):
        """There is something to read that no selector knows of.

        Bytes that TLS took off the socket and paho has not read, or a packet that paho has read and not handled: it stops
        after a hundred reads, also when the last of them ended the packet.
        """
        packet = self._in_packet
        if packet["command"] and packet["have_remaining"] and packet["to_process"] == 0:
            return True
        sock = self.socket()
        sock = getattr(sock, "_socket", sock)
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0


class Loop:
    """Reads and writes for every connected client until a fact holds."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()

    def until(self, fact, what, seconds=None):
        deadline = Deadline(what, seconds)
        while not fact():
            for key, events in self._selector.select(min(deadline.left(), 1)):
                if events & selectors.EVENT_READ:
                    key.data.loop_read()
                    while key.data.has_more:
                        key.data.loop_read()
                if events & selectors.EVENT_WRITE and key.data.socket() is not None:
                    key.data.loop_write()

    def attach(self, client):
        def on_open(client, _userdata, sock):
            # paho leaves Nagle on: what it sends twice in a row waits up to 40 ms for the broker's kernel to ack
            with client.kernel_socket as below:
                if below.family != socket.AF_UNIX:
                    below.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, client)

        def on_close(_client, _userdata, sock):
            self._selector.unregister(sock)

        def on_write(client, _userdata, sock):
            self._selector.modify(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)

        def on_written(client, _userdata, sock):
            if sock in self._selector.get_map():
                self._selector.modify(sock, selectors.EVENT_READ, client)

        client.on_socket_open = on_open
        client.on_socket_close = on_close
        client.on_socket_register_write = on_write
        client.on_socket_unregister_write = on_written


class Client:
    """One paho client. Every verb waits for the broker's answer and returns it."""

    def __init__(self, loop, broker, version, client_id=None, *, clean=True, manual_ack=False):
        self.loop, self.broker, self.version, self.clean = loop, broker, version, clean
        self.id = unique("c") if client_id is None else client_id
        self.inbox = collections.deque()
        self.connack = self.closed = None
        self._answers = {}
        self.paho = Paho(
            broker.endpoint,
            CallbackAPIVersion.VERSION2,
            self.id,
            clean_session=None if version == V5 else clean,
            protocol=PROTOCOLS[version],
            reconnect_on_failure=False,
            manual_ack=manual_ack,
        )
        self.paho.max_inflight_messages_set(1000)
        self.paho.max_queued_messages_set(0)
        loop.attach(self.paho)
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_message = lambda _c, _u, message: self.inbox.append(Message(message))
        self.paho.on_publish = lambda _c, _u, mid, code, props: self._answers.update({mid: (code, props)})
        self.paho.on_subscribe = lambda _c, _u, mid, codes, props: self._answers.update({mid: (codes, props)})
        self.paho.on_unsubscribe = self.paho.on_subscribe

    def _on_connect(self, _client, _userdata, flags, reason, props):
        self.connack = (flags.session_present, reason.value, props)

    def _on_disconnect(self, _client, _userdata, flags, reason, _properties):
        self.closed = reason.value if flags.is_disconnect_packet_from_server else NO_CONNECTION

    # connection

    def start_connect(self, *, keep_alive=60, will=None, **named):
        """Sends CONNECT and does not wait. `session_expiry_interval` and the like go to 5.0 only."""
        self.connack = self.closed = None
        extra = {}
        if self.version == V5:
            if not self.clean:
                named.setdefault("session_expiry_interval", 3600)
            extra["clean_start"] = self.clean
            extra["properties"] = properties(PacketTypes.CONNECT, named)
        if will is not None:
            of_will = properties(PacketTypes.WILLMESSAGE, will.properties) if self.version == V5 else None
            self.paho.will_set(will.topic, will.payload, will.qos, will.retain, of_will)
        to = self.broker.endpoint
        # paho takes the path of a unix socket for a host and still wants a port
        self.paho.connect(to.path or to.host, to.port or 1, keep_alive, **extra)

    def connect(self, **settings):
        self.start_connect(**settings)
        self.loop.until(lambda: self.connack or self.closed, "CONNACK")
        assert self.connack is not None, f"closed instead of CONNACK: {self.closed}"
        assert self.connack[1] == 0, f"refused with {self.connack[1]:#x}"
        return self

    @property
    def resumed(self):
        """Session Present; what 3.1, which has no such flag, doesn't deny counts as resumed."""
        return self.connack[0] or self.version == V31

    @property
    def fresh(self):
        return not self.connack[0]

    def connack_property(self, name):
        return getattr(self.connack[2], "".join(part.capitalize() for part in name.split("_")), None)

    @property
    def connected(self):
        return self.paho.socket() is not None

    def disconnect(self, reason=0, **named):
        """DISCONNECT; returns once the broker, having read it, has closed its side."""
        if not self.connected:
            return
        own_end = self.paho.kernel_socket
        try:
            if self.version == V5:
                code = ReasonCode(PacketTypes.DISCONNECT, identifier=reason)
                self.paho.disconnect(code, properties(PacketTypes.DISCONNECT, named))
            else:
                self.paho.disconnect()
            self.loop.until(lambda: self.closed is not None, "DISCONNECT written")
            await_close(own_end, "the broker closes after DISCONNECT")
        finally:
            own_end.close()

    def drop(self):
        """Ends the connection as a dead network does, without DISCONNECT."""
        with self.paho.kernel_socket as below:
            below.shutdown(socket.SHUT_RDWR)
        self.loop.until(lambda: self.closed is not None, "the socket is closed")

    def await_closed(self, seconds=None):
        """The broker closed the connection: its reason code (5.0), or NO_CONNECTION."""
        self.loop.until(lambda: self.closed is not None, "the broker closes", seconds)
        return self.closed

    # packets

    def _answer(self, mid, what):
        self.loop.until(lambda: mid in self._answers or self.closed is not None, what)
        assert mid in self._answers, f"closed ({self.closed}) while waiting for {what}"
        return self._answers.pop(mid)

    def subscribe(self, *filters, **options):
        """Answers the codes of SUBACK; for the arguments see `start_subscribe`."""
        return self.granted(self.start_subscribe(*filters, **options))

    def start_subscribe(self, *filters, qos=0, no_local=False, as_published=False, handling=0, identifier=None):
        """Sends SUBSCRIBE and does not wait; answers the packet id.

        Each filter is a string or a (filter, QoS) pair; what follows `qos` goes to 5.0 only.
        """
        pairs = [each if isinstance(each, tuple) else (each, qos) for each in filters]
        if self.version == V5:
            options = [
                (each, SubscribeOptions(level, no_local, as_published, handling)) for each, level in pairs
            ]
            named = {} if identifier is None else {"subscription_identifier": identifier}
            _, mid = self.paho.subscribe(options, properties=properties(PacketTypes.SUBSCRIBE, named))
        else:
            _, mid = self.paho.subscribe(pairs)
        return mid

    def granted(self, mid):
        return [code.value for code in self._answer(mid, "SUBACK")[0]]

    def unsubscribe(self, *filters):
        """Answers the codes of UNSUBACK, which only 5.0 has."""
        _, mid = self.paho.unsubscribe(list(filters))
        return [code.value for code in self._answer(mid, f"UNSUBACK for {filters}")[0]]

    def send(self, topic, payload=b"", qos=0, retain=False, **named):
        """PUBLISH without waiting; answers the packet id."""
        props = properties(PacketTypes.PUBLISH, named) if self.version == V5 else None
        return self.paho.publish(topic, payload, qos, retain, props).mid

    def publish(self, topic, payload=b"", qos=0, retain=False, **named):
        """PUBLISH and its whole QoS flow; answers the reason code of PUBACK or PUBCOMP."""
        return self._answer(self.send(topic, payload, qos, retain, **named), f"{topic} acknowledged")[0].value

    def receive(self, count=None, seconds=None):
        """The next message, or a list of the next `count`."""
        wanted = 1 if count is None else count
        self.loop.until(
            lambda: len(self.inbox) >= wanted or self.closed is not None,
            Shortage(self, wanted),
            seconds,
        )
        assert len(self.inbox) >= wanted, f"closed ({self.closed}) with {len(self.inbox)} of {wanted} messages"
        taken = [self.inbox.popleft() for _ in range(wanted)]
        return taken[0] if count is None else taken

    def fence(self, via, qos=2):
        """Everything that arrived before a marker that `via` publishes now: proof of absence without a wait.

        The marker follows on the path of what `via` published before it, so it can't overtake that.
        """
        topic = unique("fence/")
        self.subscribe(topic, qos=qos)
        via.publish(topic, qos=qos)
        before = []
        while (message := self.receive()).topic != topic:
            before.append(message)
        self.unsubscribe(topic)
        return before


class Shortage:
    """Says what an inbox lacks, once somebody asks."""

    def __init__(self, client, wanted):
        self.client, self.wanted = client, wanted

    def __str__(self):
        inbox = self.client.inbox
        return f"{self.wanted} messages at {self.client.id}, which has {len(inbox)}: {list(inbox)[:5]}"


def await_close(sock, what):
    """Reads until the other side has closed."""
    deadline = Deadline(what)
    while True:
        sock.settimeout(deadline.left())
        try:
            if not sock.recv(1 << 16):
                return
        except TimeoutError:
            continue
        except OSError:
            return


class World:
    """All clients of one test, of one version unless a test says otherwise."""

    def __init__(self, broker, version):
        self.broker, self.version = broker, version
        self.loop = Loop()
        self.clients = []
        self.prefix = unique("t")

    def topic(self, *levels):
        return "/".join((self.prefix, *levels))

    def client(self, client_id=None, *, version=None, clean=True, manual_ack=False):
        made = Client(
            self.loop, self.broker, version or self.version, client_id, clean=clean, manual_ack=manual_ack
        )
        self.clients.append(made)
        return made

    def connect(self, client_id=None, *, version=None, clean=True, manual_ack=False, **settings):
        return self.client(client_id, version=version, clean=clean, manual_ack=manual_ack).connect(**settings)

    def alarm(self, seconds):
        """Returns when the broker itself has measured that time: by then it sent a will delayed by it."""
        topic = unique("alarm/")
        watcher = self.connect(version=V5)
        watcher.subscribe(topic)
        dying = self.connect(
            version=V5,
            will=Will(topic, properties={"will_delay_interval": seconds}),
            session_expiry_interval=seconds + 60,
        )
        dying.drop()
        watcher.receive(seconds=seconds + 10)

    def close(self):
        for client in self.clients:
            if client.connected:
                client.paho.disconnect()
                client.loop.until(lambda client=client: client.closed is not None, "closed at the test's end")
