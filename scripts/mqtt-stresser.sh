#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# mqtt-stresser with 500 clients and 100 messages each against a running broker.
#
#   scripts/mqtt-stresser.sh [tcp://host:port] [flags of mqtt-stresser]
#
# Takes the tool from PATH, else builds it with go; where neither can be had, runs the same workload from bench/.

set -euo pipefail
cd "$(dirname "$0")/.."

broker=tcp://127.0.0.1:1883
case ${1:-} in
    *://*)
        broker=$1
        shift
        ;;
esac

stresser=$(command -v mqtt-stresser || true)
if [ -z "$stresser" ] && command -v go >/dev/null; then
    if go install github.com/inovex/mqtt-stresser@latest; then
        stresser=$(go env GOBIN)
        stresser=${stresser:-$(go env GOPATH)/bin}/mqtt-stresser
    fi
fi

if [ -n "$stresser" ]; then
    exec "$stresser" -broker "$broker" -num-clients=500 -num-messages=100 "$@"
fi
echo "mqtt-stresser is neither in PATH nor to be had with go install: running the same workload with corqtt-bench" >&2
cargo build --release --quiet --package corqtt-bench
exec "${CARGO_TARGET_DIR:-target}/release/corqtt-bench" stresser --broker="$broker" \
    -num-clients=500 -num-messages=100 "$@"
