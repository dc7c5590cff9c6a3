"""The selective scan and its products compiled for CPUs with numba."""
