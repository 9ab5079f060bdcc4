"""`--compile`: the same training, one graph, and checkpoints that know nothing of it."""

from pathlib import Path

import torch
from programs import TINY, distance, into, launch, rows, train, weights


def test_a_compiled_run_trains_what_the_eager_run_trains_in_one_graph_and_resumes_eagerly(
    coco224: Path, tmp_path: Path
) -> None:
    words = ["--coco_dir", coco224, *TINY, "--act", "relu", "--replace_parts", "all", "--train_scope", "all"]
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # Seven steps are more than an epoch: the last, short batch is dropped, or it would be a second shape.
    assert train(*words, *into(tmp_path / "compiled"), "--compile", "true", "--max_steps", 7, "--eval_every", 1) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2  # the codec's and the loss's
    assert train(*words, *into(tmp_path / "eager"), "--max_steps", 7, "--eval_every", 1) == 0
    assert distance(weights(tmp_path / "eager"), weights(tmp_path / "compiled")) < 1e-4
    assert train(*words, *into(tmp_path / "compiled"), "--compile", "false", "--max_steps", 8) == 0
    assert [row["step"] for row in rows(tmp_path / "compiled", "train")] == list(range(1, 9))


def test_each_phase_of_qat_is_one_more_graph_and_trains_what_the_eager_run_trains(
    coco224: Path, tmp_path: Path
) -> None:
    qat = ["--act", "relu", "--qat", "true", "--qat_calib_steps", 2, "--qat_freeze_after", 4, "--max_steps", 6]
    words = ["--coco_dir", coco224, *TINY, *qat]
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert train(*words, *into(tmp_path / "compiled"), "--compile", "true") == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 4  # three phases and the loss
    assert train(*words, *into(tmp_path / "eager")) == 0
    assert distance(weights(tmp_path / "eager"), weights(tmp_path / "compiled")) < 1e-3


def test_two_compiled_ranks_train_what_one_eager_process_trains(coco224: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", coco224, *TINY, "--act", "relu", "--train_scope", "all", "--max_steps", 3]
    done = launch("train_accel.py", *words, *into(tmp_path / "two"), "--batch_size", 4, "--compile", "true")
    assert done.returncode == 0, done.stderr
    assert train(*words, *into(tmp_path / "one"), "--batch_size", 8) == 0
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4
