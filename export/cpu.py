"""How int8 stays exact on this CPU. Needs no package, so that compilers' environments import it too."""

import platform
from pathlib import Path
from typing import Any

VNNI = {"avx512_vnni", "avx_vnni"}
"""CPU flags of instructions that add int8 products in 32 bits; a CPU with AMX has them too."""


def sums_saturate(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the fastest int8 kernels of ONNX Runtime and OpenVINO add two products in 16 bits, which can overflow.

    They do on x86 without VNNI. With VNNI the fastest kernels are exact, and ONNX Runtime's others take about three
    times as long. An x86 CPU whose flags cannot be read (not on Linux) counts as one without VNNI: slow at worst, never
    wrong.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with cpuinfo.open() as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return True
    return not VNNI.intersection(flags)


def openvino_settings(threads: int) -> dict[str, Any]:
    """For OpenVINO on this CPU: with the values of the int8 file, whatever kernels it has.

    Args:
        threads: how many it uses; 0: as many as it wants.
    """
    # Where the CPU has bf16, OpenVINO would compute in it what is not int8, and symbols would change.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if sums_saturate():
        settings["LP_TRANSFORMS_MODE"] = "NO"  # it rounds to the same values, and computes with them in float
    return settings
