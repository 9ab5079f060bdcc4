"""Distilled start: each new block first learns the map of the GDN whose place it takes, on real activations.

After a raw swap the convolutions get inputs that they were not trained for; a block that starts as its GDN's own map
spares them that. In closed form where the block is linear in its parameters (it then has a method `fit`); from there, or
from the block's own start, by gradient descent, half of the steps for each block by itself and half for all together,
towards the latent and the picture that the GDNs gave: an error that later layers amplify counts for more than one that
they swallow.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from codec.errors import InputError
from codec.model import Codec, gdn_layers

FIT_BATCHES = 2
"""Batches of pictures that the closed form sees: 25,000 positions at the coarsest layer, with 16 crops of 224."""

LEARNING_RATE = 1e-3
"""Of Adam, falling to zero along a cosine. The blocks' parameters are of the order of one, whatever the codec."""

LATENT_WEIGHT = 0.03
"""Of the latent's relative error beside the picture's: without it the pictures come closer at the price of bits."""

Pairs = dict[str, tuple[Tensor, Tensor]]
"""By layer: its input and its output, [B, C, H, W] each."""


def distill(codec: Codec, teacher: Codec, batches: Iterable[Tensor], steps: int) -> dict[str, float]:
    """Teaches the blocks of `codec`, in place, what the GDNs of `teacher` do; nothing else of the codec moves.

    Args:
        codec: with fresh blocks.
        teacher: the same codec before its GDNs were replaced.
        batches: pictures [B, 3, H, W] in [0, 1]; at least FIT_BATCHES + 1 + steps of them.
        steps: of gradient descent, one batch each, after the closed form.

    Returns:
        How well the teacher is followed on a batch apart, 10 log10(mean(t^2) / mean((s - t)^2)) dB: by each block, fed
        with its GDN's own input, and in the latent "y" and the picture "x_hat", with all blocks in place.

    Raises:
        InputError: there is no block here that could learn from a GDN.
    """
    taught = {name for name, _ in gdn_layers(teacher)} - {name for name, _ in gdn_layers(codec)}
    blocks = {name: codec.get_submodule(name) for name in sorted(taught)}
    if not any(True for block in blocks.values() for _ in block.parameters()):
        raise InputError(
            f"--distill_steps: encoder {codec.architecture.g_a.name}, decoder {codec.architecture.g_s.name}: no GDN "
            "made way for a block with parameters to learn its map with; leave --distill_steps out"
        )

    def each_apart(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), _recorded(teacher, blocks) as pairs:
            teacher(x)
        return {name: _error(blocks[name](pairs[name][0]), pairs[name][1]) for name in blocks}

    def all_in_place(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            y, x_hat = _through(teacher, x)
        own_y, own_x_hat = _through(codec, x)
        return {"y": LATENT_WEIGHT * _error(own_y, y), "x_hat": _error(own_x_hat, x_hat)}

    batches = iter(batches)
    teacher.eval()
    _fit(blocks, teacher, torch.cat(list(islice(batches, FIT_BATCHES))))
    yardstick = next(batches)
    _descend(blocks, each_apart, islice(batches, steps // 2), steps // 2, yardstick)
    _descend(blocks, all_in_place, islice(batches, steps - steps // 2), steps - steps // 2, yardstick)
    with torch.no_grad():
        errors = each_apart(yardstick) | all_in_place(yardstick)
    errors["y"] /= LATENT_WEIGHT
    return {name: -10 * error.log10().item() for name, error in errors.items()}


@torch.no_grad()
def _fit(blocks: dict[str, nn.Module], teacher: Codec, x: Tensor) -> None:
    """The closed forms, where there are any."""
    with _recorded(teacher, blocks) as pairs:
        teacher(x)
    for name, block in blocks.items():
        if hasattr(block, "fit"):
            block.fit(*pairs[name])


def _descend(
    blocks: dict[str, nn.Module],
    errors_of: Callable[[Tensor], dict[str, Tensor]],
    batches: Iterable[Tensor],
    steps: int,
    yardstick: Tensor,
) -> None:
    """Adam on the sum of the errors; back to where it began if that did not fall on the batch apart."""
    parameters = [parameter for block in blocks.values() for parameter in block.parameters()]
    started = copy.deepcopy([block.state_dict() for block in blocks.values()])
    with torch.no_grad():
        before = _total(errors_of(yardstick))
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for x in batches:
        gradients = torch.autograd.grad(_total(errors_of(x)), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    with torch.no_grad():
        after = _total(errors_of(yardstick))
    if not after < before:  # a closed form may be as good as it gets
        for block, state in zip(blocks.values(), started, strict=True):
            block.load_state_dict(state)


def _total(errors: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(errors.values())).sum()


def _error(own: Tensor, target: Tensor) -> Tensor:
    """The squared error, relative to the target's power."""
    return (own - target).square().mean() / target.square().mean()


def _through(codec: Codec, x: Tensor) -> tuple[Tensor, Tensor]:
    """y and x_hat, with nothing rounded between them."""
    y = codec.g_a(x)
    return y, codec.g_s(y)


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str]) -> Iterator[Pairs]:
    """What the named layers see and give while the model runs."""
    pairs: Pairs = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            pairs[name] = inputs[0], output

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()
