# SPDX-License-Identifier: Apache-2.0
"""A broker of its own, an attack on it from another process, and a well-behaved client beside it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from harness import DEADLINE, V5, V311, Deadline, unique
from harness.broker import ROOT, SpawnedBroker
from harness.transport import listener
from harness.wire import PUBACK, PUBLISH, Wire, ack, publish

TESTS = ROOT / "tests"
# An attack is repeated until it has lasted this long; it breaks off after so long; then it may take that long to end.
AT_LEAST_SECONDS = 2
ATTACK_SECONDS = 45
STOP_SECONDS = 30


def settings(attack, small):
    """YAML for a broker that this attack is made for."""
    memory_max = attack.small_memory_max if small else attack.memory_max
    lines = ["mqtt:", "  limits:", f"    memory-max: {memory_max}"]
    for key, value in attack.limits.items():
        lines.append(f"    {key}: {str(value).format(**attack.size(small))}")
    return "\n".join(lines) + "\n"


class Target(SpawnedBroker):
    """The broker under attack: its listeners, and what it costs."""

    def __init__(self, attack, small, *, cpu=None):
        self.attack = attack
        self.memory_max = attack.small_memory_max if small else attack.memory_max
        prefix, arguments = [], []
        if attack.descriptors:
            prefix += ["prlimit", f"--nofile={attack.descriptors}:{attack.descriptors}"]
        if cpu is not None:
            prefix += ["taskset", "-c", str(cpu)]
            arguments += [f"--cpus={cpu}"]
        super().__init__(
            conf=settings(attack, small),
            listeners=[(kind, listener(kind)) for kind in ("tcp", *attack.listeners)],
            shards=1 if cpu is not None else None,
            level="info",
            prefix=prefix,
            arguments=arguments,
        )
        self.size = {
            key: value.format(directory=self.directory) if isinstance(value, str) else value
            for key, value in attack.size(small).items()
        }
        self.addresses = {each.transport: each.path or (each.host, each.port) for each in self.endpoints}
        if attack.prepare is not None:
            try:
                attack.prepare(self, self.size)
            except BaseException:
                self.kill()
                raise

    def peak_bytes(self):
        """The largest resident size that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024

    def metrics(self):
        """What /metrics says; None where the broker has no HTTP interface."""
        if self.http is None:
            return None
        with urllib.request.urlopen("http://{}:{}/metrics".format(*self.http), timeout=DEADLINE) as answer:
            return answer.read().decode()



class Attacker:
    """The process that attacks, from its construction on; the end of `with` kills it if it still runs."""

    def __init__(self, target, *, at_least=AT_LEAST_SECONDS, seconds=ATTACK_SECONDS, prefix=()):
        given = {"addresses": target.addresses, "size": target.size, "at_least": at_least, "seconds": seconds}
        self.name = target.attack.name
        self.seconds = seconds
        self.outcome = None
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "hostile.attacks", self.name, json.dumps(given)],
            cwd=TESTS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        first = self.process.stdout.readline()
        assert first and json.loads(first).get("pressing"), f"the attack {self.name} did not begin"

    def wait(self):
        """Its rounds are done; answers what it noted."""
        return self._end(self.seconds + STOP_SECONDS)

    def finish(self):
        """Lets it end with the round under way."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
        return self.wait()

    def _end(self, seconds):
        if self.outcome is None:
            try:
                text, _ = self.process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()
                raise AssertionError(f"the attack {self.name} did not end within {seconds} s") from None
            assert text.strip(), f"the attack {self.name} ended with {self.process.returncode} and said nothing"
            self.outcome = json.loads(text.splitlines()[-1])
        return self.outcome

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Witness(threading.Thread):
    """A client that publishes to itself, one message at a time, and another that comes anew each time.

    `served` counts round trips, `met` newcomers; `worst` is the longest round trip, `faults` what went wrong.
    """

    PAUSE = 0.02

    def __init__(self, target, *, newcomers=True):
        super().__init__(daemon=True)
        self.target = target
        self.newcomers = newcomers
        self.over = threading.Event()
        self.served = self.met = 0
        self.worst = 0.0
        self.faults = []
        self.topic = unique("witness/")
        self.wire = Wire(target, V5)
        self.wire.connect(keep_alive=0)
        self.wire.subscribe(self.topic, 1)

    def run(self):
        # the pause is the client's pace, nothing waits for it
        while not self.over.wait(self.PAUSE):
            try:
                began = time.monotonic()
                self._round_trip()
                self.worst = max(self.worst, time.monotonic() - began)
                if self.newcomers and self.served % 5 == 0:
                    self._newcomer()
            except (AssertionError, OSError) as wrong:
                self.faults.append(f"after {self.served} round trips, {self.met} newcomers: {wrong}")
                return

    def _round_trip(self):
        self.served += 1
        payload = str(self.served).encode()
        self.wire.send(publish(V5, self.topic, payload, qos=1, pid=1))
        wanted = {PUBACK, PUBLISH}
        while wanted:
            found = self.wire.receive()
            assert found is not None, "the well-behaved client was closed"
            assert found.kind in wanted, f"the well-behaved client got {found}"
            wanted.discard(found.kind)
            if found.kind == PUBLISH:
                assert found.payload == payload, f"wanted {payload}, got {found.payload}"
                self.wire.send(ack(PUBACK, found.pid))
            else:
                assert found.reason < 0x80, f"its publish was refused with {found.reason:#x}"

    def _newcomer(self):
        wire = Wire(self.target, V311)
        try:
            wire.connect()
            wire.expect_alive()
            self.met += 1
        finally:
            wire.close()

    def end(self):
        self.over.set()
        self.join(DEADLINE * 3)
        assert not self.is_alive(), "the well-behaved client waits for ever"
        self.wire.close()


@contextlib.contextmanager
def witnessed(target, *, newcomers=True):
    """A well-behaved client during the block."""
    witness = Witness(target, newcomers=newcomers)
    witness.start()
    try:
        yield witness
    finally:
        witness.end()


def sockets(pid):
    """How many sockets a process has open."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(entry).startswith("socket:")
    return count


def settled(target, before):
    """Waits until the broker has let go of what an attack left: no more sockets than before it."""
    deadline = Deadline("the broker closes the sockets that the attack has left", STOP_SECONDS)
    waiting = threading.Event()
    while sockets(target.process.pid) > before:
        waiting.wait(min(0.05, deadline.left()))


def answers(target):
    """That a new client is served. It may have to wait until what the attack left has been cleared away."""
    deadline = Deadline("a new client is served after the attack", DEADLINE * 2)
    while True:
        wire = Wire(target, V5)
        try:
            wire.connect()
            wire.expect_alive()
            return
        except (AssertionError, OSError) as wrong:
            if time.monotonic() >= deadline.end:
                raise AssertionError(f"{deadline.what}: {wrong}") from wrong
        finally:
            wire.close()
