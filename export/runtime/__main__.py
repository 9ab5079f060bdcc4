"""`python -m export.runtime`."""

from export.runtime.program import cli

cli()
