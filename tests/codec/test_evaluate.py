"""`python -m codec.evaluate`: averages over pictures, its files, and what it refuses."""

import csv
import io
import json
import math
import os
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior
from PIL import Image
from programs import launch, one_thread, run

from codec import cli, compress
from codec.blocks import registry
from codec.checkpoint import Description, load_codec, save_codec
from codec.cli import DataError
from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError, SomeFailed
from codec.evaluate import main
from codec.files import FileCodec, Latent
from codec.network.architectures import new_codec
from codec.network.tables import with_tables

pytestmark = pytest.mark.slow

PLUGIN = """
from torch import nn
from codec.blocks import register_activation

@register_activation("mine")
class Mine:
    @staticmethod
    def encoder(channels, options): return nn.LeakyReLU()
    @staticmethod
    def decoder(channels, options): return nn.LeakyReLU()
"""


def saved(path: Path, seed: int, activation: str = "gdn") -> Path:
    """A random codec whose latents spread over some symbols."""
    torch.manual_seed(seed)
    codec = new_codec(Architecture(8, 12, g_a=BlockChoice(activation)))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
    save_codec(path, with_tables(codec), Description())
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("codec") / "a.safetensors", seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("codec") / "b.safetensors", seed=2, activation="relu")


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large picture, an odd one, one under MS-SSIM's minimum, one under the stride; and a text file."""
    folder = tmp_path_factory.mktemp("pictures")
    coffee = Image.open(photographs / "coffee.png")
    coffee.save(folder / "1-coffee.png")
    (folder / "2-chelsea.png").write_bytes((photographs / "chelsea.png").read_bytes())
    coffee.crop((200, 100, 360, 300)).save(folder / "3-160x200.png")
    coffee.crop((200, 100, 209, 113)).save(folder / "4-9x13.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def evaluated(tmp_path: Path, *words: object) -> tuple[dict, list[dict[str, str]]]:
    """What --json and --per_image hold."""
    results, table = tmp_path / "out.json", tmp_path / "rows.csv"
    assert main([*map(str, words), "--json", str(results), "--per_image", str(table)]) == 0
    return json.loads(results.read_text()), list(csv.DictReader(table.read_text().splitlines()))


def test_averages_are_over_pictures_and_are_what_compressai_s_model_gives(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, table = evaluated(tmp_path, "--images", folder, "--checkpoint", checkpoint)
    model = FactorizedPrior(8, 12).eval()
    model.load_state_dict(load_codec(checkpoint)[0].state_dict())
    psnrs, bpps = [], []
    for path in sorted(folder.glob("*.png")):
        x = np.array(Image.open(path)).astype(np.float64)
        height, width, _ = x.shape
        padded = np.pad(x, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge") / 255
        with torch.no_grad():
            out = model(torch.from_numpy(padded).float().permute(2, 0, 1)[None])
        x_hat = out["x_hat"][0].permute(1, 2, 0).numpy()[:height, :width].clip(0, 1)
        psnrs.append(10 * math.log10(255**2 / np.mean((np.rint(x_hat.astype(np.float64) * 255) - x) ** 2)))
        bpps.append(-out["likelihoods"]["y"].double().log2().sum().item() / (height * width))
    results = found["results"]
    assert results["psnr-rgb"] == [pytest.approx(fmean(psnrs), abs=1e-3)]
    assert results["bpp-estimated"] == [pytest.approx(fmean(bpps), rel=1e-4)]
    assert [float(row["psnr"]) for row in table] == pytest.approx(psnrs, abs=1e-3)
    assert [float(row["bpp_estimated"]) for row in table] == pytest.approx(bpps, rel=1e-4)

    assert [Path(row["picture"]).name for row in table] == sorted(path.name for path in folder.glob("*.png"))
    similarities = [row["ms_ssim"] for row in table]
    assert similarities[2:] == ["", ""]
    assert results["ms-ssim-rgb"] == [pytest.approx(fmean(map(float, similarities[:2])))]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{folder}: 4 pictures, means over pictures"
    assert shown[2].split() == [str(checkpoint)] + [
        format(results[name][0], style)
        for name, style in (("psnr-rgb", ".3f"), ("ms-ssim-rgb", ".5f"), ("bpp", ".4f"), ("bpp-estimated", ".4f"))
    ]
    assert shown[3] == "2 pictures under 161 pixels, without MS-SSIM"


def test_a_prepared_dataset_s_validation_rows_do_not_depend_on_the_batch(
    checkpoint: Path, coco224: Path, tmp_path: Path
) -> None:
    of_one, rows = evaluated(tmp_path, "--coco_dir", coco224, "--checkpoint", checkpoint, "--batch_size", 1)
    of_three, _ = evaluated(tmp_path, "--coco_dir", coco224, "--checkpoint", checkpoint, "--batch_size", 3)
    assert len(rows) == 4
    assert of_one["description"] == f"{coco224} validation"
    for name, values in of_one["results"].items():
        assert of_three["results"][name] == pytest.approx(values, rel=1e-5)
    assert of_one["results"]["psnr-rgb"] == [pytest.approx(fmean(float(row["psnr"]) for row in rows))]


def test_several_checkpoints_are_a_list_in_compressai_s_format(
    checkpoint: Path, other: Path, folder: Path, tmp_path: Path
) -> None:
    both, rows = evaluated(tmp_path, "--images", folder, "--checkpoint", checkpoint, other)
    assert both.keys() >= {"name", "description", "results"}
    assert both["checkpoints"] == [str(checkpoint), str(other)]
    assert {"psnr-rgb", "ms-ssim-rgb", "bpp-estimated"} <= both["results"].keys()
    assert all(len(values) == 2 for values in both["results"].values())
    assert [row["checkpoint"] for row in rows] == [str(checkpoint)] * 4 + [str(other)] * 4
    alone, _ = evaluated(tmp_path, "--images", folder, "--checkpoint", other)
    assert {name: values[1:] for name, values in both["results"].items()} == alone["results"]
    assert both["results"]["psnr-rgb"][0] != both["results"]["psnr-rgb"][1]


def test_one_picture_is_enough(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    found, rows = evaluated(tmp_path, "--images", photographs / "chelsea.png", "--checkpoint", checkpoint)
    assert len(rows) == 1
    assert found["results"]["psnr-rgb"] == [pytest.approx(float(rows[0]["psnr"]))]


def test_compressai_s_own_checkpoint_is_evaluated(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.save({"state_dict": FactorizedPrior(8, 12).state_dict()}, tmp_path / "theirs.pth.tar")
    found, _ = evaluated(tmp_path, "--images", folder, "--checkpoint", tmp_path / "theirs.pth.tar")
    assert math.isfinite(found["results"]["psnr-rgb"][0])


def test_a_picture_that_comes_back_identical_is_counted_and_not_averaged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A codec that paints everything black returns a black picture as it was."""
    codec = new_codec(Architecture(8, 12))
    with torch.no_grad():
        codec.g_s[6].weight.zero_()
        codec.g_s[6].bias.zero_()
    save_codec(tmp_path / "black.safetensors", with_tables(codec), Description())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (200, 200)).save(pictures / "black.png")
    (pictures / "coffee.png").write_bytes((folder / "1-coffee.png").read_bytes())
    found, rows = evaluated(tmp_path, "--images", pictures, "--checkpoint", tmp_path / "black.safetensors")
    assert rows[0]["psnr"] == "inf"
    assert found["results"]["psnr-rgb"] == [pytest.approx(float(rows[1]["psnr"]))]
    assert "1 picture came back identical" in capsys.readouterr().out


def refusal(*words: object) -> str:
    with pytest.raises((InputError, DataError)) as refused:
        main([str(word) for word in words])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_cannot_be_evaluated_is_refused(checkpoint: Path, folder: Path, coco224: Path, tmp_path: Path) -> None:
    one = ("--checkpoint", checkpoint)
    assert "one of the two" in refusal(*one)
    assert "one of the two" in refusal(*one, "--images", folder, "--coco_dir", coco224)
    assert "--checkpoint is required" in refusal("--images", folder)
    assert "no such file" in refusal("--images", folder, "--checkpoint", tmp_path / "none.safetensors")
    assert "no such file" in refusal("--images", folder, "--checkpoint", tmp_path / "none.pth.tar")
    assert str(tmp_path / "nowhere") in refusal(*one, "--images", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in refusal(*one, "--coco_dir", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no picture there" in refusal(*one, "--images", tmp_path / "empty")
    assert "is no prepared dataset" in refusal(*one, "--coco_dir", tmp_path / "empty")
    (tmp_path / "empty" / "broken.png").write_bytes((folder / "2-chelsea.png").read_bytes()[:1000])
    assert "broken.png: not a picture" in refusal(*one, "--images", tmp_path / "empty")
    read = ("--reference", tmp_path / "r.json")
    read[1].write_text("{}")
    for name, there in (("json", read[1]), ("per_image", checkpoint), ("plot", folder / "2-chelsea.png")):
        assert f"--{name} {there}: the command reads this file too" in refusal(
            *one, "--images", folder, *read, f"--{name}", there
        )
    same = ("--json", tmp_path / "new", "--per_image", tmp_path / "new")
    assert "another option names this file too" in refusal(*one, "--images", folder, *same)
    os.mkfifo(tmp_path / "fifo")
    assert "(not a regular file)" in refusal(*one, "--images", folder, "--json", tmp_path / "fifo")
    assert "its folder does not exist" in refusal(*one, "--images", folder, "--json", tmp_path / "no" / "out.json")
    (tmp_path / "torn.safetensors").write_bytes(checkpoint.read_bytes()[:-9])
    assert "damaged" in refusal("--images", folder, "--checkpoint", tmp_path / "torn.safetensors")


def test_no_output_replaces_a_file_of_the_dataset(checkpoint: Path, coco224: Path, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in coco224.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} == {".arrow", ".json"}
    (tmp_path / "link").symlink_to(next(iter(files)))
    for name, there in [
        *((name, path) for path in files for name in ("json", "per_image")),
        ("json", tmp_path / "link"),
    ]:
        said = refusal("--coco_dir", coco224, "--checkpoint", checkpoint, f"--{name}", there)
        assert f"--{name} {there}: the command reads this file too" in said
    assert files == {path: path.read_bytes() for path in coco224.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def damaged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the pictures, with two files among them that are none."""
    damaged = tmp_path_factory.mktemp("damaged")
    for path in folder.glob("*.png"):
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "0-torn.png").write_bytes((folder / "2-chelsea.png").read_bytes()[:1000])
    (damaged / "2-text.png").write_text("no picture")
    return damaged


def test_files_that_are_no_pictures_are_named_and_all_others_measured(
    checkpoint: Path, folder: Path, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, rows = evaluated(tmp_path, "--images", folder, "--checkpoint", checkpoint)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda: evaluated(tmp_path, "--images", damaged, "--checkpoint", checkpoint)[0])
    shown = capsys.readouterr()
    said = [line for line in shown.err.splitlines() if line.startswith(("failed: ", "error: "))]
    assert [line.partition(": not a picture")[0] for line in said] == [
        f"failed: {damaged / '0-torn.png'}",
        f"failed: {damaged / '2-text.png'}",
        f"error: 2 of 6 pictures failed, the first: {damaged / '0-torn.png'}",
    ]
    assert "4 pictures, means over pictures" in shown.out
    assert "2 pictures failed; the means leave them out" in shown.out
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["failed"]) == 2
    assert found["results"] == expected["results"]
    table = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert [Path(row["picture"]).name for row in table] == [Path(row["picture"]).name for row in rows]


def test_a_picture_that_one_codec_fails_on_counts_for_none(
    checkpoint: Path, other: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two pictures in one batch, one does not fit into memory with the second codec."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "abc":
        (pictures / f"{name}.png").write_bytes((folder / "3-160x200.png").read_bytes())
    Image.new("RGB", (160, 200), "white").save(pictures / "b.png")
    whole = FileCodec.latents

    def without_memory(self: FileCodec, x: torch.Tensor, rate: int | None = None) -> list[Latent]:
        if self.codec.architecture.g_a.name == "relu" and any(each.min() == 255 for each in x):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, x, rate)

    monkeypatch.setattr(FileCodec, "latents", without_memory)
    outputs = ["--json", str(tmp_path / "out.json"), "--per_image", str(tmp_path / "rows.csv")]
    with pytest.raises(SomeFailed, match=r"^1 of 3 pictures failed: .*b\.png: 160x200 pixels do not fit into memory$"):
        main(["--images", str(pictures), "--checkpoint", str(checkpoint), str(other), *outputs])
    found = json.loads((tmp_path / "out.json").read_text())
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [Path(row["picture"]).name for row in rows] == ["a.png", "c.png"] * 2
    assert found["results"]["psnr-rgb"] == [pytest.approx(float(rows[place]["psnr"])) for place in (0, 2)]


def test_a_codec_that_has_diverged_is_refused(folder: Path, tmp_path: Path) -> None:
    codec = new_codec(Architecture(8, 12))
    with torch.no_grad():
        codec.g_s[0].bias[0] = math.nan
    save_codec(tmp_path / "nan.safetensors", with_tables(codec), Description())
    assert "not finite" in refusal("--images", folder, "--checkpoint", tmp_path / "nan.safetensors")


def test_real_bits_are_those_of_the_files_that_compress_writes(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    found, rows = evaluated(tmp_path, "--images", folder, "--checkpoint", checkpoint)
    assert compress.main([str(folder), str(tmp_path / "bin"), "--checkpoint", str(checkpoint)]) == 0
    for row in rows:
        with Image.open(row["picture"]) as image:
            bits = 8 * (tmp_path / "bin" / Path(row["picture"]).with_suffix(".bin").name).stat().st_size
            assert float(row["bpp"]) == pytest.approx(bits / (image.width * image.height))
    assert found["results"]["bpp"] == [pytest.approx(fmean(float(row["bpp"]) for row in rows))]
    large = [row for row in rows if row["ms_ssim"]]
    assert all(float(row["bpp"]) == pytest.approx(float(row["bpp_estimated"]), rel=0.01) for row in large)


def test_files_that_are_larger_than_their_likelihoods_say_raise_the_alarm(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--images", str(folder), "--checkpoint", str(checkpoint)]) == 0
    assert "ALARM" not in capsys.readouterr().out
    stale = load_codec(checkpoint)[0]
    with torch.no_grad():
        stale.entropy_bottleneck.matrices[0].sub_(0.5)  # the densities have moved, the tables have not
    save_codec(tmp_path / "stale.safetensors", stale, Description())
    out = tmp_path / "out.json"
    assert main(["--images", str(folder), "--checkpoint", str(tmp_path / "stale.safetensors"), "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "CDF tables are stale" in said
    (alarm,) = json.loads(out.read_text())["alarms"]
    assert alarm in said


def test_two_ranks_write_what_one_writes(checkpoint: Path, damaged: Path, tmp_path: Path) -> None:
    """Also where some files are no pictures."""

    def words(name: str) -> list[object]:
        outputs = ["--json", tmp_path / f"{name}.json", "--per_image", tmp_path / f"{name}.csv"]
        outputs += ["--report", tmp_path / f"{name}.html"]
        return ["--images", damaged, "--checkpoint", checkpoint, "--batch_size", 1, *outputs]

    with pytest.raises(SomeFailed, match="2 of 6 pictures failed") as failed, one_thread():
        main([str(word) for word in words("one")])
    done = launch("-m", "codec.evaluate", *words("two"))
    assert done.returncode != 0  # the launcher's own status
    assert done.stderr.count(f"error: {failed.value}") == 1
    assert done.stdout.count("means over pictures") == 1
    for name in ("json", "csv", "html"):
        assert (tmp_path / f"two.{name}").read_text() == (tmp_path / f"one.{name}").read_text()
    assert "the means leave them out: 2." in (tmp_path / "one.html").read_text()


def test_references_are_measured_on_the_same_pictures_and_compared(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(tmp_path / "b.safetensors", seed=2)
    curve = ("--checkpoint", checkpoint, other)
    picture = ("--images", folder / "2-chelsea.png")
    own, _ = evaluated(tmp_path, *picture, *curve)
    doubled = {"name": "double", "results": own["results"] | {"bpp": [2 * bpp for bpp in own["results"]["bpp"]]}}
    (tmp_path / "double.json").write_text(json.dumps(doubled))
    capsys.readouterr()
    references = ("--reference", "jpeg", "webp", "avif", "published", tmp_path / "double.json", checkpoint, other)
    found, rows = evaluated(tmp_path, *picture, *curve, *references, "--plot", tmp_path / "rd.png")
    shown = capsys.readouterr().out
    by_name = {entry["name"]: entry for entry in found["references"]}
    assert by_name.keys() == {"reference", "jpeg", "webp", "avif", "double", "bmshj2018-factorized, published"}
    assert by_name["reference"]["results"]["bpp"] == sorted(own["results"]["bpp"])
    for name, rate in (("reference", 0), ("double", -50)):
        if "bd-rate" in by_name[name]:  # random codecs may not give a rising curve
            assert by_name[name]["bd-rate"] == pytest.approx(rate, abs=1e-6)
        else:
            assert f"against {name}: no BD-rate" in shown
    for name in ("jpeg", "webp", "avif"):
        results = by_name[name]["results"]
        assert results["bpp"] == sorted(results["bpp"])
        assert results["psnr-rgb"] == sorted(results["psnr-rgb"])
        assert results["psnr-rgb"][-1] > 34
    with Image.open(folder / "2-chelsea.png") as image:
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=75)
        bits = 8 * len(file.getvalue()) / (image.width * image.height)
    (row,) = [row for row in rows if row["checkpoint"] == "jpeg 75"]
    assert float(row["bpp"]) == pytest.approx(bits)
    assert (tmp_path / "rd.png").stat().st_size > 1000


def test_codecs_of_other_blocks_are_curves_of_their_own(
    checkpoint: Path, other: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    assert main(["--images", str(folder), "--checkpoint", str(checkpoint), str(other), "--json", str(out)]) == 0
    (beside,) = json.loads(out.read_text())["references"]
    assert beside["name"] == "encoder relu, decoder gdn"
    assert len(beside["results"]["bpp"]) == 1


def test_a_reference_that_is_none_is_refused(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    words = ("--images", folder, "--checkpoint", checkpoint)
    assert "neither a file nor one of jpeg" in refusal(*words, "--reference", "jpg")
    (tmp_path / "no.json").write_text("{}")
    assert "CompressAI's result format" in refusal(*words, "--reference", tmp_path / "no.json")
    Image.new("RGB", (17000, 16)).save(tmp_path / "wide.png")
    wide = ("--images", tmp_path / "wide.png", "--checkpoint", checkpoint)
    assert "17000 pixels and WEBP takes 16383" in refusal(*wide, "--reference", "webp")
    assert ".png, .svg or .pdf" in refusal(*words, "--plot", tmp_path / "rd.xyz")


def test_the_block_of_a_plugin_needs_its_file_and_an_error_is_one_line_and_status_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    registry.load_plugin(plugin)
    path = saved(tmp_path / "mine.safetensors", seed=4, activation="mine")

    words = ("-m", "codec.evaluate", "--images", folder / "2-chelsea.png", "--checkpoint", path)
    without = run(*words)
    assert without.returncode == 2
    (line,) = [line for line in without.stderr.splitlines() if "Warning" not in line and "warnings.warn" not in line]
    assert line.startswith("error: ")
    assert "mine" in line
    assert "--plugin" in line
    assert without.stdout == ""
    assert main([*map(str, words[2:]), "--plugin", str(plugin)]) == 0
    assert "1 picture, means over pictures" in capsys.readouterr().out


def test_names_are_no_formulas_in_the_csv_and_steer_no_terminal(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=cmd.safetensors", "x\x1b[2J$a_$.safetensors", os.fsdecode(b"\xff.safetensors")]
    for name in names:
        Path(name).write_bytes(checkpoint.read_bytes())
    Path("-1.png").write_bytes((folder / "4-9x13.png").read_bytes())
    words = ["--images", "./-1.png", "--checkpoint", *names, "--per_image", "rows.csv", "--json", "out.json"]
    assert main([*words, "--plot", "rd.png", "--report", "page.html"]) == 0
    with Path("rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows[:2]] == ["'=cmd.safetensors", names[1]]
    assert {row["picture"] for row in rows} == {"'-1.png"}
    assert "\x1b" not in capsys.readouterr().out


def test_nothing_is_written_to_the_temporary_folder(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert main(["--images", str(folder / "4-9x13.png"), "--checkpoint", str(checkpoint)]) == 0
