"""Files of codecs of several rates: what is decoded is what the evaluation computes, and targets are kept."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rates import RATES, rated
from torch import Tensor

from codec import compress, decompress, evaluate
from codec.bitstream.gains import STEPS, Scaling
from codec.checkpoint import Description, open_codec, save_codec
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH, Architecture
from codec.errors import InputError, SomeFailed
from codec.evaluation.coded import through_files
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.pixels import pad, to_float, to_uint8
from codec.network.tables import tables_of, with_tables
from codec.targets import Codable, TargetOptions, code, psnr

MOST = STEPS * (RATES - 1)


@pytest.fixture(scope="module")
def cup(photographs: Path) -> Tensor:
    """A part of the coffee cup, uint8 [1, 3, 97, 130]."""
    whole = torch.from_numpy(np.array(Image.open(photographs / "coffee.png").convert("RGB"))).permute(2, 0, 1)[None]
    return whole[..., 40:137, 100:230]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def codec(request: pytest.FixtureRequest) -> Codec:
    return rated(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rated") / "codec.safetensors"
    save_codec(path, rated("bmshj2018_hyperprior"), Description())
    return path


@torch.no_grad()
def test_a_file_of_any_rate_decodes_to_the_picture_that_the_evaluation_has(codec: Codec, cup: Tensor) -> None:
    files, sizes = FileCodec(codec), []
    for rate in (0, 50, 128, MOST):
        (file,) = files.compress(cup, rate)
        (found,) = files.decompress([file])
        out = codec(pad(to_float(cup)), rates=torch.tensor([rate / MOST]))
        assert torch.equal(found, to_uint8(out["x_hat"])[0, :, :97, :130]), rate
        sizes.append(len(file))
    assert sizes == sorted(sizes)
    assert files.compress(cup) == files.compress(cup, MOST)


def test_a_large_latent_is_rounded_in_blocks_to_the_same_files(
    codec: Codec, cup: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileCodec(codec)
    expected = [files.compress(cup, rate)[0] for rate in (0, MOST)]
    for block in (1, 150):  # a channel, and three of the 63 values each
        monkeypatch.setattr("codec.bitstream.coder._BLOCK", block)
        assert [files.compress(cup, rate)[0] for rate in (0, MOST)] == expected


def test_the_psnr_of_a_target_is_that_of_the_whole_picture(cup: Tensor) -> None:
    x = cup[0].permute(1, 2, 0).numpy()
    x_hat = np.roll(x, 1, axis=1)
    error = x.astype(float) - x_hat
    assert psnr(x, x_hat) == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), rel=1e-12)
    assert psnr(x, x) == np.inf


@torch.no_grad()
def test_the_estimate_is_the_file_s_size(codec: Codec, cup: Tensor) -> None:
    calm = copy.deepcopy(codec)  # whose symbols lie within the tables
    calm.g_a[6].weight *= 0.1
    files = FileCodec(calm)
    for rate in (0, 77, MOST):
        (decoded,) = through_files(files, [([0], cup)], rate=rate)
        overhead = 8 * 24 / (97 * 130)
        assert decoded.figures.bpp == pytest.approx(decoded.figures.bpp_estimated, rel=0.01, abs=overhead)
        if codec.arch == DEFAULT_ARCH:  # the Gaussians' estimate is that of their tables, with escapes
            likelihoods = calm(pad(to_float(cup)), rates=torch.tensor([rate / MOST]))["likelihoods"]["y"]
            estimated = float(-likelihoods.log2().sum()) / (97 * 130)
            assert decoded.figures.bpp_estimated == pytest.approx(estimated, rel=0.003)


@torch.no_grad()
def test_torch_and_numpy_have_the_same_integers(codec: Codec) -> None:
    coder = FileCodec(codec).coder
    for rate in (0, 1, 77, MOST):
        assert codec.y_gains is not None
        ours, theirs = codec.y_gains.coded(torch.tensor([rate / MOST])), coder.tables.gains.at(rate)
        for name, wanted in (("gain", theirs.gain), ("fixed", theirs.fixed), ("inverse", theirs.inverse)):
            assert getattr(ours, name).flatten().tolist() == wanted.ravel().tolist()
        symbols = torch.arange(-60, 60).repeat(1, codec.M, 1, 1).float()
        values = Scaling(theirs.exponents).decoded(symbols[0].int().numpy())
        assert np.array_equal(ours.decoded(symbols)[0].numpy(), values / 64)
        if isinstance(codec, HyperCodec):
            assert codec.integer_h_s is not None
            assert codec.z_gains is not None
            z = torch.randint(-9, 10, (1, codec.N, 3, 2))
            indexes, means = codec.integer_h_s(z, 10, 7, codec.z_gains.coded(torch.tensor([rate / MOST])), ours)
            expected, expected_means = coder.at(rate).context(z[0].int().numpy(), 10, 7)
            assert np.array_equal(indexes[0].numpy(), expected)
            assert means is None or np.array_equal(means[0].numpy(), expected_means)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_the_highest_rate_is_the_codec_from_before_it_had_rates(arch: str, cup: Tensor) -> None:
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12, arch=arch))
    codec.g_a[6].weight *= 50
    single = with_tables(codec)
    codec.add_rates(3, octaves=2.0)
    several = with_tables(codec)
    x = pad(to_float(cup))
    expected, found = single(x), several(x)
    assert torch.equal(found["x_hat"], expected["x_hat"])
    for name, likelihoods in expected["likelihoods"].items():
        assert torch.allclose(found["likelihoods"][name], likelihoods, atol=1e-6)
    low = several(x, rates=torch.zeros(1))
    assert low["likelihoods"]["y"].log2().sum() > found["likelihoods"]["y"].log2().sum()
    assert len(FileCodec(several).compress(cup)[0]) <= len(FileCodec(single).compress(cup)[0]) + 16


def test_a_checkpoint_keeps_its_gains_and_densities(checkpoint: Path, cup: Tensor) -> None:
    codec = rated("bmshj2018_hyperprior")
    again = open_codec(checkpoint)
    assert again.architecture.rates == RATES
    assert tables_of(again).fingerprint == tables_of(codec).fingerprint
    assert FileCodec(again).compress(cup, 100) == FileCodec(codec).compress(cup, 100)


def test_targets_are_kept_and_used_up(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    source, target = photographs / "coffee.png", tmp_path / "cup.bin"
    common = [str(source), str(target), "--checkpoint", str(checkpoint), "--overwrite", "true"]
    ends = []
    for rate in (0, 1):
        assert compress.main([*common, "--rate", str(rate)]) == 0
        ends.append(target.stat().st_size)
    low, high = ends
    for share in (0.2, 0.5, 0.9):
        wanted = int(low + share * (high - low))
        assert compress.main([*common, "--target_bytes", str(wanted)]) == 0
        assert 0.97 * wanted < target.stat().st_size <= wanted
    assert compress.main([*common, "--target_bpp", str(8 * wanted / (400 * 600))]) == 0
    assert 0.97 * wanted < target.stat().st_size <= wanted
    assert compress.main([*common, "--target_bytes", str(10 * high)]) == 0
    assert target.stat().st_size == high


def test_a_search_needs_few_files_and_keeps_its_target_where_the_estimate_is_off() -> None:
    made: list[int] = []

    def file(rate: int | None) -> bytes:
        assert rate is not None
        made.append(rate)
        return bytes(100 + 10 * rate)

    for off in (0.985, 1.0, 1.015):
        picture = Codable(200, 1000, lambda rate, off=off: off * 80 * (10 + rate), file, lambda data: len(data) / 100)
        made.clear()
        assert len(code(picture, TargetOptions(target_bytes=1234))) == 1230
        assert len(made) < 6
        assert len(code(picture, TargetOptions(target_bpp=8.0))) == 1000
        made.clear()
        assert len(code(picture, TargetOptions(target_psnr=12.34))) == 1240
        assert len(made) < 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target_bytes", "9"], "its smallest file has"),
        (["--target_psnr", "90"], "its best file has"),
        (["--rate", "1.5"], "must be within 0..1"),
        (["--rate", "0.5", "--target_bpp", "1"], "--rate and --target_bpp each choose the rate"),
    ],
)
def test_what_no_rate_can_do_is_said_in_one_line(
    words: list[str], says: str, checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "cup.bin"
    with pytest.raises((InputError, SomeFailed), match=says):
        compress.main([str(photographs / "coffee.png"), str(target), "--checkpoint", str(checkpoint), *words])
    assert not target.exists()


def test_a_codec_of_one_rate_refuses_a_target(photographs: Path, tmp_path: Path) -> None:
    save_codec(tmp_path / "one.safetensors", with_tables(new_codec(Architecture(8, 12))), Description())
    checkpoint = ["--checkpoint", str(tmp_path / "one.safetensors")]
    with pytest.raises(InputError, match=r"^--target_bytes: this codec has a single rate"):
        compress.main([str(photographs / "coffee.png"), str(tmp_path / "a"), *checkpoint, "--target_bytes", "5000"])


def test_a_folder_at_a_rate_and_back(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    folder, common = tmp_path / "pictures", ["--checkpoint", str(checkpoint)]
    folder.mkdir()
    for name in ("coffee.png", "chelsea.png"):
        Image.open(photographs / name).crop((0, 0, 90, 70)).save(folder / name)
    assert compress.main([str(folder), str(tmp_path / "files"), *common, "--rate", "0.3"]) == 0
    assert decompress.main([str(tmp_path / "files"), str(tmp_path / "back"), *common]) == 0
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"coffee.png", "chelsea.png"}


def test_evaluate_draws_the_whole_curve_of_one_checkpoint(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "cup.png"
    Image.open(photographs / "coffee.png").crop((0, 0, 90, 70)).save(picture)
    words = ["--images", str(picture), "--checkpoint", str(checkpoint), "--json", str(tmp_path / "f.json")]
    assert evaluate.main(words) == 0
    results = json.loads((tmp_path / "f.json").read_text())
    assert results["checkpoints"] == [f"{checkpoint} at rate {rate}" for rate in ("0.000", "0.333", "0.667", "1.000")]
    rates = results["results"]["bpp"]
    assert rates == sorted(rates)
    assert not results["alarms"]
    assert "at rate 0.333" in capsys.readouterr().out
    assert evaluate.main([*words, "--rates", "7"]) == 0
    assert len(json.loads((tmp_path / "f.json").read_text())["checkpoints"]) == 7
