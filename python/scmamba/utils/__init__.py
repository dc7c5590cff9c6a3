"""Errors, files, progress and threads, used by all other packages."""
