"""Encodes pictures to files and decodes them, tile by tile."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.container import check_size, latent_size, pack, unpack
from codec.description.architecture import STRIDE
from codec.errors import InputError
from export.runtime.session import SYMBOL_ZERO, Model

Pixels = NDArray[np.uint8]

_LARGEST = 2.0**31 - 128
"""The largest int32 that a float32 holds."""


def encode(pixels: Pixels, model: Model) -> bytes:
    """The file of a picture, uint8 [H, W, 3] of any size.

    A model with a fixed size encodes a larger picture in overlapping tiles, and a smaller one after padding. A model
    for any size encodes a large picture in tiles.

    Raises:
        InputError: the picture is too large, or the model gives values that are not finite.
    """
    height, width = pixels.shape[:2]
    size = latent_size(height, width)
    check_size(height, width)
    symbols = np.empty((len(model.medians), *size), np.int32)
    for tile in model.tiles(size):
        piece = extended(pixels[tile.seen(STRIDE)].transpose(2, 0, 1), tile.size, STRIDE)
        y = model.run(piece if model.takes_bytes else piece.astype(np.float32) / np.float32(255))
        found = y.astype(np.int32) - SYMBOL_ZERO if y.dtype == np.uint8 else np.rint(y - model.medians)
        _check(found, _LARGEST)
        symbols[:, *tile.kept()] = found[:, *tile.used()]
    return pack(height, width, symbols, model.coder)


def decode(data: bytes, model: Model) -> Pixels:
    """The picture of a file, uint8 [H, W, 3].

    Raises:
        InputError: the file is damaged or of another codec, or the model gives values that are not finite.
    """
    height, width, symbols = unpack(data, model.coder)
    pixels = np.empty((height, width, 3), np.uint8)
    for tile in model.tiles(symbols.shape[1:]):
        piece = extended(symbols[:, *tile.seen()], tile.size)
        if model.takes_bytes:
            x_hat = model.run(np.clip(piece + SYMBOL_ZERO, 0, 255).astype(np.uint8))
        else:
            x_hat = model.run(piece.astype(np.float32) + model.medians)
        if x_hat.dtype != np.uint8:
            _check(x_hat)
            x_hat = np.rint(np.clip(x_hat, 0, 1) * np.float32(255)).astype(np.uint8)
        place = pixels[tile.kept(STRIDE)]  # ends with the picture; x_hat may extend beyond it
        place[:] = x_hat[:, *tile.used(STRIDE)][:, : place.shape[0], : place.shape[1]].transpose(1, 2, 0)
    return pixels


def extended(piece: NDArray[Any], size: tuple[int, int], unit: int = 1) -> NDArray[Any]:
    """Pads [C, h, w] to the tile's size by repeating its last row and column."""
    missing = [(0, side * unit - found) for side, found in zip(size, piece.shape[1:], strict=True)]
    return np.pad(piece, ((0, 0), *missing), "edge")


def _check(values: NDArray[Any], most: float = np.inf) -> None:
    if not np.isfinite(values).all() or np.abs(values).max() > most:
        raise InputError("the model gives values that are not finite; export a checkpoint that has not diverged")
