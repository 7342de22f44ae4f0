"""What to try next: search spaces, the study that is a run's record, and the samplers.

`search` uses it, and `final` for its random candidates. Ray and torch must never come in.
"""
