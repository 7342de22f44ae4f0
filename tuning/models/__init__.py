"""Networks by name, and the kernels that make small ones quick.

`search`, `final` and `predict` use it. Images, training and trials must never come in.
"""
