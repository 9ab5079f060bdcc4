"""Evaluation of a codec: figures, files, curves, the report."""
