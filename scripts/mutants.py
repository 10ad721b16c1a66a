#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks the lines that enforce statements of the specification, one at a time, and runs the test that the table names
for each: it has to fail. Twenty covered statements are drawn by seed; each has its mutant below.

    scripts/mutants.py [--log=FILE] [NAME...]

Prints a line per statement. The exit status is 1 if a test passed although its line was broken. It works on a copy of the
tree in target/mutants, needs scripts/test.sh to have set up the Python packages, and takes some fifteen minutes.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "target/mutants/tree"
TABLE = ROOT / "tests/specification/statements.tsv"
SEED, COUNT = 20261126, 20

CODEC, SESSION = "shards/codec/src/", "shards/session/src/"
INVALID = f"{CODEC}tests/codec.rs::invalid_bytes_are_refused_with_their_reason"
FORBIDDEN = "tests/wire/test_forbidden.py"

# statement: (file, what stands there once, what takes its place, the test)
MUTANTS = {
    "MQTT-3.1.2-13": (CODEC + "decode.rs", "(will_retain || will_qos != QoS::AtMostOnce)", "will_retain", INVALID),
    "MQTT-3.1.3-4": (
        CODEC + "decode.rs",
        "connect.client_id = reader.string()?;",
        'connect.client_id = std::str::from_utf8(reader.binary()?).unwrap_or("x");',
        INVALID,
    ),
    "MQTT-3.10.3-1": (
        CODEC + "decode.rs",
        "            // [MQTT-3.10.3-1] [MQTT5-3.10.3-1]\n            reader.string()?;",
        "            reader.binary()?;",
        INVALID,
    ),
    "MQTT-3.14.4-3": (
        SESSION + "session.rs",
        "        if !keep_will {",
        "        if !keep_will && self.session_expiry_secs == 1 {",
        f"{SESSION}tests/lifetime.rs::a_normal_disconnect_drops_the_will",
    ),
    "MQTT-4.6.0-2": (
        SESSION + "inbound.rs",
        "if owed == 0 && self.acks.publishes.is_empty() {",
        "if owed == 0 {",
        f"{SESSION}tests/publishes.rs::acknowledgements_leave_in_the_order_of_their_packets",
    ),
    "MQTT-4.7.3-3": (
        CODEC + "topic.rs",
        "name.is_empty() || name.len() > TOPIC_BYTES_MAX || has_special",
        "name.is_empty() || has_special",
        f"{CODEC}tests/topic.rs::names_are_not_empty_and_free_of_wildcards_and_nul",
    ),
    "MQTT5-3.1.2-1": (CODEC + "decode.rs", '(b"MQTT", 5) =>', "(_, 5) =>", INVALID),
    "MQTT5-3.1.2-10": (
        SESSION + "session.rs",
        "        if delay_secs == 0 {\n            return Closed {\n                will: self.will.take(),",
        "        if delay_secs == 0 {\n            return Closed {\n                will: self.will.clone(),",
        f"{SESSION}tests/lifetime.rs::a_will_without_delay_is_published_when_the_connection_ends",
    ),
    "MQTT5-3.1.2-25": (
        SESSION + "deliver.rs",
        "as if it had been completed\n            self.outbound.remove(id);",
        "as if it had been completed",
        f"{SESSION}tests/resume.rs::a_message_too_large_for_the_new_connection_is_as_if_completed",
    ),
    "MQTT5-3.1.2-9": (CODEC + "decode.rs", "    if has_will {", "    if has_will && !reader.is_empty() {", INVALID),
    "MQTT5-3.14.0-1": (
        "shards/src/connection.rs",
        "not before CONNACK\n            && was_live",
        "not before CONNACK",
        "tests/wire/test_connect.py::test_malformed_connect_is_closed_and_before_5_without_connack",
    ),
    "MQTT5-3.2.2-17": (
        SESSION + "inbound.rs",
        "if alias == 0 || alias > limits.topic_alias_maximum {",
        "if alias == 0 {",
        FORBIDDEN + "::test_alias_above_the_brokers_maximum",
    ),
    "MQTT5-3.3.1-3": (
        SESSION + "deliver.rs",
        "what is sent again is not encoded here\n            dup: false,",
        "what is sent again is not encoded here\n            dup: true,",
        "tests/wire/test_delivery.py::test_dup_of_the_publisher_is_not_passed_on",
    ),
    "MQTT5-3.3.4-5": (
        "shards/src/router.rs",
        "a copy of its own, with its own identifier\n                        ids: id.as_slice(),",
        "a copy of its own, with its own identifier\n                        ids: &id.as_slice()[1..],",
        "tests/behaviour/test_shared.py::test_copies_of_several_subscriptions_have_an_identifier_each",
    ),
    "MQTT5-3.4.2-1": (
        CODEC + "decode.rs",
        "0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99\n            )",
        "0..=0xFF\n            )",
        INVALID,
    ),
    "MQTT5-4.12.1-2": (
        "shards/src/extended.rs",
        'return self.violation(slot, *reason, "a proof that was not accepted");',
        "return log::debug!(reason:% = reason; \"a proof that was not accepted\");",
        "tests/wire/test_auth.py::test_failed_reauthentication_ends_the_connection",
    ),
    "MQTT5-4.13.1-1": (
        "shards/src/connection.rs",
        "            why: Why::Malformed(error),\n            keep_will: true,\n        };\n        self.close_soon(slot, close);",
        "            why: Why::Malformed(error),\n            keep_will: true,\n        };\n        drop(close);",
        FORBIDDEN + "::test_forbidden_packet_ends_the_connection",
    ),
    "MQTT5-4.3.1-1": (
        SESSION + "deliver.rs",
        "                qos,\n                None,\n                false,",
        "                qos,\n                None,\n                true,",
        f"{SESSION}tests/delivery.rs::qos_0_has_no_packet_id_and_no_state",
    ),
    "MQTT5-4.3.2-4": (
        SESSION + "inbound.rs",
        "        } else {\n            PUBACK\n        };",
        "        } else {\n            PUBCOMP\n        };",
        "tests/wire/test_answers.py::test_publish_answers",
    ),
    "MQTT5-4.4.0-2": (
        SESSION + "deliver.rs",
        "                    drops.count(DropReason::RefusedByClient);\n                    self.finish(id);",
        "                    drops.count(DropReason::RefusedByClient);",
        f"{SESSION}tests/delivery.rs::an_error_of_the_client_ends_the_message",
    ),
}


