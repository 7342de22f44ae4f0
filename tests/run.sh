#!/usr/bin/env bash
# Lint, types and every test, on a machine that has never seen the project: bash tests/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tuning/run.sh
# The page is tested in a browser, where there is one.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 || true
fi
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -c 'from tuning.data import load_train; print(len(load_train("fashion-mnist")), "images at hand")'
# Two files at a time: half of a test with Ray is waiting.
.venv/bin/python -m pytest --numprocesses 2 --dist loadscope "$@"
