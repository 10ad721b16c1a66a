# SPDX-License-Identifier: Apache-2.0
"""The attacks in full, beside a probe, as a table; what `scripts/hostile.sh` runs.

The broker has CPU 0 to itself: one shard, pinned. Everybody else shares CPU 1: the attackers at the idle policy, so that
they take what is left of it and no more; the well-behaved client; and the probe, an open loop of 1,000 messages per second
from a process of its own at nice -10. Runs with and without the attack alternate. The verdict on latency is by medians:
the p99 under attack is at most twice the quiet one, or 5 ms where that is more.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from harness import Deadline
from hostile.attacks import ATTACKS, MIB
from hostile.stage import ROOT, Attacker, Target, answers, settled, sockets, witnessed

BROKER_CPU, OTHERS_CPU = 0, 1
RATE = 1000
WARMUP_SECONDS = 1
# the attack lasts until the probe has certainly ended
AFTER_SECONDS = 4
P99_FACTOR, P99_FLOOR_US = 2.0, 5000.0
# A turn may take this much CPU time of its thread (seconds).
TURN_LIMIT = "0.002"


def bench():
    return os.environ.get("CORQTT_BENCH", str(ROOT / "target/release/corqtt-bench"))


class Probe:
    """1,000 messages per second from one client to itself."""

    def __init__(self, target, seconds):
        self.seconds = seconds
        self.file = tempfile.NamedTemporaryFile(prefix="corqtt-probe-", suffix=".json")
        host, port = target.addresses["tcp"]
        self.process = subprocess.Popen(
            [
                *("nice", "-n", "-10"),
                *(bench(), "p2p", "--pairs=1", "--crossing=none", f"--rate={RATE}", "--payload=64"),
                *(f"--warmup={WARMUP_SECONDS}", f"--duration={seconds}", f"--cpu={OTHERS_CPU}", "--stall=30"),
                *(f"--target=probe={host}:{port},pid={target.process.pid}", f"--json={self.file.name}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # the attack may take connections away, so the probe has its own first
        deadline = Deadline("the probe connects")
        waiting = threading.Event()
        while not sockets(self.process.pid):
            assert self.process.poll() is None, f"the probe ended: {self.process.stderr.read()}"
            waiting.wait(min(0.01, deadline.left()))

    def p99_us(self):
        """Waits for its end; answers the 99th percentile and what went wrong."""
        _, errors = self.process.communicate(timeout=WARMUP_SECONDS + self.seconds + 60)
        with self.file:
            text = Path(self.file.name).read_text()
        assert text, f"the probe ended with {self.process.returncode}: {errors}"
        cell = json.loads(text)["scenarios"][0]["targets"]["probe"]
        return cell["median"].get("p99_us"), cell["failures"]

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Result:
    """What one attack came to."""

    def __init__(self, name, target):
        self.name = name
        self.memory_max = target.memory_max
        self.quiet, self.pressed = [], []
        self.served = self.met = 0
        self.worst = 0.0
        self.peak = 0
        self.rounds = 0
        self.facts = {}
        self.faults = []
        # turns above the limit; None where the broker does not say
        self.long_turns = None

    def judge(self):
        """Adds to the faults what the figures say."""
        if not self.rounds:
            self.faults.append("no round of the attack came to its end")
        if self.peak >= self.memory_max:
            self.faults.append(f"{self.peak / MIB:.0f} MiB resident, memory-max is {self.memory_max / MIB:.0f}")
        if self.quiet and self.pressed:
            limit = max(P99_FACTOR * statistics.median(self.quiet), P99_FLOOR_US)
            if statistics.median(self.pressed) > limit:
                self.faults.append(f"p99 {statistics.median(self.pressed):.0f} µs, the limit is {limit:.0f}")
        if self.long_turns:
            self.faults.append(f"{self.long_turns} turns took more than {float(TURN_LIMIT) * 1000:g} ms of CPU time")

    def cells(self):
        def median(of):
            return f"{statistics.median(of):.0f}" if of else "-"

        return [
            self.name,
            f"{self.peak / MIB:.0f}",
            f"{self.memory_max / MIB:.0f}",
            median(self.quiet),
            median(self.pressed),
            f"{self.served}",
            f"{self.worst * 1000:.0f}",
            f"{self.met}" if ATTACKS[self.name].newcomers else "-",
            "-" if self.long_turns is None else f"{self.long_turns}",
            "fails" if self.faults else "holds",
        ]

    def json(self):
        return {**vars(self), "quiet": self.quiet, "pressed": self.pressed}


HEADS = (
    "attack",
    "RSS MiB",
    "memory-max",
    "p99 quiet µs",
    "p99 pressed µs",
    "round trips",
    "longest ms",
    "newcomers",
    "turns > 2 ms",
    "verdict",
)


def long_turns(target):
    """How many turns of all shards took more than the limit, by the broker's own histogram; None if it has none."""
    text = target.metrics()
    if text is None:
        return None
    found = re.findall(r'^corqtt_turn_cpu_seconds_bucket\{([^}]*)\} (\S+)$', text, re.M)
    assert found, "/metrics has no corqtt_turn_cpu_seconds"
    within = sum(float(value) for labels, value in found if f'le="{TURN_LIMIT}"' in labels)
    total = sum(float(value) for labels, value in found if 'le="+Inf"' in labels)
    return int(total - within)


