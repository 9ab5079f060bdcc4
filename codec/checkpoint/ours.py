"""Saves a codec to a safetensors file that describes itself, and loads it."""

from pathlib import Path

import torch

from coco224.files import whole_or_absent
from codec.bitstream.hyper_tables import PREFIX
from codec.blocks import block_named, make_options
from codec.description.architecture import KEEP_GDN, Architecture
from codec.description.file import Arrays, Description, read_checkpoint, to_bytes
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
        InputError: the block is unknown, its options are impossible, or the weights have other shapes.
    """
    for part in ("g_a", "g_s"):
        choice = getattr(architecture, part)
        if choice.name == KEEP_GDN:
            continue
        block, options = block_named(choice.name), make_options(choice.name, choice.options)
        try:
            with torch.device("meta"):
                module = (block.encoder if part == "g_a" else block.decoder)(architecture.N, options)
                asked = {f"{part}.1.{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        except NotImplementedError:  # a plugin's block that reads its weights in its constructor
            continue
        except (RuntimeError, OverflowError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{choice.name} with these options cannot be built ({reason})") from error
        for name, shape in asked.items():
            found = arrays[name].shape if name in arrays else None
            if found != shape:
                raise InputError(
                    f"{choice.name} with these options asks for {name} of shape {shape}, and it has {found or 'none'}; "
                    "use another checkpoint"
                )
