"""From a checkpoint to an ONNX graph: opens the codec, quantizes it if wanted, and writes model and entropy tables."""

import os
from dataclasses import replace
from pathlib import Path

import onnx
from torch import Tensor

from coco224.files import whole_or_absent
from codec.checkpoint import open_codec
from codec.description.architecture import TRANSFORMS, BlockChoice, Quantization
from codec.errors import InputError
from codec.network.codec import Codec
from codec.network.reach import margins
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from codec.quantization.phases import in_float, limit_symbols
from export.graph import onnx_file
from export.graph.parts import Part, exportable, is_quantized
from export.graph.qdq import to_int8
from export.graph.rewrite import Deconv
from export.pictures import calibration_pictures
from export.runtime import TABLES_SUFFIX
from export.runtime.session import MARGINS

NEEDED = {"encoder": ("g_a",), "decoder": ("g_s",), "full": ("g_a", "g_s")}


def build(
    codec: Codec, part: Part, deconv: Deconv, x: Tensor, opset: int = 13, dynamic: bool = False, fingerprint: int = 0
) -> onnx.ModelProto:
    """The ONNX graph of a part: float, or int8 where a codec from `codec.quantization.freeze.frozen` is quantized.

    Args:
        x: a picture [1, 3, H, W] in [0, 1]. The graph has its size or, with `dynamic`, any multiples of 16.
        fingerprint: the fingerprint of the codec's entropy tables.
    """
    ready = exportable(codec, part, deconv, x, dynamic)
    model = onnx_file.to_onnx(ready.module, ready.example, ready.inputs, ready.outputs, opset, dynamic)
    if any(is_quantized(codec, transform) for transform in NEEDED[part]):
        to_int8(model)
    known = margins(codec, *NEEDED[part]) if part != "full" else None
    properties = {"part": part, "deconv": deconv, "fingerprint": f"{fingerprint:08x}"}
    onnx.helper.set_model_props(model, properties | {MARGINS: " ".join(map(str, known or ()))})
    onnx_file.check(model, opset)
    return model


def open_for_export(path: Path, replace_parts: str | None) -> Codec:
    """The checkpoint's codec with its tables; ReLU replaces GDN in the transforms of `replace_parts`.

    Raises:
        InputError: the file is not a checkpoint, or `replace_parts` contradicts it.
    """
    codec = open_codec(path)
    if replace_parts is None:
        return codec
    if path.suffix == ".safetensors":
        raise InputError(f"--replace_parts {replace_parts}: {path} already names its blocks; leave --replace_parts out")
    relu = BlockChoice("relu")
    for transform in ("g_a", "g_s"):
        has = getattr(codec.architecture, transform)
        if transform not in TRANSFORMS[replace_parts] and has == relu:
            raise InputError(
                f"--replace_parts {replace_parts}: {transform} of {path} has no GDN either; use --replace_parts all"
            )
        if transform in TRANSFORMS[replace_parts] and has != relu:
            print(f"warning: {transform} of {path} has GDN and gets untrained ReLU: use it only to measure speed")
            codec.replace_blocks(transform, relu)
    codec.eval()
    return codec


def in_int8(codec: Codec, part: Part, calib_dir: Path | None, size: tuple[int, int], name: str) -> Codec:
    """The frozen codec. Its ranges come from training or, for transforms without these, from photographs.

    If only one transform has ranges from training and there is no folder, the other stays in float.

    Args:
        part: the part that is wanted in int8.
        name: name of the checkpoint, for messages.
        size: height and width to which the photographs are scaled.

    Raises:
        InputError: the part has no ranges and there is no folder, or it has all ranges and a folder is given.
    """
    missing = tuple(transform for transform in NEEDED[part] if not is_quantized(codec, transform))
    if not missing and calib_dir:
        raise InputError(f"--calib_dir: {name} has learned its ranges in training; leave --calib_dir out")
    if missing == NEEDED[part] and not calib_dir:
        raise InputError(
            f"{name} was trained without quantization of {' and '.join(missing)}; give --calib_dir DIR with "
            "photographs, or train it with --qat true"
        )
    if not calib_dir:
        return frozen(codec)
    calibrated = frozen(calibrate(in_float(codec), calibration_pictures(calib_dir, *size), _like(codec, missing)))
    return calibrated if missing == NEEDED[part] else _joined(frozen(codec), calibrated, missing)


def _like(codec: Codec, transforms: tuple[str, ...]) -> Quantization:
    """The settings for the calibration of transforms: those of the codec's trained quantization, if any."""
    trained = codec.architecture.quantization or Quantization("all")
    scope = next(scope for scope, members in TRANSFORMS.items() if members == transforms)
    return Quantization(scope, trained.act_observer, trained.w_per_channel)  # type: ignore[arg-type]


def _joined(trained: Codec, calibrated: Codec, transforms: tuple[str, ...]) -> Codec:
    """Puts these transforms of `calibrated` into `trained`, both frozen, in place."""
    assert trained.architecture.quantization
    for transform in transforms:
        setattr(trained, transform, getattr(calibrated, transform))
    both = replace(trained.architecture.quantization, scope="all")
    trained.architecture = replace(trained.architecture, quantization=both)
    limit_symbols(trained)  # the decoder reads the symbols of this entropy model
    return trained


def write(path: Path, model: bytes, tables: bytes) -> Path:
    """Writes the model and, beside it, the tables: both completely, or neither. Returns the path of the tables.

    Both are written under temporary names before they are renamed. A kill between the two renames leaves new tables
    beside an old model; the runtime refuses these, because their fingerprints differ.

    Raises:
        InputError: the files cannot be written there.
    """
    beside = path.with_suffix(TABLES_SUFFIX)
    try:
        with whole_or_absent(path) as new_model, whole_or_absent(beside) as new_tables:
            new_model.write_bytes(model)
            new_tables.write_bytes(tables)
            for new in (new_model, new_tables):
                with new.open("rb") as file:
                    os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}; nothing was written") from error
    return beside
