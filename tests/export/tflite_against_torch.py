"""Runs in the compilers' environment: the TFLite files that export.npu kept, against the fake-quantized codec."""

from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter

from export.graph import build
from export.graph.parts import exportable
from export.pictures import sample_picture


def compare(folder: str) -> None:
    """Asserts that 99 % of the integers are equal and no other is off by more than one."""
    root = Path(folder)
    for part in ("encoder", "decoder"):
        opened = build.open_for_export(root / "relu.safetensors", None)
        codec = build.in_int8(opened, part, root / "pictures", (64, 64), "relu")
        ready = exportable(codec, part, "concat", sample_picture(64))
        interpreter = Interpreter(str(root / "out" / part / f"{part}.tflite"))
        interpreter.allocate_tensors()
        (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert entry["dtype"] == end["dtype"] == np.int8
        scale, zero = entry["quantization"]
        integers = (ready.example.permute(0, 2, 3, 1) / scale).round().add(zero).to(torch.int8)
        interpreter.set_tensor(entry["index"], integers.numpy())
        interpreter.invoke()
        scale, zero = end["quantization"]
        real = (torch.from_numpy(interpreter.get_tensor(end["index"])).float() - zero) * scale
        with torch.no_grad():
            steps = ((real.permute(0, 3, 1, 2) - ready.module(ready.example)) / scale).abs()
        assert steps.max() < 1.5, part
        assert (steps < 0.5).float().mean() > 0.99, part
