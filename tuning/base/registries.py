"""The names of samplers and schedulers, and what is true of each, without the libraries that build them.

`tuning.trials.schedulers` has the builders.
"""

# Sampler -> whether it draws all of its points at random, whatever came of those before.
SAMPLERS = {"curves": False, "tpe": False, "gp": False, "random": True, "qmc": True, "nsga2": False}
SCHEDULERS = ("asha", "hyperband", "median", "none")
