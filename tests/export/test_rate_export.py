"""One pair of graphs for all rates: y leaves the chip in levels, and the runtime codes at any rate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from codecs_for_export import in_int8, make_of_rates
from PIL import Image
from programs import run
from test_hyper_export import exported
from torch import Tensor

from codec.bitstream.container import unpack
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH
from codec.errors import InputError
from codec.files import FileCodec
from codec.network.codec import Codec
from codec.targets import TargetOptions
from export.graph.build import build
from export.graph.check import compare
from export.measure import executed
from export.runtime import Model, decode, encode, main

KINDS = [(arch, precision) for arch in ARCHITECTURES for precision in ("float", "int8")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kind(request: pytest.FixtureRequest, picture: Tensor) -> tuple[Codec, bool]:
    """A codec of three rates, and whether it is quantized."""
    arch, precision = request.param
    codec = make_of_rates(3, arch)
    return in_int8(codec, picture) if precision == "int8" else codec, precision == "int8"


@pytest.fixture(scope="module")
def folder(kind: tuple[Codec, bool], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def models(kind: tuple[Codec, bool], folder: Path) -> tuple[Model, Model]:
    return exported(kind[0], "encoder", folder), exported(kind[0], "decoder", folder)


@pytest.fixture
def pixels(picture: Tensor) -> np.ndarray:
    return (picture[0, :, 40:236, 100:343] * 255).round().byte().permute(1, 2, 0).numpy()


def test_every_part_computes_what_torch_computes(kind: tuple[Codec, bool], picture: Tensor) -> None:
    codec, quantized = kind
    for part in ("encoder", "h_a", "decoder", "full"):
        if part == "h_a" and not hasattr(codec, "h_a"):
            continue
        model = build(codec, part, "concat", picture[..., :96, :96], dynamic=True)
        result = compare(model, codec, part, picture[..., :64, :208])
        assert result.passed, (part, result.words)
        if quantized and part in ("encoder", "decoder"):
            assert executed(model).int8 == executed(model).convolutions > 0


def test_the_channels_of_the_chip_that_hold_y(kind: tuple[Codec, bool], models: tuple[Model, Model]) -> None:
    codec, quantized = kind
    for model in models:
        if quantized and codec.arch != DEFAULT_ARCH:
            assert model.splits is not None
            splits = [1, 4, 1, 1, 8 if codec.arch == "bmshj2018_hyperprior" else 4, 8, *[1] * 6]
            assert model.splits.tolist() == splits
            y = np.random.default_rng(0).normal(0, 1, (codec.M, 5, 7)).astype(np.float32)
            parts = model.to_levels(y)
            assert len(parts) == (29 if codec.arch == "bmshj2018_hyperprior" else 25)
            assert (np.abs(model.from_levels(parts) - y) <= 0.501 * model.steps).all()
        else:
            assert model.splits is None


def test_the_runtime_and_the_checkpoint_write_and_read_each_other_s_files(
    kind: tuple[Codec, bool], models: tuple[Model, Model], pixels: np.ndarray
) -> None:
    (codec, _), (encoder, decoder) = kind, models
    theirs = FileCodec(codec)
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    for rate in (0.0, 0.4, 1.0):
        data = encode(pixels, encoder, TargetOptions(rate=rate))
        (expected,) = theirs.compress(x, round(rate * encoder.coder.most))
        found, wanted = (unpack(each, encoder.coder)[2] for each in (data, expected))
        assert (np.abs(found - wanted) > 32).mean() < 2e-3
        (picture,) = theirs.decompress([data])
        difference = np.abs(decode(data, decoder).astype(int) - picture.permute(1, 2, 0).numpy())
        assert difference.mean() < 0.1


def test_targets_of_the_runtime(models: tuple[Model, Model], pixels: np.ndarray) -> None:
    encoder, decoder = models
    low, high = (len(encode(pixels, encoder, TargetOptions(rate=rate))) for rate in (0.0, 1.0))
    assert low < high
    wanted = (low + high) // 2
    assert wanted * 0.95 < len(encode(pixels, encoder, TargetOptions(target_bytes=wanted))) <= wanted
    with pytest.raises(InputError, match="its smallest file"):
        encode(pixels, encoder, TargetOptions(target_bytes=low - 1))
    with pytest.raises(InputError, match="its best file has"):
        encode(pixels, encoder, TargetOptions(target_psnr=99.0), decoder)


def test_each_picture_of_a_folder_is_within_the_target(
    models: tuple[Model, Model], folder: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    photos, packed = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    parts = {"a": pixels[:160, :160], "b": pixels[:120], "c": pixels[:, :150]}
    for name, part in parts.items():
        Image.fromarray(part).save(photos / f"{name}.png")
    most = min(len(encode(part, models[0])) for part in parts.values()) - 1
    words = ("encode", photos, packed, "--model", folder / "encoder.onnx", "--target_bytes", most)
    assert main([str(word) for word in words]) == 0
    sizes = {path.stem: path.stat().st_size for path in packed.iterdir()}
    assert sizes.keys() == parts.keys()
    assert all(0.9 * most < size <= most for size in sizes.values())


def test_the_runtime_at_a_rate_needs_no_torch() -> None:
    code = "import sys, export.runtime, codec.targets; sys.exit('torch' in sys.modules or 'compressai' in sys.modules)"
    assert run("-c", code).returncode == 0
