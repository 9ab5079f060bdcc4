"""Writes symbols to a compressed file and reads them back. Must not import torch."""

from codec.bitstream.coder import Coder
from codec.bitstream.container import pack, unpack
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.rate_coder import RateCoder, coder_of
from codec.bitstream.rate_tables import RateTables
from codec.bitstream.tables import Tables, read_tables

__all__ = [
    "Coder",
    "HyperCoder",
    "HyperTables",
    "RateCoder",
    "RateTables",
    "Tables",
    "coder_of",
    "pack",
    "read_tables",
    "unpack",
]
