"""The copy of the codec that a run evaluates and saves."""

from pathlib import Path

import pytest
from programs import TINY, into, same

from training.options import parse
from training.run import Run
from training.setup import set_up
from training.state import model_tensors

pytestmark = pytest.mark.slow


@pytest.fixture
def run(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Of a quantized codec; its copy gets no new tables, which are built on the host."""
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path), "--arch", "bmshj2018_hyperprior"]
    words += ["--qat", "true", "--qat_calib_steps", 2, "--qat_freeze_after", 4]
    run = set_up(parse([str(word) for word in words]))
    monkeypatch.setattr(type(run.eval_codec), "refresh_tables", lambda codec: None)
    return run


def test_the_copy_is_equal_and_stays_as_it_is_while_the_codec_trains(run: Run) -> None:
    weight = next(run.codec.g_a.parameters())
    for _ in range(2):
        weight.data.add_(1)
        shipped = run.shipped()
        assert same(model_tensors(run.codec), model_tensors(shipped))
    weight.data.add_(1)
    assert not same(model_tensors(run.codec), model_tensors(shipped))


def test_weights_are_copied_on_their_device(run: Run) -> None:
    """Tensors without data cannot go to the host."""
    for codec in (run.codec, run.eval_codec):
        codec.to("meta")
    assert next(run.shipped().g_a.parameters()).is_meta
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model_tensors(run.codec)
