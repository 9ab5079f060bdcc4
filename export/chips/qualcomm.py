"""Qualcomm's HTP, through ONNX Runtime's QNN provider: takes the int8 ONNX file as it is.

On a PC it compiles for the chip and emulates its arithmetic; it does not estimate the chip's speed.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from export.chips.compiler import INPUT, MODEL, Compiler, Estimate, Job, Refused

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart

PROVIDER = "QNNExecutionProvider"


class Qualcomm(Compiler):
    """A session without fallback to the CPU exists only if the chip runs every node."""

    name = "qualcomm"
    package = "onnxruntime-qnn"
    targets: ClassVar[tuple[str, ...]] = ("qualcomm-htp",)

    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        (job.folder / MODEL).write_bytes(part.graph("depth_to_space").SerializeToString())
        return {}

    def compile(self, job: Job) -> str:
        import onnxruntime
        import onnxruntime_qnn

        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
        try:
            self.session = onnxruntime.InferenceSession(str(job.folder / MODEL), sess_options=options)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
            raise Refused(str(error).splitlines()[0]) from error
        return ""

    def figures(self, job: Job, report: str) -> Estimate:
        return Estimate("", {})

    def simulate(self, job: Job) -> NDArray[np.uint8]:
        feed = {self.session.get_inputs()[0].name: np.load(job.folder / INPUT)}
        found: NDArray[np.uint8] = self.session.run(None, feed)[0]
        return found
