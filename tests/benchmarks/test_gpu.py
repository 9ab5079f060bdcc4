"""`make gpu`: the script works, whatever the machine; on a GPU its parts pass."""

import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from programs import run
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.processes import start
from benchmarks.gpu.runner import FAIL, NOT_APPLICABLE, PASS, run_all, run_part
from benchmarks.gpu.setting import NotApplicableError, Setting
from benchmarks.gpu.shares import by_kind, kind_of
from benchmarks.gpu.speed import compile_ahead
from benchmarks.gpu.standins import warning_of_reads
from benchmarks.gpu.waits import waits
from benchmarks.harness import Row
from training.outcome import Reading

SIZED = ("speed-q", "compile-q")
ONCE = [
    part.name
    for part in PARTS
    if not part.name.startswith(SIZED) or part.name in ("compile-q8-relu", "speed-q8-relu-128")
]
"""The parts without those that differ from another by their sizes alone, which a dry run has not."""


@pytest.mark.slow
def test_a_dry_run_passes_in_every_part(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--minutes", 60, "--part", *ONCE, "--out", out)
    result = json.loads(out.read_text())
    assert [part["part"] for part in result["parts"]] == ONCE
    assert {part["part"]: part["reason"] for part in result["parts"] if part["status"] != PASS} == {}
    assert done.returncode == 0, done.stderr
    rows = [Row(**row) for row in result["rows"]]
    assert rows[0].what == f"parts that fail, of {len(ONCE)} that ran"
    assert all(row.met is not False for row in rows)
    for name in ONCE:
        assert f"| {name} | {PASS} |" in done.stdout
    for key in ("gpu", "gpus", "driver", "cuda", "commit", "versions"):
        assert key in result["machine"]


def test_without_a_gpu_the_script_says_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.splitlines() == ["error: there is no CUDA GPU here; --device cpu --tiny tries the script without one"]


def test_an_unknown_part_is_refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert main(["--part", "relu-bf61"]) == 2
    assert capfd.readouterr().err.startswith("error: --part relu-bf61: use some of relu-bf16, ")


def good(setting: Setting) -> Iterator[Row]:
    yield Row("a figure", 1.0, "x", at_least=1.0)


def missing(setting: Setting) -> Iterator[Row]:
    yield Row("slow", 1.0, "x", at_least=2.0)


def raising(setting: Setting) -> Iterator[Row]:
    yield Row("before", 1.0, "x")
    print("what it said last")
    raise ValueError("broken\nin two lines")


def hanging(setting: Setting) -> Iterator[Row]:
    yield Row("before", 1.0, "x")
    child = start(_sleep, log=setting.folder / "child.log")
    (setting.folder.parent / "pids").write_text(f"{os.getpid()} {child.pid}")
    _sleep()


def dying(setting: Setting) -> Iterator[Row]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


def elsewhere(setting: Setting) -> Iterator[Row]:
    yield Row("before", 1.0, "x")
    raise NotApplicableError("needs another machine")


def _sleep() -> None:
    time.sleep(600)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_part_that_fails_does_not_end_the_script(tmp_path: Path) -> None:
    parts = [
        Part("good", good),
        Part("missing", missing),
        Part("raising", raising),
        Part("hanging", hanging, seconds=3),
        Part("dying", dying),
        Part("elsewhere", elsewhere),
        Part("of two", good, gpus=2),
        Part("measured", good, measures=True),
    ]
    outcomes = list(run_all(parts, Setting("cpu", True, tmp_path, tmp_path), gpus=1, minutes=10, together=3))
    assert [outcome.part for outcome in outcomes] == [part.name for part in parts]
    assert {outcome.part: (outcome.status, outcome.reason) for outcome in outcomes} == {
        "good": (PASS, ""),
        "missing": (FAIL, "misses the bar: slow"),
        "raising": (FAIL, "ValueError: broken"),
        "hanging": (FAIL, "not done after 3 s"),
        "dying": (FAIL, f"its process ended with status {-signal.SIGKILL}"),
        "elsewhere": (NOT_APPLICABLE, "needs another machine"),
        "of two": (NOT_APPLICABLE, "needs 2 GPUs, there is 1"),
        "measured": (PASS, ""),
    }
    figures = {outcome.part: [row.what for row in outcome.rows] for outcome in outcomes}
    assert figures["raising"] == figures["hanging"] == figures["elsewhere"] == ["before"]
    said = next(outcome.log for outcome in outcomes if outcome.part == "raising")
    assert "what it said last" in said
    assert "Traceback (most recent call last):" in said
    assert not any(runs(int(pid)) for pid in (tmp_path / "pids").read_text().split())  # nor what a part started


@pytest.mark.slow
def test_where_there_is_a_gpu_a_part_is_no_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA does not survive one: the part and its figures go to a new process and back."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("os.fork", lambda: pytest.fail("a fork"))
    (outcome,) = run_all([Part("good", good)], Setting("cuda", True, tmp_path, tmp_path), gpus=1, minutes=10)
    assert (outcome.status, outcome.rows) == (PASS, [Row("a figure", 1.0, "x", at_least=1.0)]), outcome.log


def test_when_the_time_is_over_the_rest_says_so(tmp_path: Path) -> None:
    (outcome,) = run_all([Part("late", good)], Setting("cpu", True, tmp_path, tmp_path), gpus=1, minutes=0.1)
    assert (outcome.status, outcome.reason) == (NOT_APPLICABLE, "no time is left of --minutes 0.1")


def test_a_part_that_the_end_of_all_time_cuts_short_keeps_its_figures(tmp_path: Path) -> None:
    outcome = run_part(Part("hanging", hanging), Setting("cpu", True, tmp_path, tmp_path), limit=2)
    assert (outcome.status, outcome.reason) == (NOT_APPLICABLE, "the time of all parts ended after 2 s of it")
    assert [row.what for row in outcome.rows] == ["before"]


def test_on_a_small_gpu_nothing_is_compiled_beside_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (15e9, 16e9))
    with pytest.raises(NotApplicableError, match="it compiles when it is measured"):
        next(compile_ahead(Setting("cuda", False, tmp_path, tmp_path), 8, "relu"))


