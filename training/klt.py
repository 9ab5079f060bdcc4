"""KLT start: g_a and g_s begin as a transform coder instead of random weights, which saves most of the steps.

Each convolution of g_a begins as the Karhunen-Loeve transform of the 2x2 blocks of its input on real crops:
orthogonal, with the directions of the largest variance first. The last one also scales, so that rounding y to
integers is the uniform quantizer that the loss's lambda asks for. Each transposed convolution of g_s then begins as
the least-squares solution that gives back the input of the block opposite it. Between layers each channel has a
variance of 1. A GDN between them begins almost linear, because that inverse is linear; other blocks stay as they are.
The entropy models begin with the spreads of y, and then train by themselves on the y of these crops, which is cheap,
since y has few values. At first z is free: a hyperprior that pays for z before h_s can use it learns to send a
constant, and never recovers.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.network.bottleneck import Bottleneck, noise_keys
from codec.network.codec import Codec, gdn_layers
from codec.network.hyperprior import HyperCodec

PICTURES = 384
"""Number of crops that the entropy models train on: of a quarter, they learn the crops by heart."""

_OF_TRANSFORMS = 96
"""Number of them that the transforms are computed from."""

FIT_STEPS, FIT_BATCH, FIT_RATE = 1500, 8, 1e-3
"""Steps, crops a step and first learning rate of the entropy models."""

FREE = 1 / 3
"""Share of these steps in which the rate of z does not train h_a."""

_SPREAD_OF_Z = 1.5
"""Standard deviation of z at the start: some symbols are not 0."""

_ADAPTIVE = 0.1
"""How much the scales of y vary with z at the start, relative to themselves."""

_GAMMA = 1e-4
"""Diagonal of a GDN's gamma at the start; CompressAI's 0.1 loses 3.5 dB, and 0 would have no gradient."""

_LEAST_SPREAD = 1e-3
"""Standard deviations below it are not scaled up to 1: nothing but noise is there."""

_SPARE = 0.1
"""Scale of the random weights of channels that the KLT leaves over: the first layer has more outputs than inputs."""

_RIDGE = 1e-3
"""Ridge of the least squares, relative to the mean power of the inputs."""

_LOGISTIC = math.pi / math.sqrt(3)
"""Standard deviation of a logistic distribution of scale 1."""


@torch.no_grad()
def klt_start(codec: Codec, batches: Sequence[Tensor], lambda_mse: float) -> float:
    """Sets the weights of g_a and g_s and trains the entropy models, in place.

    Args:
        batches: pictures [B, 3, H, W] in [0, 1], sides multiples of 16, on the codec's device.
        lambda_mse: of the loss lambda 255^2 MSE + bpp.

    Returns:
        The PSNR in dB on these pictures with y rounded.
    """
    for _, gdn in gdn_layers(codec):
        gdn.gamma.copy_(gdn.gamma_reparam.init(_GAMMA * torch.eye(len(gdn.gamma), device=gdn.gamma.device)))
    pictures = list(batches)
    batches = pictures[: math.ceil(_OF_TRANSFORMS / len(pictures[0]))]
    features, targets = list(batches), [list(batches)]
    convolutions = [layer for layer in codec.g_a if isinstance(layer, nn.Conv2d)]
    spread = torch.ones(3, device=features[0].device)
    for layer in codec.g_a:
        if isinstance(layer, nn.Conv2d):
            last = layer is convolutions[-1]
            spread = _to_klt(layer, features, spread, 1 / step_size(lambda_mse) if last else None)
            features = [layer(x) for x in features]
        else:
            features = [layer(x) for x in features]
            targets.append(features)
    features = [y.round() for y in features]
    for layer in codec.g_s:
        if isinstance(layer, nn.ConvTranspose2d):
            _to_inverse(layer, features, targets.pop())
        features = [layer(x) for x in features]
    start_entropy_models(codec, pictures)
    errors = [(x_hat.clamp(0, 1) - x).square().mean() for x_hat, x in zip(features, batches, strict=True)]
    return -10 * torch.stack(errors).mean().log10().item()


@torch.no_grad()
def start_entropy_models(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """Fits everything but g_a and g_s to the y of pictures, in place.

    Args:
        pictures: [B, 3, H, W] in [0, 1], sides multiples of 16, on the codec's device.
    """
    latents = torch.cat([codec.g_a(x) for x in pictures])
    spread = latents.transpose(0, 1).flatten(1).std(1).clamp(min=0.1)
    if isinstance(codec, HyperCodec):
        _start_hyperprior(codec, latents, spread)
    else:
        _set_spread(codec.entropy_bottleneck, spread)
    _fit_entropy_models(codec, latents)


def step_size(lambda_mse: float) -> float:
    """The step of a uniform quantizer of orthonormal coefficients of pixels in [0, 1] at which the loss is smallest.

    At high rate a coefficient of variance v costs log2(v / D) / 2 bits at an error of D = step^2 / 12; the loss
    lambda 255^2 D / 3 + bits of the coefficients of one pixel has its minimum at D = 3 / (2 ln(2) lambda 255^2).
    """
    return math.sqrt(12 * 3 / (2 * math.log(2) * lambda_mse * 255**2))


def _to_klt(layer: nn.Conv2d, features: Sequence[Tensor], spread: Tensor, scale: float | None) -> Tensor:
    """Makes a 5x5 convolution of stride 2 the KLT of 2x2 blocks of `features` times their `spread` [C_in].

    Its outputs have a mean of 0, and are the coefficients times `scale`. None: they have a variance of 1, since one
    step of Adam changes all weights alike and one int8 scale serves all channels.

    Returns:
        What its outputs must be multiplied by to be the coefficients, [C_out].
    """
    blocks = torch.cat([F.pixel_unshuffle(x, 2).transpose(0, 1).flatten(1) for x in features], 1).double()
    per_tap = spread.double().repeat_interleave(4)
    _, directions = torch.linalg.eigh(torch.cov(blocks * per_tap[:, None]))  # ascending
    rows = directions.flip(1).T[: layer.out_channels]
    rows = rows * torch.where(rows.sum(1, keepdim=True) < 0, -1, 1) * per_tap  # eigenvectors have no sign of their own
    layer.weight.mul_(_SPARE)
    layer.weight[: len(rows)] = 0
    middle = layer.kernel_size[0] // 2
    block = slice(middle, middle + 2)  # the kernel's taps on the block of this output
    layer.weight[: len(rows), :, block, block] = rows.reshape(len(rows), -1, 2, 2).to(layer.weight)
    assert layer.bias is not None
    layer.bias.zero_()
    outputs = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in features], 1)
    found = outputs.std(1).clamp(min=_LEAST_SPREAD)
    factor = 1 / found if scale is None else torch.full_like(found, scale)
    layer.weight.mul_(factor.view(-1, 1, 1, 1))
    layer.bias.sub_(outputs.mean(1) * factor)
    return 1 / factor


def _to_inverse(layer: nn.ConvTranspose2d, features: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Makes a 5x5 transposed convolution of stride 2 the least-squares map from features to targets of twice the size.

    Each of the four phases of the output sees other taps of the kernel, and is a problem of its own with a part of the
    3x3 neighbours.
    """
    assert layer.bias is not None
    product, cross = _normal_equations(features, targets)
    numbers = torch.arange(9 * layer.in_channels, device=product.device).reshape(-1, 3, 3)
    layer.weight.zero_()
    layer.bias.zero_()
    for phase, (row, column) in enumerate(itertools.product(range(2), repeat=2)):
        # An even output sees the inputs before, at and after its place, by taps 4, 2 and 0; an odd one 3 and 1.
        rows, columns = ([(0, 4), (1, 2), (2, 0)] if each == 0 else [(1, 3), (2, 1)] for each in (row, column))
        near = numbers[:, [place for place, _ in rows]][:, :, [place for place, _ in columns]]
        used = torch.cat([near.flatten(), numbers.new_full((1,), numbers.numel())])  # the last one is the constant
        seen = product[used][:, used]
        seen.diagonal().add_(_RIDGE * seen.diagonal().mean())
        found = torch.linalg.solve(seen, cross[used, phase::4])
        layer.bias.add_(found[-1].to(layer.bias) / 4)
        kernel = found[:-1].reshape(*near.shape, -1).to(layer.weight)
        for i, (_, down) in enumerate(rows):
            for j, (_, right) in enumerate(columns):
                layer.weight[:, :, down, right] = kernel[:, i, j]


