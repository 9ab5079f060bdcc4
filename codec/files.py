"""Pictures to compressed files and back, with a codec."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.bitstream import pack, unpack
from codec.checkpoint import as_arrays
from codec.coder import Coder
from codec.errors import InputError
from codec.evaluation import Figures, measure, pad
from codec.metrics import bpp, to_uint8
from codec.model import Codec
from codec.tables import Tables, tables_of_state

_LARGEST = 2.0**31 - 128
"""The largest int32 that a float32 holds."""


def tables_of(codec: Codec) -> Tables:
    """The entropy tables of a codec from `with_tables` or a checkpoint; see `tables_of_state`."""
    (written_by,) = codec.calibrated_from or (codec,)
    return tables_of_state(as_arrays(written_by.state_dict()), asdict(codec.architecture.g_s))


class FileCodec:
    """Writes and reads the files of one codec.

    Args:
        codec: in eval mode, with tables, on the device that shall compute.
        name: what errors call it.
    """

    def __init__(self, codec: Codec, name: str = "the codec") -> None:
        self.codec = codec
        self._name = name
        self.coder = Coder(tables_of(codec))

    def compress(self, x: Tensor) -> list[bytes]:
        """A file for each picture of uint8 [B, 3, H, W], any H and W."""
        return self.encode(self.analyze(x), *x.shape[-2:])

    @torch.inference_mode()
    def analyze(self, x: Tensor) -> Tensor:
        """y [B, M, ceil(H/16), ceil(W/16)] of uint8 pictures [B, 3, H, W]."""
        device = self.codec.entropy_bottleneck.quantiles.device
        y: Tensor = self.codec.g_a(pad(x.to(device, non_blocking=True).float().div_(255)))
        return y

    @torch.inference_mode()
    def encode(self, y: Tensor, height: int, width: int) -> list[bytes]:
        """The files of pictures of this size from their y.

        Raises:
            InputError: y is not finite, or the picture is too large.
        """
        symbols = self.codec.entropy_bottleneck.symbols(y)
        self._check_finite(symbols)
        pictures = symbols.clamp(-_LARGEST, _LARGEST).to(torch.int32).cpu().numpy()
        return [pack(height, width, picture, self.coder) for picture in pictures]

    @torch.inference_mode()
    def decompress(self, files: Sequence[bytes]) -> list[Tensor]:
        """The pictures of files, uint8 [3, H, W] each; neighbours of one size are decoded as one batch.

        Raises:
            InputError: a file is not whole or not of this codec, or the codec gives pictures that are not finite.
        """
        pictures: list[Tensor] = []
        medians = self.codec.entropy_bottleneck.medians()
        read = (unpack(data, self.coder) for data in files)
        for (height, width), group in itertools.groupby(read, key=lambda picture: picture[:2]):
            symbols = torch.from_numpy(np.stack([picture[2] for picture in group]))
            x_hat = self.codec.g_s(symbols.to(medians.device).float() + medians)
            self._check_finite(x_hat)
            pictures += to_uint8(x_hat[..., :height, :width]).unbind()
        return pictures

    def _check_finite(self, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            raise InputError(
                f"{self._name} gives values that are not finite; its training has diverged, use an earlier one"
            )


@dataclass(frozen=True)
class Decoded:
    """A picture that was written to a file and decoded from it again.

    Attributes:
        index: which one of the pictures it is.
        figures: with the bits per pixel of its file.
        x, x_hat: the picture and the decoded one, uint8 [3, H, W].
    """

    index: int
    figures: Figures
    x: Tensor
    x_hat: Tensor


@torch.inference_mode()
def through_files(codec: FileCodec, batches: Iterable[tuple[Sequence[int], Tensor]]) -> Iterator[Decoded]:
    """Pictures as their files give them back, in the order of the batches.

    Args:
        batches: the pictures' indices, and uint8 [B, 3, H, W].

    Raises:
        InputError: the codec gives values that are not finite.
    """
    with tempfile.TemporaryDirectory(prefix="codec-") as folder:
        for indices, x in batches:
            height, width = x.shape[-2:]
            y = codec.analyze(x)
            paths = [Path(folder, f"{index}.bin") for index in indices]
            for path, data in zip(paths, codec.encode(y, height, width), strict=True):
                path.write_bytes(data)
            files = [path.read_bytes() for path in paths]
            for path in paths:
                path.unlink()
            x_hat = torch.stack(codec.decompress(files))
            _, likelihoods, _ = codec.codec.entropy_bottleneck(y)
            original = x.to(x_hat.device)
            rows = measure(original / 255, x_hat / 255, bpp({"y": likelihoods}, height * width), files)
            for decoded in zip(indices, rows, original, x_hat, strict=True):
                yield Decoded(*decoded)
