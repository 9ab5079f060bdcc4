"""Training that uploads its checkpoints: what the Hub does never stops it, and what is missing goes up later."""

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Hub, point_at
from programs import TINY, into, rows, run, run_ranks, same, train

import codec
from codec.checkpoint import load_codec
from codec.errors import InputError
from codec.hub.repository import repository_files
from training.reporting import ReportingOptions
from training.uploads import Uploads

STEPS = 6
PUSH = ["--push_to_hub", "true", "--hub_model_id", "alice/codec", "--max_steps", STEPS, "--checkpoint_every", 3]


@pytest.fixture
def words(coco224: Path, tmp_path: Path) -> list[object]:
    """A little run that pushes."""
    return ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), *PUSH]


def completing_command(said: str) -> list[str]:
    """The words that the end of a run gives for what the Hub lacks."""
    return shlex.split(said.partition("complete it with: python ")[2].splitlines()[0])


def test_a_run_uploads_its_checkpoints_its_card_and_its_record(
    hub: Hub, words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*words, "--eval_every", 1, "--recon_every", 1, "--hub_private", "true") == 0
    assert "alice/codec has last.safetensors and the record" in capsys.readouterr().err
    assert hub.repositories["models/alice/codec"].private
    files = hub.files("models/alice/codec")
    for name in ("metrics.jsonl", "curves.png", "rd.png", "summary.json", "reconstructions.png"):
        assert files[name] == (tmp_path / "run" / name).read_bytes(), name
    commands = [text.splitlines()[0] for text in (files["config.yaml"], (tmp_path / "run/config.yaml").read_bytes())]
    assert commands[0] == commands[1]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    card = files["README.md"].decode()
    assert "accelerate launch train_accel.py" in card
    assert "(reconstructions.png)" in card
    assert str(tmp_path) not in card
    back = codec.from_pretrained("alice/codec")
    last, description = load_codec(tmp_path / "run" / "last.safetensors")
    assert same(back.state_dict(), last.state_dict())
    names = {name: Path(str(description.options[name])).name for name in ("coco_dir", "save_dir", "recon_dir")}
    options = {name: value for name, value in description.options.items() if name not in ("run_name", "wandb_project")}
    assert back.description == replace(description, options=options | names)
    assert description.metrics.keys() >= {"psnr", "bpp_estimated"}


@pytest.mark.parametrize("token", ["hf_stranger", ""])
def test_a_wrong_or_missing_token_is_refused_before_anything_is_loaded(
    hub: Hub, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"--hub_model_id alice/codec.*token"):
        train(*words, "--coco_dir", "/nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "trouble"),
    [("commit/main", {"status": 403}), ("PUT /lfs", {"delay": 120}), ("whoami", {"status": 500})],
    ids=["refused", "hangs", "down"],
)
def test_a_hub_that_fails_neither_stops_training_nor_its_end(
    hub: Hub,
    words: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    trouble: dict[str, int],
) -> None:
    monkeypatch.setattr("training.summary.PATIENCE", 4)
    hub.trouble(place, **trouble)
    assert train(*words) == 0
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == list(range(1, STEPS + 1))
    said = capsys.readouterr().err
    assert "alice/codec lacks the last upload" in said
    if trouble.get("status") == 403:
        assert "the Hub refuses the upload to alice/codec" in said
        assert "403" in said
    hub.troubles.clear()
    done = run(*completing_command(said), HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    last, _ = load_codec(tmp_path / "run" / "last.safetensors")
    assert same(codec.from_pretrained("alice/codec").state_dict(), last.state_dict())


def test_a_hub_that_dies_during_an_upload_gets_the_rest_from_the_same_command(
    hub: Hub, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.summary.PATIENCE", 6)
    hub.trouble("PUT /lfs", die=True)
    assert train(*words) == 0
    assert hub.count("PUT /lfs") >= 1
    assert "alice/codec lacks the last upload" in capsys.readouterr().err
    with Hub() as again:
        again.repositories, again.objects = hub.repositories, hub.objects
        assert "model.safetensors" not in again.files("models/alice/codec")
        point_at(again, tmp_path / "hf", monkeypatch)
        monkeypatch.setattr("training.summary.PATIENCE", 60)
        assert train(*words) == 0  # the run is finished: only the upload is left
        assert "alice/codec has last.safetensors" in capsys.readouterr().err
        last, _ = load_codec(tmp_path / "run" / "last.safetensors")
        assert same(codec.from_pretrained("alice/codec").state_dict(), last.state_dict())


def test_uploads_that_nobody_waits_for_end_while_the_hub_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails closes them: their thread would go on for as long as the Hub is down, and Python with it."""
    said: list[str] = []
    options = ReportingOptions(push_to_hub=True, hub_model_id="alice/codec")
    uploads = Uploads(tmp_path / "last.safetensors", options, said.append, None)
    monkeypatch.setattr(uploads, "_push", lambda: (os.EX_TEMPFAIL, "the Hub is down"))
    uploads.request()
    while not said:
        time.sleep(0.01)
    uploads.abandon()
    assert uploads._last
    assert uploads._last.result(timeout=30) is False


def test_of_two_ranks_one_uploads(hub: Hub, coco224: Path, tmp_path: Path) -> None:
    tiny = [*TINY, "--batch_size", 4]
    done = run_ranks("train_accel.py", "--coco_dir", coco224, *tiny, *into(tmp_path / "run"), *PUSH, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("alice/codec has last.safetensors") == 1
    last, _ = load_codec(tmp_path / "run" / "last.safetensors")
    assert same(codec.from_pretrained("alice/codec").state_dict(), last.state_dict())
    assert hub.count("GET /api/whoami-v2") == 1 + hub.count("POST /api/models/alice/codec/preupload")


def test_runs_that_share_a_folder_of_reconstructions_upload_their_own(coco224: Path, tmp_path: Path) -> None:
    for name, more in (("a", []), ("b", ["--seed", 1, "--epochs", 2])):
        words = ["--coco_dir", coco224, *TINY, "--save_dir", tmp_path / name, "--recon_dir", tmp_path / "recon"]
        assert train(*words, "--batch_size", 27, "--recon_every", 1, "--epochs", 1, *more) == 0
    for name, epoch in (("a", 1), ("b", 2)):
        uploaded = repository_files(tmp_path / name / "last.safetensors", "alice/codec").files["reconstructions.png"]
        assert uploaded == (tmp_path / name / "reconstructions.png").read_bytes()
        assert (uploaded == (tmp_path / "recon" / f"e{epoch:03d}.png").read_bytes()) == (name == "b")
