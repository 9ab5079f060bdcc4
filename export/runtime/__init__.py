"""Pictures to files and back with exported models: numpy, ONNX Runtime and the entropy coder. Cannot import torch.

    python -m export.runtime encode photo.png photo.bin --model onnx/enc.onnx
    python -m export.runtime decode photo.bin photo.png --model onnx/dec.onnx

The files are those of `codec.compress`: either side may be the checkpoint itself.
"""

from export.runtime.coding import Pixels, decode, encode
from export.runtime.program import cli, main
from export.runtime.session import SYMBOL_ZERO, TABLES_SUFFIX, Model, open_session, session_options, sums_saturate

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
    "sums_saturate",
]
