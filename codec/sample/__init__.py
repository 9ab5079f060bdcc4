"""The embedded codecs: a GDN codec, and its child for NPUs. The README of this folder says how they were trained."""

from pathlib import Path

SAMPLE = "sample"
"""A name in the place of a file: of the GDN codec where a training starts, everywhere else of its child."""

GDN, NPU = "sample_gdn", "sample_npu"
"""Names that mean the same everywhere."""

FILES = {GDN: "gdn.safetensors", NPU: "npu.safetensors"}


def to_use(checkpoint: str | Path) -> Path:
    """The file of a checkpoint that may be an embedded codec's name; `sample` is the child for NPUs."""
    return _file(checkpoint, NPU)


def to_start_from(checkpoint: str | Path) -> Path:
    """The file of a checkpoint that may be an embedded codec's name; `sample` is the GDN codec."""
    return _file(checkpoint, GDN)


def _file(checkpoint: str | Path, meant: str) -> Path:
    name = meant if str(checkpoint) == SAMPLE else str(checkpoint)
    return Path(__file__).with_name(FILES[name]) if name in FILES else Path(checkpoint)
