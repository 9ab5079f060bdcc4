"""Arm's compiler for Ethos-U: estimates a chip's milliseconds and memory for a TFLite model."""

import csv
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export.chips.compiler import Refused
from export.chips.lifetime import end_with

MIB = 1 << 20


@dataclass(frozen=True)
class Core:
    """A core in a system; the names are those of the compiler's configuration file.

    Attributes:
        sram: bytes for feature maps. On an Ethos-U55 there is no other memory for them, and the compiler does not
            report if they do not fit; the other cores put the rest into DRAM.
    """

    accelerator: str
    system: str
    memory: str
    sram: int
    only_sram: bool = False


CORES = {
    "ethos-u55-256": Core("ethos-u55-256", "Ethos_U55_High_End_Embedded", "Shared_Sram", 8 * MIB, only_sram=True),
    "ethos-u65-512": Core("ethos-u65-512", "Ethos_U65_High_End", "Dedicated_Sram", 2 * MIB),
    "ethos-u85-1024": Core("ethos-u85-1024", "Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram", 2 * MIB),
}
"""U55 at 500 MHz with flash for the weights, U65 and U85 at 1 GHz with DRAM: the faster systems in Arm's file."""

STRATEGIES = ("Performance", "Size")
"""Both are tried: neither is always faster."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's estimates for one inference. Its milliseconds do not include operators on the CPU.

    Attributes:
        macs: multiplications, as the compiler counts them.
        sram_kib, dram_kib: used memory; an Ethos-U55 has no DRAM.
        cpu_operators: operators that the core does not run.
        file: the model for the chip.
    """

    strategy: str
    milliseconds: float
    macs: int
    sram_kib: float
    dram_kib: float
    cpu_operators: list[str]
    file: str


def compile_model(model: Path, core: Core, folder: Path) -> Compiled:
    """Compiles with all strategies and returns the best result; the file for the chip goes to `folder`.

    Raises:
        Refused: it does not take the model.
    """
    runs = [_compile(model, core, strategy, folder / strategy.lower()) for strategy in STRATEGIES]
    return min(runs, key=lambda run: (len(run.cpu_operators), run.sram_kib * 1024 > core.sram, run.milliseconds))


def _compile(model: Path, core: Core, strategy: str, folder: Path) -> Compiled:
    command = [
        *(sys.executable, "-m", "ethosu.vela", str(model), "--output-dir", str(folder), "--show-cpu-operations"),
        *("--config", "Arm/vela.ini", "--system-config", core.system, "--memory-mode", core.memory),
        *("--accelerator-config", core.accelerator, "--arena-cache-size", str(core.sram), "--optimise", strategy),
    ]
    ends = partial(end_with, os.getpid())
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=ends)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or ["no reason given"]
        raise Refused(said[-1])
    with (folder / f"{model.stem}_summary_{core.system}.csv").open() as file:
        (row,) = csv.DictReader(file)
    return Compiled(
        strategy,
        float(row["inference_time"]) * 1e3,
        int(float(row["nn_macs"])),
        float(row["sram_memory_used"]),
        float(row["dram_memory_used"]),
        re.findall(r"^ *CPU: (.+)$", done.stdout, re.MULTILINE),
        str(folder / f"{model.stem}_vela.tflite"),
    )
