#!/usr/bin/env bash
# Runs a command of the project in its own environment, which it makes where there is none:
#   bash tuning/run.sh search --samples 20
#   bash tuning/run.sh --dev            only makes the environment, with the developers' tools
# TUNING_VENV is the environment's folder (default: .venv in the clone). One that was not made here is left alone.
# TUNING_NEWEST=1 installs the newest versions of all packages in place of those of tuning/constraints.txt.
# The command runs in the folder in which this is called.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

fail() {
  echo "error: $*" >&2
  exit 2
}

venv=${TUNING_VENV:-.venv}
level=base
if [ "${1:-}" = --dev ]; then
  level=dev
  shift
fi
level_asked=$level
# What says that the environment is of this script's making, from the beginning; and what is installed, at the end.
made=$venv/made-by-tuning
installed=$venv/installed
if [ ! -e "$installed" ] && { [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; }; then
  sed -n '2,/^set /s/^# \{0,1\}//p' tuning/run.sh
  exit
fi

command -v python3 >/dev/null || fail "python3 is not installed. Install Python 3.11 or later."
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "python3 must be Python 3.11 or later, but got $(python3 --version 2>&1)."
# An empty folder is nobody's environment; a start that was killed at once may have left it.
if [ -e "$venv" ] && [ ! -e "$made" ] && [ ! -e "$installed" ] &&
  { [ ! -d "$venv" ] || [ -n "$(find "$venv/" -mindepth 1 -print -quit)" ]; }; then
  fail "$venv was not made by tuning/run.sh, and is left as it is. Activate it and run \`pip install -e .\`, then" \
    "\`python -m tuning.search\`; or choose another folder with TUNING_VENV=FOLDER; or move it away."
fi

wanted=$(sha256sum pyproject.toml tuning/constraints.txt | sha256sum)
read_installed() {
  known= known_level=
  if [ -e "$installed" ]; then
    known=$(sed -n 1p "$installed")
    known_level=$(sed -n 2p "$installed")
    known_level=${known_level:-dev} # Version 0.2.0 installed the developers' tools for everyone, and wrote one line.
  fi
  [ "$known_level" != dev ] || level=dev # What is there stays.
}
is_complete() {
  [ -z "${TUNING_NEWEST:-}" ] && [ "$known" = "$wanted" ] && [ "$known_level" = "$level" ]
}

read_installed
if ! is_complete; then
  # First of all: whenever this is killed, the next start knows the environment as its own. 0.2.0 wrote no marker.
  mkdir -p "$venv"
  exec 9>>"$made"
  if command -v flock >/dev/null && ! flock -n 9; then # macOS has none.
    echo "Waiting for another call, which sets up $venv ..." >&2
    flock 9 || true # Not every file system has locks.
  fi
  read_installed # What the other call has installed.
fi
if ! is_complete; then
  extra="[photos]" note=" (about 2 minutes, 6 GB)" # Its 80 MB are weights for small sets of photos.
  if [ "$level" = dev ]; then
    extra="[dev]" note="$note, with the developers' tools"
  fi
  echo "This folder is made, and may be removed, by tuning/run.sh." >"$made"
  if [ -n "$known" ]; then
    note=" anew: it lacks what pyproject.toml asks for"
    if [ -n "${TUNING_NEWEST:-}" ]; then
      note=" anew: TUNING_NEWEST asks for the newest versions"
    fi
    mv "$installed" "$venv/installed-before"
  else
    # What an interrupted set-up left is not to be built on.
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name made-by-tuning -exec rm -rf {} +
  fi
  echo "Setting up $venv$note ..." >&2
  if [ -z "$known" ]; then
    python3 -m venv "$venv" || fail "python3 -m venv failed. On Debian and Ubuntu, install python3-venv."
  fi
  install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra" "$@"
  }
  fails() { # pip leaves all as it was where it fails.
    [ -z "$known" ] || mv "$venv/installed-before" "$installed"
    fail "pip could not install the project into $venv, for the reason above. Run the command again to go on."
  }
  if [ -n "${TUNING_NEWEST:-}" ]; then
    install --upgrade --upgrade-strategy eager || fails
  elif ! install --constraint tuning/constraints.txt; then
    echo "The versions of tuning/constraints.txt cannot be installed, as said above. Trying the newest ones ..." >&2
    install || fails
  fi
  printf '%s\n%s\n' "$wanted" "$level" >"$installed"
  rm -f "$venv/installed-before"
fi
exec 9>&- # The next call need not wait for the command.
if [ "$level_asked" = dev ] && [ $# = 0 ]; then
  exit
fi
case $venv in /*) ;; *) venv=$root/$venv ;; esac
cd "$here"
# Neither files of that folder nor a clone that was moved hide the project.
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$venv/bin/python" -P -m tuning "$@"
