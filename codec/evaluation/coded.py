"""Codes pictures to files in memory, decodes them, and measures them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.errors import InputError
from codec.evaluation.figures import Figures, measure_pictures
from codec.evaluation.metrics import bpp
from codec.files import FileCodec, out_of_memory
from codec.tiles import LARGEST_WHOLE


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


def through_files(codec: FileCodec, batches: Iterable[tuple[Sequence[int], Tensor]]) -> Iterator[Decoded]:
    """Compresses and decompresses pictures, in the order of the batches.

    The files have the bytes that `codec.compress` writes; they stay in memory.

    Args:
        batches: indices of the pictures, and uint8 [B, 3, H, W].

    Raises:
        InputError: the codec gives values that are not finite, or a picture does not fit into memory.
    """
    for indices, x in batches:
        try:
            yield from _code(codec, indices, x)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            height, width = x.shape[-2:]
            raise InputError(f"a picture of {width}x{height} pixels does not fit into memory") from error


@torch.inference_mode()
def _code(codec: FileCodec, indices: Sequence[int], x: Tensor) -> list[Decoded]:
    height, width = x.shape[-2:]
    symbols = codec.symbols(x)
    estimated = _bits(codec, symbols) / (height * width)
    files = codec.encode(symbols, height, width)
    del symbols  # for a large picture they take as much memory as its pixels
    x_hat = codec.decompress(files)
    original = x.to(x_hat[0].device)
    rows = measure_pictures(original, torch.stack(x_hat) if x_hat[1:] else x_hat[0][None], estimated, files)
    return [Decoded(*decoded) for decoded in zip(indices, rows, original, x_hat, strict=True)]


def _bits(codec: FileCodec, symbols: NDArray[np.int32]) -> Tensor:
    """Estimated bits of each picture [B] from the likelihoods of its symbols [B, M, h, w], some rows at a time."""
    bottleneck = codec.codec.entropy_bottleneck
    medians = bottleneck.medians()
    rows = max(1, LARGEST_WHOLE // symbols.shape[-1])
    bits = []
    for first in range(0, symbols.shape[-2], rows):
        some = torch.from_numpy(symbols[..., first : first + rows, :])
        _, likelihoods, _ = bottleneck(some.to(medians.device).float() + medians)
        bits.append(bpp({"y": likelihoods}, 1))
    return torch.stack(bits).sum(0)
