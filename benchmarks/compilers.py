"""`python -m benchmarks.compilers`: every activation through Arm's compiler for three Ethos-U cores, 224x224.

Needs the environment of `make npu CHIP=arm`, and skips without it. Weights are random: the estimate depends on shapes,
and a little on how well weights compress. Estimates do not depend on this machine.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.deployment import ACTIVATIONS, M, N, random_codec
from benchmarks.harness import Row, publish
from coco224.photographs.sample import VALIDATION, sample_splits
from codec.checkpoint import Description, save_codec
from export.chips.compilers import COMPILERS, python_of

ROOT = Path(__file__).parent.parent
CORES = ("ethos-u55-256", "ethos-u65-512", "ethos-u85-1024")
AT_MOST = {
    ("encoder", CORES[0]): 34.9,
    ("encoder", CORES[1]): 14.5,
    ("encoder", CORES[2]): 18.1,
    ("decoder", CORES[0]): 53.9,
    ("decoder", CORES[1]): 22.7,
    ("decoder", CORES[2]): 18.7,
}
"""Milliseconds of ReLU in the first trial of this route; they are known to a tenth."""


def verdicts(act: str, folder: Path) -> list[dict[str, Any]]:
    """What `export.npu` says of both parts on each core."""
    save_codec(folder / f"{act}.safetensors", random_codec(act), Description())
    pictures = calibration_photograph(folder / "pictures")
    return ask(CORES, folder, "--ckpt", folder / f"{act}.safetensors", "--calib_dir", pictures)


def ask(targets: Sequence[str], folder: Path, *words: object) -> list[dict[str, Any]]:
    """What `export.npu`, with these words, says of each part of a checkpoint on each chip.

    Args:
        folder: gets the verdicts.
    """
    command = [sys.executable, "-m", "export.npu", "--target", ",".join(targets), *map(str, words)]
    command += ["--json", str(folder / "verdicts.json")]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 2):  # 2: operators on the CPU
        raise RuntimeError(done.stderr)
    found: list[dict[str, Any]] = json.loads((folder / "verdicts.json").read_text())
    return found


def calibration_photograph(folder: Path) -> Path:
    """Copies an embedded photograph into this folder, and returns the folder."""
    folder.mkdir(exist_ok=True)
    shutil.copy(sample_splits(include_val=True)["validation"].folder / VALIDATION[0], folder)
    return folder


def rows(act: str, found: list[dict[str, Any]]) -> Iterator[Row]:
    """ReLU has a row for each core, with its bar; the others one for each part."""
    ms = {(each["part"], each["target"]): round(each["figures"]["ms"], 1) for each in found}
    for verdict in found:
        figures, part, core = verdict["figures"], verdict["part"], verdict["target"]
        if act != "relu" and core != CORES[0]:
            continue
        sides = {name: figures[name] for name in ("GMAC", "CPU operators", "SRAM, KiB")}
        sides |= {} if act == "relu" else {f"{other}, ms": ms[part, other] for other in CORES[1:]}
        note = "without what the CPU has to do" if figures["CPU operators"] else ""
        bar = AT_MOST[part, core] if act == "relu" else None
        yield Row(f"{act} in int8, {part}, {core} by Vela", ms[part, core], "ms", at_most=bar, sides=sides, note=note)


def main() -> None:
    """Every activation, part and core."""
    if not python_of(COMPILERS["arm"], ROOT / ".venv-npu").exists():
        print("skipped: Arm's compiler is not installed; make npu CHIP=arm")
        return
    with tempfile.TemporaryDirectory() as name:
        found = {act: verdicts(act, Path(name)) for act in ACTIVATIONS}
    measured = [row for act, each in found.items() for row in rows(act, each)]
    publish("compilers", measured, {"N": N, "M": M, "verdicts": found})


if __name__ == "__main__":
    main()
