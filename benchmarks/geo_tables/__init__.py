"""Parts of ``benchmarks/paper_tables.py``."""
