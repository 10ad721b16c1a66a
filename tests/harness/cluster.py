# SPDX-License-Identifier: Apache-2.0
"""Several brokers that are one cluster, on this machine."""

import contextlib
import http.client
import json
import os
import random
import socket

import yaml

from . import DEADLINE
from .broker import SpawnedBroker
from .redis import store_flags
from .transport import LOOPBACK

# what a node listens on beside its clients' listeners
PORTS = ("bind-port", "raft-port", "peer-port")


# below those that the kernel gives to outgoing connections (net.ipv4.ip_local_port_range): so nobody has one when a node
# that was killed comes back to it
PORTS_FROM, PORTS_PER_WORKER = 15_000, 1_000


def free_ports(count):
    """Ports that are free for TCP and UDP, and that no other worker of this run looks at."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    first = PORTS_FROM + worker * PORTS_PER_WORKER
    found = []
    for port in random.sample(range(first, first + PORTS_PER_WORKER), PORTS_PER_WORKER):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            contextlib.suppress(OSError),
        ):
            tcp.bind((LOOPBACK, port))
            udp.bind((LOOPBACK, port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} free ports from {first} on")


class Cluster:
    """Nodes of one cluster; the first founds it, and is the seed of the others."""

    def __init__(self, count, *, directory, **settings):
        self.directory = directory
        self.settings = settings
        # a place more than nodes, for who is not to be one
        ports = free_ports((count + 1) * len(PORTS))
        self.ports = [dict(zip(PORTS, ports[at:])) for at in range(0, len(ports), len(PORTS))]
        self.nodes = []
        try:
            for place in range(count):
                self.nodes.append(self.spawn(place))
        except BaseException:
            self.kill()
            raise

    def spawn(self, place, name=None):
        """Starts a node, on what it left in its directory; with another name, the directory is still of its place."""
        directory = self.directory / str(place)
        seeds = [f"{LOOPBACK}:{ports['bind-port']}" for ports in self.ports]
        cluster = {
            "node-name": name or f"node{place + 1}",
            "raft-dir": str(directory / "raft"),
            "raft-bootstrap": place == 0,
            "members": [seed for at, seed in enumerate(seeds) if at != place],
            **self.ports[place],
        }
        store = store_flags("redb", directory / "store")
        conf = yaml.safe_dump({"cluster": cluster, "mqtt": {"options": {"sys-topic-resend-interval": 1}}})
        return SpawnedBroker(conf=conf, arguments=store, **self.settings)

    def stop(self):
        for node in self.nodes:
            node.stop()

    def kill(self):
        for node in self.nodes:
            node.kill()


def get(node, path):
    """Status and JSON of a node's HTTP interface."""
    link = http.client.HTTPConnection(*node.http, timeout=DEADLINE)
    link.request("GET", path)
    answer = link.getresponse()
    body = answer.read()
    link.close()
    return answer.status, json.loads(body)
