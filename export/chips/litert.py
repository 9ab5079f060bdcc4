"""Converts a part of a quantized codec to an int8 TFLite model, with the ranges of training or calibration.

Runs in Arm's environment.

LiteRT's own quantizers would measure new ranges. Here every fake quantization of the traced part becomes a pair of
quantize and dequantize operators, which LiteRT's converter folds into the int8 operators between them. The integers are
those of the ONNX file; where these are uint8, minus 128.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from export.chips.compiler import Refused

SIGNED = 128
"""uint8 minus this is int8, the only 8-bit type of Ethos-U and of TFLite's integer operators."""


def to_tflite(program: torch.export.ExportedProgram) -> bytes:
    """The TFLite model of a part. Inputs and outputs are channels last, [1, H, W, C], and int8 if quantized.

    Args:
        program: a part of a codec from `codec.quantization.freeze.frozen`, with its example input.

    Raises:
        Refused: LiteRT has no operator for an operation of the part.
    """
    with _quiet():
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig

    # This configuration quantizes nothing; it only makes the converter fold the quantizers of the graph.
    fold = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))
    graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    assert program.example_inputs
    ((example,), _) = program.example_inputs
    quantize_explicitly(graph)
    channels_last = litert_torch.to_channel_last_io(graph, args=[0], outputs=[0])
    channels_last.training = False  # an exported module refuses eval(), but it is in eval mode
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file, _quiet():
        try:
            model = litert_torch.convert(channels_last, (example.permute(0, 2, 3, 1),), quant_config=fold)
        except RuntimeError as error:
            raise Refused(f"LiteRT cannot convert it: {str(error).splitlines()[0]}") from error
        model.export(file.name)
        return trim_kernels(file.read())


def quantize_explicitly(graph: fx.GraphModule) -> None:
    """Replaces every fake quantization by a quantize and a dequantize operator for int8, in place."""
    import torch.ao.quantization.fx._decomposed  # registers the operators under the names that LiteRT knows

    operators = torch.ops.quantized_decomposed
    grid: tuple[Any, ...]
    for node in list(graph.graph.nodes):
        if node.target == torch.ops.aten.fake_quantize_per_tensor_affine.default:
            x, scale, zero_point, low, high = node.args
            shift = SIGNED if low == 0 else 0
            kind = torch.int16 if high - shift > SIGNED else torch.int8
            grid = (scale, zero_point - shift, low - shift, high - shift, kind)
            pair = (operators.quantize_per_tensor.default, operators.dequantize_per_tensor.default)
        elif node.target == torch.ops.aten.fake_quantize_per_channel_affine.default:
            x, scales, _, axis, low, high = node.args
            name = f"{node.name}_zeros"  # as a constant: LiteRT does not evaluate how they are computed
            graph.register_buffer(name, torch.zeros(x.meta["val"].shape[axis], dtype=torch.int64))
            with graph.graph.inserting_before(node):
                grid = (scales, graph.graph.get_attr(name), axis, low, high, torch.int8)
            pair = (operators.quantize_per_channel.default, operators.dequantize_per_channel.default)
        else:
            continue
        with graph.graph.inserting_before(node):
            quantized = graph.graph.call_function(pair[0], (x, *grid))
            node.replace_all_uses_with(graph.graph.call_function(pair[1], (quantized, *grid)))
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def trim_kernels(model: bytes) -> bytes:
    """The TFLite model with the upper row of a kernel removed if it is all zero; a 3x3 kernel then costs a third less.

    The odd rows of a deconvolution in two convolutions have such kernels. The padding stays SAME: for an even kernel
    height it adds no row above and one below, the same as for a 3x3 kernel with an empty upper row.
    """
    from ai_edge_litert.tools import flatbuffer_utils as tflite

    tree = tflite.read_model_from_bytearray(bytearray(model))
    graph = tree.subgraphs[0]
    for operator in graph.operators:
        if tree.operatorCodes[operator.opcodeIndex].builtinCode != tflite.BuiltinOperator.CONV_2D:
            continue
        options, weight = operator.builtinOptions, graph.tensors[operator.inputs[1]]
        if options.padding != tflite.schema_fb.Padding.SAME or (options.strideH, weight.shape[1]) != (1, 3):
            continue
        buffer = tree.buffers[weight.buffer]
        kernel = np.frombuffer(bytes(buffer.data), np.int8).reshape(weight.shape)
        if not kernel[:, 0].any():
            buffer.data = np.frombuffer(kernel[:, 1:].tobytes(), np.uint8)
            weight.shape = [kernel.shape[0], 2, *kernel.shape[2:]]
    return bytes(tflite.convert_object_to_bytearray(tree))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output of the converter, also from C++."""
    kept = [os.dup(1), os.dup(2)]
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
