"""Reads the rows of a dataset: local, on the Hub, or cropped from photographs."""
