"""The server: jobs over HTTP for people without Python or a GPU (``python -m scmamba.serve``).

Uploads go to disk, jobs into SQLite, workers are separate processes. No science in here: a job is a public verb, its
file and its options.
"""

from __future__ import annotations
