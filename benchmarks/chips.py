"""`python -m benchmarks.chips`: two codecs in int8 through every installed compiler (`make npu CHIP=NAME`), 256x256.

The embedded codec, which is trained and has `gate_mlp`, and one of its widths with ReLU and random weights: its figures
of quality mean nothing, so they are left out. Only what OpenVINO says depends on this machine.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compilers import ask, calibration_photograph
from benchmarks.deployment import random_codec
from benchmarks.harness import ROOT, Row, publish
from codec.checkpoint import Description, open_codec, save_codec
from codec.sample import NPU
from export.chips.compilers import installed

SIZE = 256
NO_COMPILER = {"intel-npu"}
"""Chips whose compiler is not in the package that `make npu` installs."""


def rows(codec: str, found: Sequence[Mapping[str, Any]], trained: bool) -> Iterator[Row]:
    """A row for each chip."""
    by_target: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for verdict in found:
        by_target[verdict["target"]].append(verdict)
    for target, parts in by_target.items():
        sides = {
            f"{verdict['part']}, {name}": value
            for verdict in parts
            for name, value in (verdict["figures"] | (verdict["difference"] if trained else {})).items()
            if isinstance(value, int | float)
        }
        refused = [verdict["complaint"] for verdict in parts if verdict["complaint"]]
        what = f"{codec}, {target} by {parts[0]['tool']}: parts of {len(parts)} that are not all on the chip"
        yield Row(what, len(refused), "parts", at_most=0, sides=sides, note="; ".join(refused))


def main() -> None:
    """Every installed compiler and each of its chips."""
    targets = [target for each in installed(ROOT / ".venv-npu") for target in each.targets if target not in NO_COMPILER]
    if not targets:
        print("skipped: no compiler is installed; make npu CHIP=NAME")
        return
    embedded = open_codec(Path(NPU))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        relu = folder / "relu.safetensors"
        save_codec(relu, random_codec("relu", embedded.N, embedded.M), Description())
        photograph = calibration_photograph(folder / "pictures")
        found = {
            "the embedded codec": ask(targets, folder, "--input_size", SIZE, "--ckpt", NPU),
            "ReLU": ask(targets, folder, "--input_size", SIZE, "--ckpt", relu, "--calib_dir", photograph),
        }
    measured = [row for codec, each in found.items() for row in rows(codec, each, codec != "ReLU")]
    publish("chips", measured, {"verdicts": found})


if __name__ == "__main__":
    main()
