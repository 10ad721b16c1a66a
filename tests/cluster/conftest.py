# SPDX-License-Identifier: Apache-2.0
"""A cluster of three brokers, and clients of each."""

import pytest

from harness import V5
from harness.client import World
from harness.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(3, directory=tmp_path_factory.mktemp("cluster"))
    yield found
    found.stop()


@pytest.fixture
def worlds(cluster):
    """Clients of each node, driven by one loop."""
    opened = [World(node, V5) for node in cluster.nodes]
    for world in opened:
        world.loop = opened[0].loop
    yield opened
    for world in opened:
        world.close()
