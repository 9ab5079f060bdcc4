"""Writes symbols to a compressed file and reads them back. Must not import torch."""

from codec.bitstream.coder import Coder
from codec.bitstream.container import pack, unpack
from codec.bitstream.tables import Tables, read_tables

__all__ = ["Coder", "Tables", "pack", "read_tables", "unpack"]
