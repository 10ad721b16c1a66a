# SPDX-License-Identifier: Apache-2.0
"""Every attack, small: others are served throughout, memory stays bounded, nothing panics, and it ends well.

`scripts/hostile.sh` runs them in full, beside a probe.
"""

import pytest

from harness.broker import external
from hostile.attacks import ATTACKS
from hostile.stage import Attacker, Target, answers, witnessed


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_throughout(name):
    if external() is not None:
        pytest.skip("needs a broker of its own settings")
    attack = ATTACKS[name]
    target = Target(attack, small=True)
    try:
        with witnessed(target, newcomers=attack.newcomers) as witness, Attacker(target) as attacker:
            outcome = attacker.wait()
        answers(target)
        peak = target.peak_bytes()
        assert outcome["faults"] == []
        assert outcome["rounds"] >= 1, outcome
        assert witness.faults == []
        assert witness.served > 20, f"only {witness.served} round trips in the whole attack"
        assert not attack.newcomers or witness.met > 0
        assert peak < target.memory_max, f"{peak} bytes resident, memory-max is {target.memory_max}: {outcome}"
    except BaseException:
        print(target.log_tail(30))
        target.kill()
        raise
    target.stop()
