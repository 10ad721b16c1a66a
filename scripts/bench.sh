#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The speed lines of corqtt, both drivers, against mosquitto and the bare relay, interleaved on this machine.
# The broker under test is pinned to CPU 0, the load generator to CPU 1: leave both alone while it runs.
#
#   scripts/bench.sh                  all lines (about an hour)
#   scripts/bench.sh --quick          runs of a second, three rounds
#   scripts/bench.sh p2p-qos0 idle    only these lines (`corqtt-bench suite --list` names them)
#   scripts/bench.sh two-shards       only two shards against one
#   scripts/bench.sh filters          only a million filters: memory, and time of a match
#   scripts/bench.sh --json=FILE      other flags of `corqtt-bench suite` pass through

set -euo pipefail
cd "$(dirname "$0")/.."

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

PATH=$PATH:/usr/sbin
if ! command -v mosquitto >/dev/null; then
    as_root apt-get update -qq
    as_root apt-get install -y -qq --no-install-recommends mosquitto
    # the package starts its service; only the binary is wanted
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now --quiet mosquitto
    else
        as_root service mosquitto stop || true
    fi
fi
# it prints its version with the usage, and then fails
(mosquitto -h || true) | sed -n 1p

cargo build --release --quiet --package corqtt --package corqtt-bench
release=${CARGO_TARGET_DIR:-target}/release

# mosquitto reads its ports from a file, the others get free ones
ports=()
port=21883
while [ "${#ports[@]}" -lt 4 ]; do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || ports+=("$port")
    port=$((port + 1))
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$release/corqtt-bench" certificates "$dir"
# mosquitto gives up root before it reads on; these keys guard nothing
chmod 755 "$dir"
chmod 644 "$dir"/*.pem
cat >"$dir/mosquitto.conf" <<CONF
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
set_tcp_nodelay true
log_type none
listener ${ports[0]} 127.0.0.1
listener ${ports[1]} 127.0.0.1
certfile $dir/server.pem
keyfile $dir/server-key.pem
listener ${ports[2]} 127.0.0.1
protocol websockets
listener ${ports[3]} 127.0.0.1
protocol websockets
certfile $dir/server.pem
keyfile $dir/server-key.pem
CONF
cat >"$dir/corqtt.yml" <<CONF
mqtt:
  tls:
    server-cert: $dir/server.pem
    server-key: $dir/server-key.pem
CONF

mosquitto="mosquitto@127.0.0.1:${ports[0]},tls:${ports[1]},ws:${ports[2]},wss:${ports[3]}"
corqtt="$release/corqtt --storage-way=memory --conf=$dir/corqtt.yml --level=warn --http=off --tcp=127.0.0.1:{port} --tls=127.0.0.1:{port.tls}"
corqtt+=" --ws=127.0.0.1:{port.ws} --wss=127.0.0.1:{port.wss}"
relay="{self} relay --listen=127.0.0.1:{port} --tls=127.0.0.1:{port.tls}"
relay+=" --server-cert=$dir/server.pem --server-key=$dir/server-key.pem"
status=0
named=no
options=()
for argument in "$@"; do
    case $argument in
        --json=*) ;;
        -*) options+=("$argument") ;;
        *) named=yes ;;
    esac
done

if [ "${1:-}" != two-shards ] && [ "${1:-}" != filters ]; then
    "$release/corqtt-bench" suite "$@" --baseline=mosquitto --floor=relay --ca="$dir/ca.pem" \
        --spawn="$mosquitto=mosquitto -c $dir/mosquitto.conf" \
        --spawn="corqtt-epoll=$corqtt --runtime=epoll --shards=1 --cpus=0" \
        --spawn="corqtt-glommio=$corqtt --runtime=glommio --shards=1 --cpus=0" \
        --spawn="relay=$relay" || status=$?
fi

# two shards need both CPUs, so one of them shares with the generator: CPU time is compared, not throughput
if [ "$named" = no ] || [ "${1:-}" = two-shards ]; then
    for runtime in epoll glommio; do
        "$release/corqtt-bench" suite two-shards ${options[@]+"${options[@]}"} --broker-cpu=none --baseline=one-shard \
            --spawn="one-shard=$corqtt --runtime=$runtime --shards=1 --cpus=0" \
            --spawn="two-shards=$corqtt --runtime=$runtime --shards=2 --cpus=0,1" || status=$?
    done
fi
if [ "$named" = no ] || [ "${1:-}" = filters ]; then
    # with all shards that the limit speaks of
    cargo bench --quiet --package corqtt-topics --bench matching -- exact-1m remote-1 remote-3 || status=$?
fi
exit "$status"
