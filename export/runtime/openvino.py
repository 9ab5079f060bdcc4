"""OpenVINO in place of ONNX Runtime: the same files, and the same results but for rounding."""

import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from codec.errors import InputError
from export.cpu import openvino_settings

TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)"}
"""OpenVINO's names of the types that graphs of this program have, and ONNX Runtime's."""


class OpenVinoSession:
    """An ONNX file in OpenVINO, with those methods of ONNX Runtime's InferenceSession that the runtime calls.

    Args:
        source: path or content of the ONNX file.
        path: the file, for messages.
        threads: of the CPU; 0: as many as OpenVINO wants.

    Raises:
        InputError: OpenVINO, or onnx, which reads the file's properties, is not installed; or the file is no model.
    """

    def __init__(self, source: str | bytes, path: Path, threads: int = 0) -> None:
        try:
            import onnx
            import openvino
        except ImportError as error:
            raise InputError(
                "--backend openvino needs openvino and onnx: pip install -c constraints.txt -e '.[openvino]'"
            ) from error
        settings = openvino_settings(threads) | {"PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        try:
            file = onnx.load(source) if isinstance(source, str) else onnx.load_from_string(source)
            graph = core.read_model(source if isinstance(source, str) else io.BytesIO(source))
            self._model = core.compile_model(graph, "CPU", settings)
        except Exception as error:  # protobuf's and OpenVINO's own
            raise InputError(f"--model {path}: OpenVINO does not open it ({error}); export it again") from error
        self._properties = {each.key: each.value for each in file.metadata_props}

    def get_inputs(self) -> list[SimpleNamespace]:
        return [_tensor(each) for each in self._model.inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [_tensor(each) for each in self._model.outputs]

    def get_modelmeta(self) -> SimpleNamespace:
        return SimpleNamespace(custom_metadata_map=self._properties)

    def run(self, names: None, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """All outputs; the arrays are copies."""
        found = self._model(dict(feed))
        return [found[each].copy() for each in self._model.outputs]


def _tensor(port: Any) -> SimpleNamespace:
    """Name, type and shape as ONNX Runtime gives them: an open size is a text. Other types have OpenVINO's name."""
    shape = [side.get_length() if side.is_static else str(side) for side in port.partial_shape]
    kind = port.element_type.to_string()
    return SimpleNamespace(name=port.any_name, type=TYPES.get(kind, kind), shape=shape)
