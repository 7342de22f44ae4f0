"""The ground: configurations, errors, files, locks, and what this machine is. It imports nothing of the other rooms.

Every command uses it. A trial, a model or a picture must never come in.
"""
