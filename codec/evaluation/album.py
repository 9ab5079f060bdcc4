"""The pictures that a report shows: a few of the evaluated ones, cropped but never scaled, and stored losslessly."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from codec.evaluation.coded import Decoded
from codec.evaluation.figures import Figures
from codec.evaluation.ranks import Ranks

MOST_PICTURES = 24
MOST_FILES = 96
"""Most files: one for each picture and one for each codec's reconstruction of it; 0.4 MB each for Kodak."""
WINDOW = (512, 768)
"""The short and the long side of the stored window: a complete picture of Kodak."""


@dataclass(frozen=True)
class Reconstruction:
    """A codec's reconstruction of a picture.

    Attributes:
        codec: name of the codec, the same for all its qualities.
        name: name of the codec at this quality.
        webp: the window, lossless.
    """

    codec: str
    name: str
    figures: Figures
    webp: bytes


@dataclass(frozen=True)
class Shown:
    """A picture that the report shows.

    Attributes:
        index: number of the picture.
        size: width and height of the complete picture, for which the figures are measured.
        window: width and height of the stored window.
        original: the window, lossless WebP.
        reconstructions: of each codec, in the order of evaluation, one for each rate of the first codec.
    """

    index: int
    size: tuple[int, int]
    window: tuple[int, int]
    original: bytes
    reconstructions: list[Reconstruction]


def spread(count: int, reconstructions: int) -> list[int]:
    """The indices of the shown pictures among `count`: all, or as many as the limits allow, evenly spread."""
    shown = min(count, MOST_PICTURES, max(1, MOST_FILES // (reconstructions + 1)))
    return [count * place // shown for place in range(shown)]


class Album:
    """Keeps some pictures and their reconstructions during an evaluation. Each rank keeps its share.

    Args:
        indices: indices of the pictures to keep.
    """

    def __init__(self, indices: Iterable[int]) -> None:
        self._indices = frozenset(indices)
        self._originals: dict[int, tuple[tuple[int, int], Tensor]] = {}
        self._first_codec = ""
        self._targets: dict[int, list[float]] = {}
        self._kept: dict[tuple[int, str, int], tuple[str, Figures, Tensor]] = {}

    def keep(self, codec: str, name: str, decoded: Iterable[Decoded]) -> Iterator[tuple[int, Figures]]:
        """Yields the index and the figures of each picture.

        All rates of the first codec are kept. Of any other codec, for each of these the reconstruction whose rate is
        nearest.

        Args:
            codec: name of the codec, the same for all its qualities.
            name: name of the codec at this quality.
        """
        for each in decoded:
            if each.index in self._indices:
                self._keep(codec, name, each)
            yield each.index, each.figures

    def _keep(self, codec: str, name: str, decoded: Decoded) -> None:
        index, figures = decoded.index, decoded.figures
        assert figures.bpp is not None
        if index not in self._originals:
            self._originals[index] = (_size(decoded.x), _window(decoded.x))
        self._first_codec = self._first_codec or codec
        targets = self._targets.setdefault(index, [])
        if codec == self._first_codec:
            targets.append(figures.bpp)
            slots = [len(targets) - 1]
        else:
            slots = [
                slot for slot, target in enumerate(targets) if self._is_nearer((index, codec, slot), figures, target)
            ]
        for slot in slots:
            self._kept[index, codec, slot] = (name, figures, _window(decoded.x_hat))

    def _is_nearer(self, place: tuple[int, str, int], figures: Figures, target: float) -> bool:
        """Whether a rate is nearer to a target than that of the reconstruction that is kept there."""
        kept = self._kept.get(place)
        return kept is None or abs((figures.bpp or 0) - target) < abs((kept[1].bpp or 0) - target)

    def gather(self, ranks: Ranks) -> list[Shown]:
        """The kept pictures of all ranks, in the order of the pictures, on every rank."""
        return sorted(ranks.gather(map(self._shown, self._originals)), key=lambda picture: picture.index)

    def _shown(self, index: int) -> Shown:
        size, original = self._originals[index]
        reconstructions = [
            Reconstruction(codec, name, figures, _webp(pixels))
            for (place, codec, _), (name, figures, pixels) in self._kept.items()
            if place == index
        ]
        order = list(dict.fromkeys(each.codec for each in reconstructions))
        reconstructions.sort(key=lambda each: order.index(each.codec))
        return Shown(index, size, _size(original), _webp(original), reconstructions)


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-1], pixels.shape[-2]


def _window(pixels: Tensor) -> Tensor:
    """A copy of the middle of a picture [3, H, W]: at most `WINDOW`, in portrait or landscape like the picture."""
    height, width = pixels.shape[-2:]
    limits = WINDOW if height <= width else WINDOW[::-1]
    rows, columns = min(height, limits[0]), min(width, limits[1])
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[:, top : top + rows, left : left + columns].cpu().clone()


def _webp(pixels: Tensor) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    picture.save(file, "webp", lossless=True, method=2, quality=50)  # 0.1 s for one of Kodak's, 2 % over the smallest
    return file.getvalue()
