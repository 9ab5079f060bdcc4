"""The list `then` of a recipe, run with a tiny codec: order, resumption, what is skipped, and what is refused."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from programs import TINY

import codec_pipeline
from codec.errors import InputError
from codec_pipeline import Step, execute, main, steps
from training.recipe import read, read_then

RECIPE = """\
act: relu
save_dir: {folder}/run
recon_dir: {folder}/recon
max_steps: 2
then:
  - evaluate:
      coco_dir: {data}
      json: {folder}/run/figures.json
  - export:
      part: encoder
      out: {folder}/run/enc.onnx
      input_size: 64
  - report: {{calib_dir: {pictures}, input_size: 64, rounds: 1, json: {folder}/run/report.json}}
"""

PLUGIN = """\
from torch import nn
from codec.blocks import register_activation

@register_activation("mine")
class Mine:
    @staticmethod
    def encoder(channels, options): return nn.ReLU()
    decoder = encoder
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    (tmp_path / "photos").mkdir()
    path.write_text(RECIPE.format(folder=tmp_path, data="coco224", pictures=tmp_path / "photos"))
    return path


def refusal(recipe: Path, text: str) -> str:
    recipe.write_text(text)
    with pytest.raises(InputError) as caught:
        steps(str(recipe), ["python"], ["--coco_dir", "coco224"])
    return str(caught.value)


def test_the_list_is_read_and_the_training_does_not_see_it(recipe: Path) -> None:
    assert "then" not in read(str(recipe))
    names = [name for name, _ in read_then(str(recipe))]
    assert names == ["evaluate", "export", "report"]
    assert read_then(str(recipe))[1][1]["input_size"] == 64
    recipe.write_text("act: relu\nthen:\n  - report\n  - push:\n")
    assert read_then(str(recipe)) == [("report", {}), ("push", {})]
    recipe.write_text("act: relu\n")
    assert read_then(str(recipe)) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("then: evaluate\n", "then is not a list"),
        ("then:\n  - [evaluate]\n", "neither a name nor a name with options"),
        ("then:\n  - evaluate: 3\n", "evaluate: write `then:`"),
        ("then:\n  - evaluate: {}\n    export: {}\n", "more than one command in a step"),
        ("then:\n  - train\n", "train: no such command; use one of evaluate, export"),
        ("then:\n  - export: {part: middle}\n", "export: --part: invalid choice"),
        ("then:\n  - export: {part: encoder}\n", "export: out is required"),
        ("then:\n  - export: {part: encoder, out: enc.txt}\n", "export: --out enc.txt: give a file name that ends"),
        ("then:\n  - push: {hub_model_id: 'bad name!!'}\n", "push: --hub_model_id 'bad name!!' is not a repository"),
        ("then:\n  - push: {hub_model_id: a/b, onnx: none}\n", "push: onnx none: no such file or folder"),
        ("then:\n  - evaluate: {json: x.json}\n", "evaluate: give --coco_dir DIR"),
        ("then:\n  - report: {calib_dir: none}\n", "report: calib_dir none: no such file or folder"),
        ("then:\n  - report: {ckpt: none.safetensors}\n", "report: ckpt none.safetensors: no such file or folder"),
        ("then:\n  - evaluate: {images: x, rates: 0}\n", "evaluate: --rates 0"),
        ("then:\n  - npu: {chip: rk3588}\n", "npu: unknown option chip"),
        ("then:\n  - npu: {target: rk9}\n", "invalid choice: 'rk9'"),
        ("act: none\nthen:\n  - report\n", "--act"),
    ],
)
def test_a_bad_list_is_refused_before_anything_runs(recipe: Path, text: str, reason: str) -> None:
    assert reason in refusal(recipe, text)


def test_every_step_gets_the_checkpoint_of_the_run(recipe: Path, tmp_path: Path) -> None:
    train, evaluate, export, report = steps(str(recipe), ["accelerate", "launch"], ["--coco_dir", "coco224"])
    assert train.command[:4] == ["accelerate", "launch", "-m", "train_accel"]
    assert train.command[-2:] == ["--coco_dir", "coco224"]
    assert f"--checkpoint={tmp_path}/run/last.safetensors" in evaluate.command
    assert f"--ckpt={tmp_path}/run/last.safetensors" in export.command
    assert export.outputs == [tmp_path / "run" / "enc.onnx"]
    assert tmp_path / "run" / "last.safetensors" in report.inputs


@pytest.mark.parametrize("step", ["evaluate: {images: tests, ", "report: {", "npu: {target: rk3588, "])
def test_a_recipe_runs_no_code_of_its_steps_unless_it_is_typed(recipe: Path, tmp_path: Path, step: str) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    plugin = str(tmp_path / "mine.py")
    said = refusal(recipe, f"then:\n  - {step}plugin: {plugin}}}\n")
    assert f"names plugin: {plugin}, which runs code: give --plugin {plugin} to allow it" in said
    typed = ["--coco_dir", "coco224", "--plugin", plugin]
    assert f"--plugin={plugin}" in steps(str(recipe), ["python"], typed)[1].command
    if not step.startswith("evaluate"):
        said = refusal(recipe, f"then:\n  - {step}compilers: export}}\n")
        assert "names compilers: export, which runs code: give --compilers export to allow it" in said
        (_, allowed) = steps(str(recipe), ["python"], ["--coco_dir", "coco224"], "export")
        assert "--compilers=export" in allowed.command


