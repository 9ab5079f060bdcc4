"""The recipes train, shortened by --max_steps, --N/--M and, where there are some, the steps of distilling and QAT."""

from pathlib import Path

import pytest
import yaml
from programs import ROOT, into, rows, train
from rates import rated

from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH, Architecture
from codec.network.architectures import new_codec
from codec.network.tables import with_tables

pytestmark = pytest.mark.slow

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
TRAINED = [path for path in RECIPES if path.parent.name != "rd_curve" or path.stem in ("q1", "q8")]
"""All, but of the curve its ends: another test says that its recipes differ in quality and lambda alone."""

ROWS = 54
"""Of the dataset; a recipe for a large GPU has a larger batch."""

# What CompressAI's published models were trained with, by quality.
LAMBDAS = {1: 0.0018, 2: 0.0035, 3: 0.0067, 4: 0.013, 5: 0.025, 6: 0.0483, 7: 0.0932, 8: 0.18}
SAID_OTHERWISE = {
    *("coco_dir", "save_dir", "recon_dir", "N", "M", "distill_steps", "qat_calib_steps", "qat_freeze_after"),
    *("init_checkpoint", "input_size", "max_steps"),
}


@pytest.fixture(scope="module")
def small_codecs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of GDN codecs: in the place of the zoo's and of the embedded one, for recipes that start from one."""
    folder = tmp_path_factory.mktemp("codecs")
    for arch in ARCHITECTURES:
        save_codec(
            folder / f"{arch}.safetensors", with_tables(new_codec(Architecture(8, 12, arch=arch))), Description()
        )
    save_codec(folder / "sample.safetensors", with_tables(rated("bmshj2018_hyperprior")), Description())
    return folder


@pytest.mark.parametrize("recipe", TRAINED, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_recipe_trains(
    recipe: Path, coco224: Path, tmp_path: Path, small_codecs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.klt.FIT_STEPS", 20)
    written = yaml.safe_load(recipe.read_text())
    size = 64 if written["loss_type"] == "mse" else 176
    words = ["--config", recipe, "--coco_dir", coco224, *into(tmp_path), "--max_steps", 3, "--input_size", size]
    words += ["--qat_calib_steps", 1, "--qat_freeze_after", 2] if written.get("qat") else []
    too_large = written["batch_size"] > ROWS
    words += ["--batch_size", 16] if too_large else []
    if written.get("distill_steps"):
        name = written.get("init_checkpoint") or written.get("arch", DEFAULT_ARCH)
        words += ["--init_checkpoint", small_codecs / f"{name}.safetensors", "--distill_steps", 2]
    else:
        words += ["--pretrained", "false", "--N", 8, "--M", 12]
    assert train(*words) == 0
    _, description = load_codec(tmp_path / "last.safetensors")
    assert description.step == 3
    otherwise = SAID_OTHERWISE | {"batch_size"} if too_large else SAID_OTHERWISE
    expected = {name: value for name, value in written.items() if name not in otherwise}
    assert expected.items() <= description.options.items()
    assert len(rows(tmp_path, "validation")) == (1 if written.get("eval_every", 1) else 0)


def test_the_recipes_of_the_curve_differ_in_quality_and_lambda_alone() -> None:
    curve = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES if path.parent.name == "rd_curve"}
    lambdas = {name: recipe.pop("lambda_mse") for name, recipe in curve.items()}
    assert lambdas == {f"q{quality}": value for quality, value in LAMBDAS.items()}
    for name, recipe in curve.items():
        assert recipe.pop("save_dir") == f"runs/rd_curve/{name}"
        assert recipe.pop("recon_dir") == f"runs/rd_curve/{name}/recon"
        assert f"q{recipe.pop('quality')}" == name
    assert len({str(recipe) for recipe in curve.values()}) == 1


def test_the_recipe_for_large_gpus_differs_in_its_batch_and_what_goes_with_it() -> None:
    """A learning rate that grows with the square root of the batch, and a warm-up."""
    small, large = (
        yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text()) for name in ("relu_mlp_rd", "large_gpu")
    )
    assert large["lr"] == pytest.approx(small["lr"] * (large["batch_size"] / small["batch_size"]) ** 0.5)
    assert large == {**small, "batch_size": 64, "lr": large["lr"], "lr_warmup_steps": 500}
