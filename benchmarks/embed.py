"""`python -m benchmarks.embed`: makes a trained checkpoint an embedded codec (`codec/sample`).

Weights of convolutions become half precision, which makes it small enough for a wheel; the CDF tables and the integer
h_s are computed from those. Quantized weights are rounded to their grid before: half precision would take some of them
to the next grid point. The log of its training is kept beside it.
"""

import shutil
import sys
import zlib
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np

from codec.checkpoint import load_codec
from codec.description.file import Description, read_checkpoint, to_bytes
from codec.network.arrays import as_arrays
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.layers import QuantizedLayer
from codec.sample import FILES, to_start_from, to_use

MOST_BYTES = 4 * 2**20
"""Largest file of an embedded codec, as git and a wheel compress it: half of the CDF tables are zeros."""


def main() -> int:
    """Runs the command."""
    parser = ArgumentParser(prog="python -m benchmarks.embed", description="Makes a run an embedded codec.")
    parser.add_argument("name", choices=sorted(FILES), help="which embedded codec")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="--save_dir of its training")
    given = parser.parse_args()
    codec, description = load_codec(given.run / "last.safetensors")
    content = halved(codec, description)
    packed = len(zlib.compress(content))
    if packed > MOST_BYTES:
        print(f"error: the file would have {packed:,} bytes compressed, more than {MOST_BYTES:,}", file=sys.stderr)
        return 2
    target = to_use(given.name)
    target.write_bytes(content)
    shutil.copy(given.run / "metrics.jsonl", target.with_suffix(".jsonl"))
    print(f"{target}: {len(content):,} bytes, {packed:,} compressed")
    return 0


def halved(codec: Codec, description: Description) -> bytes:
    """The checkpoint of a codec whose convolutions have weights in float16."""
    for layer in codec.modules():
        if isinstance(layer, QuantizedLayer):
            layer.set_float_weight(layer.train().weight.detach())  # in training mode a float of the grid
    codec.eval()
    weights = {name: each for name, each in codec.named_parameters() if each.ndim == 4}
    for each in weights.values():
        each.data.copy_(each.half())
    fresh = with_tables(codec)
    arrays = as_arrays(fresh.state_dict()) | fresh.coding_arrays()
    half = {name: array.astype(np.float16) if name in weights else array for name, array in arrays.items()}
    local = ("coco_dir", "save_dir", "recon_dir")  # of the machine that trained
    options = description.options | {name: Path(str(description.options[name])).name for name in local}
    embedded = {to_use(name).resolve(): name for name in FILES}
    start = description.options.get("init_checkpoint")
    while start and (source := to_start_from(str(start)).resolve()) not in embedded:  # a run before this one
        start = read_checkpoint(source).description.options.get("init_checkpoint")
    if start:  # the card of an embedded codec's child needs the name
        options["init_checkpoint"] = embedded[source]
    return to_bytes(half, fresh.architecture, replace(description, options=options))


if __name__ == "__main__":
    sys.exit(main())
