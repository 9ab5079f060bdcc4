"""What the trackers are told, and that none of them stops training."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from programs import TINY, into, rows, train

from training.trackers import Trackers

pytestmark = pytest.mark.slow


def wandb_records(folder: Path) -> list[Any]:
    """The records of a W&B run kept offline, in the order of writing: LevelDB's log framing around protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("run-*.wandb")
    content = file.read_bytes()
    place, whole, records = 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a W&B run kept offline."""
    found = [record.history.item for record in wandb_records(folder) if record.WhichOneof("record_type") == "history"]
    return [{name_of(item): json.loads(item.value_json) for item in row} for row in found]


def name_of(item: Any) -> str:
    """The key of a logged or configured value."""
    return item.key or ".".join(item.nested_key)


def test_tensorboard_gets_the_figures_and_the_options(coco224: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--coco_dir", coco224, *TINY, *into(tmp_path), "--report_to", "tensorboard", "--recon_every", 1]
    assert train(*words, "--max_steps", 3, "--eval_every", 1, "--act", "gdnish") == 0
    (events,) = [path for path in tmp_path.rglob("events.out.tfevents*") if path.parent.name == "npu-image-codec"]
    read = EventAccumulator(str(events)).Reload()
    losses = [(event.step, pytest.approx(event.value)) for event in read.Scalars("train/loss")]
    assert [(row["step"], row["loss"]) for row in rows(tmp_path, "train")] == losses
    assert [event.step for event in read.Scalars("validation/psnr")] == [3]
    assert {"reconstructions", "pairs"} <= {name.partition("/")[0] for name in read.Tags()["images"]}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where W&B keeps its runs, offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return tmp_path / "wandb"


def test_wandb_gets_figures_pictures_and_checkpoints_and_a_resumed_run_goes_on_in_its_run(
    coco224: Path, tmp_path: Path, offline: Path
) -> None:
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--wandb", "true", "--act", "gdnish"]
    words += ["--recon_every", 1, "--eval_every", 1, "--wandb_log_model", "end", "--sched", "none"]
    assert train(*words, "--max_steps", 2) == 0
    (folder,) = offline.glob("offline-run-*")
    records = wandb_records(folder)
    started = next(record.run for record in records if record.HasField("run"))
    assert started.display_name == "gdnish-encoder-mse-N8"
    assert set(started.tags) == {"gdnish", "encoder", "replaced+hyper", "mse", "N8"}
    assert {"lambda_mse", "enc_t"} <= {name_of(item) for record in records for item in record.config.update}
    axes = {
        record.metric.glob_name or record.metric.name: record.metric.step_metric for record in wandb_records(folder)
    }
    assert axes["*"] == "step"
    assert axes["rd/*"] == "rd/bpp"
    logged = history(folder)
    trained = [(row["step"], row["train/loss"]) for row in logged if "train/loss" in row]
    assert trained == [(row["step"], row["loss"]) for row in rows(tmp_path / "run", "train")]
    (point,) = [row for row in logged if "rd/bpp" in row]
    (evaluated,) = rows(tmp_path / "run", "validation")
    assert (point["step"], point["rd/psnr"]) == (2, evaluated["psnr"])
    assert [row["pairs.count"] for row in logged if "pairs.count" in row] == [4, 4]
    assert logged[0]["pairs.captions"][0] == "00000: original | reconstruction"
    assert len([row for row in logged if "reconstructions.path" in row]) == 2
    assert point["rd_plot_table.nrows"] == 1
    assert any("artifact" in str(record) and "last.safetensors" in str(record) for record in records)

    assert train(*words, "--max_steps", 3) == 0
    assert len({path.name.rpartition("-")[2] for path in offline.glob("offline-run-*")}) == 1
    assert len(rows(tmp_path / "run", "train")) == 3


def test_wandb_out_of_reach_records_offline(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"}
    for name, value in (nobody | {"WANDB_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it read the variables when the process first used it
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--wandb", "true", "--max_steps", 2]
    with pytest.warns(UserWarning, match="W&B cannot be reached"):
        assert train(*words) == 0
    wandb.teardown()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert [row["step"] for row in history(folder)] == [1, 2]
    assert len(rows(tmp_path / "run", "train")) == 2


def test_a_tracker_that_fails_never_stops_training(coco224: Path, tmp_path: Path) -> None:
    (tmp_path / "little").write_text("a file where TensorBoard wants its folder")
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path), "--report_to", "tensorboard", "--max_steps", 2]
    words += ["--wandb_project", "little"]
    with pytest.warns(UserWarning, match="tracking stopped, training goes on"):
        assert train(*words) == 0
    assert len(rows(tmp_path, "train")) == 2


def test_files_and_summary_are_written_before_trackers_end_and_the_process_group_last(
    here: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher kills 30 s after a signal; W&B alone may take 60 s to end."""
    done: list[tuple[str, bool]] = []
    monkeypatch.setattr(Trackers, "finish", lambda _: done.append(("trackers", (tmp_path / "summary.json").exists())))
    monkeypatch.setattr(Accelerator, "end_training", lambda _: done.append(("group", True)))
    assert here(tmp_path, "--max_steps", 1) == 0
    assert done == [("trackers", True), ("group", True)]
