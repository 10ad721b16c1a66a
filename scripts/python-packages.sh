# SPDX-License-Identifier: Apache-2.0
#
# Sourced from the tree's root: what the tests need of Python, in target/test-venv.

readonly VENV=$PWD/target/test-venv

python_packages() {
  # a copy of the list tells whether the environment is up to date
  if ! cmp -s tests/requirements.txt "$VENV/requirements.txt"; then
    rm -rf "$VENV"
    python3 -m venv "$VENV" &&
      "$VENV/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt &&
      cp tests/requirements.txt "$VENV/requirements.txt"
  fi
}
