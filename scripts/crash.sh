#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Kills the broker again and again under load, restarts it on its store with another number of shards, and counts what it
# had acknowledged and did not keep.
#
#   scripts/crash.sh                         200 kills at random instants for each embedded store
#   scripts/crash.sh --crash-at=each --rounds=20   at each step of the order in which things are kept and sent
#   scripts/crash.sh --power=cut             as if the machine had lost its power: what was not synced is dropped or torn
#   scripts/crash.sh --outage=30              redis is gone for half a minute, the broker is not
#   scripts/crash.sh --store=redb --seed=N   repeats a run
#
# CORQTT_BIN names a binary to take instead of building one.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/python-packages.sh

if [ -z "${CORQTT_BIN:-}" ]; then
  # with the steps at which a process can be told to end
  cargo build --locked --quiet --profile ci --features doubles
  export CORQTT_BIN=${CARGO_TARGET_DIR:-$PWD/target}/ci/corqtt
fi
python_packages
export PYTHONPATH=$PWD/tests PYTHONDONTWRITEBYTECODE=1
exec "$VENV/bin/python" -m crash.crash "$@"
