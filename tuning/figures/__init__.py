"""Pictures, charts and the page of a run.

`search`, `final` and `report` use it at their end. It belongs to the rim: the core imports it only inside functions,
so that a local search and `final` run without it.
"""
