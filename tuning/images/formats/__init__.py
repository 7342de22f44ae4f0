"""One file a format: each lists the images of a path with their labels, and yields what is in them, row by row.

`known` has the registry. What must never come in: decoding, sizes and caches, which are the same for all formats.
"""