def drawn():
    """The ids, and the tests that the table names for each."""
    lines = [line.rstrip("\n").split("\t") for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    rows = [dict(zip(lines[0], line)) for line in lines[1:]]
    covered = sorted((row for row in rows if row["reason"] == "-"), key=lambda row: (row["version"], row["id"]))
    for row in sorted(random.Random(SEED).sample(covered, COUNT), key=lambda row: (row["version"], row["id"])):
        name = row["id"] if row["version"] == "3.1.1" else row["id"].replace("MQTT-", "MQTT5-")
        yield name, row["test"].split(" ")


def copy():
    """The tree as git has it, so that what is broken here is broken nowhere else."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, COPY / name)


def run(test, late):
    """Whether the test passed, and the last line that says so."""
    path, function = test.split("::")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(COPY.parent / "target")}
    if path.endswith(".rs"):
        crate = "corqtt-" + path.split("/")[1]
        command = ["cargo", "test", "-q", "-p", crate, "--lib", function]
        ended = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True)
        lines = re.findall(r"^test result:.*$", ended.stdout, re.M)
        assert lines, f"the mutant does not compile:\n{ended.stderr}"
        return ended.returncode == 0, lines[-1]
    build = ["cargo", "build", "-q", "--profile", "ci", "--features", "doubles"]
    subprocess.run(build, cwd=COPY, env=environment, check=True)
    built = COPY.parent / "target/ci"
    environment.update(CORQTT_BIN=str(built / "corqtt"), CORQTT_DOUBLES_BIN=str(built / "corqtt-doubles"))
    environment.update(CORQTT_TEST_SHARDS="1", CORQTT_TEST_RUNTIME="auto", CORQTT_TEST_DOUBLES="doubles" if late else "")
    environment.update(CORQTT_DOUBLES_SEED="1", TMPDIR=str(COPY.parent))
    python = ROOT / "target/test-venv/bin/pytest"
    command = [python, "-c", "tests/pytest.ini", "--rootdir", "tests", "-q", "--tb", "no", path, "-k", function]
    ended = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True)
    last = ended.stdout.strip().splitlines()[-1]
    assert ended.returncode in (0, 1), f"the tests did not run: {last}"
    return ended.returncode == 0, last


@contextmanager
def broken(name, file, old, new):
    """The copy with one place of it changed, as long as it lasts."""
    text = (COPY / file).read_text()
    assert text.count(old) == 1, f"{name}: its line is {text.count(old)} times in {file}"
    (COPY / file).write_text(text.replace(old, new))
    yield
    (COPY / file).write_text(text)


def judge_all(description, names, judge, closing, options=()):
    """Runs `judge` on each name that the command line asks for; it answers whether the mutant survived, and a line about
    it. Ends the process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these: " + ", ".join(names))
    parser.add_argument("--log", type=Path, help="write the lines there too")
    for flag, settings in options:
        parser.add_argument(flag, **settings)
    asked = parser.parse_args()
    copy()
    survived = 0
    for name in names:
        if asked.names and name not in asked.names:
            continue
        passed, line = judge(name, asked)
        survived += passed
        print(line, flush=True)
        if asked.log:
            with asked.log.open("a") as log:
                log.write(line + "\n")
    print(f"{survived} {closing}")
    sys.exit(survived > 0)


def main():
    tests = dict(drawn())

    def judge(name, _):
        file, old, new, test = MUTANTS[name]
        assert test in tests[name], f"{name}: the table does not name {test}"
        with broken(name, file, old, new):
            passed, last = run(test, late="test_auth" in test)
        verdict = "SURVIVED" if passed else "fails"
        return passed, f"{name}\t{file}\t{test.split('::')[1]}\t{verdict}\t{last.strip('= ')}"

    closing = "of the tests passed although their line was broken"
    judge_all(__doc__.splitlines()[0], list(tests), judge, closing)


if __name__ == "__main__":
    main()
