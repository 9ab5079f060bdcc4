"""Pictures to files and back with exported models: numpy, ONNX Runtime and the entropy coder. Needs no torch.

    python -m export.runtime encode photo.png photo.bin --model onnx/enc.onnx
    python -m export.runtime decode photo.bin photo.png --model onnx/dec.onnx

The files are those of `codec.compress`: either side may be the checkpoint itself.
"""

import io
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from coco224.files import whole_or_absent
from codec.bitstream.coder import Coder
from codec.bitstream.container import latent_size, pack, unpack
from codec.bitstream.tables import read_tables
from codec.cli import ArgumentParser, run
from codec.description.architecture import STRIDE
from codec.errors import InputError

if TYPE_CHECKING:
    import onnxruntime

Pixels = NDArray[np.uint8]
Window = tuple[slice, slice]
TABLES_SUFFIX = ".tables"

VNNI = {"avx512_vnni", "avx_vnni"}
"""CPU flags of instructions that add int8 products in 32 bits; a CPU with AMX has them too."""

SYMBOL_ZERO = 128
"""Zero point of symbols as uint8; their scale is 1."""

MARGIN = 2
"""Positions of y at the edge of a tile that are computed and not used: as far as the transforms' convolutions look (30
pixels; less than 2 positions), so that tiles make what the whole picture would, blocks that look further aside."""


