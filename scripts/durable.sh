#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What keeping costs: the same loads with each store, beside memory and beside what the disk does by itself.
# The broker has both CPUs that it finds, as the load has: these are rates of a machine, not of a core.
#
#   scripts/durable.sh                  all loads, memory, redb, fjall, and redis where redis-server is installed
#   scripts/durable.sh --rounds=N       runs per store, interleaved (5); --duration=SECONDS of each (3)
#   scripts/durable.sh --json=DIR       all figures, a file per load
#
# CORQTT_BIN and CORQTT_BENCH name binaries to take instead of building them.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rounds=5 duration=3 json=
for flag in "$@"; do
  case $flag in
    --rounds=*) rounds=${flag#*=} ;;
    --duration=*) duration=${flag#*=} ;;
    --json=*) json=${flag#*=} ;;
    *)
      sed -n '4,11s/^# \?//p' "$0" >&2
      exit 2
      ;;
  esac
done

if [ -z "${CORQTT_BIN:-}" ] || [ -z "${CORQTT_BENCH:-}" ]; then
  cargo build --release --locked --quiet --package corqtt --package corqtt-bench
  release=${CARGO_TARGET_DIR:-$PWD/target}/release
  CORQTT_BIN=${CORQTT_BIN:-$release/corqtt} CORQTT_BENCH=${CORQTT_BENCH:-$release/corqtt-bench}
fi

# on the disk that the tree is on: a directory for temporary files may be none
mkdir -p target
dir=$(mktemp -d target/durable.XXXXXX)
redis=
trap '[ -z "$redis" ] || kill "$redis"; wait; rm -rf "$dir"' EXIT

printf 'the disk: '
"$CORQTT_BENCH" fsync "$dir"

# a queue takes all that a run publishes
printf 'mqtt:\n  limits:\n    queue-messages: 0\n    queue-bytes: 0\n' >"$dir/corqtt.yml"
# starts one broker at the port of its argument, on an empty store
starter() {
  local way=$1 empty=$2
  shift 2
  cat >"$dir/$way.sh" <<SH
#!/bin/sh
$empty
exec $CORQTT_BIN --conf=$dir/corqtt.yml --level=warn --http=off --tcp=127.0.0.1:\$1 --ws=off --shards=1 --storage-way=$way $*
SH
  chmod +x "$dir/$way.sh"
  targets+=("--spawn=$way=$dir/$way.sh {port}")
}
targets=()
starter memory ''
starter redb "rm -rf $dir/redb" "--storage-path=$dir/redb"
starter fjall "rm -rf $dir/fjall" "--storage-path=$dir/fjall"
if command -v redis-server >/dev/null; then
  port=26379
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  redis-server --port "$port" --bind 127.0.0.1 --dir "$dir" --save '' --appendonly yes --appendfsync always --loglevel warning &
  redis=$!
  starter redis "redis-cli -p $port flushall >/dev/null" "--redis=127.0.0.1:$port"
else
  echo 'redis-server is not installed (Debian: redis-server): no redis in what follows'
fi

json=${json:-$dir/json}
mkdir -p "$json"

# name, targets up to a lone --, flags of corqtt-bench
load() {
  local name=$1 which=()
  shift
  while [ "$1" != -- ]; do
    which+=("$1")
    shift
  done
  shift
  printf '\n== %s: corqtt-bench %s\n' "$name" "$*"
  "$CORQTT_BENCH" "$@" --rounds="$rounds" --duration="$duration" --broker-cpu=none --cpu=none \
    --json="$json/$name.json" "${which[@]}"
}

load online-qos1 "${targets[@]}" -- p2p --pairs=50 --persistent --qos=1
load online-qos2 "${targets[@]}" -- p2p --pairs=50 --persistent --qos=2
load away-qos1 "${targets[@]}" -- p2p --pairs=50 --away --qos=1
load away-qos2 "${targets[@]}" -- p2p --pairs=50 --away --qos=2

# when publishers get their acknowledgements at half of what each store has shown to carry
for target in "${targets[@]}"; do
  name=${target#--spawn=} name=${name%%=*}
  for load in online away; do
    rate=$(python3 -c '
import json, sys
targets = json.load(open(sys.argv[1]))["scenarios"][0]["targets"]
print(int(targets[sys.argv[2]]["median"]["messages_per_s"] / 2))' "$json/$load-qos1.json" "$name")
    [ "$load" = online ] && how=--persistent || how=--away
    load "half-$load-$name" "$target" -- p2p --pairs=50 "$how" --qos=1 --rate="$rate"
  done
done
