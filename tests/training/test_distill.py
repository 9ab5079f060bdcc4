"""The distilled start: blocks learn their GDN's map on real activations, and little else moves."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import same
from torch import Tensor, nn

from codec.blocks import make_options, options_dict
from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.codec import Codec, gdn_layers
from training import distill as distilling
from training.distill import distill
from training.fitted import FOLDER, FittedBlocks, forget_fitted
from training.preempt import Preempted

STEPS = 20


@pytest.fixture
def teacher() -> Codec:
    """A codec whose GDNs bend: activations of the order of one, and norms that mix the channels."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12))
    with torch.no_grad():
        for _, gdn in gdn_layers(codec):
            gdn.gamma.uniform_(0.05, 0.4)
        for conv in (codec.g_a[0], codec.g_a[2], codec.g_a[4]):
            conv.weight *= 2
    return codec


def replaced(teacher: Codec, act: str) -> Codec:
    codec = copy.deepcopy(teacher)
    for part in ("g_a", "g_s"):
        codec.replace_blocks(part, BlockChoice(act, options_dict(act, make_options(act, {}))))
    return codec


def batches(picture: Tensor) -> Iterator[Tensor]:
    """Windows of a photograph, four at a time, for ever."""
    windows = picture.unfold(2, 128, 64).unfold(3, 128, 64).movedim(1, 3)[0].flatten(0, 1)
    k = 0
    while True:
        yield windows[torch.arange(4 * k, 4 * k + 4) % len(windows)]
        k += 1


@pytest.mark.parametrize("act", ["gate_mlp", "gdnish"])
def test_blocks_come_closer_to_their_gdn_and_nothing_else_moves(teacher: Codec, picture: Tensor, act: str) -> None:
    codec, before = replaced(teacher, act), copy.deepcopy(teacher.state_dict())
    started = distill(copy.deepcopy(codec), teacher, batches(picture), 0)
    taught = distill(codec, teacher, batches(picture), STEPS)

    assert taught.keys() == started.keys() == {name for name, _ in gdn_layers(teacher)}
    assert sum(taught.values()) > sum(started.values())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    shared = {key: value for key, value in codec.state_dict().items() if key.split(".")[0] == "entropy_bottleneck"}
    shared |= {key: value for key, value in codec.state_dict().items() if key.split(".")[1] in "0246"}
    assert all(torch.equal(value, before[key]) for key, value in shared.items())
    assert all(parameter.grad is None for parameter in codec.parameters())


def test_a_distilled_codec_gives_nearly_the_pictures_of_its_teacher(teacher: Codec, picture: Tensor) -> None:
    codec = replaced(teacher, "gate")
    with torch.no_grad():
        target = teacher.eval()(picture)["x_hat"]
        swapped = codec.eval()(picture)["x_hat"]
    distill(codec, teacher, batches(picture), STEPS)
    with torch.no_grad():
        distilled = codec(picture)["x_hat"]
    assert (distilled - target).square().mean() < (swapped - target).square().mean() / 20


def test_the_gate_starts_as_the_least_squares_solution(teacher: Codec, picture: Tensor) -> None:
    """No small change of its gain, anywhere, brings the gate's output closer to its GDN's."""
    gate, gdn = replaced(teacher, "gate").g_a[1], teacher.g_a[1]
    with torch.no_grad():
        x = teacher.g_a[0](picture)
        y = gdn(x)
    gate.fit(x, y)
    gate.high = 1e3
    (gate(x) - y).square().mean().backward()
    scale = (x * y).abs().mean()
    assert gate.gain.weight.grad.abs().max() < 1e-3 * scale
    assert gate.gain.bias.grad.abs().max() < 1e-3 * scale


def test_a_scale_that_a_block_asks_for_is_the_convolutions(teacher: Codec, picture: Tensor) -> None:
    with torch.no_grad():
        for _, gdn in gdn_layers(teacher):
            gdn.beta.fill_(1.5)  # its root's root: gains of 0.7 and 1.5 where all channels are weak
    codec = replaced(teacher, "relu_mlp")
    distill(codec, teacher, batches(picture), 0)
    for before, after in ((teacher.g_a[0], codec.g_a[0]), (teacher.g_s[4], codec.g_s[4])):
        x = torch.randn(2, before.in_channels, 8, 8)
        expected, scaled = before(x), after(x)
        scale = (scaled * expected).sum((0, 2, 3)) / expected.square().sum((0, 2, 3))
        assert ((scale - 1).abs() > 0.2).all()
        torch.testing.assert_close(scaled, expected * scale.view(-1, 1, 1))


def test_the_scale_leaves_nothing_that_the_input_explains(teacher: Codec, picture: Tensor) -> None:
    block = replaced(teacher, "relu_mlp").g_a[1]
    with torch.no_grad():
        x = teacher.g_a[0](picture)
        y = teacher.g_a[1](x)
    left = y - block.input_scale(x, y).view(-1, 1, 1) * x
    assert (left * x).sum((0, 2, 3)).abs().max() < 1e-4 * (x * y).abs().sum((0, 2, 3)).min()


