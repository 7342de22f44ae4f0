"""Images as arrays: data sets by name, the splits, and batches that are augmented on the device.

`search`, `final` and `explore` use it. Models, trials and pictures must never come in.
"""
