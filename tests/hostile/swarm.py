# SPDX-License-Identifier: Apache-2.0
"""Thousands of sockets in one epoll loop, each driven by a script.

A script is a generator that is handed its `Peer` once the connection stands, and yields what it wants next:

* bytes: to be written, all of them; it goes on in the next pass of the loop, so others get their turn between two bytes
* READ: the next bytes from the broker; b"" once it has closed or reset the connection
* a number: so many seconds, or sooner; answers None when they have passed, else what READ would

It ends by returning; its socket is closed then, unless it took the socket with `peer.keep()`.
At most `width` scripts run at once. `run` ends with the last script, or at `deadline`, which is a fault.
"""

import errno
import heapq
import itertools
import select
import socket
import struct
import time

READ = object()
RESET = struct.pack("ii", 1, 0)
CHUNK = 1 << 16
# Source addresses, so that ports in TIME_WAIT are never short.
SOURCES = 200


class Peer:
    """One connection to the broker."""

    def __init__(self, sock, family):
        self.socket = sock
        self.family = family
        self.script = None
        self.out = memoryview(b"")
        self.wants = None
        self.timer = 0
        self.ready = False
        self.kept = False
        self.gone = False

    def keep(self):
        """The socket outlives the script; the caller closes it."""
        self.kept = True
        return self.socket

    def half_close(self):
        """No more bytes from here: FIN."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def reset(self):
        """Closing sends RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


class Swarm:
    """Runs scripts against one address: (host, port), or the path of a Unix socket."""

    def __init__(self, address, *, width=256, seconds=60, stopping=lambda: False, buffers=None):
        self.address = address
        self.width = width
        self.end = time.monotonic() + seconds
        self.stopping = stopping
        self.buffers = buffers
        self.poll = select.epoll()
        self.peers = {}
        self.ready = []
        self.timers = []
        self.count = itertools.count()
        # connections that the broker's host refused or that could not be made
        self.refused = 0
        self.started = 0
        self.late = 0

    def run(self, scripts):
        """Drives `scripts`, functions of a peer, until all have ended; answers how many did not in time."""
        scripts = iter(scripts)
        more = True
        try:
            while True:
                while more and len(self.peers) < self.width:
                    if self.stopping() or (script := next(scripts, None)) is None:
                        more = False
                    else:
                        self._start(script)
                if not self.peers:
                    return self.late
                now = time.monotonic()
                if now >= self.end:
                    self.late = len(self.peers)
                    return self.late
                self._pass(now)
        finally:
            for peer in list(self.peers.values()):
                self._end(peer)
            self.poll.close()

    def _start(self, script):
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            if self.address[0] == "127.0.0.1":
                sock.bind((f"127.0.0.{2 + self.started % SOURCES}", 0))
        if self.buffers:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffers)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffers)
        self.started += 1
        peer = Peer(sock, family)
        peer.script = script
        failed = sock.connect_ex(self.address)
        if failed not in (0, errno.EINPROGRESS):
            self.refused += 1
            sock.close()
            return
        self.peers[sock.fileno()] = peer
        self.poll.register(sock, select.EPOLLOUT)
        peer.wants = "connect"

    def _pass(self, now):
        ready, self.ready = self.ready, []
        for peer in ready:
            peer.ready = False
            if not peer.gone:
                self._advance(peer, None)
        timeout = 0 if self.ready else min(self.end - now, 0.5)
        if self.timers and not self.ready:
            timeout = max(0, min(timeout, self.timers[0][0] - now))
        for fd, events in self.poll.poll(timeout, 1024):
            if (peer := self.peers.get(fd)) is not None:
                self._event(peer, events)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, number, peer = heapq.heappop(self.timers)
            if not peer.gone and peer.timer == number:
                peer.timer = 0
                self._advance(peer, None)

    def _event(self, peer, events):
        if peer.wants == "connect":
            if peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.refused += 1
                self._end(peer)
                return
            peer.script = peer.script(peer)
            self._advance(peer, None)
        elif peer.wants == "write":
            self._write(peer)
        elif peer.wants == "read":
            try:
                data = peer.socket.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            peer.timer = 0
            self._advance(peer, data)

    def _advance(self, peer, value):
        try:
            wish = peer.script.send(value)
        except StopIteration:
            self._end(peer)
            return
        if wish is READ:
            self._wait(peer, "read")
        elif isinstance(wish, (int, float)):
            peer.timer = next(self.count) + 1
            heapq.heappush(self.timers, (time.monotonic() + wish, peer.timer, peer))
            self._wait(peer, "read")
        else:
            peer.out = memoryview(wish)
            self._write(peer)

    def _write(self, peer):
        """Writes what the socket takes. Where the broker has hung up is for a read to find out."""
        try:
            while peer.out:
                peer.out = peer.out[peer.socket.send(peer.out) :]
        except BlockingIOError:
            # a broker that has closed makes the socket readable, not writable
            self._wait(peer, "write")
            return
        except OSError:
            peer.out = memoryview(b"")
        self._wait(peer, "pass")
        if not peer.ready:
            peer.ready = True
            self.ready.append(peer)

    def _wait(self, peer, wants):
        if peer.wants == wants:
            return
        peer.wants = wants
        mask = {"read": select.EPOLLIN | select.EPOLLRDHUP, "write": select.EPOLLOUT, "pass": 0}[wants]
        self.poll.modify(peer.socket, mask)

    def _end(self, peer):
        peer.gone = True
        fd = peer.socket.fileno()
        if self.peers.pop(fd, None) is not None:
            self.poll.unregister(fd)
        if hasattr(peer.script, "close"):
            peer.script.close()
        if not peer.kept:
            peer.socket.close()


def drain(peer):
    """Reads and forgets until the broker closes."""
    while (yield READ) != b"":
        pass
