"""Saves a codec to a safetensors file that describes itself, and loads it."""

from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from coco224.files import open_regular, whole_or_absent
from codec.bitstream.hyper_tables import PREFIX
from codec.blocks import block_shapes
from codec.description.architecture import KEEP_GDN, Architecture, BlockChoice
from codec.description.file import MOST_HEADER, Arrays, Description, read_checkpoint, to_bytes
from codec.description.shapes import BLOCKS
from codec.errors import InputError
from codec.network.arrays import as_arrays
from codec.network.codec import Codec
from codec.quantization.phases import build


def save_codec(path: Path, codec: Codec, description: Description) -> None:
    """Writes a checkpoint, complete or not at all."""
    with whole_or_absent(path) as beside:
        beside.write_bytes(as_file(codec, description))


def as_file(codec: Codec, description: Description) -> bytes:
    """The content of a checkpoint of `with_tables(codec)`: weights, CDF tables and what is needed to use them."""
    return to_bytes(as_arrays(codec.state_dict()) | codec.coding_arrays(), codec.architecture, description)


def is_ours(path: Path) -> bool:
    """Whether a file is to be read as safetensors: it begins so, or has the suffix.

    Copies, and files in a cache of the Hub, have other names.
    """
    with suppress(OSError), open_regular(path) as file:
        start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER:
            return True
    return path.suffix.lower() == ".safetensors"


def load_codec(path: Path) -> tuple[Codec, Description]:
    """Reads a checkpoint of ours, on the CPU, in eval mode; weights in half precision become float32.

    Raises:
        InputError: the file is missing, damaged, of another program, or uses a block that is not registered.
    """
    saved = read_checkpoint(path)
    try:
        check_blocks(saved.architecture, saved.arrays)
        codec = build(saved.architecture)
        coding = {name: array for name, array in saved.arrays.items() if name.startswith(PREFIX)}
        weights = {name: torch.from_numpy(array) for name, array in saved.arrays.items() if name not in coding}
        codec.load_weights({name: each.float() if each.dtype == torch.half else each for name, each in weights.items()})
        codec.load_coding_arrays(coding)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return codec.eval(), saved.description


def check_blocks(architecture: Architecture, arrays: Arrays) -> None:
    """Compares the blocks of an architecture with the weights, before memory for the blocks is allocated.

    Raises:
        InputError: the block is unknown, its options are impossible, it cannot be built, or the weights have other
            shapes.
    """
    check_block("g_a", architecture.g_a, "encoder", architecture.N, arrays)
    check_block("g_s", architecture.g_s, "decoder", architecture.N, arrays)


def check_block(
    part: str, choice: BlockChoice, form: Literal["encoder", "decoder"], channels: int, arrays: Arrays
) -> None:
    """`check_blocks` for the blocks of one transform."""
    if choice.name == KEEP_GDN:
        return
    shapes = block_shapes(choice, form, channels) or {}
    for place in BLOCKS:
        for name, shape in shapes.items():
            full_name = f"{part}.{place}.{name}"
            found = arrays[full_name].shape if full_name in arrays else None
            if found != shape:
                raise InputError(
                    f"{choice.name} with these options asks for {full_name} of shape {shape}, and it has "
                    f"{'none' if found is None else found}; use another checkpoint"
                )
