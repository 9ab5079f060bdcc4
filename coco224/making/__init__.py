"""Photographs to a prepared dataset, on disk and on the Hub."""
