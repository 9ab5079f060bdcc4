"""Distilled start: every new block first learns the map of the GDN that it replaces, on real activations.

After a plain replacement the convolutions get inputs that they were not trained for; a block that approximates its GDN
avoids this. A closed form fits blocks that are linear in their parameters. From there, or from the block's own start,
L-BFGS (Liu and Nocedal 1989) continues: it needs no learning rate, and it still improves where Adam's steps are too
coarse. A block can have two optional methods, for maps x -> y [B, C, H, W]:

- `fit(x, y)` sets its parameters in closed form.
- `input_scale(x, y)` returns a scale [C] for x. The convolution before the block absorbs it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from codec.blocks import code_of_block
from codec.errors import InputError
from codec.network.codec import Codec, gdn_layers
from training.fitted import FittedBlocks

FIT_BATCHES = 8
"""Number of batches that the blocks learn from; one more batch tests them."""

MOST_POSITIONS = 32768
"""Positions of a layer to learn from: complete maps are taken until there are as many."""

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Input and output [B, C, H, W] by layer."""


def distill(
    codec: Codec, teacher: Codec, batches: Iterable[Tensor], steps: int, fitted: FittedBlocks | None = None
) -> dict[str, float]:
    """Trains the blocks of `codec`, in place, to approximate the GDNs of `teacher`.

    Nothing else of the codec changes, except for the scale of a convolution before a block with `input_scale`.

    Args:
        codec: has new blocks.
        teacher: a copy of the codec from before its GDNs were replaced.
        batches: FIT_BATCHES + 1 or more batches of pictures [B, 3, H, W] in [0, 1].
        steps: iterations of L-BFGS after the closed form.
        fitted: keeps every block as soon as it is fitted, and has those of a start that was stopped.

    Returns:
        For each block, how well it follows its GDN on the test batch: 10 log10(mean(y^2) / mean((block(x) - y)^2)) dB.

    Raises:
        InputError: no block can learn from a GDN, or a method of a block fails.
    """
    taught = {name for name, _ in gdn_layers(teacher)} - {name for name, _ in gdn_layers(codec)}
    blocks = {name: codec.get_submodule(name) for name in sorted(taught)}
    if not any(_trained(block) or getattr(block, "fit", None) for block in blocks.values()):
        raise InputError(
            f"--distill_steps with encoder {codec.architecture.g_a.name} and decoder {codec.architecture.g_s.name}: no "
            "GDN was replaced by a block with parameters that train; leave --distill_steps out"
        )
    batches = iter(batches)
    lessons = _gathered(_activations(teacher.eval(), blocks, next(batches)) for _ in range(FIT_BATCHES))
    exam = _activations(teacher, blocks, next(batches))
    for name, block in blocks.items():
        if hasattr(block, "input_scale"):
            scale = _input_scale(name, block, *lessons[name])
            _scale_output(_layer_before(codec, name), scale)
            for pairs in (lessons, exam):
                x, y = pairs[name]
                pairs[name] = x * scale.view(-1, 1, 1), y
    errors = {}
    for name, block in blocks.items():
        error = fitted.load(name, block) if fitted else None
        if error is None:
            error = _learn(name, block, lessons[name], exam[name], steps)
            if fitted:
                fitted.keep(name, block, error)
        errors[name] = error
    return {name: -10 * error.log10().item() for name, error in errors.items()}


def _layer_before(codec: Codec, name: str) -> nn.Module:
    """The layer before the named layer of g_a or g_s."""
    transform, position = name.split(".")
    layer: nn.Module = codec.get_submodule(f"{transform}.{int(position) - 1}")
    return layer


@torch.no_grad()
def _scale_output(layer: nn.Module, scale: Tensor) -> None:
    """Multiplies the output of a convolution with one group by scale [C], in place."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    layer.weight.transpose(0, int(layer.transposed)).mul_(scale.view(-1, 1, 1, 1))
    if layer.bias is not None:
        layer.bias.mul_(scale)


def _input_scale(name: str, block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The scale [C] that a block asks for; `name` is that of the block in the codec."""
    with code_of_block(f"{name}: input_scale(x, y) of the block fails"):
        scale = block.input_scale(x, y)  # type: ignore[operator]
        real = isinstance(scale, Tensor) and scale.shape == x.shape[1:2] and not scale.is_complex()
        if not real or not scale.isfinite().all():
            raise InputError(f"{name}: input_scale(x, y) of the block has to return [{x.shape[1]}] finite numbers")
        scaled: Tensor = scale.detach().to(x)
    return scaled


def _learn(
    name: str, block: nn.Module, lesson: tuple[Tensor, Tensor], exam: tuple[Tensor, Tensor], steps: int
) -> Tensor:
    """Fits one block to pairs x -> y; returns its error on the test pairs, which L-BFGS never increases."""
    closed_form = getattr(block, "fit", None)
    if closed_form:
        forms = _forms(block)
        with code_of_block(f"{name}: fit(x, y) of the block fails"):
            closed_form(*lesson)
        if changed := {each for each, _ in forms.items() ^ _forms(block).items()}:
            raise InputError(
                f"{name}: fit(x, y) of the block changes the shape or type of {', '.join(sorted(changed))}: keep them"
            )
        if not all(parameter.isfinite().all() for parameter in block.parameters()):
            raise InputError(f"{name}: fit(x, y) of the block gives parameters that are not finite: repair it")
    with code_of_block(f"{name}: the block fails on maps {list(lesson[0].shape)}"):
        return _descended(block, lesson, exam, steps)


def _descended(block: nn.Module, lesson: tuple[Tensor, Tensor], exam: tuple[Tensor, Tensor], steps: int) -> Tensor:
    """Continues with L-BFGS unless the block has nothing to train; returns the error on the test pairs."""
    started = deepcopy(block.state_dict())
    with torch.no_grad():
        before = _error(block, exam)
    if not _trained(block):
        return before
    optimizer = torch.optim.LBFGS(_trained(block), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = _error(block, lesson)
        error.backward()
        return error

    optimizer.step(loss)
    optimizer.zero_grad()
    with torch.no_grad():
        after = _error(block, exam)
    if not after < before:  # a closed form may already be the optimum
        block.load_state_dict(started)
    return torch.minimum(before, after.nan_to_num(torch.inf))


def _trained(block: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in block.parameters() if parameter.requires_grad]


def _forms(block: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in block.state_dict().items()}


def _error(block: nn.Module, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The squared error relative to the power of the GDN's output."""
    x, y = pairs
    squared: Tensor = (block(x) - y).square().mean()
    return squared / y.square().mean()


def _gathered(batches: Iterable[Pairs]) -> Pairs:
    """The first maps of each layer, until they have MOST_POSITIONS positions."""
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for pairs in batches:
        for name, (x, y) in pairs.items():
            maps = kept.setdefault(name, [])
            missing = MOST_POSITIONS - sum(each.shape[0] for each, _ in maps) * x.shape[2:].numel()
            if missing > 0:
                pictures = -(-missing // x.shape[2:].numel())
                maps.append((x[:pictures].clone(), y[:pictures].clone()))  # a view would keep the batch in memory
    return {name: tuple(torch.cat(parts) for parts in zip(*maps, strict=True)) for name, maps in kept.items()}  # type: ignore[misc]


def _activations(teacher: Codec, names: Iterable[str], x: Tensor) -> Pairs:
    with torch.no_grad(), _recorded(teacher, names) as pairs:
        teacher(x)
    return pairs


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str]) -> Iterator[Pairs]:
    """Records inputs and outputs of the named layers while the model runs."""
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
