# SPDX-License-Identifier: Apache-2.0
"""Takes redis away under load, and counts as crash.py does; `scripts/crash.sh --outage=SECONDS` runs it.

Publishers wait for their acknowledgements or are refused (0x97; before 5.0 closed, and they come back), one client of
a clean session goes on publishing to itself, and at the end everything that was acknowledged is delivered in order.
"""

import contextlib
import selectors
import time
from types import SimpleNamespace

from crash.crash import CONF, DRAIN_SECONDS, Publisher, Result, Subscriber, acknowledged_by, judge
from harness import V5, V311
from harness.broker import SpawnedBroker
from harness.redis import Redis, store_flags
from harness.wire import PUBACK, PUBREC
from hostile.stage import witnessed

BEFORE_SECONDS, AFTER_SECONDS = 3, 5
RETRY_SECONDS = 0.5


class Patient(Publisher):
    """A publisher that may be refused: what is, it gives up."""

    def __init__(self, name, version):
        super().__init__(name, version)
        self.refused = 0
        self.answered_at = 0.0

    def handle(self, found):
        self.answered_at = time.monotonic()
        if found.kind in (PUBACK, PUBREC) and (found.reason or 0) >= 0x80:
            self.refused += 1
            del self.pending[found.pid]
            self.fill()
        else:
            super().handle(found)


def serve(broker, clients, seconds, until=None):
    """Lets the clients do what they do, and come back when they are closed."""
    with selectors.DefaultSelector() as selector:
        closed = dict.fromkeys(clients, 0.0)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not (until and until()):
            for client in [each for each, at in closed.items() if at <= time.monotonic()]:
                if client.socket is None:
                    client.open(broker)
                selector.register(client.socket, selectors.EVENT_READ, client)
                del closed[client]
            for key, _ in selector.select(min(left, 0.05)):
                if not key.data.readable():
                    selector.unregister(key.fileobj)
                    key.data.close()
                    closed[key.data] = time.monotonic() + RETRY_SECONDS


def outage(seconds):
    """The counts of crash.py, what was refused, and how long the clean client waited at most (s)."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(contextlib.closing(Redis()))
        broker = SpawnedBroker(conf=CONF, shards=2, arguments=store_flags("redis", None, redis), level="info")
        stack.callback(broker.kill)
        publishers = [Patient("p1", V311), Patient("p2", V5), Patient("p3", V5)]
        there, away = [Subscriber("there-1", V5), Subscriber("there-2", V311)], [Subscriber("away", V5)]
        everybody = (*publishers, *there, *away)
        serve(broker, (*there, *away), 10, lambda: all(each.is_subscribed for each in (*there, *away)))
        for each in away:
            each.close()
        with witnessed(SimpleNamespace(endpoint=broker.endpoint)) as witness:
            serve(broker, (*publishers, *there), BEFORE_SECONDS)
            before = len(acknowledged_by(publishers))
            redis.kill()
            gone_at = time.monotonic()
            serve(broker, (*publishers, *there), seconds)
            during = len(acknowledged_by(publishers)) - before
            redis.start()
            back_at = time.monotonic()
            serve(broker, (*publishers, *there), AFTER_SECONDS, lambda: len(acknowledged_by(publishers)) > before + during)
            recovered = time.monotonic() - back_at
            serve(broker, (*publishers, *there), AFTER_SECONDS)
        for publisher in publishers:
            publisher.stops = True

        def done():
            wanted = acknowledged_by(publishers)
            return not any(each.pending for each in publishers) and all(
                wanted <= each.counts.keys() and not each.unreleased for each in (*there, *away)
            )

        serve(broker, everybody, DRAIN_SECONDS, done)
        result = judge(Result(rounds=1), publishers, (*there, *away), done())
        broker.stop()
        return result, {
            "gone_s": round(back_at - gone_at, 1),
            "acknowledged_meanwhile": during,
            "refused": sum(each.refused for each in publishers),
            "recovered_s": round(recovered, 2),
            "clean_round_trips": witness.served,
            "clean_longest_ms": round(witness.worst * 1000),
            "clean_faults": witness.faults,
        }
