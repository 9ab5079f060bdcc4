"""`python -m export.web`."""

from export.web.program import cli

cli()
