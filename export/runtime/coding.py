"""Encodes pictures to files and decodes them, tile by tile."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.coder import LARGEST, Coder
from codec.bitstream.container import check_size, latent_size, pack, unpack
from codec.bitstream.hyper_coder import HyperCoder, z_size
from codec.bitstream.rate_coder import AnyCoder, RateCoder, at_rate
from codec.description.architecture import STRIDE
from codec.errors import InputError
from codec.targets import Codable, TargetOptions, code, psnr
from export.runtime.session import SYMBOL_ZERO, Graph, Model

Pixels = NDArray[np.uint8]


def encode(pixels: Pixels, model: Model, targets: TargetOptions | None = None, decoder: Model | None = None) -> bytes:
    """The file of a picture, uint8 [H, W, 3] of any size.

    Args:
        targets: which rate of a codec with several; None: the highest.
        decoder: the model that a target of PSNR is measured with.

    A model with a fixed size encodes a larger picture in overlapping tiles, and a smaller one after padding. A model
    for any size encodes a large picture in tiles.

    Raises:
        InputError: the picture is too large, or the model gives values that are not finite.
    """
    height, width = pixels.shape[:2]
    y, z = _analysed(pixels, model)

    def file(rate: int | None) -> bytes:
        return pack(height, width, *_symbols(y, z, model, rate), rate)

    def bits(rate: int) -> float:
        symbols, coder, of_z = _symbols(y, z, model, rate)
        return at_rate(coder, rate).bits(symbols, of_z)

    def reached(data: bytes) -> float:
        assert decoder
        return psnr(pixels, decode(data, decoder))

    most = model.coder.most if isinstance(model.coder, RateCoder) else None
    return code(Codable(most, height * width, bits, file, reached if decoder else None), targets or TargetOptions())


def symbols_of(
    pixels: Pixels, model: Model, rate: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
    """The symbols of y [M, h, w] of a picture, and with a hyperprior those of z, at a rate; None: the highest."""
    symbols, _, z = _symbols(*_analysed(pixels, model), model, rate)
    return symbols, z


def _analysed(pixels: Pixels, model: Model) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """y and z of a picture."""
    check_size(*pixels.shape[:2])
    y = _of_encoder(pixels, model)
    return y, None if model.h_a is None else _of_h_a(y, model.h_a)


def _symbols(
    y: NDArray[Any], z: NDArray[np.float32] | None, model: Model, rate: int | None
) -> tuple[NDArray[np.int32], AnyCoder, NDArray[np.int32] | None]:
    """The symbols of y, the coder, and the symbols of z at a rate."""
    coder = at_rate(model.coder, rate)
    of_z = coder.round_z(z) if isinstance(coder, HyperCoder) and z is not None else None
    return y if y.dtype == np.int32 else coder.round(y, of_z), model.coder, of_z


def _of_encoder(pixels: Pixels, model: Model) -> NDArray[Any]:
    """y [M, h, w] of a picture: int32 where the encoder gives symbols, else float32.

    A codec of one rate without a hyperprior has the symbols of y at once: they take less memory.
    """
    size = latent_size(*pixels.shape[:2])
    y: NDArray[Any] | None = None
    for tile in model.tiles(size):
        piece = model.piece(pixels.transpose(2, 0, 1), tile)
        found = model.run(piece if model.takes_bytes else piece.astype(np.float32) / np.float32(255))
        if found.dtype == np.uint8:
            found = model.from_levels(found)
        else:
            _check(found)
            found = model.coder.round(found) if isinstance(model.coder, Coder) else found
        if y is None:
            y = np.empty((len(found), *size), found.dtype)
        y[:, *tile.kept()] = found[:, *tile.used()]
    assert y is not None
    return y


def _of_h_a(y: NDArray[Any], h_a: Graph) -> NDArray[np.float32]:
    """z less its medians, or its symbols or fifths of them, [N, ceil(h / 4), ceil(w / 4)].

    Args:
        y: y or its symbols [M, h, w].
    """
    z: NDArray[np.float32] | None = None
    for tile in h_a.tiles(y.shape[1:]):
        piece = h_a.piece(y, tile)
        piece = np.abs(piece) if h_a.takes_magnitudes else piece
        if not h_a.takes_bytes:
            found = h_a.run(piece.astype(np.float32))
        elif h_a.takes_magnitudes and h_a.steps is None:
            found = h_a.run(piece.astype(np.uint8))
        else:
            found = h_a.run(h_a.to_levels(piece))
        if found.dtype == np.uint8:
            found = (found.astype(np.float32) - SYMBOL_ZERO) * np.float32(h_a.unit)
        else:
            _check(found)  # the graph has subtracted the medians
        if z is None:
            z = np.empty((len(found), *z_size(*y.shape[1:])), np.float32)
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
        if model.steps is not None or not model.takes_bytes:
            piece = piece.astype(np.float32) * np.float32(model.coder.unit) + model.medians
        x_hat = model.run(model.to_levels(piece) if model.takes_bytes else piece)
        if x_hat.dtype != np.uint8:
            _check(x_hat)
            x_hat = np.rint(np.clip(x_hat, 0, 1) * np.float32(255)).astype(np.uint8)
        place = pixels[tile.kept(STRIDE)]  # ends with the picture; x_hat may extend beyond it
        place[:] = x_hat[:, *tile.used(STRIDE)][:, : place.shape[0], : place.shape[1]].transpose(1, 2, 0)
    return pixels


def _check(values: NDArray[Any]) -> None:
    if not np.isfinite(values).all() or np.abs(values).max() > LARGEST:
        raise InputError("the model gives values that are not finite; export a checkpoint that has not diverged")
