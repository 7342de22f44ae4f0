#!/usr/bin/env bash
# Lint, types and every test, on a machine that has never seen the project: bash tests/run.sh
# NO_APT=1 leaves out what it would install into the system by apt-get: Chromium, for the tests of the page.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Side by side, as each leaves a core idle: Chromium and the packages; the types and the first tests.
install_chromium() {
  ! command -v chromium >/dev/null || return 0
  if [ -n "${NO_APT:-}" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Chromium is not installed: the tests of the page in a browser are left out." >&2
    return
  fi
  echo "Installing Chromium with apt-get, for the tests of the page (NO_APT=1 leaves it out) ..." >&2
  { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 ||
    echo "apt-get could not install Chromium: the tests of the page in a browser are left out." >&2
}
install_chromium &
chromium=$!
trap wait EXIT # Nothing goes on behind the back of who reads the result.
bash tuning/run.sh --dev
python=${TUNING_VENV:-.venv}/bin/python
"$python" -m ruff format --check .
"$python" -m ruff check .
check_types() {
  local said
  said=$("$python" -m mypy 2>&1) || { printf 'Types:\n%s\n' "$said" >&2 && return 1; }
  echo "$said"
}
check_types &
types=$!
"$python" -c 'from tuning.images.datasets import load_train; print(len(load_train("fashion-mnist")), "images at hand")'
# Processes that write no bytecode, as PYTHONDONTWRITEBYTECODE has it, read this: a tenth of the time of a command.
"$python" -m compileall -q tuning search_spaces tests
# The slow tests first (tests/conftest.py). Four at a time: some wait more than they work, and on two cores two at a
# time take a fifth longer.
wait "$chromium"
failed=0
"$python" -m pytest --numprocesses 4 --dist loadgroup "$@" || failed=$?
wait "$types" || { echo "The types are wrong, as said above at \"Types:\"." >&2 && exit 1; }
exit "$failed"
