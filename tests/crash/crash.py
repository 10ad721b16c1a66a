# SPDX-License-Identifier: Apache-2.0
"""Kills the broker again and again under load and counts what was promised and not kept; `scripts/crash.sh` runs it.

Publishers send numbered messages with QoS 1 and 2 in sessions of their own, and send again after each crash what was not
acknowledged, as the specification says. Subscribers have persistent sessions: one is there most of the time, one is
mostly away, and one comes to see that nothing was lost. At the end everything is delivered, and then counted:

* lost: acknowledged (PUBACK, PUBREC), and never delivered to a subscriber;
* doubled: QoS 2, and delivered more than once to a subscriber;
* misordered: first delivered after a later one of the same publisher and QoS;
* sessions: not there any more (Session Present 0), though CONNACK had come;
* subscriptions: not there any more, though SUBACK had come: each round a client subscribes for the first time.
"""

import argparse
import contextlib
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from crash.power import Power
from harness import V5, V311
from harness.broker import SpawnedBroker, binary
from harness.redis import Redis, store_flags
from harness.wire import (
    CONNACK,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    ack,
    connect,
    persistent,
    publish,
    subscribe,
    take_packet,
)

# a client that is mostly away must not lose what its queue has no room for
CONF = "mqtt:\n  limits:\n    queue-messages: 0\n    queue-bytes: 0\n"
WINDOW = 10
# packet ids are used again soon: what a broker remembers of an old one too long shows
IDS = 40
# how long nothing may come (in outage.py: how long all of it may take)
DRAIN_SECONDS = 60
# where a process can be told to end; shards/src/lib.rs says what each is
STEPS = (
    "commit",
    "puback",
    "received",
    "pubrec-sent",
    "pubrel-kept",
    "begun",
    "publish-sent",
    "pubrec-kept",
    "pubcomp",
    "freed",
    "connack",
    "suback",
    "forward",
    "settled",
)


