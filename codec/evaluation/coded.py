"""Codes pictures to files in memory, decodes them, and measures them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codec.errors import InputError
from codec.evaluation.figures import Figures, measure_pictures
from codec.evaluation.pictures import Failures
from codec.files import FileCodec, out_of_memory


@dataclass(frozen=True)
class Decoded:
    """A picture that was compressed to a file in memory and decompressed from it.

    Attributes:
        index: number of the picture.
        figures: its figures, with the bits per pixel of the file.
        x, x_hat: the original and the decoded picture, uint8 [3, H, W].
    """

    index: int
    figures: Figures
    x: Tensor
    x_hat: Tensor


def through_files(
    codec: FileCodec, batches: Iterable[tuple[Sequence[int], Tensor]], failures: Failures | None = None
) -> Iterator[Decoded]:
    """Compresses and decompresses pictures, in the order of the batches.

    The files have the bytes that `codec.compress` writes; they stay in memory.

    Args:
        batches: indices of the pictures, and uint8 [B, 3, H, W].
        failures: pictures that do not fit into memory are added. None: such a picture is an InputError.

    Raises:
        InputError: the codec gives values that are not finite.
    """
    for indices, x in batches:
        decoded = _code_or_none(codec, indices, x)
        if decoded is None and len(indices) > 1:
            yield from through_files(codec, zip(([index] for index in indices), x.split(1), strict=True), failures)
        elif decoded is None:
            reason = f"{x.shape[-1]}x{x.shape[-2]} pixels do not fit into memory"
            if failures is None:
                raise InputError(f"a picture of {reason}")
            failures[indices[0]] = reason
        else:
            yield from decoded


def _code_or_none(codec: FileCodec, indices: Sequence[int], x: Tensor) -> list[Decoded] | None:
    """The decoded pictures; None if memory ran out."""
    try:
        return _code(codec, indices, x)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


@torch.inference_mode()
def _code(codec: FileCodec, indices: Sequence[int], x: Tensor) -> list[Decoded]:
    height, width = x.shape[-2:]
    latents = codec.latents(x)
    bits = [codec.coder.bits(each.y, each.z) for each in latents]
    estimated = torch.tensor(bits) / (height * width)
    files = codec.encode(latents, height, width)
    del latents  # for a large picture they take as much memory as its pixels
    x_hat = codec.decompress(files)
    original = x.to(x_hat[0].device)
    rows = measure_pictures(original, torch.stack(x_hat) if x_hat[1:] else x_hat[0][None], estimated, files)
    return [Decoded(*decoded) for decoded in zip(indices, rows, original, x_hat, strict=True)]
