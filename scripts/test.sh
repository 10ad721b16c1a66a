#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs all tests, installing what they need: scripts/test.sh [STAGE...]
#
#   lint       fmt, clippy and docs without a warning, licences and bans, the table of the specification
#   unit       cargo test of the workspace
#   behaviour  paho-mqtt against the broker: in each world (below), and with redb and fjall
#   wire       hand-written bytes against the broker, with both drivers and the doubles
#   hostile    hostile input and overload, small, on one shard and on two
#   stores     what each store gives back after a crash, and what happens while redis is away
#   cluster    three brokers that are one
#   crash      the broker killed under load and at each step of what is kept before what is sent
#   mqttjs     MQTT.js, in each world
#   go         paho.mqtt.golang, with the stresser workload, in each world
#   mosquitto  mosquitto_pub and mosquitto_sub, in each world
#   transports behaviour, wire and MQTT.js over TLS, mutual TLS, WebSocket, secure WebSocket, a unix socket and behind
#              PROXY headers, and what is each transport's own
#   browser    MQTT.js in headless Chromium
#   fuzz       each fuzz target for FUZZ_SECONDS (60)
#
# A world is {1,2,4} shards x {epoll, glommio}, or the build whose doubles of auth and store answer late and out of order.
#
# Needs bash, apt, a Rust toolchain, Go, Node and Python 3; writes to target/ only. The last line says how many tests
# passed, failed and were skipped, whose reasons stand above it; the exit status is 0 if none failed.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly STAGES=(lint unit behaviour wire hostile stores cluster crash mqttjs go mosquitto transports browser fuzz)
# shards, driver, whether with the doubles
readonly WORLDS=("1 epoll" "2 epoll" "4 epoll" "1 glommio" "2 glommio" "4 glommio" "2 auto doubles")
# besides TCP
readonly TRANSPORTS=(tls mtls ws wss unix proxy1 proxy2)
readonly TARGET=$PWD/target
readonly RESULTS=$TARGET/test-results
. scripts/python-packages.sh
readonly NODE=$TARGET/test-mqttjs

PASSED=0
FAILED=0
SKIPPED=0
# what failed and what was skipped, one line each, for the end
FAILURES=()
SKIPS=()
WANTED=("$@")
[ ${#WANTED[@]} -gt 0 ] || WANTED=("${STAGES[@]}")

export CARGO_TARGET_DIR=$TARGET PYTHONDONTWRITEBYTECODE=1 CARGO_TERM_COLOR=never
export TMPDIR=$TARGET/test-tmp CORQTT_TEST_CERTIFICATES=$TARGET/test-tmp/certificates
# each suite of behaviour by itself runs without a disk; those that are about a store name theirs
export CORQTT_STORAGE_WAY=memory
export CORQTT_BIN=$TARGET/ci/corqtt CORQTT_DOUBLES_BIN=$TARGET/ci/corqtt-doubles

main() {
  local stage
  for stage in "${WANTED[@]}"; do
    case " ${STAGES[*]} " in
      *" $stage "*) ;;
      *) echo "unknown stage $stage; there are: ${STAGES[*]}" >&2; exit 2 ;;
    esac
  done
  trap stop_child EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  rm -rf "$RESULTS" "$TMPDIR"
  mkdir -p "$RESULTS" "$TMPDIR"
  if wants behaviour wire hostile stores cluster crash mqttjs go mosquitto transports browser; then
    step "the broker" cargo build --locked --profile ci --features doubles || finish
  fi
  if wants behaviour wire hostile stores cluster crash mosquitto transports browser; then
    step "Python packages" python_and_packages || finish
  fi
  if wants unit stores crash; then
    step "redis" redis_server || finish
  fi
  for stage in "${STAGES[@]}"; do
    if wants "$stage"; then
      heading "$stage"
      "stage_$stage"
    fi
  done
  finish
}

stage_lint() {
  check "statements" scripts/statements.py
  check "cargo fmt" cargo fmt --all --check
  check "cargo clippy" cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
  RUSTDOCFLAGS="-D warnings" check "cargo doc" cargo doc --locked --workspace --no-deps
  if command -v cargo-deny >/dev/null; then
    check "cargo deny" cargo deny --all-features check licenses bans sources
  else
    skip 1 "lint: cargo-deny is not installed, so licences and bans were not checked"
  fi
}

