"""The local record."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from training import record as recording
from training.options import parse
from training.preempt import StopSignal
from training.record import Record, append_json_line, json_lines, keep_rows_up_to
from training.state import Progress


def test_rows_hold_only_numbers_that_json_has(tmp_path: Path) -> None:
    append_json_line(tmp_path / "rows.jsonl", {"step": 1, "loss": float("nan"), "bpp": 0.5, "psnr": float("inf")})
    assert (tmp_path / "rows.jsonl").read_text() == '{"step": 1, "bpp": 0.5}\n'


def test_a_torn_last_row_is_passed_over_and_its_step_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    assert list(json_lines(file)) == [{"kind": "train", "step": 1}]
    keep_rows_up_to(file, Progress(step=1))
    append_json_line(file, {"kind": "train", "step": 2})
    assert [row["step"] for row in json_lines(file)] == [1, 2]
    assert file.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "damaged",
    [
        *(b'{"kind": "train"}', b'"step"', b"17", b'{"kind": "tr\xff', b"", b"[" * 100_000, b"1" * 5000),
        *(b'{"kind": "train", "step": %s}' % step for step in (b'"2"', b"null", b"[2]", b"1.5", b"1" + b"0" * 400)),
        *(b'{"kind": %s, "step": 1}' % kind for kind in (b"[]", b"null", b"{}")),
        *(
            b'{"kind": "train", "step": 1, %s}' % each
            for each in (b'"loss": "high"', b'"ms_ssim": null', b'"bpp": NaN')
        ),
    ],
)
def test_a_damaged_row_is_passed_over(damaged: bytes, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"kind": "train", "step": 1}\n' + damaged + b'\n{"kind": "train", "step": 2}\n')
    assert [row["step"] for row in json_lines(file)] == [1, 2]
    keep_rows_up_to(file, Progress(step=1))
    assert file.read_text() == '{"kind": "train", "step": 1}\n'


def test_an_evaluation_that_will_be_done_again_is_not_in_the_record_twice(tmp_path: Path) -> None:
    """The state of a step may be older than the evaluation at that step."""
    file = tmp_path / "rows.jsonl"
    kept = [("train", 3), ("validation", 3), ("train", 6)]
    lost = [("validation", 6), ("train", 7), ("fault", 7)]
    for kind, step in kept + lost:
        append_json_line(file, {"kind": kind, "step": step})
    keep_rows_up_to(file, Progress(step=6, evaluated=3))
    assert [(row["kind"], row["step"]) for row in json_lines(file)] == kept


def test_curves_are_drawn_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(recording.time, "perf_counter", lambda: now[0])
    record = Record(Accelerator(cpu=True), parse(["--coco_dir", "x", "--save_dir", str(tmp_path)]), 10, Progress(), 8)
    append_json_line(tmp_path / "metrics.jsonl", {"kind": "train", "step": 1, "loss": 0.5})
    curves = tmp_path / "curves.png"
    for seconds, ends_run, drawn in ((29, False, False), (31, False, True), (45, False, False), (46, True, True)):
        curves.unlink(missing_ok=True)
        now[0] = seconds
        record.draw(ends_run)
        record.writer.wait()
        assert curves.exists() == drawn
    record.close()


def test_names_of_a_dataset_do_not_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(["--coco_dir", "x", "--save_dir", str(tmp_path)])
    record = Record(Accelerator(cpu=True), options, 10, Progress(), 8)
    record.fault(3, "g_a.1", ["ordinary.jpg", "\x1b]0;title\x07.jpg"])
    record.say("warning     \x1b[2J")
    record.close()
    said = capsys.readouterr().err
    assert r"pictures: ordinary.jpg, \x1b]0;title\x07.jpg" in said
    assert r"warning     \x1b[2J" in said
    (row,) = json_lines(tmp_path / "metrics.jsonl")
    assert row["files"] == ["ordinary.jpg", "\x1b]0;title\x07.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_first_signal_is_remembered_and_a_second_interrupt_ends_the_process(name: str) -> None:
    from programs import run

    program = f"""
import os, signal
from training.preempt import StopSignal
stop = StopSignal().install()
os.kill(os.getpid(), signal.{name})
print(stop.name, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print(stop.name, flush=True)
if not stop.interrupted:
    os.kill(os.getpid(), signal.SIGINT)
print(stop.name, flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("went on")
"""
    done = run("-c", program)
    assert (done.returncode, done.stdout) == (130, f"{name}\n" * 3)


@pytest.mark.slow
def test_the_signal_handler_needs_nothing_heavy() -> None:
    """It is installed before torch is imported: a signal in those seconds must not be lost."""
    from programs import run

    done = run("-c", "import json, sys, training.preempt; print(json.dumps(list(sys.modules)))")
    assert not {"torch", "numpy", "accelerate", "compressai"} & set(json.loads(done.stdout))
    assert StopSignal().name == ""
