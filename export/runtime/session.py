"""An exported encoder or decoder in ONNX Runtime or OpenVINO, and the files beside it."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coco224.errors import printable
from coco224.files import in_words, read_regular
from codec.bitstream.hyper_coder import FIFTH
from codec.bitstream.integer import UPSAMPLING
from codec.bitstream.rate_coder import coder_of
from codec.bitstream.tables import read_tables
from codec.description.architecture import MOST_SPLITS, STRIDE
from codec.errors import InputError, no_file
from codec.tiles import LARGEST_WHOLE, Margins, Tile, least_size, tile_size, tiles
from export.cpu import sums_saturate
from export.runtime.openvino import OpenVinoSession

if TYPE_CHECKING:
    import onnxruntime

TABLES_SUFFIX = ".tables"
H_A_SUFFIX = ".h_a.onnx"
"""Names of the files beside a model."""

H_A = "h_a"
"""The encoder's metadata property with the `digest` of the file of h_a."""

FIFTHS = "fifths"
"""The output of an h_a whose 8 bits are fifths of symbols of z, since the host scales and rounds these again."""

STEPS = "steps"
"""The property with the steps of y's levels: a float32 for each channel, little-endian, in hexadecimal."""

SPLITS = "splits"
"""The property that says how many channels of the graph hold each channel of y, with spaces between; or it is empty."""

LARGEST_FILE = 2**29
"""Largest file of h_a, in bytes."""

MARGINS = "margins"
"""The model's metadata property with its receptive field: positions of y before and after, or empty."""

OLD_MARGINS = (2, 2)
"""Margins of tiles for a model without a known receptive field: exact for ReLU, GDN and the gate, close for others."""

SYMBOL_ZERO = 128
"""Zero point of symbols as uint8; their scale is 1."""

LONGEST_SIDE = 8192
"""Longest side of a model's fixed size; smaller pictures are padded to this size."""


BACKENDS = ("onnxruntime", "openvino")
"""What runs the graphs."""
_OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "not enough memory")

UNITS = {"encoder": STRIDE, "h_a": UPSAMPLING, "decoder": 1}
"""Positions of a graph's input a side for each position of its tiles: of y, or of z for h_a."""

PIXELS = {"encoder": STRIDE, "h_a": UPSAMPLING * STRIDE, "decoder": STRIDE}
"""Pixels a side for each position of its tiles."""


TYPES = ("tensor(float)", "tensor(uint8)")
"""Types of what a graph takes and gives."""


_SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"
"""A field `metadata_props` with the key `sha256`; its value of 64 characters follows. ONNX writes it last, too."""


