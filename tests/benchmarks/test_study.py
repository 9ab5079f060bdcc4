"""The study's order of runs, what it reads out of them, and its blocks."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rates import RATES, rated
from torch import Tensor

from benchmarks import starts
from benchmarks.study import architectures, int8, rates
from benchmarks.study.plan import BUDGETS, PLUGIN, WITHOUT_MAP, Study
from benchmarks.study.run import run
from benchmarks.study.summary import bd_rates, draw, int8_row, percent, tables_row, verdicts
from codec.blocks import block_named, load_plugin, make_options
from codec.description.architecture import ARCHITECTURES, Architecture
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys

WORSE = {"relu": 1.2, "gate": 0.9}
"""How much larger than GDN's a block's files are, at the same PSNR."""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study whose runs have all been made up: the figures depend on the lambda and the block alone."""
    return made_up(Study(BUDGETS["smoke"], tmp_path, tmp_path / "coco224"))


def made_up(study: Study, size: float = 1.0) -> Study:
    """The study with figures of runs that never ran; `size` scales all files."""
    done: set[str] = set()
    for stage in study.stages():
        for job in stage:
            assert job.start is None or job.start in done, f"{job.name} starts from a run that comes later"
            act = job.name.partition("-")[0]
            bpp = 10 * job.lambda_mse * WORSE.get(act, 1.0) * (1.005 if job.name.endswith("int8") else 1.0) * size
            row = {"psnr": 28 + 100 * job.lambda_mse, "ms_ssim": 0.9, "bpp": bpp, "bpp_estimated": bpp / 1.002}
            (study.folder / job.name).mkdir(exist_ok=True, parents=True)
            (study.folder / job.name / "figures.json").write_text(json.dumps([row, row]))
        done |= {job.name for job in stage}
    return study


def test_a_finished_study_has_nothing_to_run(study: Study) -> None:
    assert run(study, "nowhere", deadline=0.0)


def test_blocks_are_held_against_the_baseline_at_equal_lambda(study: Study) -> None:
    assert percent(study, ("gdn", ""), ("gdn", "")) == [0, 0]
    assert bd_rates(study, ("relu", ""), ("gdn", "")) == [pytest.approx(20, abs=0.02)] * 2
    assert int8_row(study, "gate").value == pytest.approx(0.5, abs=0.02)
    best, worst, relu, swap, int8 = verdicts(study)
    assert "gate, the best" in best.what
    assert "(relu)" in relu.what
    assert best.value <= worst.value < 0
    assert int8.value < 0 < relu.value
    assert swap.value == 0
    assert tables_row(study).value == pytest.approx(0.2)


def test_architectures_are_held_against_the_factorized_codec(tmp_path: Path) -> None:
    found = architectures.studies(tmp_path, tmp_path / "coco224")
    for study, size in zip(found.values(), (1.0, 0.8, 0.7), strict=True):
        made_up(study, size)
    factorized, hyperprior, mean_scale = found.values()
    assert architectures.architecture_row(hyperprior, factorized).value == pytest.approx(-20)
    assert architectures.architecture_row(mean_scale, factorized).value == pytest.approx(-30)
    assert architectures.architecture_row(hyperprior, factorized).met
    assert architectures.block_row(hyperprior, "gate").value == pytest.approx(-10)
    assert architectures.int8_row(mean_scale, "gate_mlp").value == pytest.approx(0.5, abs=0.01)


def test_int8_is_held_against_float_on_the_curve_of_all_rates(tmp_path: Path) -> None:
    study = int8.Int8Study(int8.BUDGET, tmp_path, tmp_path / "coco224", "bmshj2018_hyperprior")
    larger = {"int8": 1.01, "quantized": 1.03}
    assert study.codec() is None
    for stage in study.stages():
        for job in stage:
            assert job.start == "gdn-start" or study.figures(str(job.start))
            act, _, way = job.name.split("-") if job.name.count("-") == 2 else (*job.name.split("-"), "")
            size = WORSE.get(act, 1.0) * larger.get(way, 1.0)
            rows = [
                {"psnr": 28 + rate, "ms_ssim": 0.9, "bpp": 0.1 * size * (1 + rate), "rate": rate}
                for rate in (0, 1, 2)
                for _ in range(2)
            ]
            (tmp_path / job.name).mkdir()
            (tmp_path / job.name / "figures.json").write_text(json.dumps(rows))
    found = {row.what: row for row in study.rows()}
    name = "bmshj2018_hyperprior, {}: BD-rate of int8 {} against float"
    assert found[name.format("gate", "after 400 steps")].value == pytest.approx(1)
    assert found[name.format("gate", "without training")].value == pytest.approx(3)
    assert not found[name.format("gate", "without training")].met
    best = found["bmshj2018_hyperprior, gate in int8: BD-rate against GDN in float after the same steps"]
    assert best.value == pytest.approx(-9.1)
    assert study.codec() == tmp_path / "gate-seed0-int8" / "last.safetensors"
    assert best.at_most == -2


def test_a_start_is_held_against_the_other(tmp_path: Path) -> None:
    study = Study(BUDGETS["smoke"], tmp_path, tmp_path / "coco224")
    for job, bpp in zip(starts.jobs(study.budget), (0.5, 0.4), strict=True):
        (tmp_path / job.name).mkdir()
        (tmp_path / job.name / "figures.json").write_text(json.dumps([{"psnr": 100.0, "bpp": bpp}]))
    assert starts.row(study).value == pytest.approx(-20, abs=0.01)


def test_the_plot_of_a_finished_study_is_a_picture(study: Study, tmp_path: Path) -> None:
    draw(study, {"gdn": 360.0, "relu": 142.0, "gate": 170.0}, tmp_path / "plot.png")
    assert min(Image.open(tmp_path / "plot.png").size) > 400


@pytest.mark.parametrize("act", ["linear", "shelf", "gate_grouped", "gate_pieces", "gate_local"])
def test_a_block_of_the_study_learns_a_gdn_in_closed_form(act: str, picture: Tensor) -> None:
    load_plugin(PLUGIN)
    assert act not in WITHOUT_MAP
    torch.manual_seed(0)
    gdn_codec = new_codec(Architecture(16, 24))
    with torch.no_grad():
        gdn_codec.g_a[1].gamma.add_(0.2)
        x = 20 * gdn_codec.g_a[0](picture[..., :256, :256])
        y = gdn_codec.g_a[1](x)
        block = block_named(act).encoder(16, make_options(act, {}))
        before = (block(x) - y).square().mean()
        block.fit(x, y)
        after = (block(x) - y).square().mean()
    assert after < before


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("number", [0, RATES - 1])
def test_a_codec_of_one_rate_begins_with_the_bits_and_the_picture_of_the_codec_of_several(
    arch: str, number: int, picture: Tensor
) -> None:
    codec = rated(arch).train()
    alone = rates.at_one_rate(codec, number)
    assert alone.architecture.rates == 1
    x, keys = picture[..., :128, :128], noise_keys(0, 0, torch.arange(1))
    ours, theirs = alone(x, keys), codec(x, keys, rates=torch.tensor([number / (RATES - 1)]))
    for latent, likelihoods in theirs["likelihoods"].items():
        bits = likelihoods.log2().sum().item()
        bound = 1e-4 if latent == "z" else 0.01  # with several rates h_s is given z rounded, with one z and noise
        assert ours["likelihoods"][latent].log2().sum().item() == pytest.approx(bits, rel=bound), latent
    torch.testing.assert_close(alone.g_s(alone.g_a(x)), codec.g_s(codec.g_a(x)), rtol=0, atol=1e-4)
