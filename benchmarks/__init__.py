"""Measurements of scMamba and of other methods on the same data; run one with ``python -m benchmarks.NAME --help``."""
