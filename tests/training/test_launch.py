"""Launches that cannot work: refused before anything heavy, on every rank."""

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType
from programs import DDP, ROOT, TINY, environment, into, run, train

import training.compiling
import training.setup
from codec.description.architecture import Architecture, Quantization
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.quantization.phases import prepare
from training.compiling import check_compile, check_dynamo, compile_all, has_compiler
from training.distributed import make_accelerator
from training.options import parse
from training.reporting import ReportingOptions

UNCOMPILED = "this run is not compiled (--compile false)"


@pytest.mark.parametrize(
    ("variables", "starter"),
    [
        ({"SLURM_NTASKS": "2"}, "srun started 2 tasks that do not know of each other"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "3"}, "srun started 3 tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 tasks"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many in the environment is no number"),
    ],
)
def test_tasks_that_do_not_know_of_each_other_are_refused(
    variables: dict[str, str], starter: str, coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=starter):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_task_of_srun_and_empty_variables_of_a_scheduler_are_no_launcher(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert train("--coco_dir", coco224, *TINY, *into(tmp_path), "--max_steps", 1) == 0


def test_ranks_with_other_options_are_refused_by_name(coco224: Path, tmp_path: Path) -> None:
    """Each rank has its own learning rate and its own end."""
    words = " ".join(map(str, ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--batch_size", 4]))
    script = tmp_path / "rank.sh"
    python = "import sys; from codec.cli import run; import train_accel; run(train_accel.main)"
    script.write_text(f"exec python -c '{python}' {words} --lr 1e-$((RANK + 3)) --max_steps $((RANK + 2))")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(DDP), "--no_python", "bash", str(script)]
    env = environment(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [sys.executable, *launcher], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == [
        "error: processes 0 and 1 differ in --lr 0.001 and 0.0001; --max_steps 2 and 3: give every process the same "
        "options, data and program"
    ]
    assert not (tmp_path / "run").exists()


def test_compile_without_a_compiler_is_refused(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    assert not has_compiler(torch.device("cpu"))
    with pytest.raises(
        InputError, match=re.escape("torch.compile needs a C++ compiler, and none is found: install one")
    ):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--compile", "true")
    assert train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--max_steps", 1) == 0


def test_a_compiler_that_does_not_start_is_refused_before_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(InputError, match=re.escape("needs a C++ compiler, and CXX=/bin/false is none: correct")):
        train("--coco_dir", tmp_path / "none", *TINY, *into(tmp_path / "run"), "--compile", "true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"), [("ACCELERATE_USE_CPU", "maybe"), ("LOCAL_RANK", "x"), ("ACCELERATE_USE_DEEPSPEED", "true")]
)
def test_an_environment_that_accelerate_does_not_understand_is_one_line(
    tmp_path: Path, variable: str, value: str
) -> None:
    done = run("train_accel.py", "--coco_dir", tmp_path, *TINY, *into(tmp_path / "run"), **{variable: value})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: Accelerate cannot start (")


def test_a_configured_dynamo_backend_is_refused_unless_the_options_say_the_same(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    check_dynamo(True)
    with pytest.raises(InputError, match="the Accelerate configuration says dynamo_backend inductor"):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--compile", "false")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    check_dynamo(False)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """An Accelerator that says that its device is a GPU; what a run changes in torch is undone."""
    said: list[str] = []
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    chosen = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    monkeypatch.setattr(training.compiling, "has_triton_package", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield types.SimpleNamespace(
        device=torch.device("cuda"),
        distributed_type=DistributedType.NO,
        num_processes=1,
        is_main_process=True,
        said=said,
        print=lambda line, file: said.append(line),
    )
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = chosen


def without_compiler(accelerator: types.SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.compiling, "has_compiler", lambda device: False)


def without_header(accelerator: types.SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.compiling.sysconfig, "get_path", lambda name: folder)


def without_triton(accelerator: types.SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.compiling, "has_triton_package", lambda: False)


def too_old(accelerator: types.SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))


def under_fsdp(accelerator: types.SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator.distributed_type = DistributedType.FSDP


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        (without_compiler, "needs a C compiler, and none is found: install one"),
        (without_header, "needs Python's header Python.h, which is missing: install it (python3-dev)"),
        (without_triton, "needs Triton on a GPU, which cannot be imported: install it (pip install triton)"),
        (too_old, "needs a newer GPU than Tesla P100: use another"),
        (under_fsdp, "--compile true with FSDP"),
    ],
)
def test_what_cannot_be_compiled_on_a_gpu_is_refused_if_typed_and_runs_eagerly_if_not(
    lacks: Callable[..., None],
    says: str,
    on_gpu: types.SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacks(on_gpu, tmp_path, monkeypatch)
    with pytest.raises(InputError, match=re.escape(says)):
        check_compile(on_gpu)
    options = parse(["--coco_dir", "coco224", *TINY])
    codec = new_codec(Architecture(8, 12))
    assert compile_all(codec, codec, options.loss, options, on_gpu) is options.loss
    assert on_gpu.said == ([] if lacks is under_fsdp else [f"warning     torch.compile {says}; {UNCOMPILED}"])


@pytest.mark.parametrize("quantized", [False, True])
def test_a_quantized_codec_is_evaluated_uncompiled_on_a_gpu(quantized: bool, on_gpu: types.SimpleNamespace) -> None:
    """Triton's division rounds differently, so that a compiled evaluation would not meet a runtime's integers."""
    codecs = new_codec(Architecture(8, 12)), new_codec(Architecture(8, 12))
    for codec in codecs if quantized else ():
        prepare(codec, Quantization("all"))
    options = parse(["--coco_dir", "coco224", *TINY])
    assert compile_all(*codecs, options.loss, options, on_gpu) is not options.loss
    assert [bool(codec._compiled_call_impl) for codec in codecs] == [True, not quantized]


def test_on_a_gpu_a_codec_is_compiled_by_its_own_backend(
    on_gpu: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(training.compiling, "gpu_backend", backend)
    codec, options = new_codec(Architecture(8, 12)), parse(["--coco_dir", "coco224", *TINY])
    compile_all(codec, codec, options.loss, options, on_gpu)
    codec(torch.rand(1, 3, 64, 64))
    assert len(graphs) == 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_fp32_on_a_gpu_is_exact_and_its_algorithms_are_deterministic_or_the_fastest(
    deterministic: bool, on_gpu: types.SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.setup, "make_accelerator", lambda *_: on_gpu)
    words = ["--coco_dir", "coco224", *TINY, *into(tmp_path), "--deterministic", str(deterministic)]
    training.setup.launch(parse(words))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # so that a user's block may run


def test_processes_wait_for_each_other_as_long_as_the_options_say(tmp_path: Path) -> None:
    accelerator = make_accelerator(ReportingOptions(), str(tmp_path), timeout=7200)
    assert accelerator.init_handler.timeout == timedelta(hours=2)
