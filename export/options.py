"""Options that the export's commands share."""

import argparse
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from codec.cli import option
from codec.description.architecture import STRIDE
from codec.errors import InputError
from codec.sample import to_use

MOST_PIXELS = 4096 * 4096
"""Of --input_size: an export computes the graph for a picture of this size, with all channels in memory."""


class Size(NamedTuple):
    """Height and width of a picture in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        """As --input_size takes it."""
        return f"{self.height}x{self.width}" if self.height != self.width else f"{self.height}"


def size(text: str) -> Size:
    """`S` or `HxW`, for argparse."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give S or HxW, like 224 or 1088x1920")
    return Size(int(found[1]), int(found[2] or found[1]))


def ckpt(shown: str) -> Any:
    """The option --ckpt, which without a value is `shown`: the codec."""
    return option(None, "checkpoint, ours or CompressAI's .pth.tar, or 'sample'", metavar="FILE", shown=shown)


def input_size() -> Any:
    """The option --input_size: height and width of the pictures."""

    def allowed(size: Size) -> bool:
        return all(n > 0 and n % STRIDE == 0 for n in size) and size.height * size.width <= MOST_PIXELS

    rule = allowed, f"must be a multiple of {STRIDE}, at most {MOST_PIXELS:,} pixels in all"
    what = f"size of x, S or HxW like 1088x1920, multiples of {STRIDE}"
    return option(Size(224, 224), what, rule=rule, parse=size, metavar="SIZE")


def calib_dir() -> Any:
    """The option --calib_dir: photographs for post-training quantization."""
    what = "photographs to calibrate int8, for transforms trained without QAT"
    return option(None, what, metavar="DIR", shown="none")


def a16() -> Any:
    """The option --a16: activations of post-training quantization that get 16 bits."""
    what = "globs of names of activations that --calib_dir gives 16 bits, comma-separated, as --qat_a16"
    return option(None, what, metavar="GLOBS", shown="none")


def check_a16(globs: str | None, calib_dir: str | None) -> None:
    """Raises InputError for --a16 without --calib_dir: training has decided then."""
    if globs and not calib_dir:
        raise InputError(
            f"--a16 {globs} needs --calib_dir; a checkpoint of --qat true has the 16-bit activations of --qat_a16"
        )


def replace_parts() -> Any:
    """The option --replace_parts, for checkpoints of CompressAI."""
    what = "transforms in which ReLU replaces GDN, for a checkpoint without metadata"
    return option(None, what, shown="from the weights")


def plugin() -> Any:
    """The option --plugin: a user's own blocks."""
    return option(None, "Python file of the blocks that the checkpoint uses", metavar="FILE", shown="none")


def read_by(ckpt: str | None, *others: str | None) -> list[Path]:
    """The files that a command reads, for checks of its outputs: a checkpoint, and those of other options."""
    return [*([to_use(ckpt)] if ckpt else []), *(Path(name) for name in others if name)]


def compilers() -> Any:
    """The option --compilers: the environments of the chips' compilers."""
    return option(".venv-npu", "folder of the compilers' environments, from `make npu CHIP=NAME`", metavar="DIR")


def require_onnx() -> None:
    """Raises InputError if the extra `onnx` is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the export needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'")
