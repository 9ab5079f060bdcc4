"""Encodes pictures to files and decodes them, tile by tile."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.coder import LARGEST
from codec.bitstream.container import check_size, latent_size, pack, unpack
from codec.bitstream.hyper_coder import z_size
from codec.description.architecture import STRIDE
from codec.errors import InputError
from export.runtime.session import SYMBOL_ZERO, Graph, Model

Pixels = NDArray[np.uint8]


def encode(pixels: Pixels, model: Model) -> bytes:
    """The file of a picture, uint8 [H, W, 3] of any size.

    A model with a fixed size encodes a larger picture in overlapping tiles, and a smaller one after padding. A model
    for any size encodes a large picture in tiles.

    Raises:
        InputError: the picture is too large, or the model gives values that are not finite.
    """
    symbols, z = symbols_of(pixels, model)
    height, width = pixels.shape[:2]
    return pack(height, width, symbols, model.coder, z)


def symbols_of(pixels: Pixels, model: Model) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
    """The symbols of y [M, h, w] of a picture, and with a hyperprior those of z; raises as `encode`."""
    check_size(*pixels.shape[:2])
    y = _analysed(pixels, model)
    if model.h_a is None:
        return y, None
    z = _hyper_analysed(y, model.h_a)
    return y if y.dtype == np.int32 else model.coder.round(y, z), z


def _analysed(pixels: Pixels, model: Model) -> NDArray[Any]:
    """y [M, h, w] of a picture: symbols, int32, or with a hyperprior y itself where the encoder gives float32."""
    size = latent_size(*pixels.shape[:2])
    y: NDArray[Any] | None = None
    for tile in model.tiles(size):
        piece = model.piece(pixels.transpose(2, 0, 1), tile)
        found = model.run(piece if model.takes_bytes else piece.astype(np.float32) / np.float32(255))
        if found.dtype == np.uint8:
            found = found.astype(np.int32) - SYMBOL_ZERO
            found = found if model.steps is None else found.astype(np.float32) * model.steps
        else:
            _check(found, LARGEST)
            found = found if model.h_a else model.coder.round(found)
        if y is None:
            y = np.empty((len(found), *size), found.dtype)
        y[:, *tile.kept()] = found[:, *tile.used()]
    assert y is not None
    return y


def _hyper_analysed(y: NDArray[Any], h_a: Graph) -> NDArray[np.int32]:
    """The symbols of z, [N, ceil(h / 4), ceil(w / 4)], of y or of its symbols [M, h, w]."""
    z: NDArray[np.int32] | None = None
    for tile in h_a.tiles(y.shape[1:]):
        piece = h_a.piece(y, tile)
        if h_a.takes_magnitudes:
            found = h_a.run(np.abs(piece).astype(np.uint8 if h_a.takes_bytes else np.float32))
        else:
            found = h_a.run(_levels(piece, h_a) if h_a.takes_bytes else piece.astype(np.float32))
        if found.dtype == np.uint8:
            found = found.astype(np.int32) - SYMBOL_ZERO
        else:
            _check(found, LARGEST)
            found = np.rint(found).astype(np.int32)  # the graph has subtracted the medians
        if z is None:
            z = np.empty((len(found), *z_size(*y.shape[1:])), np.int32)
        z[:, *tile.kept()] = found[:, *tile.used()]
    assert z is not None
    return z


def decode(data: bytes, model: Model) -> Pixels:
    """The picture of a file, uint8 [H, W, 3].

    Raises:
        InputError: the file is damaged or of another codec, or the model gives values that are not finite.
    """
    height, width, found = unpack(data, model.coder)
    pixels = np.empty((height, width, 3), np.uint8)
    for tile in model.tiles(found.shape[1:]):
        piece = model.piece(found, tile)
        if model.takes_bytes:
            x_hat = model.run(_levels(piece if model.steps is None else piece * model.coder.unit, model))
        else:
            x_hat = model.run(piece.astype(np.float32) * np.float32(model.coder.unit) + model.medians)
        if x_hat.dtype != np.uint8:
            _check(x_hat)
            x_hat = np.rint(np.clip(x_hat, 0, 1) * np.float32(255)).astype(np.uint8)
        place = pixels[tile.kept(STRIDE)]  # ends with the picture; x_hat may extend beyond it
        place[:] = x_hat[:, *tile.used(STRIDE)][:, : place.shape[0], : place.shape[1]].transpose(1, 2, 0)
    return pixels


def _levels(y: NDArray[Any], graph: Graph) -> NDArray[np.uint8]:
    """y, y_hat or symbols [M, h, w] as the graph's levels, or symbols, in 8 bits."""
    values = y if graph.steps is None else np.rint(y.astype(np.float32) / graph.steps)
    levels: NDArray[np.uint8] = np.clip(values + SYMBOL_ZERO, 0, 255).astype(np.uint8)
    return levels


def _check(values: NDArray[Any], most: float = np.inf) -> None:
    if not np.isfinite(values).all() or np.abs(values).max() > most:
        raise InputError("the model gives values that are not finite; export a checkpoint that has not diverged")
