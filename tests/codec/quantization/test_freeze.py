"""The copy of a quantized codec for exporters."""

import pytest
import torch
from quantized_codecs import make, step
from torch import Tensor

from codec.description.architecture import Phase, Quantization
from codec.errors import InputError
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from codec.quantization.phases import activation_quantizers, enter
from codec.quantization.quantizers import WeightQuantizer


@pytest.mark.parametrize("act", ["relu", "gate", "gdnish", "gdn"])
def test_an_exporter_gets_numbers_relus_and_the_same_pictures(act: str, pictures: list[Tensor]) -> None:
    codec = calibrate(with_tables(make(act)), pictures, Quantization("all"))
    ready = frozen(codec)
    torch.testing.assert_close(ready(pictures[0])["x_hat"], codec(pictures[0])["x_hat"], rtol=0, atol=1.01 / 255)
    assert (ready(pictures[0])["x_hat"] == codec(pictures[0])["x_hat"]).float().mean() > 0.999
    for _, quantizer in activation_quantizers(ready):
        assert quantizer.frozen == (float(quantizer.scale), int(quantizer.zero_point))
    for part in (ready.g_a, ready.g_s):
        called = [node.target for node in part.graph.nodes]
        assert "clamp" not in called
        assert not any("act" in str(target) and "quantizers" not in str(target) for target in called)


def test_weight_scales_that_still_follow_are_fixed_for_an_exporter(pictures: list[Tensor]) -> None:
    codec = make("relu", Quantization("encoder"))
    step(codec, pictures[0])
    enter(codec, Phase.FIXED_SCALE)
    with torch.no_grad():
        codec.g_a.get_submodule("0").set_float_weight(2 * codec.g_a.get_submodule("0").float_weight)
    ready = frozen(codec)
    x = pictures[0]
    assert torch.equal(ready.g_a(x), codec.eval().g_a(x))
    assert not any(module.switches.follow for module in ready.modules() if isinstance(module, WeightQuantizer))


def test_what_is_not_quantized_is_not_exported_as_such(pictures: list[Tensor]) -> None:
    with pytest.raises(InputError, match="not quantized"):
        frozen(make("relu"))
    with pytest.raises(InputError, match="fake quantization is off"):
        frozen(make("relu", Quantization("all")))
