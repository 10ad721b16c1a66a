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

from . import DEADLINE, Deadline

ROOT = Path(__file__).resolve().parents[2]
ATTACHED = re.compile(r"attached listener address=(\S+):(\d+) id=tcp protocol=tcp")
LINES_KEPT = 4000


class Broker:
    """Where clients connect. `process` is None for a broker that somebody else runs."""

    def __init__(self, host, port):
        self.host = host
        self.port = port
        self.process = None
        self.lines = collections.deque(maxlen=LINES_KEPT)

    @property
    def address(self):
        return (self.host, self.port)

    def log_tail(self, count=60):
        return "".join(list(self.lines)[-count:])


class SpawnedBroker(Broker):
    """One broker process of ours on a free loopback port, up when the constructor returns."""

    def __init__(self, *, conf=None, shards=None, runtime=None):
        super().__init__("127.0.0.1", 0)
        self._directory = tempfile.TemporaryDirectory(prefix="corqtt-test-")
        command = [
            binary(),
            "--tcp=127.0.0.1:0",
            f"--shards={shards or os.environ.get('CORQTT_TEST_SHARDS', '1')}",
            f"--runtime={runtime or os.environ.get('CORQTT_TEST_RUNTIME', 'auto')}",
            "--level=debug",
        ]
        if conf is not None:
            path = Path(self._directory.name, "broker.yml")
            path.write_text(conf)
            command += ["--conf", str(path)]
        self._changed = threading.Condition()
        self._eof = False
        self.panicked = False
        self.process = subprocess.Popen(
            command,
            cwd=self._directory.name,
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

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                if "panicked at" in line:
                    self.panicked = True
                if match := ATTACHED.search(line):
                    self.port = int(match.group(2))
                self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    def _await_start(self):
        deadline = Deadline("the broker logs `server started`", DEADLINE * 2)
        with self._changed:
            while not any("server started" in line for line in self.lines):
                if self._eof:
                    raise AssertionError(f"the broker exited at start:\n{self.log_tail()}")
                self._changed.wait(deadline.left())
        assert self.port, f"no listener line before `server started`:\n{self.log_tail()}"

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
    host, _, port = address.rpartition(":")
    return Broker(host, int(port))
