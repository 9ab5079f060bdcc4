"""Codecs from checkpoint files and back: this program's, CompressAI's, and those of the Hugging Face Hub."""

from pathlib import Path

from codec.checkpoint.compressai import load_compressai
from codec.checkpoint.ours import as_file, load_codec, save_codec
from codec.description.file import Description
from codec.errors import InputError
from codec.network.bottleneck import with_tables
from codec.network.codec import Codec

__all__ = ["Description", "as_file", "load_codec", "load_initial", "open_codec", "save_codec"]


def open_codec(path: Path) -> Codec:
    """A codec to use, in eval mode with its tables: a checkpoint of ours as it is, or CompressAI's with fresh tables.

    Raises:
        InputError: it is neither.
    """
    if path.suffix == ".safetensors":
        return load_codec(path)[0]
    codec = load_compressai(path)
    try:
        return with_tables(codec)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_initial(path: Path) -> Codec:
    """A codec to start training from: a file of ours, or one of CompressAI's trainer (`.pth.tar`, `.pth`).

    Raises:
        InputError: it is neither.
    """
    return load_codec(path)[0] if path.suffix == ".safetensors" else load_compressai(path)
