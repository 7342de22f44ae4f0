"""A hyperparameter search for image classifiers whose winner you can trust. `python -m tuning` lists the commands."""

import signal
import sys

# While `python -m tuning.NAME` imports what it needs, Ctrl-C ends it without a traceback; then `run_command` decides.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
