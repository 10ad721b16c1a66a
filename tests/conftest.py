# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all suites: one broker per worker, fresh names per test."""

import pytest

from harness import V5, VERSION_NAMES, VERSIONS
from harness import broker as brokers
from harness.client import World
from harness.wire import Wire


@pytest.fixture(scope="session")
def broker():
    """The broker that tests share; CORQTT_TEST_ADDRESS names one that already runs."""
    if (found := brokers.external()) is not None:
        yield found
        return
    spawned = brokers.SpawnedBroker()
    yield spawned
    spawned.stop()


@pytest.fixture(scope="session")
def roomy():
    """A broker that takes packets up to 16 MiB."""
    if (found := brokers.external()) is not None:
        yield found
        return
    spawned = brokers.SpawnedBroker(
        conf="mqtt:\n  options:\n    capabilities:\n      maximum-packet-size: 16777216\n"
    )
    yield spawned
    spawned.stop()


@pytest.fixture
def spawn():
    """Starts brokers with settings of the test's own: spawn(conf=YAML, shards=4)."""
    if brokers.external() is not None:
        pytest.skip("needs a broker of its own settings")
    running = []

    def start(**settings):
        running.append(brokers.SpawnedBroker(**settings))
        return running[-1]

    yield start
    for each in running:
        if each.process.returncode is None:
            each.stop()


@pytest.fixture(params=VERSIONS, ids=VERSION_NAMES.get)
def version(request):
    return request.param


@pytest.fixture
def mqtt(broker, version):
    """Clients of each version in turn."""
    world = World(broker, version)
    yield world
    world.close()


@pytest.fixture
def mqtt5(broker):
    """Clients of 5.0."""
    world = World(broker, V5)
    yield world
    world.close()


@pytest.fixture
def wire(broker):
    """Opens raw connections: wire(V5)."""
    opened = []

    def open_one(version, to=None):
        opened.append(Wire(to or broker, version))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    shared = getattr(item, "funcargs", {}).get("broker")
    if report.failed and shared is not None and shared.process is not None:
        report.sections.append(("broker log", shared.log_tail()))
    return report
