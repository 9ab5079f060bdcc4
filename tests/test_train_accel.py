"""The program as its users run it: what a run leaves, the recipes, two ranks, signals, and refusals."""

import json
import os
import re
import shlex
import shutil
import signal
import time
from importlib import import_module
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
import yaml
from hub_server import USER, Hub
from PIL import Image
from programs import (
    ROOT,
    ROUNDING,
    SMALL,
    TINY,
    Program,
    distance,
    into,
    launch,
    launch_nodes,
    rows,
    run,
    same,
    states,
    train,
    weights,
)

from codec.checkpoint import load_codec
from training.precision import is_emulated

pytestmark = pytest.mark.slow

FIRST = """--act relu --use_prepared true --quality 8 --epochs 10 --batch_size 16 --lr 1e-4 --alpha_l1 0.4
    --replace_parts encoder --train_scope replaced+hyper --recon_every 2 --recon_count 16 --save_dir ./checkpoints
    --recon_dir ./recon --amp true --amp_dtype bf16 --local_fp32 entropy --loss_type recon --sched cosine
    --optimizer adamw --weight_decay 1e-4"""
"""The first of the five recipes; the others change parts of it."""
RATE = """--local_fp32 entropy+decoder --loss_type rd --lambda_bpp 0.01 --sched onecycle --onecycle_pct_start 0.1
    --optimizer adam --weight_decay 0"""
GDNISH = """--act gdnish --enc_t 2.0 --enc_kdw 3 --enc_eca true --enc_residual true --dec_k 3 --dec_gmin 0.5
    --dec_gmax 2.0 --dec_residual true"""
EVERYTHING = f"{GDNISH} --replace_parts all --train_scope all --epochs 12"
RECIPES = {
    "relu, recon": "",
    "relu, rd": RATE,
    "gdnish, encoder": f"{GDNISH} --replace_parts encoder --train_scope replaced+hyper",
    "own block": "--plugin {plugin} --act myact --replace_parts all --myact_scale 0.5",
}
PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from codec.blocks import register_activation

class Soft(nn.Module):
    def __init__(self, channels, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), scale))

    def forward(self, x):
        return x * torch.tanh(self.scale * x.abs() + 1)

@register_activation("myact")
class MyAct:
    @dataclass
    class Options:
        scale: float = 1.0

    @staticmethod
    def encoder(channels, options): return Soft(channels, options.scale)
    @staticmethod
    def decoder(channels, options): return Soft(channels, options.scale)
"""


def errors(stderr: str) -> list[str]:
    """What is on stderr besides a library's warnings."""
    return [line for line in stderr.splitlines() if line and "Warning" not in line and not line.startswith("  ")]


