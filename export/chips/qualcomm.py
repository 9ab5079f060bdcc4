"""Qualcomm's compiler for the HTP, through ONNX Runtime: whether the chip runs all of a QDQ graph.

On a PC it compiles for the chip and emulates its arithmetic; it does not measure the chip's speed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.runtime import session_options

PROVIDER = "QNNExecutionProvider"


@dataclass(frozen=True)
class Compiled:
    """Whether the chip runs every node, and the largest and mean difference of its 8-bit outputs to ONNX Runtime's CPU.

    Attributes:
        reason: why the chip does not run every node; empty if it does.
    """

    whole: bool
    reason: str
    largest: int = 0
    mean: float = 0.0


def compile_model(model: onnx.ModelProto, example: NDArray[Any]) -> Compiled:
    """Compiles an int8 graph without fallback to the CPU, and runs it on an example input."""
    import onnxruntime
    import onnxruntime_qnn

    if not any(device.ep_name == PROVIDER for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    data = model.SerializeToString()
    try:
        chip = onnxruntime.InferenceSession(data, sess_options=options)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        return Compiled(False, str(error).splitlines()[0])
    cpu = onnxruntime.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
    feed = {chip.get_inputs()[0].name: example}
    difference = np.abs(chip.run(None, feed)[0].astype(int) - cpu.run(None, feed)[0].astype(int))
    return Compiled(True, "", int(difference.max()), float(difference.mean()))
