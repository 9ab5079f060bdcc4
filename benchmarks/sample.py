"""`python -m benchmarks.sample --images kodak`: the embedded codecs against JPEG and WebP, from real files.

Writes their curves beside them (`codec/sample/kodak.json`) too.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Row, publish
from benchmarks.rates import as_lists, bd_rate
from codec.evaluation.compare import measure_all
from codec.evaluation.pictures import open_pictures
from codec.evaluation.ranks import Ranks
from codec.sample import FILES, GDN, NPU, to_use

BARS = {"jpeg": -35.0, "webp": -5.0}
"""BD-rate of the GDN codec against each format, in percent, at most."""

OF_CHILD = 1.0
"""BD-rate of its child for NPUs, in int8, against it, in percent, at most."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True, help="folder of pictures, such as Kodak's")
    parser.add_argument("--rates", type=int, default=4, help="rates that are measured")
    given = parser.parse_args(argv)
    pictures = open_pictures(given.images, None, True, 4)
    found = measure_all(
        [GDN, NPU], list(BARS), pictures, Ranks.join(), fake_quant=True, keep_pictures=False, rates=given.rates
    )
    gdn, npu, *references = found.curves
    rows = [
        *(bd_rate(f"the embedded GDN codec against {each.name}", gdn, each, BARS[each.name]) for each in references),
        *(bd_rate(f"its int8 child against {each.name}", npu, each, None) for each in references),
        bd_rate("its int8 child against it", npu, gdn, OF_CHILD),
        *(Row(f"{name}: size of its file", to_use(name).stat().st_size / 2**20, "MiB") for name in FILES),
    ]
    curves = {name: as_lists(each) for name, each in zip((GDN, NPU, *BARS), (gdn, npu, *references), strict=True)}
    details = {"pictures": Path(given.images).name, "curves": curves}
    publish("sample", rows, details)
    (to_use(GDN).parent / "kodak.json").write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
