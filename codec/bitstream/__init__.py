"""Symbols to a compressed file and back. Cannot import torch."""
