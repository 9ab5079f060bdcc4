"""Rows of a dataset, wherever it is."""