class Graph:
    """An exported graph in ONNX Runtime or OpenVINO, which computes a large picture in tiles.

    Args:
        path: the ONNX file.
        part: "encoder", "h_a" or "decoder"; the file must be this part.
        data: the content of the file, if it was read already.
        backend: "onnxruntime" or "openvino".

    Attributes:
        session: the graph in the backend.
        properties: its metadata.
        margins: its receptive field, in positions of its tiles; None if it is not known, or is the full picture.
        takes_bytes: its input is uint8.
        takes_magnitudes: its input has no sign, as that of h_a may have.
        unit: what one level of an output of 8 bits is in symbols, where there are no steps.
        steps: float32 [M, 1, 1], y or y_hat is its levels times this; None for a graph that has no levels.
        splits: int [M], how many of the graph's channels hold a level as their sum; None: one each.

    Raises:
        InputError: the file is not a model of that part.
    """

    def __init__(self, path: Path, part: str, data: bytes | None = None, backend: str = BACKENDS[0]) -> None:
        self.session = open_session(path, data, backend)
        self.properties = self.session.get_modelmeta().custom_metadata_map
        if self.properties.get("part") != part:
            wanted = "encoder" if part == "h_a" else part
            raise InputError(f"{path} is no {part} of this program; export one with --part {wanted}")
        self.margins = read_margins(self.properties.get(MARGINS, ""))
        self._path, self._part, self._unit = path, part, UNITS[part]
        ends = (self.session.get_inputs(), self.session.get_outputs())
        types = [[each.type for each in end] for end in ends]
        if any(len(end) != 1 or end[0] not in TYPES for end in types):
            found = " and ".join(", ".join(end) or "nothing" for end in types)
            raise InputError(
                f"{path} takes and gives {printable(found)}, and a model of this program one float or uint8 tensor; "
                "export it again"
            )
        self._entry = ends[0][0]
        self._channels = 0  # of the output; 0 until `check_shapes`
        self.takes_bytes = self._entry.type == "tensor(uint8)"
        self.takes_magnitudes = self._entry.name in ("magnitudes", "magnitude_levels")
        self.unit = FIFTH if self.session.get_outputs()[0].name == FIFTHS else 1.0
        self.steps = read_steps(self.properties.get(STEPS, ""), path)
        self.splits = read_splits(self.properties.get(SPLITS, ""), path)

    @property
    def is_interleaved(self) -> bool:
        """Whether it interleaves rows by reshapes and a concatenation, for any height and width."""
        open_ends = not any(isinstance(side, int) for side in self._entry.shape[2:])
        return open_ends and self.properties.get("deconv") == "concat"

    def check_shapes(self, inputs: int, outputs: int) -> None:
        """Raises InputError if it does not have these channels, or takes a size that no codec has."""
        every = (*self.session.get_inputs(), *self.session.get_outputs())
        found = [each.shape[1] if len(each.shape) == 4 else 0 for each in every]
        if self.splits is not None:
            place, channels = (1, outputs) if self._part == "encoder" else (0, inputs)
            found[place] = channels if len(self.splits) == channels and found[place] == self.splits.sum() else 0
        if len(found) != 2 or any(isinstance(n, int) and n != m for n, m in zip(found, (inputs, outputs), strict=True)):
            channels = inputs if self._part == "decoder" else outputs
            raise InputError(
                f"{self._path} is no {self._part} of {channels} channels, which its tables have; export it again"
            )
        self._channels = outputs
        if self.splits is not None and self._part == "encoder":
            self._channels = int(self.splits.sum())
        if self.steps is not None and len(self.steps) != (outputs if self._part == "encoder" else inputs):
            raise InputError(
                f"{self._path} has {len(self.steps)} steps, which is not the number of its channels; export it again"
            )
        sides = [side for side in self._entry.shape[2:] if isinstance(side, int)]
        whole = STRIDE if self._part == "encoder" else 1
        if any(side < whole or side % whole or side > LONGEST_SIDE for side in sides):
            raise InputError(f"{self._path} takes a size of {sides}, which no codec has; export it again")

    def to_levels(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """y, y_hat or symbols [M, h, w] as the graph's levels, or symbols, in 8 bits [channels, h, w]."""
        levels = values if self.steps is None else np.rint(values.astype(np.float32) / self.steps)
        if self.splits is not None:
            # a level is the sum of its splits: (level + place) // splits over all places
            first = np.repeat(np.cumsum(self.splits) - self.splits, self.splits)
            place = np.arange(len(first)) - first
            count = np.repeat(self.splits, self.splits)[:, None, None]
            levels = np.floor((np.repeat(levels, self.splits, 0) + place[:, None, None]) / count)
        eight: NDArray[np.uint8] = np.clip(levels + SYMBOL_ZERO, 0, 255).astype(np.uint8)
        return eight

    def from_levels(self, levels: NDArray[np.uint8]) -> NDArray[Any]:
        """Symbols, int32 [M, h, w], or y, float32, from the graph's 8 bits [channels, h, w]."""
        values: NDArray[Any] = levels.astype(np.int32) - SYMBOL_ZERO
        if self.splits is not None:
            values = np.add.reduceat(values, np.cumsum(self.splits) - self.splits)
        return values if self.steps is None else values.astype(np.float32) * self.steps

    def run(self, value: NDArray[Any]) -> NDArray[Any]:
        """Runs one input [C, H, W] and returns the output, both in the model's types.

        Raises:
            InputError: the backend cannot compute it, or the output has another shape than that of such a part.
        """
        try:
            (output,) = self.session.run(None, {self._entry.name: value[None]})
        except MemoryError:
            raise
        except Exception as error:  # the backends' exceptions have no common class
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise MemoryError(str(error)) from error
            raise InputError(
                f"{self._path}: its graph cannot be computed for an input of {list(value.shape)} ({error}); export it "
                "again"
            ) from error
        height, width = value.shape[1:]
        if self._part == "decoder":
            sides = (height * STRIDE, width * STRIDE)
        else:
            step = self._unit
            sides = (-(-height // step), -(-width // step))
        channels = self._channels or (output.shape[1] if output.ndim == 4 else 0)
        if output.shape != (1, channels, *sides):
            raise InputError(
                f"{self._path} gives {list(output.shape)} for an input of {list(value.shape)}, which no {self._part} "
                "does; export it again"
            )
        result: NDArray[Any] = output[0]
        return result

    def piece(self, values: NDArray[Any], tile: Tile) -> NDArray[Any]:
        """The input of a tile from that of the full picture [C, H, W]; its last row and column are repeated if needed.

        h_a takes positions of y as they are: there may be fewer than 4x4 for the last position of z. Only a graph of a
        fixed size needs more.
        """
        windows, missing = [], []
        for fixed, size, place, length in zip(
            self._entry.shape[2:], tile.size, tile.place, values.shape[1:], strict=True
        ):
            start, side = place * self._unit, fixed if isinstance(fixed, int) else size * self._unit
            windows.append(slice(start, start + side))
            kept = self._part == "h_a" and not isinstance(fixed, int)
            missing.append((0, 0 if kept else max(0, start + side - length)))
        return np.pad(values[:, *windows], ((0, 0), *missing), "edge")

    def tiles(self, size: Sequence[int]) -> Iterator[Tile]:
        """The tiles for a y of this size (rows and columns); those of h_a are in positions of z.

        Raises:
            InputError: the model's fixed size is too small for tiles of a larger picture.
        """
        step = self._unit if self._part == "h_a" else 1
        whole = [-(-side // step) for side in size]
        fixed = self._entry.shape[2:]
        if not any(isinstance(side, int) for side in fixed):
            if self.margins is None or whole[0] * whole[1] <= LARGEST_WHOLE:
                return tiles(whole, whole, OLD_MARGINS)
            return tiles(whole, tile_size(whole, self.margins), self.margins)
        margins, own = self.margins or OLD_MARGINS, []
        for side, length, positions in zip(fixed, size, whole, strict=True):
            enough = not isinstance(side, int) or (step > 1 and side >= length)  # 14 of y are 4 of z, but 3 in a tile
            own.append(positions if enough else side // self._unit)
            if own[-1] < min(positions, least_size(margins)):
                pixels = PIXELS[self._part]
                height, width = (each * pixels // self._unit if isinstance(each, int) else "any" for each in fixed)
                raise InputError(
                    f"a model of {height}x{width} pixels (HxW) is too small for tiles of a larger picture, which need "
                    f"at least {least_size(margins) * pixels} pixels per side; export it with a larger --input_size, "
                    "or with --dynamic"
                )
        return tiles(whole, own, margins)


class Model(Graph):
    """An exported encoder or decoder, and what lies beside it: the entropy tables and, with a hyperprior, h_a.

    Args:
        path: the ONNX file.
        part: "encoder" or "decoder"; the model must be this part.
        tables: the file of the entropy tables; by default the one beside the model.
        backend: "onnxruntime" or "openvino".

    Attributes:
        coder: the entropy coder of the tables.
        h_a: the graph from y to z, for an encoder with a hyperprior; else None.

    Raises:
        InputError: the file is not a model of that part, or the files beside it belong to another codec.
    """

    def __init__(self, path: Path, part: str, tables: Path | None = None, backend: str = BACKENDS[0]) -> None:
        super().__init__(path, part, backend=backend)
        tables = tables or path.with_suffix(TABLES_SUFFIX)
        self.coder = coder_of(read_tables(tables))
        if f"{self.coder.tables.fingerprint:08x}" != self.properties.get("fingerprint"):
            raise InputError(f"{tables} belongs to another codec than {path}; give the file that was written with it")
        self.medians = self.coder.medians
        channels = self.coder.tables.channels
        self.check_shapes(*((3, channels) if part == "encoder" else (channels, 3)))
        latent = self.session.get_outputs()[0] if part == "encoder" else self._entry
        has_levels = latent.type == "tensor(uint8)" and self.coder.unit < 1  # symbols around a mean are the host's
        if has_levels != (self.steps is not None):
            raise InputError(f"{path} has steps without levels of y, or levels without steps; export it again")
        if backend == "openvino" and part == "decoder" and self.takes_bytes and self.is_interleaved:
            raise InputError(
                f"{path} is an int8 decoder for any size in the form concat, in which OpenVINO rounds at other places; "
                "export it with --deconv depth_to_space, or with a fixed size"
            )
        self.h_a = None
        if part == "encoder" and self.coder.channels_of_z:
            self.h_a = self._beside(path.with_suffix(H_A_SUFFIX), backend)
            self.h_a.check_shapes(channels, self.coder.channels_of_z)

    def _beside(self, path: Path, backend: str) -> Graph:
        """h_a, which must be the one that was written with this encoder: the fingerprint covers the decoder alone."""
        try:
            data = read_regular(path, LARGEST_FILE)
        except OSError as error:
            raise InputError(f"{in_words(error)}; give the file that the export wrote beside the encoder") from error
        if digest(data) != self.properties.get(H_A):
            raise InputError(f"{path} belongs to another encoder; give the file that was written with it")
        return Graph(path, "h_a", data, backend)


def sealed(model: bytes) -> bytes:
    """A serialized model with one more metadata property, which has the SHA-256 of all bytes before it.

    A field that is appended to a protobuf message is a part of it.
    """
    return model + _SEAL + hashlib.sha256(model).hexdigest().encode()


def check_seal(path: Path) -> None:
    """Raises InputError if a file has a seal that does not fit it; a file of an older version has none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - len(_SEAL) - 64
        file.seek(max(0, end))
        seal = file.read()
        if not seal.startswith(_SEAL):
            return
        file.seek(0)
        found, left = hashlib.sha256(), end
        while left and (part := file.read(min(left, 1 << 20))):
            found.update(part)
            left -= len(part)
    if seal[len(_SEAL) :] != found.hexdigest().encode():
        raise InputError(f"--model {path}: it is damaged, or was changed after its export; export it again")


def digest(h_a: bytes) -> str:
    """What an encoder's property `h_a` says of the file of h_a."""
    return hashlib.sha256(h_a).hexdigest()[:16]


def read_steps(words: str, path: Path) -> NDArray[np.float32] | None:
    """The steps of a model's levels from its property; InputError if they are not positive numbers."""
    if not words:
        return None
    try:
        steps = np.frombuffer(bytes.fromhex(words), "<f4").astype(np.float32)
    except ValueError:
        steps = np.zeros(1, np.float32)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise InputError(f"{path} has steps that are no positive numbers; export it again")
    return steps[:, None, None]


def read_splits(words: str, path: Path) -> NDArray[np.intp] | None:
    """The splits of a model's channels from its property; InputError if they are not small positive numbers."""
    if not words:
        return None
    numbers = [int(each) if each.isdecimal() and len(each) < 3 else 0 for each in words.split()]
    if not all(1 <= each <= MOST_SPLITS for each in numbers):
        raise InputError(f"{path} has splits that are no numbers from 1 to {MOST_SPLITS}; export it again")
    return np.array(numbers, np.intp)


def read_margins(words: str) -> Margins | None:
    """A model's receptive field from its property; None if it is not known, or is the full picture."""
    numbers = words.split()
    if len(numbers) != 2 or not all(each.isdecimal() and len(each) < 4 for each in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def session_options() -> "onnxruntime.SessionOptions":
    """ONNX Runtime without warnings, and with int8 sums that do not saturate."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: the warnings are about ONNX Runtime's own optimizer
    if sums_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_session(
    path: Path, data: bytes | None = None, backend: str = BACKENDS[0]
) -> "onnxruntime.InferenceSession | OpenVinoSession":
    """The file, or its content, on the CPU.

    Raises:
        InputError: the backend is not installed, or the file is no model, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"--model {path}: {no_file(path)}; python -m export writes one")
    if data is None:
        check_seal(path)
    source = str(path) if data is None else data
    if backend == "openvino":
        return OpenVinoSession(source, path)
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("the runtime needs onnxruntime: pip install -c constraints.txt -e '.[onnx]'") from error
    try:
        return onnxruntime.InferenceSession(source, session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise InputError(f"--model {path}: ONNX Runtime does not open it ({error}); export it again") from error