def test_where_steps_upload_to_is_said_first(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text("push_to_hub: true\nhub_model_id: some/run\nthen:\n  - push: {hub_model_id: some/codec}\n")
    monkeypatch.setattr(codec_pipeline, "execute", lambda _: 3)
    assert main([str(recipe), "--coco_dir", "coco224"]) == 3
    first = capfd.readouterr().out.splitlines()[0]
    assert first == "steps: train (uploads to some/run), push (uploads to some/codec)"


def fake(folder: Path, name: str, code: str = "", status: int = 0) -> Step:
    """A step that reads the file `in`, and writes a file of its own name."""
    program = f"import sys; open({str(folder / name)!r}, 'w').write({code!r}); sys.exit({status})"
    command = [sys.executable, "-S", "-c", program, f"--json={folder / name}"]
    return Step(name, command, {}, [folder / "in"], [folder / name], folder / "pipeline" / f"{name}.json")


def ran(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *given: Step) -> tuple[int, list[str]]:
    """Exit status and the names of the steps that ran."""
    monkeypatch.setattr(codec_pipeline, "steps", lambda *_: list(given))
    status = main(["recipe.yaml"])
    first, *lines = capfd.readouterr().out.splitlines()
    assert first == f"steps: {', '.join(step.name for step in given)}"
    return status, [line.partition(":")[0] for line in lines if not line.endswith("done before")]


def test_what_is_done_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").touch()
    a, b = fake(tmp_path, "a"), fake(tmp_path, "b")
    assert ran(monkeypatch, capfd, a, b) == (0, ["a", "b"])
    assert ran(monkeypatch, capfd, a, b) == (0, [])
    b.outputs[0].unlink()
    assert ran(monkeypatch, capfd, a, b) == (0, ["b"])
    a = fake(tmp_path, "a", "with another option")
    assert ran(monkeypatch, capfd, a, b) == (0, ["a"])
    later = time.time() + 5
    os.utime(tmp_path / "in", (later, later))
    assert ran(monkeypatch, capfd, a, b) == (0, ["a", "b"])


def test_a_step_that_fails_stops_the_others_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a, bad, c = fake(tmp_path, "a"), fake(tmp_path, "b", status=3), fake(tmp_path, "c")
    assert ran(monkeypatch, capfd, a, bad, c) == (3, ["a", "b"])
    assert ran(monkeypatch, capfd, a, fake(tmp_path, "b"), c) == (0, ["b", "c"])


def test_two_steps_of_one_file_and_a_launcher_of_no_words_are_refused(recipe: Path, tmp_path: Path) -> None:
    export = f"  - export: {{part: encoder, out: {tmp_path}/e.onnx, input_size: 64}}\n"
    recipe.write_text(f"save_dir: {tmp_path}/run\nthen:\n{export}{export}")
    words = [str(recipe), "--coco_dir", "coco224"]
    with pytest.raises(InputError, match=r"two steps write .*e\.onnx: name another"):
        main(words)
    for launcher, says in (("", "--launcher is empty"), ("accel 'x", "--launcher accel 'x: No closing quotation")):
        with pytest.raises(InputError, match=says):
            main([*words, "--launcher", launcher])
    recipe.write_text(f"save_dir: {tmp_path}/run\nthen:\n{export}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pipeline").touch()
    with pytest.raises(InputError, match="pipeline is no folder"):
        main(words)


def test_a_file_that_no_earlier_call_wrote_is_not_replaced(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codec_pipeline, "execute", lambda _: pytest.fail("something ran"))
    figures = tmp_path / "run" / "figures.json"
    figures.parent.mkdir()
    figures.write_text("mine")
    with pytest.raises(InputError, match=r"then: evaluate writes .*figures\.json, which is there already: move it"):
        main([str(recipe), "--coco_dir", "coco224"])

    def killed(command: list[str]) -> int:
        figures.write_text("of evaluate")
        return 137 if "codec.evaluate" in command else 0

    figures.unlink()
    monkeypatch.setattr(codec_pipeline, "execute", killed)
    assert main([str(recipe), "--coco_dir", "coco224"]) == 137
    (tmp_path / "run" / "pipeline" / "0-train.json").write_text("damaged")
    assert main([str(recipe), "--coco_dir", "coco224"]) == 137
    assert "evaluate ended with status 137" in capfd.readouterr().err


@pytest.mark.slow
def test_a_recipe_trains_evaluates_and_exports(
    coco224: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.format(folder=tmp_path, data=coco224, pictures="none")
    recipe.write_text(text[: text.index("  - report")])
    words = [str(recipe), "--coco_dir", str(coco224), *TINY]
    assert main(words) == 0
    assert (tmp_path / "run" / "figures.json").exists()
    assert (tmp_path / "run" / "enc.tables").exists()
    capfd.readouterr()
    assert main(words) == 0
    done = [f"{name}: done before" for name in ("train", "evaluate", "export")]
    assert capfd.readouterr().out.splitlines() == ["steps: train, evaluate, export", *done]


def test_a_signal_goes_to_the_command_whose_status_is_kept(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        f"open({str(ready)!r}, 'w'); time.sleep(60)"
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    assert execute([sys.executable, "-S", "-c", program]) == 75
    sender.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_its_help_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "RECIPE.yaml" in capsys.readouterr().out
