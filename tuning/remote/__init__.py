"""Clusters, storages and trackers.

`search` uses it with `--address`, `--storage` and `--mlflow`. It belongs to the rim: the core imports it only inside
functions, so that a search on one machine runs without it.
"""