stage_unit() {
  local log=$RESULTS/unit.log
  run logged "$log" cargo test --locked --workspace --all-features --no-fail-fast
  count_lines "$log" '^test result: [a-zA-Z]*\. \([0-9]*\) passed; \([0-9]*\) failed;.*' $?
  skip "$(sed -n 's/^test result: .*; \([0-9]*\) ignored;.*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')" \
    "unit: ignored, each says why"
  blame unit "$log" '^test .* FAILED$' "panicked at" 2
}

stage_behaviour() {
  local way
  in_each_world suite behaviour behaviour
  for way in redb fjall; do
    CORQTT_STORAGE_WAY=$way in_world "2 auto" suite "behaviour-$way" behaviour
  done
}

stage_wire() {
  in_world "2 epoll" suite "wire-epoll" wire
  in_world "2 glommio" suite "wire-glommio" wire
  CORQTT_STORAGE_WAY=redb in_world "2 auto" suite "wire-redb" wire
  in_world "2 auto doubles" suite "wire-doubles" wire
}

stage_hostile() {
  in_world "1 auto" suite "hostile-1" hostile
  in_world "2 epoll" suite "hostile-2" hostile
}

stage_stores() {
  in_world "2 epoll" suite "stores-epoll" stores
  in_world "2 glommio" suite "stores-glommio" stores
}

stage_cluster() {
  in_world "1 epoll" suite "cluster-1-epoll" cluster
  in_world "2 glommio" suite "cluster-2-glommio" cluster
}

stage_crash() {
  in_world "1 auto" suite "crash" crash
}

stage_mosquitto() {
  step "mosquitto-clients" mosquitto_clients || return
  in_each_world suite mosquitto mosquitto_clients
}

stage_mqttjs() {
  step "npm packages" node_packages || return
  in_each_world mqttjs mqttjs
}

stage_transports() {
  local transport
  in_world "2 epoll" suite "transports-epoll" transports
  in_world "2 glommio" suite "transports-glommio" transports
  for transport in "${TRANSPORTS[@]}"; do
    CORQTT_TEST_TRANSPORT=$transport in_world "2 auto" suite "behaviour-$transport" behaviour
    CORQTT_TEST_TRANSPORT=$transport in_world "2 auto" suite "wire-$transport" wire
  done
  step "npm packages" node_packages || return
  step "certificates" certificates || return
  for transport in "${TRANSPORTS[@]}"; do
    CORQTT_TEST_TRANSPORT=$transport in_world "2 auto" mqttjs "mqttjs-$transport"
  done
}

stage_browser() {
  step "npm packages" node_packages || return
  step "a browser" browser || return
  in_world "2 auto" suite "browser" browser
}

stage_go() {
  in_each_world pahogo go
}

stage_fuzz() {
  if [ ! -f fuzz/Cargo.toml ]; then
    echo "no fuzz targets"
    return
  fi
  local targets
  mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,/^$/s/^name *= *"\(.*\)"/\1/p' fuzz/Cargo.toml)
  if ! fuzz_tools >"$RESULTS/fuzz-tools.log" 2>&1; then
    skip "${#targets[@]}" "fuzz: cargo-fuzz or a nightly toolchain can't be had here; the targets ran as ordinary tests in the unit stage"
    return
  fi
  local target log
  for target in "${targets[@]}"; do
    mkdir -p "$TARGET/fuzz-corpus/$target" "$TARGET/fuzz-artifacts/$target"
    log=$RESULTS/fuzz-$target.log
    check "fuzz $target" to_log "$log" cargo +nightly fuzz run --target-dir "$TARGET/fuzz" "$target" \
      "$TARGET/fuzz-corpus/$target" -- "-max_total_time=${FUZZ_SECONDS:-60}" \
      "-artifact_prefix=$TARGET/fuzz-artifacts/$target/"
    tail -n 1 "$log"
    blame "fuzz $target" "$log" '\(ERROR: \|panicked at\|Test unit written\)'
  done
}

# Runs a pass of a suite, whose first word behind it is its name, in a world: "SHARDS DRIVER [doubles]".
in_world() {
  local shards runtime doubles binary=$CORQTT_BIN
  read -r shards runtime doubles <<<"$1"
  shift
  echo
  echo "-- $2"
  if [ -n "$doubles" ]; then
    binary=$CORQTT_DOUBLES_BIN
    # printed, so that a failure can be repeated
    export CORQTT_DOUBLES_SEED=${CORQTT_DOUBLES_SEED:-$RANDOM}
    echo "CORQTT_DOUBLES_SEED=$CORQTT_DOUBLES_SEED"
  fi
  CORQTT_BIN=$binary CORQTT_TEST_SHARDS=$shards CORQTT_TEST_RUNTIME=$runtime CORQTT_TEST_DOUBLES=$doubles "$@"
}

