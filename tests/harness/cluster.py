# SPDX-License-Identifier: Apache-2.0
"""Several brokers that are one cluster, on this machine."""

import socket
from contextlib import ExitStack

import yaml

from .broker import SpawnedBroker
from .transport import LOOPBACK

# what a node listens on beside its clients' listeners
PORTS = ("bind-port", "raft-port", "peer-port")


def free_ports(count):
    """Ports that were free for TCP and UDP a moment ago."""
    found = []
    with ExitStack() as held:
        while len(found) < count:
            tcp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tcp.bind((LOOPBACK, 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind((LOOPBACK, port))
            except OSError:
                continue
            found.append(port)
    return found


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
        store = [f"--storage-path={directory / 'store'}"]
        conf = yaml.safe_dump({"cluster": cluster, "mqtt": {"options": {"sys-topic-resend-interval": 1}}})
        return SpawnedBroker(conf=conf, arguments=store, **self.settings)

    def stop(self):
        for node in self.nodes:
            node.stop()

    def kill(self):
        for node in self.nodes:
            node.kill()
