# SPDX-License-Identifier: Apache-2.0
"""A real redis of its own, on a free loopback port, that syncs each write."""

import shutil
import signal
import socket
import subprocess
import tempfile

from . import DEADLINE, Deadline
from .transport import LOOPBACK

TRIES = 5


def store_flags(way, path, redis=None):
    """The flags of a broker with that store; `redis` is there for the way of that name."""
    if redis is None:
        return (f"--storage-way={way}", f"--storage-path={path}")
    return (f"--storage-way={way}", f"--redis={redis.address}", "--node-name=c01")


class Redis:
    """Up when the constructor returns. Its data outlives `kill`, and `start` reads them again."""

    def __init__(self):
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is not installed; the Debian package is redis-server")
        self._directory = tempfile.TemporaryDirectory(prefix="corqtt-redis-")
        self.port, self.process = None, None
        for _ in range(TRIES):
            # free now; whoever takes it meanwhile makes this one end, and another one is tried
            with socket.create_server((LOOPBACK, 0)) as free:
                self.port = free.getsockname()[1]
            try:
                return self.start()
            except ChildProcessError:
                continue
        raise RuntimeError(f"redis-server did not start in {TRIES} tries")

    @property
    def address(self):
        return f"{LOOPBACK}:{self.port}"

    def start(self):
        self.process = subprocess.Popen(
            [
                "redis-server",
                *("--bind", LOOPBACK, "--port", str(self.port), "--dir", self._directory.name),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = Deadline(f"redis on {self.address}", DEADLINE)
        while True:
            if self.process.poll() is not None:
                raise ChildProcessError(f"redis-server ended with {self.process.returncode}")
            try:
                if self.command("PING") == b"+PONG\r\n":
                    return
            except OSError:
                deadline.left()

    def command(self, *words):
        """The first bytes of the answer."""
        sent = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in (each.encode() for each in words))
        with socket.create_connection((LOOPBACK, self.port), DEADLINE) as link:
            link.sendall(b"*%d\r\n%s" % (len(words), sent))
            return link.recv(1 << 16)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        self._directory.cleanup()
