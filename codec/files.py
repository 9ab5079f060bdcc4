"""Pictures to compressed files and back, with a codec."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codec.bitstream.coder import Coder
from codec.bitstream.container import pack, unpack
from codec.errors import InputError
from codec.network.codec import Codec
from codec.network.pixels import pad, to_float, to_uint8
from codec.network.tables import tables_of

_LARGEST = 2.0**31 - 128
"""The largest int32 that a float32 holds."""


class FileCodec:
    """Writes and reads the files of one codec.

    Args:
        codec: in eval mode, with tables, on the device that shall compute.
        name: what errors call it.

    Raises:
        InputError: it has no CDF tables, or damaged ones.
    """

    def __init__(self, codec: Codec, name: str = "the codec") -> None:
        self.codec = codec
        self._name = name
        try:
            self.coder = Coder(tables_of(codec))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def compress(self, x: Tensor) -> list[bytes]:
        """A file for each picture of uint8 [B, 3, H, W], any H and W."""
        return self.encode(self.analyze(x), *x.shape[-2:])

    @torch.inference_mode()
    def analyze(self, x: Tensor) -> Tensor:
        """y [B, M, ceil(H/16), ceil(W/16)] of uint8 pictures [B, 3, H, W]."""
        device = self.codec.entropy_bottleneck.quantiles.device
        y: Tensor = self.codec.g_a(pad(to_float(x, device)))
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