def test_relu_has_nothing_to_learn_with(teacher: Codec, picture: Tensor) -> None:
    with pytest.raises(InputError, match="was replaced by a block with parameters"):
        distill(replaced(teacher, "relu"), teacher, batches(picture), STEPS)


@pytest.mark.parametrize(
    ("method", "broken", "says"),
    [
        ("fit", lambda x, y: 1 / 0, "g_a.1: fit(x, y) of the block fails: ZeroDivisionError: division by zero"),
        ("input_scale", lambda x, y: [1] / 0, "g_a.1: input_scale(x, y) of the block fails: TypeError"),
        ("input_scale", lambda x, y: torch.ones(3), "g_a.1: input_scale(x, y) of the block has to return [8] finite"),
        ("input_scale", lambda x, y: x.sum((0, 2, 3)) / 0, "has to return [8] finite numbers"),
        ("input_scale", lambda x, y: torch.ones(8) * 1j, "has to return [8] finite numbers"),
        ("forward", lambda x: 1 / 0, "g_a.1: the block fails on maps [8, 8, 64, 64]: ZeroDivisionError"),
    ],
)
def test_a_method_of_a_block_that_fails_is_one_line(
    teacher: Codec, picture: Tensor, method: str, broken: Any, says: str
) -> None:
    codec = replaced(teacher, "gate_mlp")
    setattr(codec.g_a[1], method, broken)
    with pytest.raises(InputError, match=re.escape(says)):
        distill(codec, teacher, batches(picture), 0)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(1, 1, 1), "g_a.1: fit(x, y) of the block changes the shape or type of weight: keep them"),
        (torch.ones(1).double(), "g_a.1: fit(x, y) of the block changes the shape or type of weight: keep them"),
        (torch.tensor([torch.nan]), "g_a.1: fit(x, y) of the block gives parameters that are not finite"),
    ],
)
def test_a_fit_sets_finite_values_and_no_other_shapes(
    teacher: Codec, picture: Tensor, value: Tensor, says: str
) -> None:
    codec = replaced(teacher, "gate_mlp")
    codec.g_a[1] = block = nn.PReLU()
    block.fit = lambda x, y: setattr(block, "weight", nn.Parameter(value))
    with pytest.raises(InputError, match=re.escape(says)):
        distill(codec, teacher, batches(picture), 0)


def test_blocks_with_nothing_to_train_stay_as_they_are(teacher: Codec, picture: Tensor) -> None:
    codec = replaced(teacher, "relu")
    codec.g_s[1], codec.g_s[3] = nn.PReLU(init=0.9), nn.PReLU(init=0.9).requires_grad_(False)
    found = distill(codec, teacher, batches(picture), 2)
    assert found.keys() == {name for name, _ in gdn_layers(teacher)}
    assert codec.g_s[1].weight != 0.9
    assert torch.equal(codec.g_s[3].weight, torch.tensor([0.9]))
    codec.g_s[1].requires_grad_(False)
    with pytest.raises(InputError, match="by a block with parameters that train; leave --distill_steps out"):
        distill(codec, teacher, batches(picture), 2)


def test_a_start_that_was_stopped_goes_on_with_the_blocks_that_it_has_fitted(
    teacher: Codec, picture: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh() -> Codec:
        torch.manual_seed(1)
        return replaced(teacher, "gate_mlp")

    def start(key: str) -> tuple[Codec, dict[str, float]]:
        codec = fresh()
        return codec, distill(codec, teacher, batches(picture), STEPS, FittedBlocks(tmp_path, {"key": key}, True))

    undisturbed = fresh()
    expected = distill(undisturbed, teacher, batches(picture), STEPS)
    fitted: list[nn.Module] = []

    def learn(block: nn.Module, *given: Any) -> Tensor:
        if len(fitted) == 4:
            raise Preempted
        fitted.append(block)
        return learned(block, *given)

    learned = distilling._learn
    monkeypatch.setattr(distilling, "_learn", learn)
    with pytest.raises(Preempted):
        start("this")
    fitted.clear()
    codec, found = start("this")
    assert (len(fitted), found) == (2, expected)
    assert same(codec.state_dict(), undisturbed.state_dict())

    fitted.clear()
    for damaged in (tmp_path / FOLDER).iterdir():
        damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(Preempted):
        start("this")
    fitted.clear()
    with pytest.raises(Preempted):
        start("another")
    (tmp_path / FOLDER / "of a user").touch()
    (tmp_path / FOLDER / f".{'0' * 16}.g_a.1.safetensors.00000000-1-00000000.partial").touch()  # left by a kill
    forget_fitted(tmp_path)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["of a user"]
