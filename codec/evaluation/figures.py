"""What a codec does to pictures: one row of figures a picture, averaged over pictures and never over batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.description.architecture import STRIDE
from codec.evaluation.curves import Point
from codec.evaluation.metrics import bpp, ms_ssim, psnr
from codec.evaluation.strips import in_strips
from codec.network.codec import Codec
from codec.network.pixels import pad, to_float
from codec.tiles import LARGEST_WHOLE


@dataclass(frozen=True)
class Figures:
    """One picture's figures.

    Attributes:
        psnr: dB, from 8-bit RGB.
        ms_ssim: from 8-bit RGB; None where the short side is under 161 pixels, MS-SSIM's minimum.
        l1: mean absolute difference of the pictures in [0, 1].
        bpp_estimated: bits per pixel of the picture, by the likelihoods of its symbols; None for a codec that has none.
        bpp: bits per pixel of its file, header and all; None where no file was written.
        pixels: of the picture.
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
        rows: one a picture, in order.
        averages: means over pictures, by the names of the figures.
        blocks: what it is made of, for a codec of ours or CompressAI's.
    """

    name: str
    rows: list[Figures]
    averages: dict[str, float]
    blocks: str = ""

    @property
    def point(self) -> Point | None:
        """Its place in a curve; none where every picture came back identical."""
        means = self.averages
        return Point(means["bpp"], means["psnr"], means.get("ms_ssim")) if "psnr" in means else None


AVERAGED = ("psnr", "ms_ssim", "l1", "bpp_estimated", "bpp")
"""The figures whose means over pictures are meant."""


@torch.inference_mode()
def evaluate(
    codec: Codec,
    batches: Iterable[Tensor],
    device: torch.device,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
    batch_size: int = 0,
) -> Iterator[Figures]:
    """Codes and decodes pictures in FP32 with rounded symbols.

    Args:
        codec: from `with_tables` or a checkpoint, on `device`.
        batches: uint8 [B, 3, H, W] each, any H and W; a batch of one where sizes differ.
        on_batch: is given x and x_hat, float [B, 3, H, W] in [0, 1].
        batch_size: the codec sees no batch shorter than this, black pictures fill it up: a compiled codec then has one
            graph for all batches of one picture size.

    Yields:
        One `Figures` a picture, in order.
    """
    for batch in batches:
        x = to_float(batch, device)
        count, _, height, width = x.shape
        out = codec(F.pad(pad(x), (0, 0) * 3 + (0, max(0, batch_size - count))))
        x_hat = out["x_hat"][:count, :, :height, :width].clamp(0, 1)
        likelihoods = {name: likelihood[:count] for name, likelihood in out["likelihoods"].items()}
        if on_batch:
            on_batch(x, x_hat)
        yield from measure(x, x_hat, bpp(likelihoods, height * width))


def measure(x: Tensor, x_hat: Tensor, estimated: Tensor | None, files: Sequence[bytes] = ()) -> list[Figures]:
    """The figures of decoded pictures.

    Args:
        x, x_hat: float [B, 3, H, W] in [0, 1].
        estimated: [B], bits per pixel by the likelihoods.
        files: the file of each picture.
    """
    columns = {"psnr": psnr(x_hat, x), "ms_ssim": ms_ssim(x_hat, x), "l1": (x_hat - x).abs().mean((1, 2, 3))}
    return _rows(x, columns, estimated, files)


def measure_pictures(x: Tensor, x_hat: Tensor, estimated: Tensor | None, files: Sequence[bytes] = ()) -> list[Figures]:
    """`measure` of uint8 pictures [B, 3, H, W]; of large ones in less memory than they take themselves."""
    if x[0, 0].numel() <= LARGEST_WHOLE * STRIDE**2:
        return measure(to_float(x), to_float(x_hat), estimated, files)
    found = zip(*map(in_strips, x, x_hat), strict=True)
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
    """Sum and number of each figure in turn, in the order of `AVERAGED`: what adds up over ranks.

    A picture that came back identical has no finite PSNR and a small one no MS-SSIM; the numbers leave them out.
    """
    totals: list[float] = []
    for name in AVERAGED:
        values = [value for row in rows if (value := getattr(row, name)) is not None and value != math.inf]
        totals += [math.fsum(values), float(len(values))]
    return totals


def means(totals: Sequence[float]) -> dict[str, float]:
    """The mean of each figure that a picture has, by name, from `sums_and_counts`."""
    pairs = zip(AVERAGED, totals[::2], totals[1::2], strict=True)
    return {name: total / count for name, total, count in pairs if count}
