#!/usr/bin/env bash
# Lint, types and every test, on a machine that has never seen the project: bash tests/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tuning/run.sh
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -c 'from tuning.data import load_train; print(len(load_train("fashion-mnist")), "images at hand")'
.venv/bin/python -m pytest "$@"
