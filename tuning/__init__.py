"""A hyperparameter search for image classifiers whose winner you can trust. `python -m tuning` lists the commands."""
