#!/usr/bin/env bash
# Runs a command of the project in its own environment, which it makes where there is none:
#   bash tuning/run.sh search --samples 20
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: python3 must be Python 3.11 or later, but got $(python3 --version 2>&1)." >&2
  exit 2
fi
wanted=$(sha256sum pyproject.toml)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up .venv (about 2 minutes, 6 GB) ..." >&2
  # What an interrupted set-up left is not to be built on.
  if [ -e .venv/installed ]; then rm .venv/installed; else rm -rf .venv; fi
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  echo "$wanted" >.venv/installed
fi
if [ $# -gt 0 ]; then
  command=$1
  shift
  exec .venv/bin/python -m "tuning.$command" "$@"
fi
