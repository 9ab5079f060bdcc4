"""The embedded codecs: their names in the place of files, and their quality, so that it cannot rot unseen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import codec
from codec import compress, decompress
from codec.bitstream.gains import STEPS
from codec.checkpoint import load_initial, open_codec
from codec.evaluation.coded import through_files
from codec.evaluation.metrics import psnr
from codec.files import FileCodec
from codec.hub.repository import repository_files
from codec.sample import GDN, NPU, to_use
from codec.targets import TargetOptions, code
from codec_demo import jpeg


@pytest.fixture(scope="module")
def gdn() -> FileCodec:
    return FileCodec(open_codec(Path(GDN)))


@pytest.fixture(scope="module")
def npu() -> FileCodec:
    return FileCodec(open_codec(Path(NPU)))


@pytest.fixture(scope="module")
def astronaut(photographs: Path) -> Tensor:
    """uint8 [3, 512, 512]; not trained on."""
    return torch.from_numpy(np.array(Image.open(photographs / "astronaut.png"))).permute(2, 0, 1)


def test_the_name_means_the_codec_of_the_place() -> None:
    """Where a training starts, the GDN codec; where a codec is used, its child."""
    assert load_initial(Path("sample")).architecture == open_codec(Path(GDN)).architecture
    assert open_codec(Path("sample")).architecture == open_codec(Path(NPU)).architecture
    assert codec.from_pretrained("sample").architecture.in_short() == open_codec(Path(GDN)).architecture.in_short()


def test_it_compresses_after_the_installation(photographs: Path, tmp_path: Path) -> None:
    source, file, decoded = photographs / "coffee.png", tmp_path / "coffee.bin", tmp_path / "coffee.png"
    target = 12000
    assert compress.main([str(source), str(file), "--checkpoint", "sample", "--target_bytes", str(target)]) == 0
    assert decompress.main([str(file), str(decoded), "--checkpoint", "sample"]) == 0
    assert 0.97 * target < file.stat().st_size <= target
    x, x_hat = (tensor(np.array(Image.open(each).convert("RGB"))) for each in (source, decoded))
    assert psnr(x_hat, x) > 25


@pytest.mark.parametrize("name", ["gdn", "npu"])
def test_files_are_as_large_as_estimated(name: str, astronaut: Tensor, request: pytest.FixtureRequest) -> None:
    files: FileCodec = request.getfixturevalue(name)
    most = STEPS * (files.codec.architecture.rates - 1)
    for rate in (0, most):
        (found,) = through_files(files, [([0], astronaut[None])], rate=rate)
        assert found.figures.bpp == pytest.approx(found.figures.bpp_estimated, rel=0.01)


def test_it_is_ahead_of_jpeg_where_files_are_small(gdn: FileCodec, npu: FileCodec, astronaut: Tensor) -> None:
    options = TargetOptions(target_bpp=0.25)
    quality = [
        psnr(each.decompress([code(each.codable(astronaut), options)])[0][None] / 255, astronaut[None] / 255)
        for each in (gdn, npu)
    ]
    _, decoded = jpeg(astronaut.permute(1, 2, 0).numpy(), int(0.25 * 512 * 512 / 8))
    of_jpeg = psnr(tensor(decoded), astronaut[None] / 255)
    assert quality[0] > of_jpeg + 1
    assert quality[1] > of_jpeg + 1
    assert quality[1] > quality[0] - 0.8


def test_the_hub_gets_weights_tables_and_card() -> None:
    found = repository_files(to_use("sample"), "user/codec")
    assert {"README.md", "config.json", "model.safetensors"} <= set(found.files)
    assert b"license: apache-2.0" in found.files["README.md"]


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
