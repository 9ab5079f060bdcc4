"""Checkpoints of this program: a codec to a safetensors file that describes itself, and back."""

from pathlib import Path
from typing import TypeVar

import torch

from coco224.files import whole_or_absent
from codec.description.file import Description, read_checkpoint, to_bytes
from codec.network.codec import Codec
from codec.network.tables import as_arrays
from codec.quantization.phases import build

CodecT = TypeVar("CodecT", bound=Codec)


def save_codec(path: Path, codec: Codec, description: Description) -> None:
    """Writes a checkpoint, complete or not at all."""
    with whole_or_absent(path) as beside:
        beside.write_bytes(as_file(codec, description))


def as_file(codec: Codec, description: Description) -> bytes:
    """The content of a checkpoint of `with_tables(codec)`: weights, CDF tables and what is needed to use them."""
    return to_bytes(as_arrays(codec.state_dict()), codec.architecture, description)


def load_codec(path: Path, cls: type[CodecT] = Codec) -> tuple[CodecT, Description]:
    """Reads a checkpoint of ours, on the CPU, in eval mode.

    Args:
        cls: `Codec`, or a class derived from it.

    Raises:
        InputError: the file is missing, truncated, altered, of another program, or of a block that is not registered.
    """
    saved = read_checkpoint(path)
    codec = build(saved.architecture, cls)
    codec.load_weights({name: torch.from_numpy(array) for name, array in saved.arrays.items()})
    return codec.eval(), saved.description
