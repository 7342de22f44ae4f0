"""A run folder as typed data frames, and what can be computed from them.

Every command that reads a run uses it. Torch, Ray and pictures must never come in.
"""
