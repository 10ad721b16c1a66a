#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs all tests, installing what they need: scripts/test.sh [STAGE...]
#
#   lint       fmt, clippy and docs without a warning, licences and bans, the table of the specification
#   unit       cargo test of the workspace
#   behaviour  paho-mqtt against the broker: {1,2,4} shards x {epoll, glommio}, and the delaying doubles
#   wire       hand-written bytes against the broker, with both drivers and the doubles
#   hostile    hostile input and overload, small, on one shard and on two
#   stores     what each store gives back after a crash, and what happens while redis is away
#   crash      the broker killed under load and at each step of what is kept before what is sent
#   mqttjs     MQTT.js
#   go         paho.mqtt.golang, with the stresser workload
#   mosquitto  mosquitto_pub and mosquitto_sub
#   transports behaviour, wire and MQTT.js over TLS, mutual TLS, WebSocket, secure WebSocket, a unix socket and behind
#              PROXY headers, and what is each transport's own
#   browser    MQTT.js in headless Chromium
#   fuzz       each fuzz target for FUZZ_SECONDS (60)
#
# Needs bash, apt, a Rust toolchain, Go, Node and Python 3; writes to target/ only. The last line says
# how many tests passed and failed; the exit status is 0 if none failed.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly STAGES=(lint unit behaviour wire hostile stores crash mqttjs go mosquitto transports browser fuzz)
# besides TCP
readonly TRANSPORTS=(tls mtls ws wss unix proxy1 proxy2)
readonly TARGET=$PWD/target
readonly RESULTS=$TARGET/test-results
. scripts/python-packages.sh
readonly NODE=$TARGET/test-mqttjs

PASSED=0
FAILED=0
# what failed, one line each, for the end
FAILURES=()
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
  if wants behaviour wire hostile stores crash mqttjs go mosquitto transports browser; then
    step "the broker" cargo build --locked --profile ci --features doubles || finish
  fi
  if wants behaviour wire hostile stores crash mosquitto transports browser; then
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
    echo "cargo-deny is not installed: licences and bans are not checked"
  fi
}

stage_unit() {
  local log=$RESULTS/unit.log
  run logged "$log" cargo test --locked --workspace --all-features --no-fail-fast
  count_lines "$log" '^test result: [a-zA-Z]*\. \([0-9]*\) passed; \([0-9]*\) failed;.*' $?
  blame unit "$log" '^test .* FAILED$' "panicked at" 2
}

stage_behaviour() {
  local shards runtime
  for shards in 1 2 4; do
    for runtime in epoll glommio; do
      suite "behaviour-$shards-$runtime" "$shards" "$runtime" "" behaviour
    done
  done
  local way
  for way in redb fjall; do
    CORQTT_STORAGE_WAY=$way suite "behaviour-$way" 2 auto "" behaviour
  done
  # the seed is printed, so that a failure can be repeated
  suite "behaviour-doubles" 2 auto doubles behaviour
}

stage_wire() {
  suite "wire-epoll" 2 epoll "" wire
  suite "wire-glommio" 2 glommio "" wire
  CORQTT_STORAGE_WAY=redb suite "wire-redb" 2 auto "" wire
  suite "wire-doubles" 2 auto doubles wire
}

stage_hostile() {
  suite "hostile-1" 1 auto "" hostile
  suite "hostile-2" 2 epoll "" hostile
}

stage_stores() {
  suite "stores-epoll" 2 epoll "" stores
  suite "stores-glommio" 2 glommio "" stores
}

stage_crash() {
  suite "crash" 1 auto "" crash
}

stage_mosquitto() {
  step "mosquitto-clients" mosquitto_clients || return
  suite "mosquitto-clients" 2 auto "" mosquitto_clients
}

stage_mqttjs() {
  step "npm packages" node_packages || return
  mqttjs mqttjs
}

stage_transports() {
  local transport
  suite "transports-epoll" 2 epoll "" transports
  suite "transports-glommio" 2 glommio "" transports
  for transport in "${TRANSPORTS[@]}"; do
    CORQTT_TEST_TRANSPORT=$transport suite "behaviour-$transport" 2 auto "" behaviour
    CORQTT_TEST_TRANSPORT=$transport suite "wire-$transport" 2 auto "" wire
  done
  step "npm packages" node_packages || return
  step "certificates" certificates || return
  for transport in "${TRANSPORTS[@]}"; do
    echo
    echo "-- mqttjs-$transport"
    CORQTT_TEST_TRANSPORT=$transport mqttjs "mqttjs-$transport"
  done
}

