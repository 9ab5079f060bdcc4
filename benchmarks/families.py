"""`python -m benchmarks.families`: how many NPU families take every node of a codec with each block.

Each family gets the form of file that it wants, as `export.report` does. Nothing is timed, so the codecs are narrow:
which nodes a graph has does not depend on its widths, while they are multiples of 8. Weights are random.
"""

from typing import Any

import torch

from benchmarks.deployment import ACTIVATIONS, PARTS, random_codec
from benchmarks.harness import Row, publish
from codec.description.architecture import Quantization
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from export.chips.operators import FAMILIES
from export.graph.build import build
from export.pictures import sample_picture
from export.report import of_family

SIDE = 64
N, M = 32, 48


def verdicts(act: str) -> list[dict[str, Any]]:
    """What each family makes of the encoder and the decoder, as in `export.report`."""
    x = sample_picture(SIDE)
    floats = random_codec(act, N, M)
    int8 = frozen(calibrate(random_codec(act, N, M), [x], Quantization("all")))
    found = []
    for family in FAMILIES:
        codec, precision = (int8, "int8") if family.int8 else (floats, "float")
        models: dict[str, Any] = {part: build(codec, part, family.deconv, x) for part in PARTS}
        found.append(of_family(family, models, f"{precision}, --deconv {family.deconv}"))
    return found


def row(act: str, found: list[dict[str, Any]]) -> Row:
    """The number of families that take every node; the sides are nodes that the others do not take."""
    refused = {each["family"]: each["not taken"] + each["not stated"] for each in found}
    sides = {f"{family}, nodes refused": float(nodes) for family, nodes in refused.items() if nodes}
    what = f"{act}: families of chips that take every node of encoder and decoder"
    return Row(what, list(refused.values()).count(0), f"of {len(found)}", sides=sides)


def main() -> None:
    """A row for each block."""
    torch.set_num_threads(1)
    found = {act: verdicts(act) for act in ACTIVATIONS}
    rows = [row(act, each) for act, each in found.items()]
    publish("families", rows, {"N": N, "M": M, "verdicts": found})


if __name__ == "__main__":
    main()
