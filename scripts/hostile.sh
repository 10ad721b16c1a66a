#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Hostile input and overload in full, beside a probe; prints a table and fails when a line of it does not hold.
# The broker is pinned to CPU 0, attackers and probe to CPU 1: leave both alone while it runs.
#
#   scripts/hostile.sh                    every attack, nine runs with and without it (about an hour)
#   scripts/hostile.sh --quick            small attacks, one run each
#   scripts/hostile.sh half-open tls      only attacks whose names begin so (`--help` lists them)
#   scripts/hostile.sh retained           a subscriber of `#` joins a million retained messages
#   scripts/hostile.sh --json=FILE        all figures; --runs=N, --seconds=N change how much is measured
#
# CORQTT_BIN and CORQTT_BENCH name binaries to take instead of building them.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/python-packages.sh

if [ -z "${CORQTT_BIN:-}" ] || [ -z "${CORQTT_BENCH:-}" ]; then
  cargo build --release --locked --quiet --package corqtt --package corqtt-bench
  release=${CARGO_TARGET_DIR:-$PWD/target}/release
  export CORQTT_BIN=${CORQTT_BIN:-$release/corqtt} CORQTT_BENCH=${CORQTT_BENCH:-$release/corqtt-bench}
fi
python_packages

# 10,000 connections need a descriptor each, here and in the broker
ulimit -n "$(ulimit -Hn)"
export PYTHONPATH=$PWD/tests PYTHONDONTWRITEBYTECODE=1
exec "$VENV/bin/python" -m hostile.full "$@"
