# SPDX-License-Identifier: Apache-2.0
"""The broker as a process: start with given settings, read what it logs, stop it with SIGTERM."""

import collections
import os
import re
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import yaml

from . import DEADLINE, Deadline
from .transport import CHOSEN, ENCRYPTED, LOOPBACK, PROTOCOLS, Endpoint, listener

ROOT = Path(__file__).resolve().parents[2]
ATTACHED = re.compile(r"attached listener address=(\S+) id=(\S+) protocol=(\S+)")
LINES_KEPT = 4000


class Broker:
    """Where clients connect. `process` is None for a broker that somebody else runs."""

    def __init__(self, endpoint=None):
        # the listener that clients take unless a test says otherwise
        self.endpoint = endpoint
        # (host, port) of its HTTP interface
        self.http = None
        self.process = None
        self.lines = collections.deque(maxlen=LINES_KEPT)

    @property
    def host(self):
        return self.endpoint.host

    @property
    def port(self):
        return self.endpoint.port

    def log_tail(self, count=60):
        return "".join(list(self.lines)[-count:])


class SpawnedBroker(Broker):
    """One broker process of ours on a free loopback port, up when the constructor returns.

    `conf` is YAML. Its listeners are those of `listeners`, a list of (transport, block of `mqtt.listeners`), or one of
    the transport that the suite runs over, and then those of `flags`, from the flag's name to its address. `arguments`
    follow the binary's name, `prefix` are the words of a command that runs it. `http` is where HTTP listens; `env` is
    added to the environment.
    """

    def __init__(
        self,
        *,
        conf=None,
        listeners=None,
        flags=None,
        shards=None,
        runtime=None,
        level="debug",
        arguments=(),
        prefix=(),
        http=f"{LOOPBACK}:0",
        env=None,
    ):
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="corqtt-test-")
        self._changed = threading.Condition()
        self._eof = False
        self._lines_gone = 0
        self._attached = []
        self.panicked = False
        try:
            command = [
                *prefix,
                *self._command(conf, listeners, flags or {}, shards, runtime, level),
                f"--http={http}",
                *arguments,
            ]
        except BaseException:
            self._directory.cleanup()
            raise
        self.process = subprocess.Popen(
            command,
            cwd=self._directory.name,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._await_start()
        except BaseException:
            self.kill()
            raise

    def _command(self, conf, listeners, flags, shards, runtime, level):
        if listeners is None:
            listeners = [(CHOSEN, listener(CHOSEN))]
        self._wanted = [*(transport for transport, _ in listeners), *flags]
        path = self.directory / "broker.yml"
        path.write_text(with_listeners(conf, [block for _, block in listeners]))
        return [
            binary(),
            "--conf",
            str(path),
            f"--shards={shards or os.environ.get('CORQTT_TEST_SHARDS', '1')}",
            f"--runtime={runtime or os.environ.get('CORQTT_TEST_RUNTIME', 'auto')}",
            f"--level={level}",
            *(f"--{flag}={address}" for flag, address in flags.items()),
        ]

    @property
    def directory(self):
        """Goes with the broker."""
        return Path(self._directory.name)

    @property
    def conf(self):
        """The file with its settings, if it was given some."""
        return self.directory / "broker.yml"

    @property
    def endpoints(self):
        """One for each listener, in the order of the settings."""
        return [endpoint_of(*each) for each in zip(self._wanted, self._attached, strict=True)]

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                if len(self.lines) == LINES_KEPT:
                    self._lines_gone += 1
                self.lines.append(line)
                if "panicked at" in line:
                    self.panicked = True
                if match := ATTACHED.search(line):
                    self._attach(match.groups())
                self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    def _attach(self, attached):
        address, _, protocol = attached
        if protocol == "http":
            host, _, port = address.rpartition(":")
            self.http = (host.strip("[]"), int(port))
        else:
            self._attached.append(attached)

    def _await_start(self):
        deadline = Deadline("the broker logs `server started`", DEADLINE * 2)
        with self._changed:
            while not any("server started" in line for line in self.lines):
                if self._eof:
                    raise AssertionError(f"the broker exited at start:\n{self.log_tail()}")
                self._changed.wait(deadline.left())
        assert len(self._attached) == len(self._wanted), f"not every listener was attached:\n{self.log_tail()}"
        self.endpoint = self.endpoints[0]

    def log_mark(self):
        """Where the log ends now, for `await_line`."""
        with self._changed:
            return self._lines_gone + len(self.lines)

    def await_line(self, *parts, since=0):
        """The first line after that mark that has all these parts."""
        deadline = Deadline(f"a line of the log with {parts}")
        with self._changed:
            while True:
                for line in list(self.lines)[max(since - self._lines_gone, 0) :]:
                    if all(part in line for part in parts):
                        return line
                assert not self._eof, f"the broker ended without a line with {parts}:\n{self.log_tail()}"
                self._changed.wait(deadline.left())

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def await_lines(self, fact, what, seconds=None):
        """Returns once `fact` holds of the lines that were logged."""
        deadline = Deadline(what, seconds)
        with self._changed:
            while not fact(self.lines):
                self._changed.wait(deadline.left())

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds=None):
        """Waits for the process to end by itself and answers its exit status."""
        try:
            status = self.process.wait(DEADLINE * 2 if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            tail = self.log_tail()
            self.kill()
            raise AssertionError(f"the broker did not exit after SIGTERM:\n{tail}") from None
        self._reader.join(DEADLINE)
        self._directory.cleanup()
        return status

    def stop(self):
        """SIGTERM, and the proof that it ended well: status 0 and no panic on the way."""
        if self.process.poll() is None:
            self.terminate()
        status = self.wait()
        assert status == 0, f"the broker exited with {status}:\n{self.log_tail()}"
        assert not self.panicked, f"the broker panicked:\n{self.log_tail()}"

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._directory.cleanup()


def binary():
    """The binary under test; the build with delaying doubles if CORQTT_TEST_DOUBLES is set."""
    if os.environ.get("CORQTT_TEST_DOUBLES"):
        return os.environ.get("CORQTT_DOUBLES_BIN", str(ROOT / "target/ci/corqtt-doubles"))
    return os.environ.get("CORQTT_BIN", str(ROOT / "target/ci/corqtt"))


def external():
    """The broker named by CORQTT_TEST_ADDRESS=host:port, or None."""
    address = os.environ.get("CORQTT_TEST_ADDRESS")
    if not address:
        return None
    if CHOSEN == "unix":
        return Broker(Endpoint(CHOSEN, path=address))
    if CHOSEN in ENCRYPTED:
        raise ValueError("CORQTT_TEST_ADDRESS: nobody else's broker has a certificate of our CA")
    host, _, port = address.rpartition(":")
    return Broker(Endpoint(CHOSEN, host, int(port)))


def with_listeners(conf, blocks):
    """Settings in YAML with these listeners among them."""
    settings = yaml.safe_load(conf or "{}")
    mqtt = settings.setdefault("mqtt", {})
    mqtt["listeners"] = blocks
    # its port is the same for every broker of this machine
    mqtt.setdefault("http", "off")
    return yaml.safe_dump(settings)


def endpoint_of(transport, attached):
    """What a `attached listener` line says, as clients see it."""
    address, name, protocol = attached
    assert protocol == PROTOCOLS[transport], f"listener {name} speaks {protocol}, wanted {transport}"
    if transport == "unix":
        return Endpoint(transport, path=address)
    host, _, port = address.rpartition(":")
    return Endpoint(transport, host, int(port))


def run_to_end(listeners, directory, seconds=None):
    """Runs a broker with these blocks, without HTTP, that is to end by itself; answers its exit status and all that it
    said."""
    path = Path(directory, "ends.yml")
    path.write_text(with_listeners("shards: 1", listeners))
    done = subprocess.run(
        [binary(), "--http=off", "--conf", str(path)],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds or DEADLINE * 2,
    )
    return done.returncode, done.stdout
