"""Kills training runs with SIGKILL at random moments, restarts each, and compares what it leaves with a run left alone.

    python tests/training/kills.py --kills 30 --ranks 2

A process that has imported everything forks the ranks, so that a start costs no import; they run the command's own
main`, and on two ranks find each other over gloo as under a launcher. Two bytes shared with this process say what their
training and their writer are at: a kill can wait for a save or a pruning, and the table says what it hit.
"""

import argparse
import functools
import json
import mmap
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

# The root first: beside an editable install, tests/codec would be found as a package of its own.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib.figure  # noqa: F401, so that no rank has to
import torch
import torch._dynamo  # for the same reason
from programs import TINY, into, run, same, states
from safetensors.torch import load_file

import train_accel
import training.options
import training.saving
import training.setup
import training.state
import training.summary
import training.validation
from codec.checkpoint import load_codec
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH

STEPS = 12  # two epochs of the embedded photographs
GLOBAL_BATCH = 8
OPTIONS = [
    *TINY,
    *["--train_scope", "all", "--replace_parts", "all", "--sched", "cosine", "--lr", "1e-3", "--lr_warmup_steps", "4"],
    *f"--max_steps {STEPS} --checkpoint_every 2 --eval_every 1".split(),
]

NOTHING, STARTING, BETWEEN, STEP, STATE, PRUNING, LAST, EVALUATION, BEST, ENDING = DOING = (
    "",
    "starting",
    "between steps",
    "in a step",
    "saving the state",
    "removing old states",
    "saving last",
    "evaluating",
    "saving a best file",
    "ending",
)
# What a kill waits for (None: nothing, just its moment), and for how many more seconds at most it then waits.
AIMS: tuple[tuple[str | Path | None, float], ...] = (
    (None, 0.0),
    (STEP, 0.03),
    (STATE, 0.02),
    (EVALUATION, 0.1),
    (PRUNING, 0.0),
    (LAST, 0.01),
    (BEST, 0.001),
)

QAT = ["--qat", "true", "--qat_scope", "all", "--qat_calib_steps", "4", "--qat_freeze_after", "8"]
QAT += ["--act", "gate", "--checkpoint_every", "1"]
PHASES = (2, 6, 10)  # steps inside calibration, fixed scale and eval-ready

LIMIT = 120  # seconds after which a run counts as hanging

doing = mmap.mmap(-1, 2)  # shared with the ranks: the index in DOING of what the main process and its writer are at


def done_now() -> list[str]:
    """What the main process and its writer are at."""
    return [DOING[index] for index in doing[:] if DOING[index]]


def say_while(module: ModuleType, name: str, what: str) -> None:
    """Has the main process say what it does while this function runs."""
    inner = getattr(module, name)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        who = int(threading.current_thread() is not threading.main_thread())
        before = doing[who]
        doing[who] = DOING.index(what)
        try:
            return inner(*args, **kwargs)
        finally:
            doing[who] = before

    setattr(module, name, outer)


def be_a_rank(words: list[str], variables: dict[str, str], log: Path) -> NoReturn:
    """In a fork: the training command, its output to a file, and out."""
    status = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(variables)
        if variables.get("RANK", "0") == "0":
            say_while(train_accel, "train", BETWEEN)
            say_while(train_accel, "optimizer_step", STEP)
            say_while(training.saving, "save_state", STATE)
            say_while(shutil, "rmtree", PRUNING)
            say_while(training.saving, "write_last", LAST)
            say_while(training.saving, "link_or_copy", BEST)
            say_while(training.validation, "validate", EVALUATION)
            say_while(training.summary, "conclude", ENDING)
        status = train_accel.main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Running:
    """A started run: one process a rank, all in one process group."""

    def __init__(self, words: list[str], ranks: int, log: Path) -> None:
        self.pids: list[int] = []
        self.statuses: dict[int, int] = {}
        doing[:] = bytes([DOING.index(STARTING), DOING.index(NOTHING)])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(ranks):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            pid = os.fork()
            if not pid:
                be_a_rank(words, variables if ranks > 1 else {}, log)
            os.setpgid(pid, self.pids[0] if self.pids else pid)
            self.pids.append(pid)

    def alive(self) -> bool:
        """Whether every rank still runs."""
        for pid in self.pids:
            if pid not in self.statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return not self.statuses

    def kill(self) -> None:
        """SIGKILL to the ranks and whatever they started; returns when none is left."""
        os.killpg(self.pids[0], signal.SIGKILL)
        for pid in self.pids:
            if pid not in self.statuses:
                self.statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def wait(self) -> bool:
        """Waits for the end; whether every rank ended with status 0."""
        deadline = time.monotonic() + LIMIT
        while len(self.statuses) < len(self.pids):
            self.alive()
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.01)
        return set(self.statuses.values()) == {0}


def kill_at(running: Running, moment: float, aim: str | Path | None, extra: float) -> float | None:
    """Kills at this moment, seconds after the start, or at the first time after it that the run does what is aimed at.

    A path is aimed at by being there. Returns when it killed, None where the run ended before that.
    """
    begin = time.monotonic()
    while running.alive():
        late = time.monotonic() - begin >= moment
        if late and (aim.exists() if isinstance(aim, Path) else aim is None or aim in done_now()):
            time.sleep(extra)
            if not running.alive():
                break
            running.kill()
            return time.monotonic() - begin
        time.sleep(0.00005 if late else 0.002)
    running.wait()
    return None


