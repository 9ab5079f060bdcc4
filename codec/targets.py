"""The rate of a file of a codec with several rates: as given, or the best one within a target. Needs no torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.cli import POSITIVE, OptionGroup, option
from codec.errors import InputError

_MOST_BPP = 1e4  # no file has so many bits per pixel
_ROWS = 64
"""The error of a picture is squared in so many rows at once: that of a large one takes six times its bytes."""


@dataclass(frozen=True)
class TargetOptions(OptionGroup):
    rate: float | None = option(
        None,
        "rate of a codec with several rates, from 0, the smallest file, to 1",
        rule=(lambda value: 0 <= value <= 1, "must be within 0..1"),
        shown="1",
    )
    target_bpp: float | None = option(
        None, "the best rate whose file has at most so many bits per pixel", rule=POSITIVE, shown="none"
    )
    target_bytes: int | None = option(
        None, "the best rate whose file has at most so many bytes", rule=POSITIVE, shown="none"
    )
    target_psnr: float | None = option(
        None, "the lowest rate whose picture has at least this PSNR in dB", rule=POSITIVE, shown="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.given_targets) > 1:
            names = " and ".join(f"--{name}" for name in self.given_targets)
            raise InputError(f"{names} each choose the rate: give one of them")

    @property
    def given_targets(self) -> dict[str, float]:
        """The options of this group that were given."""
        values = {name: getattr(self, name) for name in ("rate", "target_bpp", "target_bytes", "target_psnr")}
        return {name: value for name, value in values.items() if value is not None}

    def deciding(self) -> list[str]:
        """What decides the content of a file, beside the codec."""
        return [f"{name} {value}" for name, value in self.given_targets.items()]


@dataclass(frozen=True)
class Codable:
    """A picture that can be coded at every rate.

    Attributes:
        most: the number of the highest rate; None: the codec has one rate.
        pixels: of the picture.
        bits: the estimated bits of a rate.
        file: the file of a rate; None: of the codec's only rate.
        psnr: the PSNR in dB of the picture that a file decodes to; None where there is no decoder.
    """

    most: int | None
    pixels: int
    bits: Callable[[int], float]
    file: Callable[[int | None], bytes]
    psnr: Callable[[bytes], float] | None


def code(picture: Codable, options: TargetOptions) -> bytes:
    """The file of a picture at the rate that the options choose; without options the highest.

    Raises:
        InputError: the codec has one rate, or no rate meets the target.
    """
    if picture.most is None:
        if options.given_targets:
            raise InputError(only_rate(options))
        return picture.file(None)
    if options.target_psnr is not None:
        return _at_least(picture, picture.most, options.target_psnr)
    if options.target_bytes is not None:
        return _within(picture, picture.most, options.target_bytes, "target_bytes")
    if options.target_bpp is not None:
        return _within(picture, picture.most, bytes_of(options.target_bpp, picture.pixels), "target_bpp")
    return picture.file(round(picture.most * (1.0 if options.rate is None else options.rate)))


def psnr(x: NDArray[np.uint8], x_hat: NDArray[np.uint8]) -> float:
    """The PSNR in dB of a picture, both [H, W, 3]; infinity if they are equal."""
    squares = 0
    for first in range(0, len(x), _ROWS):
        error = np.subtract(x[first : first + _ROWS], x_hat[first : first + _ROWS], dtype=np.int16)
        squares += int(np.square(error, dtype=np.int32).sum(dtype=np.int64))
    return 10 * math.log10(255**2 / (squares / x.size)) if squares else math.inf


def bytes_of(bpp: float, pixels: int) -> int:
    """The most bytes of a file of at most so many bits per pixel."""
    return int(min(bpp, _MOST_BPP) * pixels / 8)


def check_rate(coder: object, options: TargetOptions) -> None:
    """Refuses a choice of the rate before any work; InputError if the coder is of a codec with one rate."""
    from codec.bitstream.rate_coder import RateCoder

    if options.given_targets and not isinstance(coder, RateCoder):
        raise InputError(only_rate(options))


def only_rate(options: TargetOptions) -> str:
    """What to say of options that choose a rate, where the codec has one."""
    name = next(iter(options.given_targets))
    return f"--{name}: this codec has a single rate; give one that was trained with --rates"


def _within(picture: Codable, most: int, limit: int, name: str) -> bytes:
    """The largest file of at most `limit` bytes: bisection on the estimate, then the files around its result."""
    low, high = 0, most  # the rate that is looked for, or the lowest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if picture.bits(middle) <= 8 * limit else (low, middle - 1)
    file, start = picture.file(low), low
    while len(file) > limit and low:
        low -= 1
        file = picture.file(low)
    if len(file) > limit:
        raise InputError(
            f"--{name}: its smallest file has {len(file)} bytes ({8 * len(file) / picture.pixels:.4f} bits per pixel), "
            f"more than {limit}; give a larger target or a smaller picture"
        )
    while low >= start and low < most and len(larger := picture.file(low + 1)) <= limit:
        low, file = low + 1, larger
    return file


def _at_least(picture: Codable, most: int, target: float) -> bytes:
    """The smallest file whose picture has this PSNR, by bisection with the decoder."""
    if picture.psnr is None:
        raise InputError("--target_psnr needs the decoder too")
    low, high = 0, most
    best = picture.file(most)
    if (reached := picture.psnr(best)) < target:
        raise InputError(f"--target_psnr {target}: its best file has {reached:.2f} dB; give a smaller target")
    while low < high:
        middle = (low + high) // 2
        file = picture.file(middle)
        if picture.psnr(file) >= target:
            best, high = file, middle
        else:
            low = middle + 1
    return best
