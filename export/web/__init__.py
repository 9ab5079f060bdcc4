"""A web page that encodes and decodes photographs in the browser, with exported models. Needs no torch."""

from export.web.program import cli, main

__all__ = ["cli", "main"]