# A pass in each world: the suite's kind, its name, what else it takes.
in_each_world() {
  local kind=$1 name=$2 world
  shift 2
  for world in "${WORLDS[@]}"; do
    in_world "$world" "$kind" "$name-${world// /-}" "$@"
  done
}

# One pass of the MQTT.js suite: name.
mqttjs() {
  local log=$RESULTS/$1.log
  run to_log "$log" within "$NODE" node --test --test-reporter=spec
  local status=$? passed failed skipped
  passed=$(sed -n 's/^ℹ pass \([0-9]*\)$/\1/p' "$log" | tail -1)
  failed=$(sed -n 's/^ℹ \(fail\|cancelled\) \([0-9]*\)$/\2/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
  skipped=$(sed -n 's/^ℹ skipped \([0-9]*\)$/\1/p' "$log" | tail -1)
  echo "${passed:-0} passed, $failed failed"
  count "${passed:-0}" "$failed" "$status" "$1"
  skip "${skipped:-0}" "$1: $log tells which"
  blame "$1" "$log" '^✖ ' 'Error'
}

# One pass of the suite of paho.mqtt.golang: name.
pahogo() {
  local log=$RESULTS/$1.log
  run to_log "$log" within tests/pahogo go test -count=1 -v ./...
  local status=$? passed failed
  passed=$(grep -c '^--- PASS' "$log")
  failed=$(grep -c '^--- FAIL' "$log")
  echo "$passed passed, $failed failed"
  count "$passed" "$failed" "$status" "$1"
  skip "$(grep -c '^--- SKIP' "$log")" "$1: $log tells which"
  blame "$1" "$log" '^--- FAIL' '_test.go:[0-9]*:'
}

# One pass of a pytest suite: name, folder.
suite() {
  local name=$1 folder=$2
  local log=$RESULTS/$name.log
  run "$VENV/bin/pytest" -c tests/pytest.ini --rootdir tests -q -n 6 --dist worksteal -r fEs --tb short \
    "tests/$folder" >"$log" 2>&1
  local status=$?
  local closing
  closing=$(tail -1 "$log")
  if [ "$status" -eq 0 ]; then echo "$closing"; else cat "$log"; fi
  count "$(number_of passed "$closing")" "$(($(number_of failed "$closing") + $(number_of 'errors\{0,1\}' "$closing")))" "$status" "$name"
  skip "$(number_of skipped "$closing")" "$name: $(sed -n 's/^SKIPPED \[[0-9]*\] //p' "$log" | head -n 3 | paste -sd ';')"
  blame "$name" "$log" '^\(FAILED\|ERROR\) ' '^\(E  \|tests/.*: in \)'
}

# Set-up, each by name and only if it is missing.

apt_install() {
  local sudo=""
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

python_and_packages() {
  if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    apt_install python3-venv || return
  fi
  python_packages
}

redis_server() {
  command -v redis-server >/dev/null && return
  apt_install redis-server || return
  # the package starts its service; only the binary is wanted
  local sudo=""
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  if [ -d /run/systemd/system ]; then
    $sudo systemctl disable --now --quiet redis-server
  else
    $sudo service redis-server stop || true
  fi
}

mosquitto_clients() {
  command -v mosquitto_pub mosquitto_sub mosquitto_rr >/dev/null && return
  apt_install mosquitto-clients
}

node_packages() {
  mkdir -p "$NODE"
  if ! cmp -s tests/mqttjs/package-lock.json "$NODE/node_modules/.package-lock.copy"; then
    cp tests/mqttjs/package.json tests/mqttjs/package-lock.json "$NODE/" &&
      (cd "$NODE" && npm ci --no-audit --no-fund --silent) &&
      cp tests/mqttjs/package-lock.json "$NODE/node_modules/.package-lock.copy" || return
  fi
  cp tests/mqttjs/*.js tests/mqttjs/package.json "$NODE/"
}

# For suites that cannot make their own.
certificates() {
  mkdir -p "$CORQTT_TEST_CERTIFICATES" && "$VENV/bin/python" tests/harness/certificates.py "$CORQTT_TEST_CERTIFICATES"
}

browser() {
  command -v chromium chromium-browser google-chrome >/dev/null || apt_install chromium
}

fuzz_tools() {
  cargo +nightly --version >/dev/null || return
  command -v "$TARGET/tools/bin/cargo-fuzz" >/dev/null || command -v cargo-fuzz >/dev/null ||
    CARGO_TARGET_DIR=$TARGET/tools/build cargo install --locked --root "$TARGET/tools" cargo-fuzz || return
  PATH=$TARGET/tools/bin:$PATH
  # a nightly may exist and still not build sanitizers
  cargo +nightly fuzz build --target-dir "$TARGET/fuzz"
}

# Running and counting.

CHILD=

# Runs a command in a process group of its own, so that the exit trap can stop all of it.
run() {
  set -m
  "$@" </dev/null &
  CHILD=$!
  set +m
  wait "$CHILD"
  local status=$?
  CHILD=
  return "$status"
}

stop_child() {
  [ -z "$CHILD" ] || kill -TERM -- "-$CHILD" 2>/dev/null
}

# A command whose output is seen and kept.
logged() {
  local log=$1
  shift
  "$@" 2>&1 | tee "$log"
  return "${PIPESTATUS[0]}"
}

# A command whose output is kept, and seen only if it fails: the last hundred lines.
to_log() {
  local log=$1 status
  shift
  "$@" >"$log" 2>&1
  status=$?
  [ "$status" -eq 0 ] || tail -n 100 "$log"
  return "$status"
}

within() {
  cd "$1" && shift && "$@"
}

wants() {
  local stage wanted
  for stage in "$@"; do
    for wanted in "${WANTED[@]}"; do
      [ "$stage" = "$wanted" ] && return 0
    done
  done
  return 1
}

heading() {
  echo
  echo "== $1 ($(date +%T))"
}

# Set-up: counts only if it fails.
step() {
  heading "setting up: $1"
  shift
  if ! run "$@"; then
    count 0 1 1
    FAILURES+=("$*")
    return 1
  fi
}

# A command that is one test.
check() {
  echo
  echo "-- $1"
  shift
  if run "$@"; then
    count 1 0 0
  else
    count 0 1 1
    FAILURES+=("$*")
  fi
}

# Adds passed and failed; a runner that fails without a failed test counts as one, and is named if it has a name.
count() {
  local passed=$1 failed=$2 status=$3 name=${4:-}
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
    [ -z "$name" ] || FAILURES+=("$name: exit status $status; $RESULTS/$name.log tells why")
  fi
  PASSED=$((PASSED + passed))
  FAILED=$((FAILED + failed))
}

# Adds what was skipped, if anything, and why.
skip() {
  if [ "$1" -gt 0 ]; then
    SKIPPED=$((SKIPPED + $1))
    SKIPS+=("$1 in $2")
  fi
}

# Sums passed and failed over the lines of a log that a pattern takes them from.
count_lines() {
  local passed=0 failed=0 p f
  while read -r p f; do
    passed=$((passed + p))
    failed=$((failed + f))
  done < <(sed -n "s/$2/\1 \2/p" "$1")
  count "$passed" "$failed" "$3" unit
}

# The number before a word in pytest's closing line.
number_of() {
  local found
  found=$(sed -n "s/.*\b\([0-9][0-9]*\) $1\b.*/\1/p" <<<"$2")
  echo "${found:-0}"
}

# Remembers from a log what failed and why: name, log, pattern of failed tests, pattern of reasons, lines behind each.
blame() {
  local name=$1 log=$2 line
  while IFS= read -r line; do
    FAILURES+=("$name: $line")
  done < <(grep -h -- "$3" "$log" | head -n 20; [ -z "${4:-}" ] || ! grep -q -- "$3" "$log" || grep -h -A "${5:-0}" -- "$4" "$log" | head -n 40)
}

finish() {
  echo
  if [ "${#FAILURES[@]}" -gt 0 ]; then
    echo "what failed:"
    printf '  %s\n' "${FAILURES[@]}"
    echo
  fi
  if [ "${#SKIPS[@]}" -gt 0 ]; then
    echo "what was skipped:"
    printf '  %s\n' "${SKIPS[@]}"
    echo
  fi
  echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
  [ "$FAILED" -eq 0 ]
  exit
}

main