def test_waits_are_counted_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)

    def step() -> None:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    found = waits(step, 3)
    assert modes == ["warn", "default"]
    ((line, count),) = found.items()
    assert count == 3
    assert line.startswith("test_gpu.py:")


def test_the_stand_in_of_a_gpu_warns_of_reads() -> None:
    values = torch.ones(2)

    def step() -> None:
        values.sum().item()

    with warning_of_reads():
        assert waits(step, 3) == {f"test_gpu.py:{step.__code__.co_firstlineno + 1}": 3}


def test_an_outcome_that_is_read_in_its_own_step_is_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", lambda mode: None)
    late = [Reading(torch.zeros(2))]

    def step() -> None:
        own = Reading(torch.zeros(2))
        assert late.pop().values() == own.values() == own.values()
        late.append(Reading(torch.zeros(2)))

    assert waits(step, 3) == {"the outcome of this step": 3}


KERNELS = {
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_cudnn": "convolutions",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x128_nhwc>": "convolutions",
    "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>": "convolutions",
    "nvjet_tst_128x128_64x6_2x1_v_bz_TNN": "matrix products",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_nn": "matrix products",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>": "matrix products",
    "triton_poi_fused_add_convolution_relu_3": "pointwise",
    "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>": "pointwise",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all-reduce",
}


@pytest.mark.parametrize(("kernel", "kind"), KERNELS.items())
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_only_kernels_count_as_time_of_the_gpu() -> None:
    def averaged(name: str, microseconds: float, device: DeviceType, annotates: bool = False) -> FunctionEventAvg:
        average = FunctionEventAvg()
        average.add(
            FunctionEvent(
                0, name, 0, 0, microseconds, device_type=device, use_device="cuda", is_user_annotation=annotates
            )
        )
        return average

    events = [
        averaged("nvjet_tst_128x128", 3000, DeviceType.CUDA),
        averaged("triton_poi_fused_add_0", 1000, DeviceType.CUDA),
        averaged("Memcpy HtoD (Pinned -> Device)", 7000, DeviceType.CUDA),
        averaged("Optimizer.step#Adam.step", 9000, DeviceType.CUDA, annotates=True),
        averaged("aten::mm", 5000, DeviceType.CPU),
    ]
    assert by_kind(events, on_gpu=True) == pytest.approx({"matrix products": 3e-3, "pointwise": 1e-3})


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_passes_on_the_gpu(part: Part, coco224: Path, tmp_path: Path) -> None:
    """With the dry run's sizes, so without its bars of speed; `make gpu` measures."""
    setting = Setting("cuda", True, coco224, tmp_path)
    (outcome,) = run_all([part], setting, torch.cuda.device_count(), minutes=10)
    if outcome.status == NOT_APPLICABLE:
        pytest.skip(outcome.reason)
    assert outcome.status == PASS, (outcome.reason, outcome.log)
