"""The figures of a codec: one row per picture, averaged over pictures and never over batches."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.description.architecture import STRIDE
from codec.evaluation.curves import Point
from codec.evaluation.metrics import bpp, ms_ssim, psnr
from codec.evaluation.tiled import in_tiles
from codec.network.codec import Codec
from codec.network.pixels import pad, to_float
from codec.tiles import LARGEST_WHOLE


@dataclass(frozen=True)
class Figures:
    """One picture's figures.

    Attributes:
        psnr: dB, from 8-bit RGB.
        ms_ssim: from 8-bit RGB; None if the short side is under 161 pixels, MS-SSIM's minimum.
        l1: mean absolute difference of the pictures in [0, 1].
        bpp_estimated: bits per pixel, estimated from the likelihoods of the symbols; None for a codec without these.
        bpp: bits per pixel of the file, with its header; None if no file was written.
        pixels: number of pixels of the picture.
    """

    psnr: float
    ms_ssim: float | None
    l1: float
    bpp_estimated: float | None
    bpp: float | None = None
    pixels: int = 0


@dataclass(frozen=True)
class Evaluated:
    """One codec on all pictures.

    Attributes:
        rows: one per picture, in order.
        averages: means over pictures, by name of the figure.
        blocks: the codec's blocks and precision; only for our own codecs and CompressAI's.
    """

    name: str
    rows: list[Figures]
    averages: dict[str, float]
    blocks: str = ""

    @property
    def point(self) -> Point | None:
        """The codec's point on a curve; None if every picture was decoded without any difference."""
        means = self.averages
        return Point(means["bpp"], means["psnr"], means.get("ms_ssim")) if "psnr" in means else None


AVERAGED = ("psnr", "ms_ssim", "l1", "bpp_estimated", "bpp")
"""Figures averaged over pictures."""


@torch.inference_mode()
def evaluate(
    codec: Codec,
    batches: Iterable[Tensor],
    device: torch.device,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
    batch_size: int = 0,
    rates: Iterable[Tensor | None] = itertools.repeat(None),
) -> Iterator[Figures]:
    """Encodes and decodes pictures in FP32 with rounded symbols; no files are written.

    Args:
        codec: from `with_tables` or a checkpoint, on `device`.
        batches: uint8 [B, 3, H, W], any H and W; pictures of different sizes need batches of one.
        on_batch: is called with x and x_hat, float [B, 3, H, W] in [0, 1].
        batch_size: shorter batches are filled up to this size with black pictures, so that a compiled codec has one
            graph for all batches of one picture size.
        rates: for each batch the rate of each picture [B] within 0..1; None: the highest.

    Yields:
        One `Figures` per picture, in order.
    """
    for batch, of_batch in zip(batches, rates, strict=False):
        x = to_float(batch, device)
        count, _, height, width = x.shape
        missing = max(0, batch_size - count)
        at = None if of_batch is None else F.pad(of_batch.to(device), (0, missing))
        out = codec(F.pad(pad(x), (0, 0) * 3 + (0, missing)), rates=at)
        x_hat = out["x_hat"][:count, :, :height, :width].clamp(0, 1)
        likelihoods = {name: likelihood[:count] for name, likelihood in out["likelihoods"].items()}
        if on_batch:
            on_batch(x, x_hat)
        yield from measure(x, x_hat, bpp(likelihoods, height * width))


def measure(x: Tensor, x_hat: Tensor, estimated: Tensor | None, files: Sequence[bytes] = ()) -> list[Figures]:
    """The figures of decoded pictures.

    Args:
        x, x_hat: float [B, 3, H, W] in [0, 1].
        estimated: [B], bits per pixel from the likelihoods.
        files: the file of each picture.
    """
    columns = {"psnr": psnr(x_hat, x), "ms_ssim": ms_ssim(x_hat, x), "l1": (x_hat - x).abs().mean((1, 2, 3))}
    return _rows(x, columns, estimated, files)


def measure_pictures(x: Tensor, x_hat: Tensor, estimated: Tensor | None, files: Sequence[bytes] = ()) -> list[Figures]:
    """`measure` of uint8 pictures [B, 3, H, W]. Large pictures take less extra memory than their own size."""
    if x[0, 0].numel() <= LARGEST_WHOLE * STRIDE**2:
        return measure(to_float(x), to_float(x_hat), estimated, files)
    found = zip(*map(in_tiles, x, x_hat), strict=True)
    columns = [None if each[0] is None else torch.stack(each) for each in found]
    return _rows(x, dict(zip(("psnr", "ms_ssim", "l1"), columns, strict=True)), estimated, files)


def _rows(
    x: Tensor, columns: Mapping[str, Tensor | None], estimated: Tensor | None, files: Sequence[bytes]
) -> list[Figures]:
    pixels = x.shape[-2] * x.shape[-1]
    columns = {
        **columns,
        "bpp_estimated": estimated,
        "bpp": torch.tensor([8 * len(file) / pixels for file in files], dtype=torch.float64) if files else None,
    }
    lists = [[None] * len(x) if column is None else column.tolist() for column in columns.values()]
    return [Figures(**dict(zip(columns, row, strict=True)), pixels=pixels) for row in zip(*lists, strict=True)]


def sums_and_counts(rows: Sequence[Figures]) -> list[float]:
    """The sum and the count of each figure, in the order of `AVERAGED`; both can be added over ranks.

    An identical picture has no finite PSNR and a small one has no MS-SSIM; sums and counts leave these out.
    """
    totals: list[float] = []
    for name in AVERAGED:
        values = [value for row in rows if (value := getattr(row, name)) is not None and value != math.inf]
        totals += [math.fsum(values), float(len(values))]
    return totals


def means(totals: Sequence[float]) -> dict[str, float]:
    """The mean of each figure by name, from `sums_and_counts`; figures that no picture has are left out."""
    pairs = zip(AVERAGED, totals[::2], totals[1::2], strict=True)
    return {name: total / count for name, total, count in pairs if count}
