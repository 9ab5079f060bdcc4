"""Loads and saves codecs: checkpoints of this program, of CompressAI, and of the Hugging Face Hub."""

from pathlib import Path

from codec.checkpoint.compressai import load_compressai
from codec.checkpoint.ours import as_file, is_ours, load_codec, save_codec
from codec.description.file import Description
from codec.errors import InputError
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.sample import to_start_from, to_use

__all__ = ["Description", "as_file", "is_ours", "load_codec", "load_initial", "open_codec", "save_codec"]


def open_codec(path: Path) -> Codec:
    """Opens a codec to use, in eval mode with CDF tables. For a checkpoint of CompressAI the tables are built here.

    Args:
        path: a file, or an embedded codec's name (`codec.sample`).

    Raises:
        InputError: the file is no checkpoint of this program or of CompressAI.
    """
    path = to_use(path)
    if is_ours(path):
        return load_codec(path)[0]
    codec = load_compressai(path)
    try:
        return with_tables(codec)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_initial(path: Path) -> Codec:
    """A codec to start training from: a checkpoint of this program or of CompressAI (`.pth.tar`, `.pth`).

    Args:
        path: a file, or an embedded codec's name (`codec.sample`).

    Raises:
        InputError: the file is neither.
    """
    path = to_start_from(path)
    return load_codec(path)[0] if is_ours(path) else load_compressai(path)
