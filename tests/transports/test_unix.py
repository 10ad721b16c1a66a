# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: the file comes and goes with the broker."""

import socket
import stat
from pathlib import Path

import pytest

from harness import V5, unique
from harness.broker import run_to_end
from harness.transport import listener
from harness.wire import Wire


@pytest.fixture
def block():
    return listener("unix")


@pytest.fixture
def path(block):
    return Path(block["address"])


def serves(broker):
    client = Wire(broker, V5)
    client.connect()
    client.expect_alive()
    client.close()


def test_socket_is_there_while_the_broker_runs(spawn, block, path):
    broker = spawn(listeners=[("unix", block)])
    assert stat.S_ISSOCK(path.stat().st_mode)
    serves(broker)
    broker.stop()
    assert not path.exists()


def test_every_connection_is_served_whatever_the_number_of_shards(spawn, block):
    broker = spawn(listeners=[("unix", block)], shards=4)
    topic = unique("t/")
    clients = [Wire(broker, V5) for _ in range(40)]
    for client in clients:
        client.connect()
        client.subscribe(topic)
    clients[0].publish(topic, b"to all")
    for client in clients:
        assert client.expect_message().payload == b"to all"
        client.close()


def test_socket_that_nobody_listens_on_is_replaced(spawn, block, path):
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    serves(spawn(listeners=[("unix", block)]))


def test_broker_that_was_killed_starts_again(spawn, block, path):
    spawn(listeners=[("unix", block)]).kill()
    assert path.exists()
    serves(spawn(listeners=[("unix", block)]))


def fails_to_start(block, directory):
    status, said = run_to_end([block], directory)
    assert status == 1, said
    assert block["address"] in said
    assert "panicked" not in said


def test_socket_of_a_running_broker_is_an_error_that_names_it(spawn, block, path, tmp_path):
    """And it goes on to be that broker's."""
    broker = spawn(listeners=[("unix", block)])
    fails_to_start(block, tmp_path)
    assert path.exists()
    serves(broker)


def test_file_that_is_no_socket_is_left_alone(block, path, tmp_path):
    path.write_text("somebody's")
    fails_to_start(block, tmp_path)
    assert path.read_text() == "somebody's"


def test_folder_that_is_not_there_is_an_error_that_names_the_socket(block, path, tmp_path):
    fails_to_start({**block, "address": str(path.parent / "nowhere" / "mqtt.sock")}, tmp_path)
