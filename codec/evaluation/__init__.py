"""How good a codec is: figures, files, curves, the report."""
