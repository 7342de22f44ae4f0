"""Images and a configuration in, epochs and weights out: `fit` is the hinge of the whole.

`search` and `final` use it. It prints nothing; Ray, Optuna and the test split must never come in.
"""
