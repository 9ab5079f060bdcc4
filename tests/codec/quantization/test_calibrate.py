"""Post-training quantization on pictures."""

import pytest
from quantized_codecs import make
from torch import Tensor

from codec.description.architecture import Quantization
from codec.errors import InputError
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.levels import Levels, with_levels
from codec.quantization.phases import activation_quantizers


@pytest.mark.parametrize("act", ["relu", "gate", "gdnish", "gdn"])
def test_calibration_on_pictures_alone_comes_close_to_the_float_codec(act: str, pictures: list[Tensor]) -> None:
    codec = with_tables(make(act))
    quantized = calibrate(codec, pictures, Quantization("all"))
    assert codec.architecture.quantization is None
    assert not list(activation_quantizers(codec))
    for x in pictures[:2]:
        y, y_int8 = codec.g_a(x), quantized.g_a(x)
        assert (y - y_int8).square().mean() < 2e-3 * y.square().mean()
        x_hat, x_int8 = codec.g_s(y.round()), quantized.g_s(y.round())
        assert (x_hat.clamp(0, 1) - x_int8).abs().mean() < 0.02


def test_levels_are_made_where_the_codec_is() -> None:
    """A distilled start moves the codec to its device before quantization begins."""
    codec = make("relu", arch="mbt2018_mean").to("meta")
    for part in ("g_a", "g_s"):
        levels = with_levels(codec, part).levels
        assert isinstance(levels, Levels)
        assert levels.step.device.type == "meta"


def test_calibration_without_a_picture_is_refused() -> None:
    with pytest.raises(InputError, match="has no range yet"):
        calibrate(make("relu"), [], Quantization("all"))
