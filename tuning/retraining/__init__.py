"""The candidates on fresh seeds, the choice of the winner, the one opening of the test split, and the model folder.

`final` uses it, and `predict` reads what it writes. No other room may name the function that loads the test split.
"""
