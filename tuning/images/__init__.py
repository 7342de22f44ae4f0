"""Images as arrays: data sets by name, the splits, and batches that are augmented on the device.

`search`, `final` and `explore` use it. It must never import models, trials or pictures.
"""
