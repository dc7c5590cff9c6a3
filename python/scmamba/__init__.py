"""scMamba: a pre-trained bidirectional Mamba for single-nucleus RNA-seq of the brain."""

__version__ = "0.1.0"
