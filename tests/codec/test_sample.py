"""The embedded codecs: their names in the place of files, and their quality, so that it cannot rot unseen."""

import copy
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
from codec.description.architecture import BlockChoice
from codec.evaluation.coded import through_files
from codec.evaluation.metrics import psnr
from codec.evaluation.references import within
from codec.files import FileCodec
from codec.hub.repository import repository_files
from codec.sample import GDN, NPU, to_use
from codec.targets import TargetOptions
from training.distill import distill


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
    quality = [at_a_quarter_bit(each, astronaut) for each in (gdn, npu)]
    _, decoded = within("jpeg", astronaut, int(0.25 * astronaut[0].numel() / 8))
    assert min(quality) > psnr(decoded[None] / 255, astronaut[None] / 255) + 1
    assert quality[1] > quality[0] - 0.1  # what gate_mlp in the place of GDN costs, and int8


def test_a_distilled_start_is_near_the_gdn_codec(gdn: FileCodec, photographs: Path, astronaut: Tensor) -> None:
    """Learned from crops of two other photographs, before any training; the child above has had its training."""
    pictures = [tensor(np.array(Image.open(photographs / name))) for name in ("coffee.png", "chelsea.png")]
    crops = [x[..., top : top + 192, left : left + 192] for x in pictures for top in (0, 100) for left in (0, 100, 200)]
    replaced = copy.deepcopy(gdn.codec)
    for part in ("g_a", "g_s"):
        replaced.replace_blocks(part, BlockChoice("gate_mlp"))
    distill(replaced, gdn.codec, crops, 20)
    assert at_a_quarter_bit(FileCodec(replaced), astronaut) > at_a_quarter_bit(gdn, astronaut) - 0.2


def at_a_quarter_bit(files: FileCodec, picture: Tensor) -> float:
    """PSNR in dB of a picture, uint8 [3, H, W], in a file of at most 0.25 bits per pixel."""
    _, decoded = files.through_file(picture, TargetOptions(target_bpp=0.25))
    return float(psnr(decoded[None] / 255, picture[None] / 255))


def test_the_hub_gets_weights_tables_and_card() -> None:
    found = repository_files(to_use("sample"), "user/codec")
    assert {"README.md", "config.json", "model.safetensors"} <= set(found.files)
    assert b"license: apache-2.0" in found.files["README.md"]


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
