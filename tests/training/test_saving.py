"""What a rank copies to host memory for a checkpoint."""

import contextlib
from pathlib import Path

import pytest
from accelerate import Accelerator
from programs import TINY, into
from torch import Tensor

import train_accel
import training.saving
import training.state
from training.options import parse
from training.preempt import StopSignal
from training.record import Record
from training.saving import save
from training.setup import set_up
from training.state import host

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("main", "sharded"), [(True, False), (False, False), (False, True)])
def test_the_optimizer_is_copied_by_the_rank_that_writes_and_by_all_that_hold_a_part_of_it(
    main: bool, sharded: bool, coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = set_up(parse([str(word) for word in ("--coco_dir", coco224, *TINY, *into(tmp_path / "run"))]))
    train_accel.optimizer_step(run, StopSignal())
    run.progress.step += 1
    copied: list[Tensor] = []

    def counted(tensor: Tensor) -> Tensor:
        copied.append(tensor)
        return host(tensor)

    monkeypatch.setattr(Accelerator, "is_main_process", main)
    monkeypatch.setattr(training.saving, "is_sharded", lambda accelerator: sharded)
    monkeypatch.setattr(training.state, "host", counted)
    shipped = run.shipped()
    copied.clear()  # of the weights that it ships
    record = Record(run.accelerator, run.options, run.total, run.progress, run.data.batches.global_batch)
    with contextlib.closing(record):
        save(run, record, shipped)
    moments = [value for values in run.optimizer.state.values() for value in values.values()]
    assert moments
    ids = {id(tensor) for tensor in copied}
    assert {id(moment) in ids for moment in moments} == {main or sharded}
    assert bool(copied) == (main or sharded)
