"""Codes pictures with exported models: only numpy, ONNX Runtime and the entropy coder. Must not import torch.

    python -m export.runtime encode photo.png photo.bin --model onnx/enc.onnx
    python -m export.runtime decode photo.bin photo.png --model onnx/dec.onnx

The files are those of `codec.compress`, so encoder or decoder may also be the checkpoint.
"""

from export.runtime.coding import Pixels, decode, encode, symbols_of
from export.runtime.program import cli, main
from export.runtime.session import SYMBOL_ZERO, TABLES_SUFFIX, Model, open_session, session_options

__all__ = [
    "SYMBOL_ZERO",
    "TABLES_SUFFIX",
    "Model",
    "Pixels",
    "cli",
    "decode",
    "encode",
    "main",
    "open_session",
    "session_options",
    "symbols_of",
]
