# SPDX-License-Identifier: Apache-2.0
"""What each node tells of the cluster."""

from harness import Deadline
from harness.cluster import get


def awaited(node, path, fact, what):
    deadline = Deadline(what)
    while not fact(found := get(node, path)):
        deadline.left()
    return found


def test_every_node_tells_of_all(cluster):
    for node, ports in zip(cluster.nodes, cluster.ports):
        status, found = awaited(
            node,
            "/cluster/ms",
            lambda answer: all(each["state"] == "alive" and each["raft"] != "learner" for each in answer[1]),
            "three voters that are alive",
        )
        assert status == 200
        assert sorted(each["name"] for each in found) == ["node1", "node2", "node3"]
        assert [each["raft"] for each in found].count("leader") == 1
        (own,) = (each for each in found if each["self"])
        assert (own["addr"], own["port"]) == ("127.0.0.1", ports["bind-port"])
        assert get(node, "/api/v1/cluster/nodes")[0] == 200


def test_clients_of_all_nodes_are_counted(cluster, worlds):
    before = get(cluster.nodes[0], "/api/v1/cluster/stat/online")[1]
    for world in worlds:
        # behind SUBACK every node knows of it
        world.connect().subscribe(world.topic("a"))
    for node in cluster.nodes:
        assert get(node, "/api/v1/cluster/stat/online") == (200, before + 3)


def test_a_node_is_ready_with_a_lease(cluster):
    for node in cluster.nodes:
        status, found = awaited(node, "/readyz", lambda answer: answer[0] == 200, "a lease")
        assert status == 200
        assert found["lease"] is True
        assert found["leader"] in ("node1", "node2", "node3")