class Model:
    """An exported encoder or decoder in ONNX Runtime, and the entropy tables beside it.

    Args:
        path: the ONNX file.
        part: "encoder" or "decoder", what it has to be.
        tables: the entropy tables' file; beside the model unless given.

    Raises:
        InputError: no model of that part, or tables of another codec.
    """

    def __init__(self, path: Path, part: str, tables: Path | None = None) -> None:
        self.session = open_session(path)
        properties = self.session.get_modelmeta().custom_metadata_map
        if properties.get("part") != part:
            raise InputError(f"{path} is no {part} of this program; export one with --part {part}")
        tables = tables or path.with_suffix(TABLES_SUFFIX)
        self.coder = Coder(read_tables(tables))
        if f"{self.coder.tables.fingerprint:08x}" != properties["fingerprint"]:
            raise InputError(f"{tables} belongs to another codec than {path}; give the file that was written with it")
        (self._entry,) = self.session.get_inputs()
        self._unit = STRIDE if part == "encoder" else 1
        self.takes_bytes = self._entry.type == "tensor(uint8)"
        self.medians = self.coder.tables.medians[:, None, None]

    def run(self, value: NDArray[Any]) -> NDArray[Any]:
        """One input [C, H, W] to one output, as the model's types are."""
        (output,) = self.session.run(None, {self._entry.name: value[None]})
        result: NDArray[Any] = output[0]
        return result

    def tiles(self, size: Sequence[int]) -> Iterator["Tile"]:
        """The windows through which the model sees a y of this size, rows and columns; one where it takes any size."""
        fixed = self._entry.shape[2:]
        own = [whole if isinstance(side, str) else side // self._unit for side, whole in zip(fixed, size, strict=True)]
        for row, column in product(*(spans(whole, side) for whole, side in zip(size, own, strict=True))):
            yield Tile((own[0], own[1]), *zip(row, column, strict=True))


def session_options() -> "onnxruntime.SessionOptions":
    """ONNX Runtime without warnings, and with int8 sums that do not saturate."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimizer
    if sums_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def sums_saturate(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether ONNX Runtime's fastest int8 kernels add two products in 16 bits, which do not hold them.

    They do on x86 without VNNI. With VNNI the fastest are exact, and the others take about three times as long. An x86
    CPU whose flags cannot be read (another system than Linux) counts as one without: slow at worst, never wrong.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with cpuinfo.open() as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return True
    return not VNNI.intersection(flags)


def open_session(path: Path) -> "onnxruntime.InferenceSession":
    """The file in ONNX Runtime, on the CPU.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is no model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("the runtime needs onnxruntime: pip install -c constraints.txt -e '.[onnx]'") from error
    if not path.is_file():
        raise InputError(f"--model {path}: no such file; python -m export writes one")
    try:
        return onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class of its own for each reason, and no common one
        raise InputError(f"--model {path}: ONNX Runtime does not open it ({error}); export it again") from error


def encode(pixels: Pixels, model: Model) -> bytes:
    """The file of a picture, uint8 [H, W, 3] of any size.

    A model of a fixed size sees a larger picture in tiles that overlap, and a smaller one extended.
    """
    height, width = pixels.shape[:2]
    size = latent_size(height, width)
    symbols = np.empty((len(model.medians), *size), np.int32)
    for tile in model.tiles(size):
        piece = extended(pixels[tile.seen(STRIDE)].transpose(2, 0, 1), tile.size, STRIDE)
        y = model.run(piece if model.takes_bytes else piece.astype(np.float32) / np.float32(255))
        found = y.astype(np.int32) - SYMBOL_ZERO if y.dtype == np.uint8 else np.rint(y - model.medians)
        symbols[:, *tile.kept()] = found[:, *tile.used()]
    return pack(height, width, symbols, model.coder)


def decode(data: bytes, model: Model) -> Pixels:
    """The picture of a file, uint8 [H, W, 3].

    Raises:
        InputError: the file is not whole or not of this codec.
    """
    height, width, symbols = unpack(data, model.coder)
    pixels = np.empty((3, *(length * STRIDE for length in symbols.shape[1:])), np.uint8)
    for tile in model.tiles(symbols.shape[1:]):
        piece = extended(symbols[:, *tile.seen()], tile.size)
        if model.takes_bytes:
            x_hat = model.run(np.clip(piece + SYMBOL_ZERO, 0, 255).astype(np.uint8))
        else:
            x_hat = model.run(piece.astype(np.float32) + model.medians)
        if x_hat.dtype != np.uint8:
            x_hat = np.rint(np.clip(x_hat, 0, 1) * np.float32(255)).astype(np.uint8)
        pixels[:, *tile.kept(STRIDE)] = x_hat[:, *tile.used(STRIDE)]
    return pixels[:, :height, :width].transpose(1, 2, 0)


@dataclass(frozen=True)
class Tile:
    """A window on y, in positions: rows and columns.

    Attributes:
        size, place: how far the model looks, and from where.
        first, end: the positions that are taken from what it gives.
    """

    size: tuple[int, int]
    place: tuple[int, int]
    first: tuple[int, int]
    end: tuple[int, int]

    def seen(self, unit: int = 1) -> Window:
        """What the model looks at; `unit` is 1 for y and 16 for pixels."""
        return _window(self.place, (place + size for place, size in zip(self.place, self.size, strict=True)), unit)

    def kept(self, unit: int = 1) -> Window:
        """Where its result goes."""
        return _window(self.first, self.end, unit)

    def used(self, unit: int = 1) -> Window:
        """Which of its result."""
        first, end = ([a - b for a, b in zip(each, self.place, strict=True)] for each in (self.first, self.end))
        return _window(first, end, unit)


def _window(first: Iterable[int], end: Iterable[int], unit: int) -> Window:
    rows, columns = (slice(a * unit, b * unit) for a, b in zip(first, end, strict=True))
    return rows, columns


def spans(length: int, size: int) -> list[tuple[int, int, int]]:
    """Tiles of a side: where each begins, and the first and the end of the positions that are taken from it."""
    if size >= length:
        return [(0, 0, length)]
    margin = min(MARGIN, (size - 1) // 2)
    places = [*range(0, length - size, size - 2 * margin), length - size]
    edges = [0, *(place + margin for place in places[1:]), length]
    return list(zip(places, edges, edges[1:], strict=False))


def extended(piece: NDArray[Any], size: tuple[int, int], unit: int = 1) -> NDArray[Any]:
    """[C, h, w] to the tile's size by repeating its last row and column."""
    missing = [(0, side * unit - found) for side, found in zip(size, piece.shape[1:], strict=True)]
    return np.pad(piece, ((0, 0), *missing), "edge")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m export.runtime",
        usage="%(prog)s {encode,decode} SOURCE TARGET --model FILE.onnx [options]",
        description="Compresses a picture with an exported encoder, or decompresses one with an exported decoder.",
    )
    parser.add_argument("direction", choices=("encode", "decode"), help="picture to file, or file to picture")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="what is read")
    parser.add_argument("target", type=Path, metavar="TARGET", help="what is written")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.onnx", help="exported encoder or decoder")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="entropy tables [beside the model]")
    given = parser.parse_args(argv)
    if not given.source.is_file():
        raise InputError(f"{given.source}: no such file")
    if given.direction == "encode":
        data = encode(read_picture(given.source), Model(given.model, "encoder", given.tables))
    else:
        data = as_file(decode_file(given.source, Model(given.model, "decoder", given.tables)), given.target)
    try:
        with whole_or_absent(given.target) as beside:
            beside.write_bytes(data)
    except OSError as error:
        raise InputError(f"{given.target} cannot be written: {error.strerror}") from error
    return 0


def cli() -> NoReturn:
    """The command on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def decode_file(path: Path, model: Model) -> Pixels:
    """The picture of a file; InputError names it."""
    try:
        return decode(path.read_bytes(), model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def as_file(pixels: Pixels, target: Path) -> bytes:
    """A picture in the format that the target's name says; InputError for one that loses something."""
    from PIL import Image

    if target.suffix.lower() not in (".png", ".bmp"):
        raise InputError(f"{target}: give a name that ends in .png or .bmp")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, target.suffix[1:])
    return file.getvalue()


def read_picture(path: Path) -> Pixels:
    """A JPEG, PNG, BMP or WebP picture as upright RGB, [H, W, 3]; InputError where it is none."""
    from coco224.photographs.decode import BadPhotograph, read_photograph

    try:
        return np.array(read_photograph(path).image)
    except BadPhotograph as error:
        raise InputError(f"{path} is no picture: {error}") from error


if __name__ == "__main__":
    cli()
