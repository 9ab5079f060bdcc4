"""`python -m export.device`."""

from export.device.program import cli

cli()
