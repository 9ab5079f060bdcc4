"""Pictures to compressed files and back, with a codec."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.bitstream.coder import LARGEST
from codec.bitstream.container import check_size, latent_size, pack, unpack
from codec.bitstream.hyper_coder import HyperCoder, z_size
from codec.bitstream.integer import UPSAMPLING
from codec.bitstream.rate_coder import RateCoder, at_rate, coder_of
from codec.blocks import load_plugin
from codec.checkpoint import open_codec
from codec.description.architecture import STRIDE
from codec.errors import InputError
from codec.network.codec import Codec
from codec.network.exact import exact_fp32
from codec.network.hyperprior import HyperCodec
from codec.network.pixels import pad, to_float, to_uint8
from codec.network.reach import margins
from codec.network.tables import tables_of
from codec.targets import Codable, TargetOptions, code, psnr
from codec.tiles import LARGEST_WHOLE, Tile, Window, tile_size, tiles


@dataclass(frozen=True)
class Latent:
    """The symbols of a picture.

    Attributes:
        y: int32 [M, ceil(H/16), ceil(W/16)].
        z: int32 [N, ceil(H/64), ceil(W/64)]; None without a hyperprior.
    """

    y: NDArray[np.int32]
    z: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Analysed:
    """The latents of a picture before they are rounded.

    Attributes:
        y: float32 [M, ceil(H/16), ceil(W/16)].
        z: float32 [N, ceil(H/64), ceil(W/64)], less its medians; None without a hyperprior.
    """

    y: NDArray[np.float32]
    z: NDArray[np.float32] | None = None


class FileCodec:
    """Writes and reads the files of one codec.

    The transforms compute a large picture in tiles, which overlap by the receptive field of their layers. The symbols
    are the same, and memory does not grow with the picture, except for its pixels and symbols. A transform that looks
    at the full picture, or does not state its receptive field, computes the picture at once.

    Args:
        codec: in eval mode, with tables, on the device that computes.
        name: name of the codec in errors.

    Raises:
        InputError: the codec has no CDF tables, or damaged ones.
    """

    def __init__(self, codec: Codec, name: str = "the codec") -> None:
        self.codec = codec
        self._name = name
        try:
            self.coder = coder_of(tables_of(codec))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        self._margins = {part: margins(codec, part) for part in ("g_a", "g_s", "h_a") if hasattr(codec, part)}
        self._warned: set[str] = set()

    def compress(self, x: Tensor, rate: int | None = None) -> list[bytes]:
        """A file for each picture of uint8 [B, 3, H, W], any H and W.

        Args:
            rate: its number, 0 to `coder.most`; None: the highest, which is the only one of most codecs.
        """
        height, width = x.shape[-2:]
        return self.encode(self.latents(x, rate), height, width, rate)

    @torch.inference_mode()
    def latents(self, x: Tensor, rate: int | None = None) -> list[Latent]:
        """The symbols of uint8 pictures [B, 3, H, W] at a rate.

        Raises:
            InputError: the symbols are not finite or do not fit int32, or the picture is too large.
        """
        check_size(*x.shape[-2:])
        size = latent_size(*x.shape[-2:])
        coder = self.coder
        if isinstance(coder, RateCoder):
            return [self.at_rate(each, rate) for each in self.analysed(x)]
        if isinstance(coder, HyperCoder):
            return [self._rounded(each, coder) for each in self.analysed(x)]
        symbols = np.empty((len(x), self.codec.M, *size), np.int32)
        for place, y in self._y(x, size):
            found = self.codec.y_model.symbols(y)
            symbols[..., *place] = found.to(torch.int32).cpu().numpy()
        return [Latent(each) for each in symbols]

    @torch.inference_mode()
    def analysed(self, x: Tensor) -> list[Analysed]:
        """y and z of uint8 pictures [B, 3, H, W] before they are rounded, from which the symbols of every rate follow.

        Raises:
            InputError: as `latents`.
        """
        check_size(*x.shape[-2:])
        size = latent_size(*x.shape[-2:])
        values = np.empty((len(x), self.codec.M, *size), np.float32)
        hyper = isinstance(self.codec, HyperCodec)
        for place, y in self._y(x, size):
            values[..., *place] = (self.codec.emitted(y) if isinstance(self.codec, HyperCodec) else y).cpu().numpy()
        return [Analysed(*each) for each in zip(values, self._z(values) if hyper else [None] * len(x), strict=True)]

    def at_rate(self, analysed: Analysed, rate: int | None) -> Latent:
        """The symbols of a picture at a rate; None: the highest."""
        coder = at_rate(self.coder, rate)
        if isinstance(coder, HyperCoder):
            return self._rounded(analysed, coder)
        return Latent(coder.round(analysed.y))

    def codable(self, x: Tensor) -> Codable:
        """A picture, uint8 [3, H, W], to be coded at any rate: it is analysed once."""
        height, width = x.shape[-2:]
        coder = self.coder
        if not isinstance(coder, RateCoder):
            return Codable(None, height * width, lambda _: 0.0, lambda _: self.compress(x[None])[0], None)
        (analysed,) = self.analysed(x[None])

        def bits(rate: int) -> float:
            latent = self.at_rate(analysed, rate)
            return coder.at(rate).bits(latent.y, latent.z)

        def file(rate: int | None) -> bytes:
            return self.encode([self.at_rate(analysed, rate)], height, width, rate)[0]

        def reached(data: bytes) -> float:
            (x_hat,) = self.decompress([data])
            return psnr(*(each.permute(1, 2, 0).cpu().numpy() for each in (x, x_hat)))

        return Codable(coder.most, height * width, bits, file, reached)

    def through_file(self, x: Tensor, target: TargetOptions) -> tuple[bytes, Tensor]:
        """The file of a picture, uint8 [3, H, W], within a target, and the picture that it decodes to.

        Raises:
            InputError: no rate meets the target.
        """
        file = code(self.codable(x), target)
        return file, self.decompress([file])[0]

    def _rounded(self, analysed: Analysed, coder: HyperCoder) -> Latent:
        assert analysed.z is not None
        z = coder.round_z(analysed.z)
        return Latent(coder.round(analysed.y, z), z)

    def _y(self, x: Tensor, size: Sequence[int]) -> Iterator[tuple[Window, Tensor]]:
        """y of pictures, tile by tile, with its place."""
        for tile in self._tiles(size, "g_a"):
            rows, columns = tile.seen(STRIDE)
            y = self.codec.g_a(pad(to_float(x[..., rows, columns], self._device)))[..., *tile.used()]
            self._check(y)
            yield tile.kept(), y

    def _z(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """z less its medians [B, N, ..] for y; where an int8 h_a gives symbols, these."""
        codec = self.codec
        assert isinstance(codec, HyperCodec)
        size = z_size(*y.shape[-2:])
        values = np.empty((len(y), codec.N, *size), np.float32)
        for tile in self._tiles(size, "h_a"):
            piece = torch.from_numpy(y[..., *tile.seen(UPSAMPLING)]).to(self._device)
            found = codec.entropy_bottleneck.centred(codec.h_a(codec.seen_by_h_a(piece)))[..., *tile.used()]
            self._check(found)
            values[..., *tile.kept()] = found.cpu().numpy()
        return values

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.codec.entropy_bottleneck.quantiles.device
        return device

    def encode(self, latents: Sequence[Latent], height: int, width: int, rate: int | None = None) -> list[bytes]:
        """The files of pictures of this size from their symbols at a rate.

        Raises:
            InputError: the picture has almost no information for its size.
        """
        return [pack(height, width, each.y, self.coder, each.z, rate) for each in latents]

    @torch.inference_mode()
    def decompress(self, files: Sequence[bytes]) -> list[Tensor]:
        """The pictures of files, each uint8 [3, H, W]; neighbours of equal size are decoded as one batch.

        Raises:
            InputError: a file is damaged or of another codec, or the codec gives pictures that are not finite.
        """
        pictures: list[Tensor] = []
        read = (_narrowed(*unpack(data, self.coder)) for data in files)
        for (height, width), group in itertools.groupby(read, key=lambda picture: picture[:2]):
            values = [picture[2] for picture in group]
            pictures += self._pictures(np.stack(values) if values[1:] else values[0][None], height, width)
        return pictures

    def _pictures(self, values: NDArray[np.integer[Any]], height: int, width: int) -> Sequence[Tensor]:
        """The pictures of decoded values [B, M, h, w]; their memory layout is [B, H, W, 3], as in picture files."""
        medians, unit = self.codec.y_model.medians(), self.coder.unit
        pixels = torch.empty((len(values), height, width, 3), dtype=torch.uint8, device=self._device)
        pictures = pixels.permute(0, 3, 1, 2)
        for tile in self._tiles(values.shape[-2:], "g_s"):
            piece = torch.from_numpy(values[..., *tile.seen()]).to(self._device).float() * unit
            x_hat = self.codec.g_s(piece + medians)[..., *tile.used(STRIDE)]
            self._check(x_hat)
            place = pictures[..., *tile.kept(STRIDE)]  # ends with the picture; x_hat may extend beyond it
            place[:] = to_uint8(x_hat[..., : place.shape[-2], : place.shape[-1]])
        return pictures.unbind()

    def _tiles(self, size: Sequence[int], part: str) -> list[Tile]:
        """The tiles of y, or for h_a of z; a single one if it is small, or if the transform must see it at once."""
        whole = (size[0], size[1])
        known = self._margins[part]
        if size[0] * size[1] > LARGEST_WHOLE:
            if known is not None:
                return list(tiles(whole, tile_size(whole, known), known))
            self._warn(part)
        return list(tiles(whole, whole, (0, 0)))

    def _warn(self, part: str) -> None:
        if part in self._warned:
            return
        self._warned.add(part)
        blocks = self.codec.architecture
        what = {"g_a": f"{blocks.g_a.name} in the encoder", "g_s": f"{blocks.g_s.name} in the decoder", "h_a": "h_a"}
        print(
            f"warning: {what[part]} of {self._name} looks at the full picture, or does not say how far: "
            "large pictures are coded at once, with about 0.4 GB per megapixel",
            file=sys.stderr,
        )

    def _check(self, values: Tensor) -> None:
        if not torch.isfinite(values).all() or values.abs().max() > LARGEST:
            raise InputError(
                f"{self._name} gives values that are not finite; its training has diverged, use an earlier one"
            )


def open_file_codec(checkpoint: str, plugin: str | None, threads: int | None) -> FileCodec:
    """The codec of a checkpoint, on the GPU if there is one.

    Args:
        plugin: a Python file of the blocks that it uses.
        threads: of torch; None: as many as it takes.

    Raises:
        InputError: one of the files cannot be opened.
    """
    exact_fp32()
    if threads:
        torch.set_num_threads(threads)
    if plugin:
        load_plugin(plugin)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return FileCodec(open_codec(Path(checkpoint)).to(device), checkpoint)


def _narrowed(height: int, width: int, values: NDArray[np.int32]) -> tuple[int, int, NDArray[np.integer[Any]]]:
    """What `unpack` gives, values as int16 where they fit, as most do: half the memory beside a large picture."""
    limits = np.iinfo(np.int16)
    fit = limits.min <= values.min() and values.max() <= limits.max
    return height, width, values.astype(np.int16) if fit else values