def _normal_equations(features: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means of x x^T and of x t^T.

    x: the 3x3 neighbours of each channel, and 1. t: the 2x2 block of each channel of the target.
    """
    product = cross = torch.zeros((), dtype=torch.float64, device=features[0].device)
    for x, t in zip(features, targets, strict=True):
        inputs = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        inputs = torch.cat([inputs, inputs.new_ones(1, inputs.shape[1])])
        outputs = F.pixel_unshuffle(t, 2).transpose(0, 1).flatten(1)
        count = inputs.shape[1] * len(features)
        product = product + (inputs @ inputs.T).double() / count
        cross = cross + (inputs @ outputs.T).double() / count
    return product, cross


def _start_hyperprior(codec: HyperCodec, latents: Tensor, spread: Tensor) -> None:
    """Makes z vary with these latents, and h_s expect about their standard deviations [M]."""
    of_z = spread.new_full((codec.N,), _SPREAD_OF_Z)
    z = _normalized(codec.h_a, codec.seen_by_h_a(latents), of_z)
    _set_spread(codec.entropy_bottleneck, of_z)
    means = spread.new_zeros(codec.M if codec.has_means else 0)  # the scales come before the means
    expected = torch.cat([spread, means])
    _normalized(codec.h_s, z / _SPREAD_OF_Z, _ADAPTIVE * expected.clamp(min=0.1), expected)


def _normalized(layers: Iterable[nn.Module], features: Tensor, spread: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Scales the convolutions such that each output has variance 1 and mean 0, the last ones these; returns these.

    Args:
        spread, mean: of the last convolution's outputs, [C].
    """
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is not None
            found = layer(features).transpose(0, 1).flatten(1)
            last = layer is convolutions[-1]
            scale = (spread.to(found) if last else 1.0) / found.std(1)
            shape = (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, 1, 1, 1)
            layer.weight.mul_(scale.view(shape))
            layer.bias.sub_(found.mean(1)).mul_(scale).add_(mean if last else 0.0)
        features = layer(features)
    return features


def _set_spread(bottleneck: Bottleneck, spread: Tensor) -> None:
    """Makes an entropy bottleneck expect these standard deviations [C]."""
    scale_input(bottleneck, float(bottleneck.init_scale) * _LOGISTIC / spread)  # a logistic of scale `init_scale`


def scale_input(bottleneck: Bottleneck, factors: Tensor) -> None:
    """Makes the density of each value that of the value times the factors [C], in place, without the quantiles."""
    first = bottleneck.matrices[0]  # multiplies y
    slope = F.softplus(first) * factors[:, None, None]
    first.copy_(slope + torch.log(-torch.expm1(-slope)))


@torch.enable_grad()
def _fit_entropy_models(codec: Codec, latents: Tensor) -> None:
    """Trains everything but g_a and g_s to code latents [B, M, h, w] in few bits, by Adam along a cosine."""
    trained = {
        name: parameter
        for name, parameter in codec.named_parameters()
        if not name.startswith(("g_a.", "g_s.")) and not name.endswith("quantiles")
    }
    of_z = [each for name, each in trained.items() if name.startswith("entropy_bottleneck.")]
    others = [each for name, each in trained.items() if not name.startswith("entropy_bottleneck.")]
    optimizer = torch.optim.Adam(trained.values(), FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
    generator = torch.Generator().manual_seed(0)
    codec.train()
    for step in range(FIT_STEPS):
        chosen = torch.randperm(len(latents), generator=generator)[:FIT_BATCH].to(latents.device)
        rates = torch.rand(len(chosen), generator=generator).to(latents) if codec.y_gains is not None else None
        y = latents[chosen]
        _, likelihoods, _ = codec.quantize(y, noise_keys(0, step, chosen), detach_rate=True, rates=rates)
        bits = {name: -each.log2().sum() / y.numel() for name, each in likelihoods.items()}
        if "z" in bits and step < FREE * FIT_STEPS:
            bits.pop("z").backward(inputs=of_z, retain_graph=True)
            bits["y"].backward(inputs=others)
        else:
            torch.stack(list(bits.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
