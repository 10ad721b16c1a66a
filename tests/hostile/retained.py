# SPDX-License-Identifier: Apache-2.0
"""A `#` subscriber that joins many retained messages while they are being updated.

A value is a number that only grows, per topic the last one sent is kept in a file that outlives the attacking process.
A join is over when the subscriber has the newest value of every topic; a value that goes back is a fault.
"""

import array
import select
import time

from harness import V311
from harness.wire import PUBLISH, Wire, publish, subscribe

# Between two looks at the clock, the updates that are due (seconds).
TICK = 0.005
TOPIC = "site/{:03d}/device/{:07d}"
PREFIX = TOPIC[:5].encode()
PAD = b"retained, but not for long: 64 bytes are what a sensor sends."[:56]


def topic_of(number):
    return TOPIC.format(number % 1000, number)


def message(number, value):
    return publish(V311, topic_of(number), value.to_bytes(8, "big") + PAD, retain=True)


def load(target, size):
    """Retains a message on every topic, and remembers their values."""
    wire = Wire(target, V311)
    wire.connect(keep_alive=0)
    wire.socket.settimeout(120)
    for first in range(0, size["topics"], 1000):
        wire.socket.sendall(b"".join(message(number, 1) for number in range(first, min(first + 1000, size["topics"]))))
    # behind all of them
    wire.publish("hostile/fence", qos=1)
    wire.close()
    with open(size["state"], "wb") as file:
        (array.array("Q", [1]) * size["topics"]).tofile(file)


def press_join(front, qos):
    """One join, from SUBSCRIBE to the newest value of every topic."""
    topics = front.size["topics"]
    newest = array.array("Q")
    with open(front.size["state"], "rb") as file:
        newest.fromfile(file, topics)
    updater = Updater(front, newest)
    subscriber = Subscriber(front, topics, qos)
    try:
        began = time.monotonic()
        poll = select.poll()
        poll.register(subscriber.wire.socket, select.POLLIN)
        while not front.stopping() and subscriber.missing:
            updater.update()
            if poll.poll(TICK * 1000):
                subscriber.read()
        # no more updates: what was sent is all that may still come
        updater.finish()
        wanted = newest
        while not front.stopping() and subscriber.latest != wanted:
            if not poll.poll(5000):
                behind = sum(has != want for has, want in zip(subscriber.latest, wanted))
                front.fault(f"{behind} of {topics} topics without their newest value, and nothing comes any more")
                break
            subscriber.read()
        else:
            if not front.stopping():
                front.facts["joins"] += 1
                front.facts["slowest join ms"] = max(
                    front.facts["slowest join ms"], int((time.monotonic() - began) * 1000)
                )
    finally:
        updater.finish()
        with open(front.size["state"], "wb") as file:
            newest.tofile(file)
        front.facts["updates"] += updater.count
        front.facts["messages"] += subscriber.count
        subscriber.wire.close()
        updater.wire.close()


class Updater:
    """Publishes so many new values per second, to topics all over."""

    def __init__(self, front, newest):
        self.newest = newest
        self.rate = front.size["updates"]
        self.wire = front.wire(V311)
        self.wire.connect(keep_alive=0)
        self.began = time.monotonic()
        self.count = 0
        self.finished = False

    def update(self):
        """Sends what is due; a writer that the broker holds back is behind, and catches up."""
        due = int((time.monotonic() - self.began) * self.rate) - self.count
        out = []
        for _ in range(min(due, 200)):
            # a stride that is prime to the number of topics comes to all of them
            number = self.count * 7919 % len(self.newest)
            self.count += 1
            self.newest[number] += 1
            out.append(message(number, self.newest[number]))
        if out:
            self.wire.socket.sendall(b"".join(out))

    def finish(self):
        if not self.finished:
            self.finished = True
            self.wire.publish("hostile/fence", qos=1)


class Subscriber:
    """Takes `#` and keeps the last value of each topic."""

    def __init__(self, front, topics, qos):
        self.front = front
        self.qos = qos
        self.latest = array.array("Q", bytes(8 * topics))
        self.missing = topics
        self.count = 0
        self.buffer = bytearray()
        self.wire = front.wire(V311)
        self.wire.connect(keep_alive=0)
        self.wire.send(subscribe(V311, 1, ("#", qos)))

    def read(self):
        """One read, and all whole packets in it; by hand, since there are a million."""
        data = self.wire.socket.recv(1 << 18)
        if not data:
            raise AssertionError("the subscriber was closed")
        buffer = self.buffer
        buffer += data
        at, end = 0, len(buffer)
        latest = self.latest
        acks = []
        name = len(topic_of(0))
        while at + 2 <= end:
            length, body = buffer[at + 1], at + 2
            if length & 0x80:
                # others' messages are here too, none beyond two bytes of length
                if body == end:
                    break
                length = length & 0x7F | buffer[body] << 7
                body += 1
            behind = body + length
            if behind > end:
                break
            first = buffer[at]
            if first >> 4 == PUBLISH:
                value_at = body + 2 + (buffer[body] << 8) + buffer[body + 1]
                if first & 6:
                    acks.append(bytes(buffer[value_at : value_at + 2]))
                    value_at += 2
                if buffer[body + 2 : body + 7] == PREFIX:
                    number = int(buffer[body + 2 + name - 7 : body + 2 + name])
                    value = int.from_bytes(buffer[value_at : value_at + 8], "big")
                    before = latest[number]
                    if value < before:
                        self.front.fault(f"{topic_of(number)} went back from {before} to {value}")
                    self.missing -= not before
                    latest[number] = value
                    self.count += 1
            at = behind
        del buffer[:at]
        if acks:
            self.wire.send(b"".join(b"\x40\x02" + each for each in acks))
