"""How trials are run: the settings of a search, Ray, the workers, the schedulers and the live view.

`search` uses it, and `final` to train side by side. It must never load the test split.
"""
