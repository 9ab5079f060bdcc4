"""The forms of a convolution that are timed against each other are the same function of the same parameters."""

import torch
from torch import Tensor

from benchmarks.forms import REARRANGED, STOCK, layers, rearranged, rows
from codec.description.architecture import Architecture
from codec.network.architectures import new_codec


def test_every_convolution_rearranged_gives_the_same_values_and_gradients(picture: Tensor) -> None:
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12))
    names = []
    for name, layer, x in layers(codec, picture[..., :96, :64]):
        names.append(name)
        assert x.requires_grad == (name != "g_a.0")
        layer.double()
        x = x.detach().double().requires_grad_()
        other = rearranged(layer)
        y, y_other = layer(x), other(x)
        torch.testing.assert_close(y_other, y)
        wanted = [x, *layer.parameters()]
        assert [*map(id, other.parameters())] == [*map(id, layer.parameters())]
        direction = torch.randn_like(y)
        gradients = (torch.autograd.grad(each, wanted, direction) for each in (y, y_other))
        for stock, rest in zip(*gradients, strict=True):
            torch.testing.assert_close(rest, stock)
        layer.float()
    assert names == [f"{part}.{i}" for part in ("g_a", "g_s") for i in (0, 2, 4, 6)]


def test_the_floor_moves_where_a_form_wins_by_more_than_the_bars_forgive() -> None:
    ms = {"g_a.0": {STOCK: 40.0, REARRANGED: 80.0}, "g_s.0": {STOCK: 60.0, REARRANGED: 50.0}}
    encoder, decoder, best = rows(ms)
    assert (encoder.value, decoder.value, best.value) == (0.5, 1.2, 100 / 90)
    assert best.note == "the floor moves; 3x3 is faster in g_s.0"
    ms["g_s.0"][REARRANGED] = 59.0
    assert rows(ms)[-1].note == "the floor stays where it is; 3x3 is faster in g_s.0"
    ms["g_s.0"][REARRANGED] = 61.0
    assert rows(ms)[-1].note == "the floor stays where it is; 3x3 is faster in no layer"
