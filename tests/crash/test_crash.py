# SPDX-License-Identifier: Apache-2.0
"""A few kills of the broker per store, at random instants and at each step; `scripts/crash.sh` does many."""

import os

import pytest

from crash.crash import STEPS, crash, crash_at_the_beginning

SEED = int(os.environ.get("CORQTT_CRASH_SEED", "20261126"))


@pytest.mark.parametrize("way", ("redb", "fjall", "redis"))
def test_nothing_acknowledged_is_lost_at_random_instants(way):
    result = crash(way, rounds=6, seed=SEED)
    assert result.acknowledged > 0
    assert result.is_clean(), vars(result)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", ("redb", "fjall"))
def test_nothing_acknowledged_is_lost_at_a_step(way, step):
    result = crash(way, rounds=4, seed=SEED, crash_at=step)
    assert result.is_clean(), vars(result)


@pytest.mark.parametrize("way", ("redb", "fjall"))
def test_nothing_acknowledged_is_lost_in_a_power_cut(way):
    result = crash(way, rounds=8, seed=SEED, power="cut")
    assert result.dropped > 0
    assert result.is_clean(), vars(result)


@pytest.mark.parametrize("way", ("redb", "fjall"))
def test_a_crash_while_a_store_is_made_leaves_one_that_opens(way):
    assert crash_at_the_beginning(way, rounds=8, seed=SEED) == ""


@pytest.mark.parametrize("way", ("redb", "fjall"))
def test_a_sync_that_does_nothing_is_noticed(way):
    try:
        result = crash(way, rounds=6, seed=SEED, power="lies", drain_seconds=3)
    except AssertionError as wrong:
        assert "cannot be opened" in str(wrong)
    else:
        assert result.lost > 0 or result.sessions > 0


def test_what_is_lost_is_counted():
    """Memory keeps nothing, and the count says so."""
    result = crash("memory", rounds=2, seed=SEED, drain_seconds=3)
    assert result.lost > 0 or result.sessions > 0
