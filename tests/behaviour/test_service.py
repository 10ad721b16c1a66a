# SPDX-License-Identifier: Apache-2.0
"""Under a service manager: what the broker tells it, and what a reload (SIGHUP) does."""

import os
import socket
import time
from pathlib import Path

import pytest

from harness import V5, Deadline, unique
from harness.client import World


class Manager:
    """The socket of a service manager."""

    def __init__(self, folder):
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)

    def hear(self, seconds=None):
        """The next message as {name: value}."""
        deadline = Deadline("the service manager is told something", seconds)
        self.socket.settimeout(deadline.left())
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def manager(tmp_path):
    # not pytest's own folder: a socket's path has at most 108 bytes
    folder = Path("/tmp") / unique("corqtt-")
    folder.mkdir()
    found = Manager(folder)
    yield found
    found.socket.close()
    os.unlink(found.path)
    folder.rmdir()


def test_the_manager_hears_of_start_reload_and_end(spawn, manager):
    broker = spawn(env={"NOTIFY_SOCKET": manager.path}, conf="mqtt:\n  limits:\n    drain-timeout: 20s\n")
    assert manager.hear() == {"READY": "1", "STATUS": "serving"}
    broker.reload()
    reloading = manager.hear()
    assert reloading["RELOADING"] == "1"
    # the clock that the manager compares it with
    assert 0 <= time.monotonic() - int(reloading["MONOTONIC_USEC"]) / 1e6 < 60
    assert manager.hear() == {"READY": "1", "STATUS": "serving"}
    broker.terminate()
    stopping = manager.hear()
    assert stopping["STOPPING"] == "1"
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 20_000_000
    broker.stop()


def test_ready_means_that_clients_can_connect(spawn, manager):
    broker = spawn(env={"NOTIFY_SOCKET": manager.path})
    assert manager.hear()["READY"] == "1"
    world = World(broker, V5)
    world.connect()
    world.close()


def test_the_watchdog_is_fed(spawn, manager):
    broker = spawn(shards=2, env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000000"})
    heard = [manager.hear() for _ in range(4)]
    assert heard.count({"WATCHDOG": "1"}) == 3
    assert {"READY": "1", "STATUS": "serving"} in heard
    broker.stop()


def test_the_watchdog_of_another_process_is_not_ours(spawn, manager):
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    broker = spawn(env=env)
    assert manager.hear() == {"READY": "1", "STATUS": "serving"}
    broker.terminate()
    assert "STOPPING" in manager.hear()
    broker.stop()


def test_a_manager_that_is_gone_is_told_in_the_log_only(spawn):
    broker = spawn(env={"NOTIFY_SOCKET": "/nowhere/notify"})
    broker.await_line("the service manager was not told")
    broker.stop()


def test_a_reload_keeps_clients_and_says_what_it_did(spawn):
    broker = spawn(conf="mqtt:\n  limits:\n    queue-messages: 7\n")
    world = World(broker, V5)
    client = world.connect()
    client.subscribe(world.topic())
    broker.reload()
    broker.await_line("log files reopened (SIGHUP)")
    client.publish(world.topic(), b"still here", 1)
    assert client.receive().payload == b"still here"
    assert not any("stay as they were" in line for line in broker.lines)
    world.close()


def test_changed_settings_are_named_and_wait_for_a_restart(spawn):
    broker = spawn(conf="mqtt:\n  limits:\n    queue-messages: 7\n")
    settings = broker.conf.read_text().replace("queue-messages: 7", "queue-messages: 8\n    topic-levels: 9")
    broker.conf.write_text(settings)
    broker.reload()
    line = broker.await_line("settings stay as they were")
    assert "mqtt.limits.queue-messages, mqtt.limits.topic-levels changed" in line
    assert "restart" in line


def test_settings_that_became_wrong_are_told_at_a_reload(spawn):
    broker = spawn(conf="mqtt:\n  limits:\n    queue-messages: 7\n")
    broker.conf.write_text(broker.conf.read_text().replace("queue-messages", "queue-message"))
    broker.reload()
    line = broker.await_line("settings stay as they were")
    assert "unknown key mqtt.limits.queue-message" in line
    broker.stop()
