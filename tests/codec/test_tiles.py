"""Large pictures in tiles: each position once, and what the full picture gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from codec.checkpoint import Description, save_codec
from codec.compress import main as compress
from codec.description.architecture import Architecture, BlockChoice, Quantization
from codec.errors import out_of_memory
from codec.evaluation import tiled
from codec.evaluation.figures import measure
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.pixels import pad, to_float
from codec.network.reach import margins
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.tiles import least_size, spans, tile_size

BLOCKS = [
    BlockChoice("gdn"),
    BlockChoice("relu"),
    BlockChoice("relu_mlp"),
    BlockChoice("gate"),
    BlockChoice("gate_mlp"),
    BlockChoice("gdnish", {"enc_eca": False, "enc_kdw": 5}),
]
MIDDLE = 6


@pytest.fixture(scope="module")
def photograph(photographs: Path) -> Tensor:
    """The coffee cup, 400x600 pixels, uint8 [1, 3, H, W]; 25 x 38 positions of y."""
    return torch.from_numpy(np.array(Image.open(photographs / "coffee.png").convert("RGB"))).permute(2, 0, 1)[None]


def codec_of(block: BlockChoice) -> Codec:
    """A random codec whose latents spread over some symbols."""
    torch.manual_seed(4)
    codec = new_codec(Architecture(8, 12, block, block))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
        for parameter in codec.g_s.parameters():  # blocks that start as the identity look at nothing
            parameter += 0.01 * torch.randn_like(parameter).abs()
    return with_tables(codec)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is a large one, in tiles of 10x12 positions."""
    monkeypatch.setattr("codec.files.LARGEST_WHOLE", 0)
    monkeypatch.setattr("codec.tiles.SIZE", (10, 12))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (0, 0), (4, 3)])
@pytest.mark.parametrize(("length", "size"), [(5, 14), (14, 14), (15, 14), (32, 14), (48, 8), (9, 8), (1, 1)])
def test_tiles_of_a_side_cover_every_position_once_with_margins(
    length: int, size: int, before: int, after: int
) -> None:
    found = spans(length, size, (before, after))
    assert [position for _, first, end in found for position in range(first, end)] == list(range(length))
    for place, first, end in found:
        assert place <= first < end <= min(place + size, length)
        assert place == 0 or (place + size <= length and first - place >= before)
        assert end == length or place + size - end >= after


@pytest.mark.parametrize("whole", [(1, 40_000), (40_000, 1), (30, 3_000), (5_000, 33), (300, 400)])
def test_tiles_of_a_narrow_picture_are_as_large_in_another_shape(whole: tuple[int, int]) -> None:
    rows, columns = tile_size(whole, (2, 1))
    assert rows <= whole[0]
    assert columns <= whole[1]
    assert 700 <= rows * columns <= 800
    assert min(rows, columns) >= min(*whole, least_size((2, 1)))


@pytest.mark.parametrize("block", [*BLOCKS, BlockChoice("gdnish")], ids=str)
def test_the_margins_are_as_far_as_a_nan_travels(block: BlockChoice) -> None:
    codec = codec_of(block)
    side = 2 * MIDDLE + 1
    y = torch.zeros(1, 12, side, side)
    y[..., MIDDLE, MIDDLE] = torch.nan
    rows = codec.g_s(y).isnan().any(1)[0].any(1).nonzero().flatten() // 16
    assert margins(codec, "g_s") == (int(rows.max()) - MIDDLE, MIDDLE - int(rows.min()))
    if block.options or block.name != "gdnish":
        reached = set()
        for pixel in (0, 15):  # of the middle position
            x = torch.zeros(1, 3, 16 * side, 16 * side)
            x[..., 16 * MIDDLE + pixel, 16 * MIDDLE + pixel] = torch.nan
            reached |= set((codec.g_a(x).isnan().any(1)[0].any(1).nonzero().flatten() - MIDDLE).tolist())
        assert margins(codec, "g_a") == (max(reached), -min(reached))
    else:
        assert margins(codec, "g_a") is None  # ECA's mean


