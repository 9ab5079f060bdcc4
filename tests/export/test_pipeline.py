"""From the first step to bytes on a device: train, quantize, export, encode and decode; configurations at random."""

import random
from pathlib import Path

import numpy as np
import pytest
from codecs_for_export import make, save
from PIL import Image
from programs import TINY, into, train

from codec.bitstream.container import unpack
from codec.checkpoint import open_codec
from codec.description.architecture import DEFAULT_ARCH, STRIDE
from codec.files import FileCodec
from export.__main__ import main as export
from export.runtime import Model, decode, encode

pytestmark = pytest.mark.slow

BLOCKS = {
    "relu": {},
    "relu_mlp": {},
    "gate": {},
    "gate_mlp": {},
    "gdn": {},
    "gdnish": {
        "enc_t": (1.0, 1.5, 2.0), "enc_kdw": (1, 3, 5), "enc_eca": (True, False), "enc_residual": (True, False),
        "dec_k": (1, 3), "dec_gmin": (0.0, 0.5), "dec_residual": (True, False),
    },
}  # fmt: skip


ARCHES = {10: "bmshj2018_hyperprior", 11: "mbt2018_mean"}


@pytest.mark.parametrize("seed", range(12))
def test_bytes_of_the_runtime_decode_with_the_codec_to_the_same_symbols(
    seed: int, coco224: Path, photographs: Path, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    act = ("relu", "gdnish", "gate", "gdn", "gate_mlp", "relu_mlp")[seed % 6]
    options = {name: draw.choice(values) for name, values in BLOCKS[act].items()}
    options |= {
        "N": draw.choice((6, 8, 11)), "M": draw.choice((9, 12, 16)),
        "replace_parts": draw.choice(("encoder", "decoder", "all")),
        "train_scope": draw.choice(("all", "replaced+entropy")), "loss_type": draw.choice(("mse", "rd")), "seed": seed,
        "qat_scope": draw.choice(("encoder", "decoder", "all")), "qat_act_observer": draw.choice(("ema", "minmax")),
        "qat_w_per_channel": draw.choice((True, False)), "input_size": 176,
    }  # fmt: skip
    options |= {"qat": True, "qat_calib_steps": 2, "qat_freeze_after": 5, "max_steps": 8, "batch_size": 2, "act": act}
    arch = ARCHES.get(seed, DEFAULT_ARCH)
    options |= {"arch": arch, "qat_exclude_entropy": arch == DEFAULT_ARCH}
    narrow = seed >= 6  # few steps leave the tables of fresh weights too wide for 8 bits, and y in float
    if narrow:
        start = make("gdn", N=options["N"], M=options["M"], arch=arch)
        options["init_checkpoint"] = save(start, tmp_path / "start.safetensors")
    words = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()]
    assert train(*TINY, "--coco_dir", coco224, *words, *into(tmp_path / "run")) == 0

    checkpoint = tmp_path / "run" / "last.safetensors"
    deconv = draw.choice(("auto", "transpose", "depth_to_space", "concat"))
    int8 = {part: options["qat_scope"] in (part, "all") for part in ("encoder", "decoder")}
    for part in int8:
        words = ["--ckpt", str(checkpoint), "--part", part, "--out", str(tmp_path / f"{part}.onnx"), "--deconv", deconv]
        words += ["--dynamic", "--opset", str(draw.randint(13, 17)), "--precision", "int8" if int8[part] else "float"]
        assert export([*words, "--input_size", "96"]) == 0

    pixels = np.array(Image.open(photographs / "chelsea.png").convert("RGB"))[:150, :170]
    encoder, decoder = (Model(tmp_path / f"{part}.onnx", part) for part in int8)
    sent = raw_symbols(encoder, pixels)
    assert len(np.unique(sent)) > (1 if arch == "mbt2018_mean" else 3)
    byte = "tensor(uint8)"
    assert (encoder.session.get_outputs()[0].type == byte) == (narrow and int8["encoder"])
    assert (decoder.session.get_inputs()[0].type == byte) == (narrow and int8["decoder"])
    data = encode(pixels, encoder)
    codec = FileCodec(open_codec(checkpoint))
    height, width, symbols = unpack(data, codec.coder)
    assert (height, width) == pixels.shape[:2]
    assert np.array_equal(symbols, sent) or arch == "mbt2018_mean"  # where the host makes symbols from levels
    assert np.array_equal(symbols, unpack(data, decoder.coder)[2])
    (theirs,) = codec.decompress([data])
    ours = decode(data, decoder).astype(int)
    assert (np.abs(ours - theirs.permute(1, 2, 0).numpy()) <= 1).mean() > 0.99


def raw_symbols(encoder: Model, pixels: np.ndarray) -> np.ndarray:
    """What the encoder's graph itself gives for a picture, extended to whole positions of y: its symbols."""
    height, width = pixels.shape[:2]
    edges = ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE))
    x = np.pad(pixels.transpose(2, 0, 1), edges, mode="edge")
    y = encoder.run(x if encoder.takes_bytes else x.astype(np.float32) / np.float32(255))
    return y.astype(int) - 128 if y.dtype == np.uint8 else np.rint(y - encoder.medians)