class Client:
    """One client that comes back after each crash; the event loop calls it."""

    def __init__(self, name, version):
        self.name, self.version = name, version
        self.socket = None
        self.buffer = bytearray()
        self.is_live = False
        self.had_session = False
        self.sessions_lost = 0

    def open(self, broker):
        self.socket = broker.endpoint.open()
        self.buffer.clear()
        self.is_live = False
        self.send(connect(self.version, self.name, keep_alive=0, **persistent(self.version)))
        self.socket.setblocking(False)

    def send(self, *packets):
        try:
            self.socket.setblocking(True)
            self.socket.sendall(b"".join(packets))
            self.socket.setblocking(False)
        except OSError:
            pass

    def close(self):
        if self.socket is not None:
            self.socket.close()
        self.socket = None
        self.is_live = False

    def readable(self):
        """Handles what has come; False: the connection is over."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.buffer += data
        while (found := take_packet(self.buffer, self.version)) is not None:
            if found.kind == CONNACK:
                assert found.reason == 0, found
                self.sessions_lost += self.had_session and not found.resumed
                self.had_session = True
                self.is_live = True
                self.opened(found.resumed)
            else:
                self.handle(found)
        return bool(data)


class Publisher(Client):
    """Numbers its messages for each QoS; keeps so many unacknowledged."""

    def __init__(self, name, version):
        super().__init__(name, version)
        # packet id -> (qos, number, whether PUBREC came), in the order of sending
        self.pending = {}
        self.numbers = {1: 0, 2: 0}
        self.acknowledged = set()
        self.next_id = 0
        self.stops = False

    @property
    def topic(self):
        return f"crash/{self.name}"

    def message(self, pid, qos, number, dup=False):
        payload = f"{self.name} {qos} {number}".encode()
        return publish(self.version, self.topic, payload, qos=qos, pid=pid, dup=dup)

    def opened(self, resumed):
        # [MQTT-4.4.0-1] in the order in which they were sent
        for pid, (qos, number, received) in self.pending.items():
            self.send(ack(PUBREL, pid) if received else self.message(pid, qos, number, dup=True))
        self.fill()

    def fill(self):
        while self.is_live and not self.stops and len(self.pending) < WINDOW:
            qos = 1 + (self.numbers[1] + self.numbers[2]) % 2
            self.numbers[qos] += 1
            self.next_id = self.next_id % IDS + 1
            while self.next_id in self.pending:
                self.next_id = self.next_id % IDS + 1
            self.pending[self.next_id] = (qos, self.numbers[qos], False)
            self.send(self.message(self.next_id, qos, self.numbers[qos]))

    def handle(self, found):
        if found.pid not in self.pending:
            # an answer to a PUBREL that was sent twice
            assert found.kind == PUBCOMP, found
            return
        qos, number, _ = self.pending[found.pid]
        if found.kind == PUBACK:
            self.acknowledged.add((self.name, 1, number))
            del self.pending[found.pid]
        elif found.kind == PUBREC:
            self.acknowledged.add((self.name, 2, number))
            self.pending[found.pid] = (qos, number, True)
            self.send(ack(PUBREL, found.pid))
        elif found.kind == PUBCOMP:
            del self.pending[found.pid]
        self.fill()


class Subscriber(Client):
    """Takes everything below `crash/`, QoS 2 as the specification says."""

    def __init__(self, name, version, topic_filter="crash/+"):
        super().__init__(name, version)
        self.topic_filter = topic_filter
        self.unreleased = set()
        self.counts = {}
        self.last = {}
        self.misordered = 0
        self.is_subscribed = False

    def opened(self, resumed):
        if not resumed:
            self.unreleased.clear()
        if not self.is_subscribed or not resumed:
            self.send(subscribe(self.version, 1, (self.topic_filter, 2)))

    def handle(self, found):
        if found.kind == SUBACK:
            self.is_subscribed = True
        elif found.kind == PUBREL:
            self.unreleased.discard(found.pid)
            self.send(ack(PUBCOMP, found.pid))
        elif found.kind == PUBLISH:
            if found.qos == 2 and found.pid in self.unreleased:
                self.send(ack(PUBREC, found.pid))
                return
            self.note(found)
            if found.qos == 2:
                self.unreleased.add(found.pid)
            self.send(ack(PUBACK if found.qos == 1 else PUBREC, found.pid))

    def note(self, found):
        name, qos, number = found.payload.decode().split()
        key = (name, int(qos), int(number))
        first = key not in self.counts
        self.counts[key] = self.counts.get(key, 0) + 1
        if first:
            self.misordered += self.last.get(key[:2], 0) > key[2]
            self.last[key[:2]] = max(self.last.get(key[:2], 0), key[2])


class Newcomer(Subscriber):
    """Subscribes once, to what is published at the end."""

    def __init__(self, name, version):
        super().__init__(name, version, "final/+")
        self.has_final = False

    def note(self, found):
        self.has_final = True


class Last(Publisher):
    """Publishes the one message that newcomers are to get."""

    topic = "final/message"

    def fill(self):
        if self.numbers[1] == 0:
            self.numbers[1] = 1
            self.pending[1] = (1, 1, False)
            self.send(self.message(1, 1, 1))


@dataclass
class Result:
    rounds: int = 0
    acknowledged: int = 0
    delivered: int = 0
    lost: int = 0
    doubled: int = 0
    misordered: int = 0
    sessions: int = 0
    subscriptions: int = 0
    undelivered: int = 0
    # sectors and lists of names that the power cuts took
    dropped: int = 0
    examples: list = field(default_factory=list)

    def is_clean(self):
        return not (self.lost or self.doubled or self.misordered or self.sessions or self.subscriptions or self.undelivered)


def acknowledged_by(publishers):
    return set().union(*(each.acknowledged for each in publishers))


def judge(result, publishers, subscribers, settled):
    """Counts what is missing, and what is there too often or too late, when all has been delivered."""
    acknowledged = acknowledged_by(publishers)
    result.acknowledged = len(acknowledged)
    for subscriber in subscribers:
        lost = sorted(acknowledged - subscriber.counts.keys())
        doubled = sorted(key for key, count in subscriber.counts.items() if key[1] == 2 and count > 1)
        result.delivered += sum(subscriber.counts.values())
        result.lost += len(lost)
        result.doubled += len(doubled)
        result.misordered += subscriber.misordered
        result.examples += [(subscriber.name, "lost", *key) for key in lost[:3]]
        result.examples += [(subscriber.name, "doubled", *key) for key in doubled[:3]]
    result.sessions = sum(each.sessions_lost for each in (*publishers, *subscribers))
    result.undelivered = not settled and not result.lost
    return result


class Run:
    """One store, killed so many times."""

    def __init__(self, way, rounds, seed, crash_at=None, flags=(), power=None, drain_seconds=DRAIN_SECONDS):
        self.way, self.rounds, self.crash_at = way, rounds, crash_at
        self.random = random.Random(seed)
        self.power = power
        self.flags = flags
        self.drain_seconds = drain_seconds
        self.publishers = [Publisher("p1", V311), Publisher("p2", V5), Publisher("p3", V5)]
        self.there = [Subscriber("there-1", V5), Subscriber("there-2", V311)]
        self.away = [Subscriber("away", V5)]
        self.newcomers = []
        self.broker = None

    @property
    def clients(self):
        return [*self.publishers, *self.there, *self.away]

    def start(self, crash_at=None):
        env = {} if crash_at is None else {"CORQTT_CRASH_AT": crash_at}
        shards = self.random.choice((1, 2, 4))
        if self.power is not None:
            self.power.prepare()
            env |= self.power.env
        self.broker = SpawnedBroker(conf=CONF, shards=shards, arguments=self.flags, env=env, level="info")

    def kill(self):
        self.broker.kill()
        if self.power is not None:
            self.power.cut()

    def serve(self, clients, seconds, until=None):
        """Lets these clients do what they do, for so long; `until` something: until nothing has come for so long."""
        with selectors.DefaultSelector() as selector:
            for client in clients:
                try:
                    client.open(self.broker)
                except OSError:
                    client.close()
                    continue
                selector.register(client.socket, selectors.EVENT_READ, client)
            end = time.monotonic() + seconds
            while selector.get_map() and (left := end - time.monotonic()) > 0:
                come = selector.select(min(left, 0.05))
                for key, _ in come:
                    if not key.data.readable():
                        selector.unregister(key.fileobj)
                if come and until is not None:
                    end = time.monotonic() + seconds
                if until is not None and until():
                    break
                if self.broker.process.poll() is not None:
                    break
        for client in clients:
            client.close()

    def settle(self):
        """Everything that is under way arrives."""
        for publisher in self.publishers:
            publisher.stops = True

        def done():
            if any(publisher.pending for publisher in self.publishers):
                return False
            wanted = acknowledged_by(self.publishers)
            subscribers = (*self.there, *self.away)
            return all(wanted <= each.counts.keys() and not each.unreleased for each in subscribers)

        self.serve(self.clients, self.drain_seconds, done)
        newcomers = [each for each in self.newcomers if each.is_subscribed]

        def all_have_it():
            return all(each.has_final for each in newcomers)

        self.serve([*newcomers, Last("last", V5)], self.drain_seconds, all_have_it)
        return done()

    def run(self):
        result = Result()
        # everybody has a session and a subscription before the first crash
        self.start()
        self.serve([*self.there, *self.away], 10, lambda: all(each.is_subscribed for each in (*self.there, *self.away)))
        self.kill()
        for number in range(self.rounds):
            crash_at = None
            if self.crash_at is not None:
                crash_at = f"{self.crash_at}:{self.random.randint(1, 60)}"
            self.start(crash_at)
            clients = [*self.publishers, *self.there]
            if self.random.random() < 0.2:
                clients += self.away
            if self.random.random() < 0.2:
                clients.remove(self.random.choice(self.there))
            # the last one comes back, to see whether its session is there
            self.newcomers.append(Newcomer(f"new-{number}", self.random.choice((V311, V5))))
            clients += self.newcomers[-2:]
            self.serve(clients, self.random.uniform(0.05, 0.5))
            self.kill()
            result.rounds = number + 1
        self.start()
        settled = self.settle()
        self.broker.stop()
        judge(result, self.publishers, (*self.there, *self.away), settled)
        result.sessions += sum(each.sessions_lost for each in self.newcomers)
        result.subscriptions = sum(each.is_subscribed and not each.has_final for each in self.newcomers)
        result.dropped = 0 if self.power is None else self.power.dropped
        return result


def crash(way, rounds, seed, crash_at=None, power=None, flags=(), **settings):
    """`power`: "cut" takes with each kill what the process had not synced, with "lies" the disk syncs nothing."""
    with contextlib.ExitStack() as stack:
        # without symbolic links: power.c compares paths
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corqtt-crash-"))).resolve()
        redis = stack.enter_context(contextlib.closing(Redis())) if way == "redis" else None
        flags = [*store_flags(way, directory / "store", redis), *flags]
        cut = Power(directory / "store", directory, random.Random(seed), syncs=power == "cut") if power else None
        return Run(way, rounds, seed, crash_at, flags, cut, **settings).run()


def crash_at_the_beginning(way, rounds, seed):
    """Kills the broker, with a power cut, in the first moments of a new store, twice; it opens after that. Nothing if so."""
    chosen = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="corqtt-crash-") as made:
        directory = Path(made).resolve()
        power = Power(directory / "store", directory, chosen)
        command = [binary(), "--shards=1", "--http=off", "--tcp=127.0.0.1:0", "--ws=off", *store_flags(way, power.root)]
        for _ in range(rounds):
            shutil.rmtree(power.root, ignore_errors=True)
            for _ in range(2):
                power.prepare()
                env = {**os.environ, **power.env}
                broker = subprocess.Popen(command, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    broker.wait(chosen.uniform(0, 0.1))
                    return broker.communicate()[0].decode()
                broker.kill()
                broker.communicate()
                power.cut()
            SpawnedBroker(shards=1, arguments=store_flags(way, power.root)).stop()
    return ""


def main():
    parser = argparse.ArgumentParser(prog="scripts/crash.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="append", choices=("redb", "fjall", "redis", "memory"), help="redb and fjall, unless named")
    parser.add_argument("--rounds", type=int, default=200, help="kills in each run (200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(1, 1 << 30))
    parser.add_argument("--crash-at", action="append", choices=(*STEPS, "each"), help="ends the process there instead of at a random instant")
    parser.add_argument("--power", choices=("cut", "lies"), help="cut: what was not synced is dropped or torn; lies: syncs do nothing")
    parser.add_argument("--sync", help="storage-sync: what is lost then is counted, and fails")
    parser.add_argument("--outage", type=float, metavar="SECONDS", help="takes redis away for so long instead of killing the broker")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.outage:
        from crash.outage import outage

        result, figures = outage(asked.outage)
        print(json.dumps({**vars(result), **figures}, indent=1))
        sys.exit(not result.is_clean() or bool(figures["clean_faults"]))
    steps = list(STEPS) if asked.crash_at == ["each"] else asked.crash_at or [None]
    print(f"--seed={asked.seed}", flush=True)
    flags = [f"--storage-sync={asked.sync}"] if asked.sync else []
    rows, clean = [], True
    for way in asked.store or ("redb", "fjall"):
        for step in steps:
            result = crash(way, asked.rounds, asked.seed, step, asked.power, flags)
            clean &= result.is_clean()
            rows.append({"store": way, "crash_at": step, "power": asked.power, "sync": asked.sync, **vars(result)})
            line = " ".join(f"{key} {value}" for key, value in vars(result).items() if key != "examples")
            print(f"{way} {step or 'random'}: {line} {'' if result.is_clean() else result.examples}", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps({"seed": asked.seed, "runs": rows}, indent=1) + "\n")
    sys.exit(not clean)


if __name__ == "__main__":
    os.environ.setdefault("CORQTT_TEST_SHARDS", "1")
    main()
