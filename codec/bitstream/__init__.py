"""Writes symbols to a compressed file and reads them back. Must not import torch."""