def test_what_does_not_say_how_far_it_looks_is_not_guessed() -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((2, 3), keepdim=True)

    codec = codec_of(BlockChoice("relu"))
    codec.g_a[3] = Strange()
    assert margins(codec, "g_a") is None
    assert margins(codec, "g_s") == (1, 2)
    codec.g_s = Strange()
    assert margins(codec, "g_s") is None


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_tiles_give_the_symbols_and_the_pixels_of_the_full_picture(
    block: BlockChoice, photograph: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = codec_of(block)
    files = FileCodec(codec)
    x = photograph[..., :399, :597]
    with torch.no_grad():
        expected = codec.entropy_bottleneck.symbols(codec.g_a(pad(to_float(x))))
    latents = files.latents(x)
    found = torch.from_numpy(latents[0].y)[None]
    assert found.unique().numel() > 3
    assert (found != expected).float().mean() < 1e-4  # sums in another order may move one across a half
    data = files.encode(latents, 399, 597)
    (tiled,) = files.decompress(data)
    with torch.no_grad():
        x_hat = codec.g_s(found.float() + codec.entropy_bottleneck.medians())[0, :, :399, :597]
    off = (tiled.float() - x_hat.clamp(0, 1) * 255).abs()
    assert off.max() < 0.51
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("small_tiles")
def test_smaller_margins_would_not_do(photograph: Tensor) -> None:
    files = FileCodec(codec_of(BlockChoice("relu")))
    right = files.latents(photograph)[0].y
    for wrong in ((1, 1), (2, 0)):
        files._margins["g_a"] = wrong
        assert (files.latents(photograph)[0].y != right).mean() > 1e-3


@pytest.mark.usefixtures("small_tiles")
def test_an_int8_codec_has_its_float_codec_s_margins_and_the_same_symbols_in_tiles(photograph: Tensor) -> None:
    codec = codec_of(BlockChoice("gate"))
    int8 = calibrate(codec, [to_float(photograph[..., :128, :128])], Quantization("all"))
    assert margins(int8, "g_a") == margins(codec, "g_a")
    with torch.no_grad():
        expected = int8.entropy_bottleneck.symbols(int8.g_a(pad(to_float(photograph)))).numpy()
    assert np.array_equal(FileCodec(int8).latents(photograph)[0].y[None], expected)  # integers: no sum is rounded


@pytest.mark.usefixtures("small_tiles")
def test_a_block_that_looks_at_the_full_picture_takes_it_at_once_and_says_so_once(
    photograph: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = codec_of(BlockChoice("gdnish"))
    files = FileCodec(codec, "c.safetensors")
    with torch.no_grad():
        expected = codec.entropy_bottleneck.symbols(codec.g_a(pad(to_float(photograph)))).numpy()
    assert np.array_equal(files.latents(photograph)[0].y[None], expected)
    files.latents(photograph)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: gdnish in the encoder of c.safetensors looks at the full picture")


@pytest.mark.parametrize(("height", "width"), [(400, 600), (399, 597), (161, 333), (150, 600)])
def test_figures_in_tiles_are_those_of_the_full_picture(
    height: int, width: int, photograph: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "_PIXELS", 20_000)
    x = photograph[..., :height, :width]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x_hat = (x.float() + 12 * noise).clamp(0, 255).to(torch.uint8)
    (expected,) = measure(to_float(x), to_float(x_hat), None)
    psnr, ms_ssim, l1 = tiled.in_tiles(x[0], x_hat[0])
    assert float(psnr) == pytest.approx(expected.psnr, abs=1e-5)
    assert float(l1) == pytest.approx(expected.l1, rel=1e-5)
    if expected.ms_ssim is None:
        assert ms_ssim is None
    else:
        assert ms_ssim is not None
        assert float(ms_ssim) == pytest.approx(expected.ms_ssim, abs=1e-6)


def test_one_picture_without_memory_does_not_stop_the_others(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_codec(tmp_path / "c.safetensors", codec_of(BlockChoice("relu")), Description())
    (tmp_path / "in").mkdir()
    for name, side in (("a", 32), ("b", 64), ("c", 48)):
        Image.open(photographs / "coffee.png").crop((0, 0, side, side)).save(tmp_path / "in" / f"{name}.png")
    whole = FileCodec.compress

    def without_memory(self: FileCodec, x: Tensor) -> list[bytes]:
        if x.shape[-1] == 32:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        if x.shape[-1] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, x)

    monkeypatch.setattr(FileCodec, "compress", without_memory)
    with pytest.raises(Exception, match=r"2 of 3 files failed, the first: .*a\.png: it does not fit into memory"):
        compress([str(tmp_path / "in"), str(tmp_path / "out"), "--checkpoint", str(tmp_path / "c.safetensors")])
    assert [path.name for path in (tmp_path / "out").glob("*.bin")] == ["c.bin"]
    assert not out_of_memory(RuntimeError("shapes differ"))
