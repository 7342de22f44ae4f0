"""What becomes of the winner: candidates on fresh seeds, the choice, the one opening of the test split, the model.

`final` uses it, and `predict` what it ships. Only this room may name what loads the test split.
"""
