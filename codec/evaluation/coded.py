"""Codes pictures to files in memory, decodes them, and measures them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.rate_coder import RateCoder, at_rate
from codec.errors import InputError, out_of_memory
from codec.evaluation.figures import Figures, measure_pictures
from codec.evaluation.metrics import bpp
from codec.evaluation.pictures import Failures
from codec.files import FileCodec, Latent
from codec.network.bottleneck import Bottleneck

_POSITIONS = 512
"""Likelihoods are computed for about so many positions at a time."""


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
    codec: FileCodec,
    batches: Iterable[tuple[Sequence[int], Tensor]],
    failures: Failures | None = None,
    rate: int | None = None,
) -> Iterator[Decoded]:
    """Compresses and decompresses pictures, in the order of the batches.

    The files have the bytes that `codec.compress` writes; they stay in memory.

    Args:
        batches: indices of the pictures, and uint8 [B, 3, H, W].
        failures: pictures that do not fit into memory are added. None: such a picture is an InputError.
        rate: the number of a rate; None: the highest, which is the only one of most codecs.

    Raises:
        InputError: the codec gives values that are not finite.
    """
    for indices, x in batches:
        decoded = _code_or_none(codec, indices, x, rate)
        if decoded is None and len(indices) > 1:
            singly = zip(([index] for index in indices), x.split(1), strict=True)
            yield from through_files(codec, singly, failures, rate)
        elif decoded is None:
            reason = f"{x.shape[-1]}x{x.shape[-2]} pixels do not fit into memory"
            if failures is None:
                raise InputError(f"a picture of {reason}")
            failures[indices[0]] = reason
        else:
            yield from decoded


def _code_or_none(codec: FileCodec, indices: Sequence[int], x: Tensor, rate: int | None) -> list[Decoded] | None:
    """The decoded pictures; None if memory ran out."""
    try:
        return _code(codec, indices, x, rate)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


@torch.inference_mode()
def _code(codec: FileCodec, indices: Sequence[int], x: Tensor, rate: int | None) -> list[Decoded]:
    height, width = x.shape[-2:]
    latents = codec.latents(x, rate)
    estimated = torch.tensor([_bits(codec, each, rate) for each in latents]) / (height * width)
    files = codec.encode(latents, height, width, rate)
    del latents  # for a large picture they take as much memory as its pixels
    x_hat = codec.decompress(files)
    original = x.to(x_hat[0].device)
    rows = measure_pictures(original, torch.stack(x_hat) if x_hat[1:] else x_hat[0][None], estimated, files)
    return [Decoded(*decoded) for decoded in zip(indices, rows, original, x_hat, strict=True)]


def _bits(codec: FileCodec, latent: Latent, rate: int | None) -> float:
    """Estimated bits of a picture's symbols.

    Symbols of trained densities are estimated from their likelihoods: tables that do not fit the densities show. The
    tables of y under a hyperprior are not trained; there the estimate is theirs.
    """
    bottleneck, coder, gain = codec.codec.entropy_bottleneck, at_rate(codec.coder, rate), None
    if isinstance(codec.coder, RateCoder):
        gain = torch.from_numpy(codec.coder.gain_of_density(rate)).to(bottleneck.quantiles.device)
    if latent.z is None:
        return _by_likelihoods(bottleneck, latent.y, gain)
    assert isinstance(coder, HyperCoder)
    return coder.bits_of_y(latent.y, latent.z) + _by_likelihoods(bottleneck, latent.z, gain)


def _by_likelihoods(bottleneck: Bottleneck, symbols: NDArray[np.int32], gain: Tensor | None) -> float:
    """Bits of symbols [C, h, w], some rows at a time; a symbol is 1 / gain wide, [C, 1, 1]."""
    medians = bottleneck.medians()
    rows = max(1, _POSITIONS // symbols.shape[-1])
    total = 0.0
    for first in range(0, symbols.shape[-2], rows):
        some = torch.from_numpy(symbols[None, :, first : first + rows]).to(medians.device)
        values = some.float() if gain is None else some / gain
        likelihoods = bottleneck.likelihoods(values + medians, None if gain is None else gain[None])
        total += float(bpp({"symbols": likelihoods}, 1))
    return total
