"""The copy of a quantized codec that an exporter reads: `frozen(codec)`.

It is in eval mode, and every quantizer holds its scale and zero point as numbers. Its layers, sums and products use the
arithmetic of an int8 runtime. `export.graph.rewrite` calls `compute_in_float()` of each; then
`torch.onnx.export(..., dynamo=False, opset_version=13)` of `codec.g_a` or `codec.g_s` writes QuantizeLinear and
DequantizeLinear. A transform of the scope is a `torch.fx.GraphModule` (`codec.g_a.graph`); a transform outside it is
the `nn.Sequential` that it was.

What the graph contains:

- **Activations** are uint8, or with 16 bits int16 (`codec.quantization.widen`; then there are `Widened` nodes too).
  Their quantizers are the `call_module` nodes whose module is an `ActivationQuantizer`
  (`quantizers.input`, `quantizers.after_1`, ...); `frozen` is (scale, zero point). The same quantizer may be called
  again after reshapes and similar operations: scale and zero point are the same there. A convolution, a sum or a
  product whose only user is a ReLU, a ReLU6 or a clamp from 0 has no quantizer of its own: the quantizer after the
  rectifier counts. Its range begins at 0, so its zero point is 0. A clamp whose upper bound lies beyond this range is
  replaced by a ReLU, which every runtime fuses with the convolution.
- **Convolutions and linear layers** keep their classes, with `QuantizedLayer` in front. `layer.weight` is the
  fake-quantized weight. `layer.weight_quantizer.scale` is its scale, [output channels] or, with `w_per_channel` false,
  [1]; `.axis` is the axis of the output channels (0, or 1 for transposed convolutions; None with one scale). Weights
  are int8, -128..127, zero point 0. Where the input is quantized, biases are multiples of input scale times weight
  scale, as an int32 accumulator holds them.
- **A parameter in a sum, a product or a functional convolution** passes a `WeightQuantizer` node (`quantizers.of_...`).
  With zero point 128 it is uint8, as the activations in the same operation are.
- **Numbers** (`x + 3`) are not quantized: with a scale of their own magnitude they are exact.
- **Pictures**: the input of g_a has scale 1/255 and zero point 0, so that it is a photograph's bytes. So has the output
  of g_s.

**The latent y and y_hat.** The last convolution of g_a and the input of g_s have no quantizer.
`codec.y_model.symbol_limits` is (-128, 127) if the symbols of the entropy model's tables lie in -128..127, or if the
codec has a hyperprior, else None, and then y stays float in both transforms. In evaluation the entropy model clamps
its symbols, round(y - median), to these limits. An int8 encoder gives the same symbols if the medians are folded into
the bias of g_a's last convolution and its output has scale 1 and zero point 128. Training has no such limits: a clamp
would stop the gradients of the few values outside, which the rate pulls inside. z of a quantized h_a is treated as y;
the input of h_a is the magnitudes of y's symbols, with scale 1 and zero point 0.

With predicted means y and y_hat have `codec.quantization.levels`: g_a ends, h_a and g_s begin with a `Levels` module,
which an exporter leaves out, and a quantizer of scale 1 and zero point 128 before or after it.

The input of g_s is y_hat = symbol + median. An int8 decoder reads the symbols (scale 1, zero point 128) and constant
channels. The integer weights of the constant channels hold what the medians add through each tap of the first
deconvolution; this is exact at the borders too, where a bias would be wrong. The unit there is the weight's own scale,
so that its rounding matters: evaluation does the same rounding (`QuantizedLayer.latent`).
"""

import copy

import torch
import torch.nn.functional as F

from codec.errors import InputError
from codec.network.codec import Codec
from codec.quantization.graph import QuantizedTransform
from codec.quantization.phases import example_input, limit_symbols, quantization_of, switches_of
from codec.quantization.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer
from codec.quantization.tracing import rectifier_bound


@torch.no_grad()
def frozen(codec: Codec) -> Codec:
    """A copy in eval mode for an exporter: scales and zero points are numbers, fake quantization is on.

    Raises:
        InputError: the codec is not quantized, or it is still in calibration.
    """
    quantization = quantization_of(codec)
    if not quantization.phase.fake_quantizes:
        raise InputError(
            f"the codec's fake quantization is off (phase {quantization.phase}): train until --qat_calib_steps "
            "are over, or calibrate it on pictures"
        )
    fixed: Codec = copy.deepcopy(codec).eval().requires_grad_(False)
    switches_of(fixed).in_eval = True
    limit_symbols(fixed)
    for part in quantization.transforms:
        getattr(fixed, part)(example_input(fixed, part))  # scales that follow the weights are up to date after this
    switches_of(fixed).follow = False
    for module in fixed.modules():
        if isinstance(module, ActivationQuantizer):
            module.frozen = (float(module.scale), int(module.zero_point))
        elif isinstance(module, WeightQuantizer) and module.axis is None:
            module.frozen = float(module.scale)
    for part in quantization.transforms:
        replace_clamps_by_relus(getattr(fixed, part))
    return fixed


def replace_clamps_by_relus(transform: QuantizedTransform) -> None:
    """Replaces each clamp from 0 by a ReLU, in place, if all quantizers after it saturate at or below its upper bound.

    The scales of the quantizers must be frozen.
    """
    for node in list(transform.graph.nodes):
        bound = rectifier_bound(node)
        users = [transform.get_submodule(str(user.target)) for user in node.users if user.op == "call_module"]
        if bound is None or not users or len(users) < len(node.users):
            continue
        if all(isinstance(q, Quantizer) and q.frozen and (q.limits[1] - 0.5) * q.frozen[0] <= bound for q in users):
            with transform.graph.inserting_before(node):
                node.replace_all_uses_with(transform.graph.call_function(F.relu, (node.args[0],)))
            transform.graph.erase_node(node)
    transform.recompile()
