"""An exported encoder or decoder in ONNX Runtime, and the entropy tables beside it."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from codec.bitstream.coder import Coder
from codec.bitstream.tables import read_tables
from codec.description.architecture import STRIDE
from codec.errors import InputError
from codec.tiles import LARGEST_WHOLE, Margins, Tile, least_size, tile_size, tiles

if TYPE_CHECKING:
    import onnxruntime

TABLES_SUFFIX = ".tables"

MARGINS = "margins"
"""The model's metadata property with its receptive field: positions of y before and after, or empty."""

OLD_MARGINS = (2, 2)
"""Margins of tiles for a model without a known receptive field: exact for ReLU, GDN and the gate, close for others."""

VNNI = {"avx512_vnni", "avx_vnni"}
"""CPU flags of instructions that add int8 products in 32 bits; a CPU with AMX has them too."""

SYMBOL_ZERO = 128
"""Zero point of symbols as uint8; their scale is 1."""

LONGEST_SIDE = 8192
"""Longest side of a model's fixed size; smaller pictures are padded to this size."""


class Model:
    """An exported encoder or decoder in ONNX Runtime, and the entropy tables beside it.

    Args:
        path: the ONNX file.
        part: "encoder" or "decoder"; the model must be this part.
        tables: the file of the entropy tables; by default the one beside the model.

    Raises:
        InputError: the file is not a model of that part, or the tables belong to another codec.
    """

    def __init__(self, path: Path, part: str, tables: Path | None = None) -> None:
        self.session = open_session(path)
        properties = self.session.get_modelmeta().custom_metadata_map
        if properties.get("part") != part:
            raise InputError(f"{path} is no {part} of this program; export one with --part {part}")
        tables = tables or path.with_suffix(TABLES_SUFFIX)
        self.coder = Coder(read_tables(tables))
        if f"{self.coder.tables.fingerprint:08x}" != properties.get("fingerprint"):
            raise InputError(f"{tables} belongs to another codec than {path}; give the file that was written with it")
        self.margins = read_margins(properties.get(MARGINS, ""))
        self._unit = STRIDE if part == "encoder" else 1
        self._entry = self._checked_entry(path, part)
        self.takes_bytes = self._entry.type == "tensor(uint8)"
        self.medians = self.coder.tables.medians[:, None, None]

    def _checked_entry(self, path: Path, part: str) -> "onnxruntime.NodeArg":
        """The model's input; raises InputError if its shapes are not those of a codec with these tables."""
        entries, results = self.session.get_inputs(), self.session.get_outputs()
        channels = len(self.coder.tables.medians)
        asked = [3, channels] if part == "encoder" else [channels, 3]
        found = [each.shape[1] if len(each.shape) == 4 else 0 for each in (*entries, *results)]
        if len(found) != 2 or any(isinstance(n, int) and n != m for n, m in zip(found, asked, strict=True)):
            raise InputError(f"{path} is no {part} of {channels} channels, which its tables have; export it again")
        sides = [side for side in entries[0].shape[2:] if isinstance(side, int)]
        if any(side < self._unit or side % self._unit or side > LONGEST_SIDE for side in sides):
            raise InputError(f"{path} takes a size of {sides}, which no codec has; export it again")
        return entries[0]

    def run(self, value: NDArray[Any]) -> NDArray[Any]:
        """Runs one input [C, H, W] and returns the output, both in the model's types."""
        (output,) = self.session.run(None, {self._entry.name: value[None]})
        result: NDArray[Any] = output[0]
        return result

    def tiles(self, size: Sequence[int]) -> Iterator[Tile]:
        """The tiles for a y of this size (rows and columns).

        Raises:
            InputError: the model's fixed size is too small for tiles of a larger picture.
        """
        fixed = self._entry.shape[2:]
        if any(isinstance(side, int) for side in fixed):
            own = [side // self._unit if isinstance(side, int) else n for side, n in zip(fixed, size, strict=True)]
            margins = self.margins or OLD_MARGINS
            for side, whole in zip(own, size, strict=True):
                if side < min(whole, least_size(margins)):
                    raise InputError(
                        f"a model of {own[0] * STRIDE}x{own[1] * STRIDE} pixels (HxW) is too small for tiles of a "
                        f"larger picture, which need at least {least_size(margins) * STRIDE} pixels per side; export "
                        "it with a larger --input_size, or with --dynamic"
                    )
            return tiles(size, own, margins)
        if self.margins is None or size[0] * size[1] <= LARGEST_WHOLE:
            return tiles(size, size, OLD_MARGINS)
        return tiles(size, tile_size(size, self.margins), self.margins)


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


def sums_saturate(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether ONNX Runtime's fastest int8 kernels add two products in 16 bits, where they can overflow.

    They do on x86 without VNNI. With VNNI the fastest kernels are exact, and the others take about three times as
    long. An x86 CPU whose flags cannot be read (not on Linux) counts as one without VNNI: slow at worst, never wrong.
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
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise InputError(f"--model {path}: ONNX Runtime does not open it ({error}); export it again") from error
