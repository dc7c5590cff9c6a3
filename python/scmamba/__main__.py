"""``python -m scmamba`` is the command line."""

from .cli import app

app(prog_name="scmamba")
