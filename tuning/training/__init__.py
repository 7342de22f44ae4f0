"""Images and a configuration in, epochs and weights out: everything else is built around `fit`.

`search` and `final` use it. It prints nothing, and must never import Ray, Optuna or the test split.
"""
