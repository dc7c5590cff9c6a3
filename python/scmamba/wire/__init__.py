"""Formats in which objects travel between R, Python and the server."""
