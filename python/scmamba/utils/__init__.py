"""Errors, files, progress and threads: what everything else stands on."""
