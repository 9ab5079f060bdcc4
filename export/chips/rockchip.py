"""Rockchip's RKNN toolkit: takes the int8 ONNX file as it is, and says target and cycles of every operator."""

import re
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from export.chips.compiler import INPUT, MODEL, Compiler, Estimate, Job, Refused, left_for_the_cpu, printed

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart

RKNN = "part.rknn"
ENDS = ("InputOperator", "OutputOperator")
"""Rows of the table that only move the input and the output."""

ROW = re.compile(
    r"\] \d+ +(\w+) +(INT8|FLOAT16|\w+) +(NPU|CPU|GPU) .* (\d+)/(\d+)/(\d+) +(?:\d+% +)?(\d+)(?: |$)", re.MULTILINE
)
"""Operator, type, target, cycles of the memory, of the core and of both, and KB moved."""


class Rockchip(Compiler):
    """rknn-toolkit2. Its simulator computes with ONNX Runtime: it is no proof of the chip's own integers."""

    name = "rockchip"
    package = "rknn-toolkit2"
    targets: ClassVar[tuple[str, ...]] = ("rk3588", "rk3576", "rk3566")

    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        # concat puts its transposes on the CPU of rk3566; transpose runs partly in FP16 on rk3576.
        (job.folder / MODEL).write_bytes(part.graph("depth_to_space").SerializeToString())
        return {}

    def compile(self, job: Job) -> str:
        from rknn import api

        self.rknn = api.RKNN(verbose=True)
        steps = (
            ("config", {"target_platform": job.target}),
            ("load_onnx", {"model": str(job.folder / MODEL)}),
            ("build", {"do_quantization": False}),
            ("export_rknn", {"export_path": str(job.folder / RKNN)}),
        )
        for name, arguments in steps:
            if getattr(self.rknn, name)(**arguments):  # its methods return 0 if all went well
                errors = re.findall(r"^E (?:RKNN: \[[\d:.]+\] )?(.+)", plain(printed(job)), re.MULTILINE)
                raise Refused(errors[0] if errors else "no reason given")
        return printed(job)

    def figures(self, job: Job, report: str) -> Estimate:
        rows = ROW.findall(plain(report))
        operators = [row for row in rows if row[0] not in ENDS]
        if not operators:
            raise Refused("its log has no table of operators")
        elsewhere = [row[0] for row in operators if row[2] != "NPU"]
        in_float = sum(row[1].startswith("FLOAT") for row in operators)
        memory = re.search(r"Total Internal Memory Size: ([\d.]+)KB", report)
        figures: dict[str, Any] = {
            "Mcycles": round(sum(int(row[5]) for row in operators) / 1e6, 2),
            "MB moved": round(sum(int(row[6]) for row in operators) / 1e3, 1),
            "CPU operators": len(elsewhere),
            "operators in FP16": f"{in_float} of {len(operators)}",
        }
        if memory:
            figures["internal memory, KB"] = round(float(memory[1]))
        complaint = f"{left_for_the_cpu(len(elsewhere))}: {', '.join(elsewhere)}" if elsewhere else ""
        return Estimate(complaint, figures)

    def simulate(self, job: Job) -> NDArray[np.uint8]:
        if self.rknn.init_runtime():
            raise RuntimeError("its simulator does not start")
        found: NDArray[np.uint8] = self.rknn.inference(inputs=[np.load(job.folder / INPUT)], data_format=["nchw"])[0]
        return found


def plain(log: str) -> str:
    """The text without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", log)
