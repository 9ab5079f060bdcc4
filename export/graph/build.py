"""From a checkpoint to an ONNX graph: opens the codec, quantizes it if wanted, and writes model and entropy tables."""

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx
from torch import Tensor

from coco224.files import in_words, whole_or_absent
from codec.checkpoint import is_ours, open_codec
from codec.description.architecture import TRANSFORMS, BlockChoice, Quantization
from codec.errors import InputError
from codec.network.codec import Codec
from codec.network.reach import margins
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from codec.quantization.phases import in_float, limit_symbols, wide_activations
from codec.sample import to_use
from export.graph import onnx_file
from export.graph.parts import Part, exportable
from export.graph.qdq import to_int8
from export.graph.rewrite import Deconv
from export.pictures import calibration_pictures
from export.runtime.session import H_A, H_A_SUFFIX, MARGINS, SPLITS, STEPS, TABLES_SUFFIX, digest, sealed

OPSET = 13
"""The opset of a graph, if none is wanted: the newest that Renesas' translator takes."""


def transforms_of(codec: Codec, part: Part) -> tuple[str, ...]:
    """The transforms of a part; those of an encoder include h_a, which is a file of its own beside it."""
    encoder = tuple(codec.entropy_models)
    return {"encoder": encoder, "h_a": ("h_a",), "decoder": ("g_s",), "full": (*encoder, "g_s")}[part]


def parts_of(codec: Codec, part: Part) -> tuple[Part, ...]:
    """The graphs that a part needs: with a hyperprior, h_a belongs to an encoder."""
    return ("encoder", "h_a") if part == "encoder" and "h_a" in codec.entropy_models else (part,)


def build(
    codec: Codec,
    part: Part,
    deconv: Deconv,
    x: Tensor,
    opset: int | None = None,
    dynamic: bool = False,
    fingerprint: int = 0,
) -> onnx.ModelProto:
    """The ONNX graph of a part: float, or int8 where a codec from `codec.quantization.freeze.frozen` is quantized.

    Args:
        x: a picture [1, 3, H, W] in [0, 1]. The graph has its size or, with `dynamic`, any multiples of 16.
        opset: None: 13, or 21 if the graph has activations of 16 bits.
        fingerprint: the fingerprint of the codec's entropy tables.

    Raises:
        InputError: the graph has activations of 16 bits, and the opset has no such type.
    """
    own = ("g_a",) if part == "encoder" else transforms_of(codec, part)
    wide = wide_activations(codec, *own)
    opset = opset or (onnx_file.WIDE_OPSET if wide else OPSET)
    if wide and opset < onnx_file.WIDE_OPSET:
        raise InputError(
            f"--opset {opset} has no 16-bit activations, and {', '.join(wide)} has 16 bits: leave --opset out, or give "
            f"{onnx_file.WIDE_OPSET}"
        )
    ready = exportable(codec, part, deconv, x, dynamic)
    model = onnx_file.to_onnx(ready.module, ready.example, ready.inputs, ready.outputs, opset, dynamic)
    if any(codec.is_quantized(transform) for transform in own):
        to_int8(model)
    known = margins(codec, *own) if part != "full" else None
    properties = {"part": part, "deconv": deconv, "fingerprint": f"{fingerprint:08x}"}
    properties[MARGINS] = " ".join(map(str, known or ()))
    if part != "full" and codec.has_levels(own[0]):
        levels = getattr(codec, own[0]).levels
        properties[STEPS] = levels.step.numpy().astype("<f4").tobytes().hex()
        if (levels.splits > 1).any():
            properties[SPLITS] = " ".join(map(str, levels.splits.tolist()))
    onnx.helper.set_model_props(model, properties)
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
    if is_ours(to_use(path)):
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


