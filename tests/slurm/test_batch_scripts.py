"""The batch scripts on a real SLURM: what is signalled comes back and ends as if it had been left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import SCRIPTS, Cluster, wait_until
from programs import TINY, into, rows, states, train

pytestmark = pytest.mark.slow

STEPS = 80
OPTIONS = (*TINY, "--batch_size", 2, "--epochs", 100, "--max_steps", STEPS)
Submit = Callable[..., str]


@pytest.fixture(scope="module")
def submit(slurm: Cluster, coco224: Path) -> Submit:
    """submit(script, folder, *sbatch_options, more=()): a tiny run with `folder` as its files; the id of its job."""

    def submit(script: str, folder: Path, *sbatch_options: str, more: tuple[object, ...] = ()) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        on_cpus = ("--gres=none", f"--output={folder}/out", f"--export=ALL,SAVE_ROOT={folder}")
        words = (*OPTIONS, *into(folder), *more)
        path = SCRIPTS / f"{script}.sbatch"
        return slurm.command(
            "sbatch", "--parsable", *on_cpus, *sbatch_options, path, "--coco_dir", coco224, *words
        ).strip()

    return submit


@pytest.fixture(scope="module")
def over_two_nodes(submit: Submit, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The job and the files of an undisturbed run of two ranks, one a node."""
    folder = tmp_path_factory.mktemp("several_nodes")
    return submit("several_nodes", folder, "--ntasks-per-node=1"), folder


def reaches(folder: Path, step: int) -> None:
    """Waits for a run to have done this many steps."""
    wait_until(lambda: (folder / "metrics.jsonl").exists() and steps_of(folder) >= step, f"step {step}")


def steps_of(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_text().count('"kind": "train"')


def model_of(folder: Path) -> bytes:
    """The weights of the newest state, which must be the last one."""
    assert states(folder)[-1].name == f"step-{STEPS:08d}"
    return (states(folder)[-1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("script", "starts"),
    [
        ("one_node", "64 processors on nodes n1"),
        ("several_nodes", "128 processors on nodes n[1-2]"),
        ("quality_array", "8 processors on nodes n1"),
    ],
)
def test_the_headers_are_good_as_they_are(script: str, starts: str, slurm: Cluster) -> None:
    assert starts in slurm.command("sbatch", "--test-only", SCRIPTS / f"{script}.sbatch")


def test_a_signalled_job_comes_back_and_ends_with_the_undisturbed_weights(
    slurm: Cluster, submit: Submit, over_two_nodes: tuple[str, Path], tmp_path: Path
) -> None:
    job = submit("one_node", tmp_path, "--ntasks-per-node=2")
    reaches(tmp_path, 5)
    slurm.command("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1 does before the time limit
    ended = slurm.ended(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")

    undisturbed, folder = over_two_nodes
    assert slurm.ended(undisturbed)["Restarts"] == "0"
    assert model_of(tmp_path) == model_of(folder)
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, STEPS + 1))
    said = (tmp_path / "out").read_text()
    assert said.count("2 x 1 accumulated x 2 processes = 4") == 2
    assert said.count("USR1: the trainer saves and stops") == 1
    assert said.count("back into the queue") == 1
    assert said.count("resumes     at step") == 1


def test_several_nodes_train_one_run(slurm: Cluster, over_two_nodes: tuple[str, Path]) -> None:
    job, folder = over_two_nodes
    ended = slurm.ended(job)
    assert (ended["JobState"], ended["NodeList"]) == ("COMPLETED", "n[1-2]")
    said = (folder / "out").read_text()
    assert f"slurm: job {job} on n[1-2], 2 ranks, restart 0" in said
    assert "2 x 1 accumulated x 2 processes = 4" in said


def test_each_quality_of_the_array_is_a_run_of_its_own(
    slurm: Cluster, submit: Submit, coco224: Path, tmp_path: Path
) -> None:
    """Task 2 is cancelled, and 3, whose id is that of the whole array, is signalled and comes back."""
    array = submit("quality_array", tmp_path, "--array=2-3", f"--output={tmp_path}/%a.out")
    for quality in (3, 2):
        reaches(tmp_path / f"q{quality}", 5)
        action = {2: ["scancel"], 3: ["scancel", "--signal=USR1"]}[quality]  # to the trainer, not to the batch shell
        slurm.command(*action, f"{array}_{quality}")
    ended = {quality: slurm.ended(f"{array}_{quality}") for quality in (2, 3)}
    assert {q: (job["JobState"], job["Restarts"]) for q, job in ended.items()} == {
        2: ("CANCELLED", "0"),
        3: ("COMPLETED", "1"),
    }
    assert "quality: 3\n" in (tmp_path / "q3" / "config.yaml").read_text()
    assert len(rows(tmp_path / "q3", "train")) == STEPS
    assert train("--coco_dir", coco224, *OPTIONS, *into(tmp_path / "here"), "--quality", 3) == 0
    assert model_of(tmp_path / "here") == model_of(tmp_path / "q3")
    cancelled = tmp_path / "q2"
    assert states(cancelled)[-1].name == f"step-{steps_of(cancelled):08d}"  # TERM came with time to save


def test_a_job_that_is_refused_does_not_come_back(slurm: Cluster, submit: Submit, tmp_path: Path) -> None:
    job = submit("one_node", tmp_path, "--ntasks-per-node=1", more=("--act", "nonsense"))
    ended = slurm.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: --act nonsense: no such block" in (tmp_path / "out").read_text()
