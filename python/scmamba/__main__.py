"""``python -m scmamba`` is the command line."""

from .cli.main import app

app(prog_name="scmamba")
