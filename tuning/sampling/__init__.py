"""What to try next: search spaces, the study that is the record of a run, and the samplers.

`search` uses it, and `final` for its random candidate. It must never import Ray, and torch only inside functions.
"""
