"""Arm's Ethos-U: LiteRT converts the part to TFLite, Vela compiles that and estimates milliseconds and memory.

The part comes as torch's exported program: LiteRT reads neither ONNX nor the codec's own classes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from export.chips.compiler import INPUT, Compiler, Estimate, Job, left_for_the_cpu
from export.chips.vela import CORES, Core, compile_model

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart

PROGRAM, TFLITE = "part.pt2", "part.tflite"
SIGNED = 128
"""uint8 minus this is int8, the type of TFLite's integer operators."""


class Arm(Compiler):
    """LiteRT and Vela. The simulation is LiteRT's interpreter: an Ethos-U computes the integers of its kernels."""

    name = "arm"
    package = "ethos-u-vela"
    targets: ClassVar[tuple[str, ...]] = tuple(CORES)

    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        import torch

        ready = part.module("concat")
        torch.export.save(torch.export.export(ready.module, (ready.example,)), job.folder / PROGRAM)
        return {}

    def compile(self, job: Job) -> str:
        import torch

        from export.chips.litert import to_tflite

        (job.folder / TFLITE).write_bytes(to_tflite(torch.export.load(job.folder / PROGRAM)))
        best = compile_model(job.folder / TFLITE, core_of(job.target, job.options), job.folder)
        return json.dumps(asdict(best))

    def figures(self, job: Job, report: str) -> Estimate:
        said, core = json.loads(report), core_of(job.target, job.options)
        left = said["cpu_operators"]
        complaint = ""
        if left:
            complaint = f"{left_for_the_cpu(len(left))}: {', '.join(left)}"
        elif core.only_sram and said["sram_kib"] * 1024 > core.sram:
            complaint = f"it needs {said['sram_kib']:.0f} KiB of SRAM, and the chip has {core.sram // 1024} KiB"
        figures = {
            "ms": round(said["milliseconds"], 2),
            "CPU operators": len(left),
            "GMAC": round(said["macs"] / 1e9, 2),
            "SRAM, KiB": round(said["sram_kib"]),
            "DRAM, KiB": round(said["dram_kib"]),
            "strategy": said["strategy"],
            "system": f"{core.system}, {core.memory}, {core.sram // 1024} KiB",
        }
        return Estimate(complaint, figures)

    def simulate(self, job: Job) -> NDArray[np.uint8]:
        return interpret(job.folder / TFLITE, np.load(job.folder / INPUT))


def core_of(target: str, options: Mapping[str, Any]) -> Core:
    """The core, with the option's SRAM if it is given."""
    sram = options.get("sram_kib")
    return replace(CORES[target], sram=sram * 1024) if sram else CORES[target]


def interpret(model: Path, value: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The output of a TFLite model for an 8-bit input, both uint8 [1, C, H, W]; the model's are int8, channels last."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    signed = (value.astype(np.int16) - SIGNED).astype(np.int8)
    interpreter.set_tensor(entry["index"], signed.transpose(0, 2, 3, 1))
    interpreter.invoke()
    found: NDArray[np.int8] = interpreter.get_tensor(end["index"]).transpose(0, 3, 1, 2)
    return (found.astype(np.int16) + SIGNED).astype(np.uint8)
