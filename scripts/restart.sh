#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fills a store with a million queued and a million retained messages, and times the broker's start on it.
#
#   scripts/restart.sh                  redb and fjall; fails above ten seconds
#   scripts/restart.sh --store=redb --sessions=100 --retained=100000
#
# CORQTT_BIN names a binary to take instead of building one.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/python-packages.sh

if [ -z "${CORQTT_BIN:-}" ]; then
  cargo build --locked --quiet --release --package corqtt
  export CORQTT_BIN=${CARGO_TARGET_DIR:-$PWD/target}/release/corqtt
fi
python_packages
export PYTHONPATH=$PWD/tests PYTHONDONTWRITEBYTECODE=1
exec "$VENV/bin/python" -m stores.large "$@"