@pytest.fixture(scope="module")
def finished(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """GDNishLite everywhere over 11 steps, 3 an epoch, which end inside the fourth; and what the program printed."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = (*FIRST.split(), *EVERYTHING.split(), "--max_steps", 11)
    words = ("--coco_dir", coco224, *recipe, *SMALL, *into(folder), "--log_every", 1, "--checkpoint_every", 8)
    done = run("train_accel.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return folder, done.stderr


def test_a_run_says_what_it_does_and_where_its_files_are(finished: tuple[Path, str]) -> None:
    folder, said = finished
    for line in (
        "codec       bmshj2018_factorized N=8 M=12, gdnish in g_a and g_s; 0 GDN layers are left",
        "precision   bf16 on cpu, FP32 in entropy_bottleneck",
        "batch       16 x 1 accumulated x 1 process = 16; 3 steps per epoch, 11 in all",
        f"checkpoints {folder}   reconstructions {folder / 'recon'}",
        f"--checkpoint {folder}/best_rd.safetensors",
    ):
        assert line in said
    assert re.search(r"trains      [\d,]+ of [\d,]+ parameters \(all\)", said)
    slow = "warning     this CPU has no instructions for bf16: --amp false is many times faster on it"
    assert (slow in said) == is_emulated("bf16", torch.device("cpu"))


def test_the_loss_falls(finished: tuple[Path, str]) -> None:
    """On the same pictures, those of the validation: one training batch is harder than another."""
    losses = [row["rd"] for row in rows(finished[0], "validation")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.001


def test_the_record_has_every_step_and_evaluation_once(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    trained, validated = rows(folder, "train"), rows(folder, "validation")
    assert [row["step"] for row in trained] == list(range(1, 12))
    assert trained[0].keys() >= {"loss", "bpp", "psnr", "mse", "l1", "ms_ssim", "lr", "images_per_second"}
    assert [(row["epoch"], row["step"]) for row in validated] == [(1, 3), (2, 6), (3, 9), (4, 11)]
    assert validated[0].keys() >= {"psnr", "ms_ssim", "l1", "bpp_estimated", "rd"}
    row = validated[-1]
    assert row["rd"] == pytest.approx(0.4 * row["l1"] + 0.6 * (1 - row["ms_ssim"]) + 0.01 * row["bpp_estimated"])
    for name in ("curves.png", "rd.png"):
        with Image.open(folder / name) as drawn:
            drawn.load()
            assert min(drawn.size) > 300


def test_checkpoints_describe_themselves(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    options = yaml.safe_load((folder / "config.yaml").read_text())
    validated = {row["step"]: row for row in rows(folder, "validation")}
    best = {"best_psnr": ("psnr", max), "best_msssim": ("ms_ssim", max), "best_rd": ("rd", min)}
    for name in ("last", *best):
        codec, description = load_codec(folder / f"{name}.safetensors")
        assert (codec.architecture.g_a.name, codec.architecture.g_s.name) == ("gdnish", "gdnish")
        assert description.options == options
        assert description.versions.keys() >= {"torch", "compressai", "accelerate", "datasets", "numpy"}
        assert {"kind": "validation", "step": description.step, **description.metrics}.items() <= validated[
            description.step
        ].items()
        if name in best:
            metric, of = best[name]
            assert description.metrics[metric] == of(row[metric] for row in validated.values())
    assert load_codec(folder / "last.safetensors")[1].step == 11
    assert [state.name for state in states(folder)] == ["step-00000009", "step-00000011"]
    last = load_codec(folder / "last.safetensors")[0].state_dict()
    for name, tensor in weights(folder).items():
        assert tensor.equal(last[name]) or name.endswith("quantiles"), name  # those are refined for the tables


def test_reconstructions_match_their_originals_by_number(finished: tuple[Path, str], coco224: Path) -> None:
    from coco224.dataset import open_split

    folder = finished[0] / "recon"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["e002", "e004", "origin", "pre"]
    validation = open_split(coco224, "validation")
    assert validation
    zero = np.zeros(4, np.int32)
    pixels = validation.read(np.arange(4), zero, zero, 224)
    psnrs = []
    for each in folder.iterdir():
        if each.is_dir():
            assert sorted(path.name for path in each.iterdir()) == [f"{i:05d}.png" for i in range(4)]
    for i in range(4):
        origin, decoded = (np.array(Image.open(folder / part / f"{i:05d}.png")) for part in ("origin", "e004"))
        assert (origin == pixels[i]).all()
        psnrs.append(10 * np.log10(255**2 / np.mean((origin.astype(float) - decoded) ** 2)))
    assert fmean(psnrs) == pytest.approx(rows(finished[0], "validation")[-1]["psnr"], abs=1e-3)
    before, after = (np.array(Image.open(folder / part / "00000.png")) for part in ("pre", "e004"))
    assert (before != after).any()


def test_the_first_of_the_next_commands_gives_the_figures_that_training_saw(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    from codec.evaluate import main

    folder, said = finished
    command = shlex.split(said.partition("next        python -m codec.evaluate")[2].splitlines()[0])
    assert main([*command, "--json", str(tmp_path / "out.json")]) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    metrics = load_codec(folder / "best_rd.safetensors")[1].metrics
    for theirs, ours in (("psnr-rgb", "psnr"), ("ms-ssim-rgb", "ms_ssim"), ("bpp-estimated", "bpp_estimated")):
        assert results[theirs] == [pytest.approx(metrics[ours], rel=1e-5)]


def test_the_next_commands_run_as_printed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: Hub
) -> None:
    """With a COCO root, a block of one's own, int8 after QAT, and a space in a folder's name."""
    for split, names in (("train2017", ("astronaut", "chelsea")), ("val2017", ("coffee",))):
        (tmp_path / "my coco" / split).mkdir(parents=True)
        for name in names:
            shutil.copy(photographs / f"{name}.png", tmp_path / "my coco" / split)
    (tmp_path / "my_blocks.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    words = ["--coco_dir", "my coco", "--use_prepared", "false", *SMALL, "--batch_size", 2, "--plugin", "my_blocks.py"]
    words += ["--act", "myact", "--replace_parts", "all", "--qat", "true", "--qat_scope", "all"]
    phases = ["--qat_calib_steps", 1, "--qat_freeze_after", 2, "--max_steps", 3]
    assert train(*words, *phases, *into(Path("my run"))) == 0
    said = capsys.readouterr().err.partition("next  ")[2].strip().splitlines()
    commands = [shlex.split(line) for line in said]
    assert [command[:3] for command in commands] == [
        ["python", "-m", module] for module in ("codec.evaluate", "export", "export", "codec.push")
    ]
    for command in commands:
        module = import_module({"export": "export.__main__"}.get(command[2], command[2]))
        assert not module.main([word.replace("USER", USER) for word in command[3:]])
    assert capsys.readouterr().out.count("convolutions run in int8") == 2
    assert {"report.html", "rd.png"} <= {path.name for path in (tmp_path / "my run").iterdir()}
    assert "(rd.png)" in hub.files(f"models/{USER}/NAME")["README.md"].decode()
    assert hub.files(f"models/{USER}/NAME")["my_blocks.py"].decode() == PLUGIN


def test_the_saved_configuration_is_the_run(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--config", finished[0] / "config.yaml") == 0
    assert "finished    all 11 steps are done" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_written(name: str, coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "my_blocks.py"
    plugin.write_text(PLUGIN)
    recipe = [*FIRST.split(), *RECIPES[name].format(plugin=plugin).split()]
    assert train("--coco_dir", coco224, *recipe, *SMALL, *into(tmp_path), "--max_steps", 3) == 0
    codec, description = load_codec(tmp_path / "last.safetensors")
    act, parts = description.options["act"], description.options["replace_parts"]
    assert codec.architecture.g_a.name == act
    assert codec.architecture.g_s.name == (act if parts == "all" else "gdn")
    assert description.step == 3
    assert np.isfinite(list(description.metrics.values())).all()
    if name == "own block":
        assert codec.architecture.g_s.options == {"myact_scale": 0.5}
        assert codec.g_a[1].scale.mean() != 0.5  # it trains
    assert {path.name for path in (tmp_path / "recon").iterdir()} > {"origin", "pre", "e001"}


def test_evaluations_and_reconstructions_can_be_turned_off(coco224: Path, tmp_path: Path) -> None:
    assert train("--coco_dir", coco224, *TINY, *into(tmp_path), "--epochs", 1) == 0
    assert rows(tmp_path, "validation") == []
    assert not list(tmp_path.glob("best_*"))
    assert not (tmp_path / "recon").exists()
    assert load_codec(tmp_path / "last.safetensors")[1].metrics == {}


def test_without_validation_a_run_says_so_at_the_start_and_has_no_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "coco224"
    made = run("-m", "coco224.prepare", "--coco_dir", "sample", "--out_dir", data, "--include_val", "false")
    assert made.returncode == 0, made.stderr
    words = ("--coco_dir", data, *TINY, "--eval_every", 1, "--recon_every", 1, "--recon_count", 2)
    assert train(*words, *into(tmp_path / "run"), "--max_steps", 2) == 0
    said = capsys.readouterr().err
    assert "validation  none in this dataset: no evaluation and no best_* files" in said
    assert not list((tmp_path / "run").glob("best_*"))
    assert len(list((tmp_path / "run" / "recon" / "e001").iterdir())) == 2  # of training pictures
    ending = said.partition("next  ")[2]
    assert f"--images /path/to/pictures --checkpoint {tmp_path}/run/last.safetensors " in ending


def test_two_ranks_then_one_then_two_nodes_train_the_codec_of_one_process(coco224: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", coco224, *TINY, "--eval_every", 1]
    done = launch("train_accel.py", *words, *into(tmp_path / "two"), "--batch_size", 4, "--max_steps", 6)
    assert done.returncode == 0, done.stderr
    assert "4 x 1 accumulated x 2 processes = 8; 6 steps per epoch, 6 in all" in done.stderr
    assert train(*words, *into(tmp_path / "one"), "--max_steps", 6) == 0
    one, two = ([row["psnr"] for row in rows(tmp_path / run, "validation")] for run in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-4)
    assert [row["step"] for row in rows(tmp_path / "two", "train")] == [1, 2, 3, 4, 5, 6]

    assert train(*words, *into(tmp_path / "one"), "--max_steps", 10) == 0
    assert train(*words, *into(tmp_path / "two"), "--batch_size", 4, "--max_steps", 10) == 0
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < ROUNDING

    assert train(*words, *into(tmp_path / "one"), "--max_steps", 13) == 0
    launch_nodes("train_accel.py", *words, *into(tmp_path / "two"), "--batch_size", 4, "--max_steps", 13)
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < ROUNDING
    assert [row["step"] for row in rows(tmp_path / "two", "train")] == list(range(1, 14))


@pytest.mark.parametrize("configuration", ["cpu", "one_gpu"])
def test_one_process_under_the_launcher_is_one_without(configuration: str, coco224: Path, tmp_path: Path) -> None:
    words = ["train_accel.py", "--coco_dir", coco224, *TINY, "--max_steps", 2]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / f"accelerate_configs/{configuration}.yaml"]
    done = run(*launcher, *words, *into(tmp_path / "launched"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert train(*words[1:], *into(tmp_path / "plain")) == 0
    assert same(weights(tmp_path / "launched"), weights(tmp_path / "plain"))


def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_weights(coco224: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", coco224, *TINY, "--epochs", 100, "--max_steps", 400, "--eval_every", 1]
    process = Program("train_accel.py", *words, *into(tmp_path / "stopped"))
    record = tmp_path / "stopped" / "metrics.jsonl"
    while not (record.exists() and '"step": 3' in record.read_text()):
        assert process.is_alive(), process.said()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    done = process.finish(60)
    said = done.stderr
    assert done.returncode == 75
    stopped = int(states(tmp_path / "stopped")[-1].name[-8:])
    assert 3 <= stopped < 400
    assert f"stopped by a signal at step {stopped}; the same command continues from there" in said
    assert "Traceback" not in said

    end = ["--max_steps", stopped + 4]
    assert train(*words, *into(tmp_path / "stopped"), *end) == 0
    assert train(*words, *into(tmp_path / "undisturbed"), *end) == 0
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "undisturbed"))
    assert [row["step"] for row in rows(tmp_path / "stopped", "train")] == list(range(1, stopped + 5))


def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(coco224: Path, tmp_path: Path) -> None:
    """Whatever the reason (tests/training has them all): found in the options, or once the data was open."""
    unprepared = run("train_accel.py", *TINY, *into(tmp_path / "run"))
    assert unprepared.returncode == 2
    assert len(unprepared.stderr.splitlines()) == 1
    assert unprepared.stderr.startswith("error: --coco_dir is required")
    large = run("train_accel.py", "--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--batch_size", 55)
    assert large.returncode == 2
    assert errors(large.stderr) == [
        "error: a batch of 55 is larger than the dataset of 54 rows: lower --batch_size or --grad_accum"
    ]
    assert unprepared.stdout == large.stdout == ""
    assert not (tmp_path / "run").exists()
