#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks each order of what is kept before what is sent, and what is synced, one at a time, and runs scripts/crash.sh: it
has to find that something acknowledged was lost, doubled, or is not there any more.

    scripts/crash-mutants.py [--log=FILE] [NAME...]

Works on a copy of the tree in target/mutants and takes some twenty minutes. The exit status is 1 if a broken broker passed.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import COPY, ROOT, broken, judge_all

SESSION = "shards/session/src/"

# name: (file, what stands there once, what takes its place, how scripts/crash.sh runs)
MUTANTS = {
    "acknowledged-before-kept": (
        "shards/src/keeping.rs",
        "            Some(Ok(batch)) => self.keeping.store.put(batch),",
        "            Some(Ok(batch)) => {\n                let token = batch.token;\n                self.keeping.store.put(batch);\n                Some(token)\n            }",
        "",
    ),
    "pubrec-before-its-record": (
        "shards/src/packets.rs",
        "let recorded = is_kept && qos == QoS::ExactlyOnce;",
        "let recorded = false && is_kept;",
        "",
    ),
    "publish-before-its-packet-id": (
        SESSION + "deliver.rs",
        "            && !(self.kept && qos == QoS::ExactlyOnce)\n",
        "",
        "--crash-at=publish-sent",
    ),
    "pubrel-before-pubrec-is-kept": (
        SESSION + "deliver.rs",
        "Step::Published if self.kept => Step::Releasing,",
        "Step::Published if self.kept && self.queue_bytes == usize::MAX => Step::Releasing,",
        "--crash-at=pubcomp",
    ),
    "pubcomp-before-the-id-is-free": (
        SESSION + "inbound.rs",
        "                    journal.freed(id);\n                    owed = 1;",
        "                    journal.freed(id);",
        "",
    ),
    "connack-before-the-session": (
        "shards/src/connect.rs",
        "            self.keeping.wait(Waiter::Connect(self.wires.key(slot)));\n",
        "            self.finish_connect(slot, terms);\n            return;\n",
        "--crash-at=connack",
    ),
    "suback-before-the-subscription": (
        "shards/src/subscribe.rs",
        "let stored = state.session.is_kept() && self.keeping.lags();",
        "let stored = false && state.session.is_kept();",
        "--crash-at=commit",
    ),
    "forwarded-before-the-record": (
        "shards/src/router.rs",
        "            && (waits && self.is_kept(publisher) || self.keeping.is_forwarding(shard))",
        "            && self.keeping.is_forwarding(shard)",
        "",
    ),
    "marked-before-kept": (
        "shards/src/router.rs",
        "if self.keeping.records && self.keeping.mark_waits(from, stored) {",
        "if self.keeping.records && self.keeping.mark_waits(from, stored) && from.0 > 63 {",
        "",
    ),
    "not-synced": (
        "src/store/fjall.rs",
        "let mode = if durable {",
        "let mode = if false && durable {",
        "--store=fjall --power=cut",
    ),
    "name-not-synced": (
        "src/store/mod.rs",
        "    sync_names(&names)?;\n",
        "",
        "--power=cut",
    ),
}


def main():
    target = COPY.parent / "target"
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), "CORQTT_BIN": str(target / "ci/corqtt")}

    def judge(name, asked):
        file, old, new, flags = MUTANTS[name]
        build = ["cargo", "build", "-q", "--profile", "ci", "--features", "doubles", "--bin", "corqtt"]
        with broken(name, file, old, new):
            subprocess.run(build, cwd=COPY, env={**environment, "RUSTFLAGS": "-A warnings"}, check=True)
        store = [] if "--store" in flags else ["--store=redb"]
        command = [ROOT / "scripts/crash.sh", *store, f"--rounds={asked.rounds}", "--seed=1", *flags.split()]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        survived = ended.returncode == 0
        last = (ended.stdout.strip().splitlines() or [""])[-1]
        # a broker that breaks its own rules fails the run too
        if not survived and not last.startswith(("redb", "fjall")):
            last = (ended.stderr.strip().splitlines() or [""])[-1]
        return survived, f"{name}\t{'SURVIVED' if survived else 'found'}\t{last}"

    options = [("--rounds", {"type": int, "default": 60, "help": "kills of each (60)"})]
    judge_all(__doc__.splitlines()[0], list(MUTANTS), judge, "broken brokers passed", options)


if __name__ == "__main__":
    main()