stage_browser() {
  step "npm packages" node_packages || return
  step "a browser" browser || return
  suite "browser" 2 auto "" browser
}

stage_go() {
  local log=$RESULTS/go.log
  CORQTT_TEST_SHARDS=2 run logged "$log" within tests/pahogo go test -count=1 -v ./...
  local status=$?
  count "$(grep -c '^--- PASS' "$log")" "$(grep -c '^--- FAIL' "$log")" "$status"
  blame go "$log" '^--- FAIL' '_test.go:[0-9]*:'
}

stage_fuzz() {
  if [ ! -f fuzz/Cargo.toml ]; then
    echo "no fuzz targets"
    return
  fi
  if ! fuzz_tools >"$RESULTS/fuzz-tools.log" 2>&1; then
    echo "cargo-fuzz or a nightly toolchain can't be had here: the targets ran as ordinary tests in the unit stage"
    return
  fi
  local target log
  for target in $(sed -n '/^\[\[bin\]\]/,/^$/s/^name *= *"\(.*\)"/\1/p' fuzz/Cargo.toml); do
    mkdir -p "$TARGET/fuzz-corpus/$target" "$TARGET/fuzz-artifacts/$target"
    log=$RESULTS/fuzz-$target.log
    check "fuzz $target" to_log "$log" cargo +nightly fuzz run --target-dir "$TARGET/fuzz" "$target" \
      "$TARGET/fuzz-corpus/$target" -- "-max_total_time=${FUZZ_SECONDS:-60}" \
      "-artifact_prefix=$TARGET/fuzz-artifacts/$target/"
    tail -n 1 "$log"
    blame "fuzz $target" "$log" '\(ERROR: \|panicked at\|Test unit written\)'
  done
}

# One pass of the MQTT.js suite: name.
mqttjs() {
  local log=$RESULTS/$1.log
  CORQTT_TEST_SHARDS=2 run logged "$log" within "$NODE" node --test --test-reporter=spec
  local status=$? passed failed
  passed=$(sed -n 's/^ℹ pass \([0-9]*\)$/\1/p' "$log" | tail -1)
  failed=$(sed -n 's/^ℹ \(fail\|cancelled\) \([0-9]*\)$/\2/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
  count "${passed:-0}" "$failed" "$status"
  blame "$1" "$log" '^✖ ' 'Error'
}

# One pass of a pytest suite: name, shards, runtime, whether with the doubles, folder.
suite() {
  local name=$1 shards=$2 runtime=$3 doubles=$4 folder=$5
  local log=$RESULTS/$name.log
  echo
  echo "-- $name"
  export CORQTT_TEST_SHARDS=$shards CORQTT_TEST_RUNTIME=$runtime CORQTT_TEST_DOUBLES=$doubles
  if [ -n "$doubles" ]; then
    export CORQTT_DOUBLES_SEED=${CORQTT_DOUBLES_SEED:-$RANDOM}
    echo "CORQTT_DOUBLES_SEED=$CORQTT_DOUBLES_SEED"
  fi
  run "$VENV/bin/pytest" -c tests/pytest.ini --rootdir tests -q -n 4 --dist worksteal -r fE --tb short \
    "tests/$folder" >"$log" 2>&1
  local status=$?
  local closing
  closing=$(tail -1 "$log")
  if [ "$status" -eq 0 ]; then echo "$closing"; else cat "$log"; fi
  count "$(number_of passed "$closing")" "$(($(number_of failed "$closing") + $(number_of 'errors\{0,1\}' "$closing")))" "$status"
  blame "$name" "$log" '^\(FAILED\|ERROR\) ' '^\(E  \|tests/.*: in \)'
  unset CORQTT_TEST_SHARDS CORQTT_TEST_RUNTIME CORQTT_TEST_DOUBLES
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

# Adds passed and failed; a runner that fails without a failed test counts as one.
count() {
  local passed=$1 failed=$2 status=$3
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
  fi
  PASSED=$((PASSED + passed))
  FAILED=$((FAILED + failed))
}

# Sums passed and failed over the lines of a log that a pattern takes them from.
count_lines() {
  local passed=0 failed=0 p f
  while read -r p f; do
    passed=$((passed + p))
    failed=$((failed + f))
  done < <(sed -n "s/$2/\1 \2/p" "$1")
  count "$passed" "$failed" "$3"
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
  echo "$PASSED passed, $FAILED failed"
  [ "$FAILED" -eq 0 ]
  exit
}

main
