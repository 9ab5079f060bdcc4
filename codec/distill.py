"""Distilled start: each new block first learns the map of the GDN whose place it takes, on real activations.

After a raw swap the convolutions get inputs that they were not trained for; a block that starts as its GDN's own map
spares them that. In closed form where the block is linear in its parameters (it then has a method `fit`), and from
there, or from the block's own start, by gradient descent on all blocks side by side.
"""

import copy
from collections.abc import Iterable, Iterator
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
        By block, how well it follows its GDN on a batch apart: 10 log10(mean(y^2) / mean((block(x) - y)^2)) dB.

    Raises:
        InputError: there is no block here that could learn from a GDN.
    """
    taught = {name for name, _ in gdn_layers(teacher)} - {name for name, _ in gdn_layers(codec)}
    blocks = {name: codec.get_submodule(name) for name in sorted(taught)}
    parameters = [parameter for block in blocks.values() for parameter in block.parameters()]
    if not parameters:
        raise InputError(
            f"--distill_steps: encoder {codec.architecture.g_a.name}, decoder {codec.architecture.g_s.name}: no GDN "
            "made way for a block with parameters to learn its map with; leave --distill_steps out"
        )
    activations = _activations(teacher.eval(), blocks, batches)
    first = list(islice(activations, FIT_BATCHES))
    yardstick = next(activations)
    for name, block in blocks.items():
        if hasattr(block, "fit"):
            x, y = (torch.cat(parts) for parts in zip(*(pairs[name] for pairs in first), strict=True))
            block.fit(x, y)
    started = {name: copy.deepcopy(block.state_dict()) for name, block in blocks.items()}
    with torch.no_grad():
        before = _errors(blocks, yardstick)

    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for pairs in islice(activations, steps):
        optimizer.zero_grad()
        torch.stack(list(_errors(blocks, pairs).values())).sum().backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()

    with torch.no_grad():
        after = _errors(blocks, yardstick)
    for name, block in blocks.items():
        if not after[name] < before[name]:  # a closed form may be as good as it gets
            block.load_state_dict(started[name])
    return {name: -10 * torch.minimum(before[name], after[name]).log10().item() for name in blocks}


def _errors(blocks: dict[str, nn.Module], pairs: Pairs) -> dict[str, Tensor]:
    """Each block's squared error relative to the power of its GDN's output."""
    return {
        name: (block(pairs[name][0]) - pairs[name][1]).square().mean() / pairs[name][1].square().mean()
        for name, block in blocks.items()
    }


def _activations(teacher: Codec, names: Iterable[str], batches: Iterable[Tensor]) -> Iterator[Pairs]:
    for x in batches:
        with torch.no_grad(), _recorded(teacher, names) as pairs:
            teacher(x)
        yield pairs


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