@dataclass
class Leaves:
    """What a finished run left, as far as it must not depend on kills."""

    tensors: dict[str, dict[str, torch.Tensor]]
    others: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Leaves":
        kept = states(folder)[-2:]  # a kill in the last pruning leaves a third
        files = [path for state in kept for path in state.glob("*.safetensors")]
        files += folder.glob("*.safetensors")
        tensors = {str(path.relative_to(folder)): load_file(path) for path in sorted(files)}
        others: dict[str, Any] = {"temporary files": [*folder.glob(".*")]}
        for path in folder.glob("*.safetensors"):
            description = load_codec(path)[1]
            others[f"{path.name}'s step and metrics"] = (description.step, description.metrics)
        for state in kept:
            progress = json.loads((state / "progress.json").read_text())
            del progress["options"], progress["run"]  # which name the folder, and this run of all
            others[f"{state.name}'s progress"] = progress
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        others["metrics.jsonl"] = [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
        others["summary"] = json.loads((folder / "summary.json").read_text())["status"]
        return cls(tensors, others)

    def differences(self, other: "Leaves") -> list[str]:
        found = [f"{name} in one only" for name in sorted(self.tensors.keys() ^ other.tensors.keys())]
        both = self.tensors.keys() & other.tensors.keys()
        found += [name for name in sorted(both) if not same(self.tensors[name], other.tensors[name])]
        names = sorted(self.others.keys() | other.others.keys())
        return found + [name for name in names if self.others.get(name) != other.others.get(name)]


def newest(folder: Path) -> str:
    """The step that a restart will resume from, as the trainer finds it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = training.state.newest_whole(folder / "state")
    return str(int(found.name.removeprefix("step-"))) if found else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="runs to disturb; half are killed two or three times")
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, default=DEFAULT_ARCH, help="with a hyperprior, QAT includes h_a"
    )
    parser.add_argument("--qat", action="store_true", help="under QAT, every run killed in each of its phases")
    parser.add_argument("--coco_dir", type=Path, help="a prepared dataset; default: the embedded photographs")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        good = disturb(args, Path(folder))
    print(f"{good} of {args.kills} disturbed runs left what the undisturbed one left, bit for bit")
    return 0 if good == args.kills else 1


def disturb(args: argparse.Namespace, root: Path) -> int:
    """Prints a row a kill; returns how many runs ended as the undisturbed one."""
    coco = args.coco_dir
    if coco is None:
        coco = root / "coco224"
        assert run("-m", "coco224.prepare", "--coco_dir", "sample", "--out_dir", coco).returncode == 0
    options = ["--coco_dir", str(coco), *OPTIONS, "--batch_size", str(GLOBAL_BATCH // args.ranks)]
    options += ["--arch", args.arch, *(QAT if args.qat else [])]
    options += ["--qat_exclude_entropy", "false"] if args.qat and args.arch != DEFAULT_ARCH else []

    def start(folder: Path) -> Running:
        return Running([*options, *into(folder)], args.ranks, root / f"{folder.name}.log")

    begin = time.monotonic()
    undisturbed = root / "undisturbed"
    if not start(undisturbed).wait():
        sys.exit((root / "undisturbed.log").read_text())
    life = time.monotonic() - begin
    expected = Leaves.of(undisturbed)
    names = ", ".join(state.name for state in states(undisturbed))
    print(f"undisturbed: {STEPS} steps on {args.ranks} rank(s) in {life:.1f} s; states {names}")
    print(f"{'run':>3} {'seconds':>7}  {'killed while':<40} {'resumes at step':>15}  result")

    random_numbers = random.Random(args.seed)
    good = 0
    for number in range(1, args.kills + 1):
        folder = root / f"run-{number}"
        for again in range(len(PHASES) if args.qat else random_numbers.choice((1, 1, 2, 3))):
            aim, longest = AIMS[(number - 1 + again) % len(AIMS)]
            moment, extra = random_numbers.uniform(0, life), random_numbers.uniform(0, longest)
            if args.qat:
                aim, moment, extra = folder / "state" / f"step-{PHASES[again]:08d}", 0.0, extra / 10
            while (killed := kill_at(start(folder), moment, aim, extra)) is None and not again:
                moment /= 2  # it had ended before: once more from the beginning, and earlier
                shutil.rmtree(folder)
            if killed is not None:
                print(f"{number:>3} {killed:7.2f}  {', '.join(done_now()):<40} {newest(folder):>15}", flush=True)
        ended = start(folder).wait()
        differences = Leaves.of(folder).differences(expected) if ended else ["it did not end well"]
        print(f"{number:>3} {'':64}  {'different: ' + ', '.join(differences) if differences else 'same'}", flush=True)
        good += not differences
        if differences:
            print((root / f"{folder.name}.log").read_text()[-3000:])
        shutil.rmtree(folder)
    return good


if __name__ == "__main__":
    sys.exit(main())
