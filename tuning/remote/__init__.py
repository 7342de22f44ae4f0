"""The rim: clusters, storages and trackers. A search on one machine needs nothing of it.

`search` uses it with `--address`, `--storage` and `--mlflow`.
"""