def in_int8(
    codec: Codec, part: Part, calib_dir: Path | None, size: tuple[int, int], name: str, a16: str | None = None
) -> Codec:
    """The frozen codec. Its ranges come from training or, for transforms without these, from photographs.

    If only one transform has ranges from training and there is no folder, the other stays in float.

    Args:
        part: the part that is wanted in int8.
        name: name of the checkpoint, for messages.
        size: height and width to which the photographs are scaled.
        a16: globs of names of the activations that the photographs give 16 bits.

    Raises:
        InputError: the part has no ranges and there is no folder, it has all ranges and a folder is given, or a glob
            matches no activation.
    """
    needed = transforms_of(codec, part)
    missing = tuple(transform for transform in needed if not codec.is_quantized(transform))
    if not missing and calib_dir:
        raise InputError(f"--calib_dir: {name} has learned its ranges in training; leave --calib_dir out")
    if missing == needed and not calib_dir:
        raise InputError(
            f"{name} was trained without quantization of {' and '.join(missing)}; give --calib_dir DIR with "
            "photographs, or train it with --qat true"
        )
    if not calib_dir:
        return frozen(codec)
    quantization = replace(_like(codec, missing), a16=a16 or "")
    calibrated = frozen(calibrate(in_float(codec), calibration_pictures(calib_dir, *size), quantization))
    return calibrated if missing == needed else _joined(frozen(codec), calibrated, missing)


def _like(codec: Codec, transforms: tuple[str, ...]) -> Quantization:
    """The settings for the calibration of transforms: those of the codec's trained quantization, if any."""
    trained = codec.architecture.quantization or Quantization("all")
    return replace(_covering(transforms), act_observer=trained.act_observer, w_per_channel=trained.w_per_channel)


def _covering(transforms: Collection[str]) -> Quantization:
    """The quantization of these transforms; with h_a, of the encoder too."""
    hyper = "h_a" in transforms
    if "g_s" in transforms:
        return Quantization("all" if hyper or "g_a" in transforms else "decoder", hyper=hyper)
    return Quantization("encoder", hyper=hyper)


def _joined(trained: Codec, calibrated: Codec, transforms: tuple[str, ...]) -> Codec:
    """Puts these transforms of `calibrated` into `trained`, both frozen, in place."""
    assert trained.architecture.quantization
    for transform in transforms:
        setattr(trained, transform, getattr(calibrated, transform))
    every = _covering({*trained.architecture.quantization.transforms, *transforms})
    joined = replace(trained.architecture.quantization, scope=every.scope, hyper=every.hyper)
    trained.architecture = replace(trained.architecture, quantization=joined)
    limit_symbols(trained)  # the decoder reads the symbols of this entropy model
    return trained


def write_all(path: Path, models: Mapping[Part, onnx.ModelProto], tables: bytes) -> list[Path]:
    """Writes the graphs of a part (`parts_of`) and the tables, as `write` does.

    An encoder notes which file of h_a belongs to it: their fingerprints cover the decoder alone.
    """
    first, *others = models.values()
    if not others:
        return write(path, first.SerializeToString(), tables)
    h_a = others[0].SerializeToString()
    first.metadata_props.add(key=H_A, value=digest(h_a))
    return write(path, first.SerializeToString(), tables, h_a)


def write(path: Path, model: bytes, tables: bytes, h_a: bytes | None = None) -> list[Path]:
    """Writes the model, sealed, and beside it the tables and, if any, h_a: all completely, or none. Returns the paths.

    All are written under temporary names before they are renamed, the model as the last one. A kill between renames
    leaves new files beside an old model; the runtime refuses these, because they do not fit the model's properties.

    Raises:
        InputError: the files cannot be written there.
    """
    contents = {path: sealed(model), path.with_suffix(TABLES_SUFFIX): tables}
    if h_a is not None:
        contents[path.with_suffix(H_A_SUFFIX)] = h_a
    try:
        with ExitStack() as stack:  # leaves its contexts in reverse: the model is renamed last
            for target, content in contents.items():
                new = stack.enter_context(whole_or_absent(target))
                new.write_bytes(content)
                with new.open("rb") as file:
                    os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"--out {in_words(error)}; nothing was written") from error
    return list(contents)
