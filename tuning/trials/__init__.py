"""Trying it: what a search was asked for, Ray, the workers, the schedulers and what a person sees meanwhile.

`search` uses it, and `final` to train side by side. The test split must never come in.
"""
