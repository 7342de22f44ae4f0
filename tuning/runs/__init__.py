"""A run folder as typed data frames, and what is computed from them.

Every command that reads a run uses it. It must never import torch, Ray or pictures.
"""