def run(name, runs, small, seconds):
    """One attack, `runs` times with and without, on one broker."""
    attack = ATTACKS[name]
    target = Target(attack, small, cpu=BROKER_CPU)
    result = Result(name, target)
    seconds = max(seconds, 0 if small else attack.probe_seconds)
    try:
        before = sockets(target.process.pid)
        turns_before = long_turns(target)
        for _ in range(runs):
            quiet, faults = measured(target, seconds)
            result.quiet.append(quiet)
            result.faults += [f"quiet probe: {fault}" for fault in faults]
            with witnessed(target, newcomers=attack.newcomers) as witness:
                pressed, faults = measured(target, seconds, result)
            result.pressed.append(pressed)
            result.faults += [f"probe: {fault}" for fault in faults] + [f"witness: {fault}" for fault in witness.faults]
            result.served += witness.served
            result.met += witness.met
            result.worst = max(result.worst, witness.worst)
            settled(target, before)
            answers(target)
        result.peak = target.peak_bytes()
        if turns_before is not None:
            result.long_turns = long_turns(target) - turns_before
        target.stop()
    except (AssertionError, subprocess.TimeoutExpired) as wrong:
        result.faults.append(f"{wrong}")
        if target.process.poll() is None:
            result.peak = target.peak_bytes()
            target.kill()
    result.judge()
    return result


def measured(target, seconds, result=None):
    """The probe's p99 (µs) and its complaints; with a result to fill, under attack from begin to end."""
    probe = Probe(target, seconds)
    try:
        if result is None:
            return probe.p99_us()
        total = WARMUP_SECONDS + seconds + AFTER_SECONDS
        prefix = ("taskset", "-c", str(OTHERS_CPU), "chrt", "--idle", "0")
        with Attacker(target, at_least=total, seconds=total + 60, prefix=prefix) as attacker:
            answer = probe.p99_us()
            outcome = attacker.finish()
        result.rounds += outcome["rounds"]
        result.faults += outcome["faults"]
        for key, value in outcome["facts"].items():
            result.facts[key] = result.facts.get(key, 0) + value
        return answer
    finally:
        probe.kill()


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths)))
        yield "  ".join((first, *others))


def main():
    parser = argparse.ArgumentParser(prog="scripts/hostile.sh", description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="only these, or all whose names begin so: " + ", ".join(ATTACKS))
    parser.add_argument("--quick", action="store_true", help="small attacks, one run of two seconds each")
    parser.add_argument("--runs", type=int, help="runs with and without each attack (9; quick: 1)")
    parser.add_argument("--seconds", type=int, help="what the probe measures in each (4; quick: 2)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    asked = parser.parse_args()
    names = [name for name in ATTACKS if not asked.attacks or any(name.startswith(each) for each in asked.attacks)]
    for each in asked.attacks:
        if not any(name.startswith(each) for name in ATTACKS):
            parser.error(f"there is no attack {each}; there are {', '.join(ATTACKS)}")
    runs = asked.runs or (1 if asked.quick else 9)
    seconds = asked.seconds or (2 if asked.quick else 4)
    cpus = os.sched_getaffinity(0)
    if not {BROKER_CPU, OTHERS_CPU} <= cpus:
        parser.error(f"CPUs {BROKER_CPU} and {OTHERS_CPU} are needed, this process may use {sorted(cpus)}")
    os.sched_setaffinity(0, {OTHERS_CPU})
    results = []
    for name in names:
        result = run(name, runs, asked.quick, seconds)
        results.append(result)
        print(f"{name}: {'; '.join(result.faults) or 'holds'}", file=sys.stderr, flush=True)
        if asked.json:
            Path(asked.json).write_text(json.dumps([each.json() for each in results], indent=1) + "\n")
    print(*table([list(HEADS), *(result.cells() for result in results)]), sep="\n")
    for result in results:
        for fault in result.faults:
            print(f"{result.name}: {fault}")
    sys.exit(any(result.faults for result in results))


if __name__ == "__main__":
    main()
