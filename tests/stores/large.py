# SPDX-License-Identifier: Apache-2.0
"""How long a broker with a large store takes from its start to serving, and what memory; `scripts/restart.sh` runs it.

The store is filled through the broker: persistent sessions that are away, with a thousand messages queued for each, and
retained messages, a topic each. Then the broker is stopped, the kernel is asked to forget what it has read of the disk
(which only root may), and the broker starts again. Serving means that a client gets CONNACK. After that, sessions drawn
at random come back and must get all of theirs in order, and `/metrics` must count all retained messages.
"""

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from harness import V311
from harness.broker import ROOT, SpawnedBroker
from harness.redis import store_flags
from harness.wire import PUBACK, PUBLISH, Wire, ack, persistent, publish

CONF = """\
mqtt:
  limits:
    queue-messages: 0
    queue-bytes: 0
    retained-messages: 0
    retained-bytes: 0
"""
PER_SESSION = 1000
BATCH = 1000
PAYLOAD_BYTES = 256
CHECKED_SESSIONS = 10
ACK_BYTES = 4


def status(pid, name):
    """MiB of one line of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M).group(1)) / 1024


def payload(number):
    return f"{number:010d}".encode().ljust(PAYLOAD_BYTES, b".")


class Flood:
    """Publishes with QoS 1, a batch at a time."""

    def __init__(self, broker):
        self.wire = Wire(broker, V311)
        self.wire.connect(keep_alive=0)
        self.wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.batch = []

    def publish(self, topic, content, retain=False):
        pid = len(self.batch) + 1
        self.batch.append(publish(V311, topic, content, qos=1, pid=pid, retain=retain))
        if len(self.batch) == BATCH:
            self.flush()

    def flush(self):
        wanted = len(self.batch) * ACK_BYTES
        self.wire.socket.settimeout(120)
        self.wire.socket.sendall(b"".join(self.batch))
        while wanted:
            got = len(self.wire.socket.recv(1 << 16))
            assert got, "the broker closed the connection"
            wanted -= got
        self.batch = []


def fill(broker, sessions, retained):
    for number in range(sessions):
        wire = Wire(broker, V311)
        wire.connect(f"away-{number}", keep_alive=0, **persistent(V311))
        wire.subscribe(f"large/{number}", 1)
        wire.close()
    flood = Flood(broker)
    for number in range(PER_SESSION):
        for session in range(sessions):
            flood.publish(f"large/{session}", payload(number))
    for number in range(retained):
        flood.publish(f"kept/{number % 1000}/{number}", payload(number), retain=True)
    flood.flush()


def forget_disk():
    """True if the kernel did."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def check(broker, sessions, retained, seed):
    for number in random.Random(seed).sample(range(sessions), min(CHECKED_SESSIONS, sessions)):
        wire = Wire(broker, V311)
        assert wire.connect(f"away-{number}", **persistent(V311)).resumed, f"session {number} is gone"
        for wanted in range(PER_SESSION):
            found = wire.expect(PUBLISH)
            assert found.payload == payload(wanted), f"session {number}: wanted {wanted}, got {found}"
            wire.send(ack(PUBACK, found.pid))
        wire.close()
    host, port = broker.http
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    counted = sum(int(value) for value in re.findall(r"^corqtt_retained_messages\{[^}]*\} (\d+)$", text, re.M))
    assert counted == retained, f"{retained} retained messages were kept, {counted} are there"


def measure(way, directory, sessions, retained, shards, seed):
    flags = store_flags(way, directory / way)
    broker = SpawnedBroker(conf=CONF, shards=shards, level="info", arguments=(*flags, "--storage-sync=1000"))
    begun = time.monotonic()
    fill(broker, sessions, retained)
    filled = time.monotonic() - begun
    # what follows is about a store that is whole
    broker.stop()
    size = sum(path.stat().st_size for path in (directory / way).rglob("*") if path.is_file())
    cold = forget_disk()
    begun = time.monotonic()
    broker = SpawnedBroker(conf=CONF, shards=shards, level="info", arguments=flags)
    wire = Wire(broker, V311)
    wire.connect()
    serving = time.monotonic() - begun
    wire.close()
    result = {
        "store": way,
        "sessions": sessions,
        "queued": sessions * PER_SESSION,
        "retained": retained,
        "fill_s": round(filled, 1),
        "disk_mib": round(size / (1 << 20)),
        "cold": cold,
        "serving_s": round(serving, 2),
        "peak_mib": round(status(broker.process.pid, "VmHWM")),
        "steady_mib": round(status(broker.process.pid, "VmRSS")),
    }
    check(broker, sessions, retained, seed)
    broker.stop()
    return result


def main():
    parser = argparse.ArgumentParser(prog="scripts/restart.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="append", choices=("redb", "fjall"), help="both, unless named")
    parser.add_argument("--sessions", type=int, default=1000, help="sessions that are away, with 1,000 messages each (1,000)")
    parser.add_argument("--retained", type=int, default=1_000_000, help="retained messages (1,000,000)")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--limit", type=float, default=10, help="seconds from start to serving (10)")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    held = True
    # on the disk of the tree: a directory for temporary files may be memory
    target = ROOT / "target"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="corqtt-large-", dir=target) as directory:
        for way in asked.store or ("redb", "fjall"):
            result = measure(way, Path(directory), asked.sessions, asked.retained, asked.shards, asked.seed)
            print(json.dumps(result), flush=True)
            held &= result["serving_s"] < asked.limit
    sys.exit(not held)


if __name__ == "__main__":
    main()
