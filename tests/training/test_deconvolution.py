"""The bias apart changes no result."""

import torch
from torch import nn

from codec.description.architecture import Architecture
from codec.network.architectures import new_codec
from training.deconvolution import BiasApart, set_biases_apart


def test_a_codec_with_its_biases_apart_gives_the_same_pictures_gradients_and_names() -> None:
    torch.manual_seed(0)
    codec, apart = new_codec(Architecture(8, 12)), new_codec(Architecture(8, 12))
    apart.load_weights(codec.state_dict())
    set_biases_apart(apart)
    assert sum(isinstance(module, BiasApart) for module in apart.modules()) == 4
    assert apart.state_dict().keys() == codec.state_dict().keys()
    y = torch.randn(2, 12, 4, 4)
    for model in (codec, apart):
        model.g_s(y).square().sum().backward()
    torch.testing.assert_close(apart.g_s(y), codec.g_s(y))
    for ours, stock in zip(apart.g_s.parameters(), codec.g_s.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, stock.grad, rtol=1e-4, atol=1e-4)


def test_a_layer_of_another_class_is_left_alone() -> None:
    class Own(nn.ConvTranspose2d):
        pass

    layer = Own(3, 3, 3)
    set_biases_apart(nn.Sequential(layer))
    assert type(layer) is Own
