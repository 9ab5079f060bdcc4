"""The interface of a chip's compiler.

Each compiler is one file in this folder and has an environment of its own (`make npu CHIP=NAME`), because they want
versions of packages that exclude each other, and other Pythons. So these files import nothing but numpy at the top:
`prepare` runs beside the codec, the other methods in the compiler's environment (`export.chips.worker`).
"""

import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart

INPUT, MODEL, LOG = "input.npy", "part.onnx", "log.txt"
"""In the folder of a job: the part's 8-bit input [1, C, H, W] of a photograph, its int8 ONNX file (for most compilers),
and everything that the compiler printed."""


@dataclass(frozen=True)
class Job:
    """One part of a codec, for one chip.

    Attributes:
        part: "encoder", "h_a" or "decoder".
        target: the chip, one of the compiler's `targets`.
        folder: holds what `prepare` wrote, and `INPUT`; what the compiler writes goes there too.
        options: options of the command for this compiler.
    """

    part: str
    target: str
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """What a compiler says of a part.

    Attributes:
        complaint: why not all of the part runs on the chip; empty if all of it does.
        figures: its estimates, by name with unit.
    """

    complaint: str
    figures: dict[str, Any]


class Refused(Exception):
    """The compiler refuses the part. The message is in its own words."""


class Compiler(ABC):
    """A compiler of one vendor.

    Attributes:
        name: the vendor, as in `make npu CHIP=NAME`.
        package: the Python package whose version names the compiler's.
        targets: the chips; the first one stands for all in a report.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]

    @abstractmethod
    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        """Writes the files that the compiler takes to the job's folder; returns figures of a form that is not exact."""

    @abstractmethod
    def compile(self, job: Job) -> str:
        """Compiles the part and returns what the compiler reports, from which `figures` reads.

        Raises:
            Refused: it does not take the part.
        """

    @abstractmethod
    def figures(self, job: Job, report: str) -> Estimate:
        """Reads a report."""

    def simulate(self, job: Job) -> NDArray[np.uint8] | None:
        """The output for `INPUT` in the chip's arithmetic, as uint8 like that of the int8 ONNX file.

        None: this compiler simulates nothing. Called after `compile`.
        """
        return None


def left_for_the_cpu(count: int) -> str:
    """A complaint: so many operators do not run on the chip."""
    return "1 operator is left for the CPU" if count == 1 else f"{count} operators are left for the CPU"


def printed(job: Job) -> str:
    """What the compiler has printed in this process, also from C++."""
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
    return (job.folder / LOG).read_text(errors="replace")
