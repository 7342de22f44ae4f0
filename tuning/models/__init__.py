"""Networks by name, and the kernels that make small networks fast on a CPU.

`search`, `final` and `predict` use it. It must never import images, training or trials.
"""
