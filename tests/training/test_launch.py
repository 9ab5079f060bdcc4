"""Launches that cannot work: refused before anything heavy, on every rank."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import DDP, ROOT, TINY, environment, into, train

from codec.errors import InputError
from training.compiling import check_dynamo, has_compiler


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
    assert not has_compiler()
    with pytest.raises(
        InputError, match=re.escape("torch.compile needs a C++ compiler, and none is found: install one")
    ):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--compile", "true")
    assert train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--max_steps", 1) == 0


def test_a_configured_dynamo_backend_is_refused_unless_the_options_say_the_same(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    check_dynamo(True)
    with pytest.raises(InputError, match="the Accelerate configuration says dynamo_backend inductor"):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--compile", "false")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    check_dynamo(False)
