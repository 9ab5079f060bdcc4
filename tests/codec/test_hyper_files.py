"""Files of codecs with a hyperprior: what is decoded is what the evaluation computes, at every size and in tiles."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from codec.checkpoint import Description, open_codec, save_codec
from codec.description.architecture import ARCHITECTURES, Architecture, BlockChoice
from codec.description.file import read_checkpoint, to_bytes
from codec.errors import InputError
from codec.evaluation.coded import through_files
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.pixels import pad, to_float, to_uint8
from codec.network.tables import tables_of, with_tables


@pytest.fixture(scope="module")
def photograph(photographs: Path) -> Tensor:
    """The coffee cup, 400x600 pixels, uint8 [1, 3, H, W]; 25 x 38 positions of y, 7 x 10 of z."""
    return torch.from_numpy(np.array(Image.open(photographs / "coffee.png").convert("RGB"))).permute(2, 0, 1)[None]


@pytest.fixture(scope="module", params=ARCHITECTURES[1:])
def codec(request: pytest.FixtureRequest) -> Codec:
    """A random codec whose latents spread over some symbols and whose scales differ."""
    torch.manual_seed(4)
    relu = BlockChoice("relu")
    codec = new_codec(Architecture(8, 12, relu, relu, arch=request.param))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
        codec.h_a[4].weight *= 20
        codec.h_s[4].bias.uniform_(-2, 8)
    return with_tables(codec)


@pytest.mark.parametrize("size", [(400, 600), (399, 597), (64, 64), (17, 130), (1, 1)])
@torch.no_grad()
def test_a_file_decodes_to_the_picture_that_the_evaluation_has(
    codec: Codec, photograph: Tensor, size: tuple[int, int]
) -> None:
    x = photograph[..., : size[0], : size[1]]
    files = FileCodec(codec)
    (found,) = files.decompress(files.compress(x))
    out = codec(pad(to_float(x)))
    assert torch.equal(found, to_uint8(out["x_hat"])[0, :, : size[0], : size[1]])


def test_the_estimate_is_the_file_s_size(codec: Codec, photograph: Tensor) -> None:
    (decoded,) = through_files(FileCodec(codec), [([0], photograph)])
    assert decoded.figures.bpp == pytest.approx(decoded.figures.bpp_estimated, rel=0.01)
    assert decoded.figures.bpp > 0.05


def test_tiles_give_the_same_file(codec: Codec, photograph: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileCodec(codec)
    (whole,) = files.latents(photograph)
    monkeypatch.setattr("codec.files.LARGEST_WHOLE", 0)
    monkeypatch.setattr("codec.tiles.SIZE", (10, 12))
    (tiled,) = files.latents(photograph)
    assert whole.z is not None
    assert tiled.z is not None
    assert np.unique(whole.z).size > 3
    # Sums in another order may move a value across a half.
    assert (tiled.y != whole.y).mean() < 1e-4
    assert (tiled.z != whole.z).mean() < 1e-2


def test_h_a_needs_its_margins(codec: Codec, photograph: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.files.LARGEST_WHOLE", 0)
    monkeypatch.setattr("codec.tiles.SIZE", (4, 4))
    files = FileCodec(codec)
    (right,) = files.latents(photograph)
    files._margins["h_a"] = (0, 0)
    (wrong,) = files.latents(photograph)
    assert right.z is not None
    assert wrong.z is not None
    assert (right.z != wrong.z).mean() > 1e-2


def test_a_checkpoint_brings_its_integers_along(codec: Codec, photograph: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_codec(path, codec, Description())
    again = open_codec(path)
    assert FileCodec(again).compress(photograph) == FileCodec(codec).compress(photograph)
    assert tables_of(again).fingerprint == tables_of(codec).fingerprint


def test_integers_of_other_weights_are_refused(codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_codec(path, codec, Description())
    saved = read_checkpoint(path)
    arrays = saved.arrays | {"h_s.0.weight": saved.arrays["h_s.0.weight"] + np.float32(0.01)}
    path.write_bytes(to_bytes(arrays, saved.architecture, saved.description))
    with pytest.raises(InputError, match="stale"):
        open_codec(path)


def test_a_checkpoint_without_integers_says_so(codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_codec(path, codec, Description())
    saved = read_checkpoint(path)
    arrays = {name: array for name, array in saved.arrays.items() if not name.startswith("integer_h_s.")}
    path.write_bytes(to_bytes(arrays, saved.architecture, saved.description))
    with pytest.raises(InputError, match="no CDF tables"):
        FileCodec(open_codec(path), "c")


def test_files_of_the_other_architectures_are_refused(codec: Codec, photograph: Tensor) -> None:
    (data,) = FileCodec(codec).compress(photograph)
    other = with_tables(new_codec(Architecture(8, 12)))
    with pytest.raises(InputError, match=f"{codec.arch}.*give the checkpoint that it was written with"):
        FileCodec(other).decompress([data])


def test_an_h_a_that_is_no_sequence_of_layers_takes_y_at_once_and_says_so(
    codec: Codec, photograph: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("codec.files.LARGEST_WHOLE", 40)
    opaque = copy.deepcopy(codec)
    opaque.h_a = nn.ModuleList([codec.h_a])
    opaque.h_a.forward = codec.h_a.forward
    expected = FileCodec(codec).compress(photograph)
    assert FileCodec(opaque, "c").compress(photograph) == expected
    assert capsys.readouterr().err.startswith("warning: h_a of c looks at the full picture")
