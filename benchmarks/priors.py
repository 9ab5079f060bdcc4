"""`python -m benchmarks.priors PHOTOGRAPHS PICTURES CHECKPOINT..`: is a competition of static priors as good as h_s?

In a competition of priors (Brummer and De Vleeschouwer 2021, arXiv:2111.09172) no network is on the entropy path: there
are 64 static priors, each a table for each channel; the encoder picks one at every position of y, and codes its number.

The y of a trained hyperprior codec is coded in both ways: with z and the integer h_s, and with priors learned from the
same codec's y of training photographs. h_a and h_s are measured as they are, and after some more training with this y.
Since g_a, g_s and the symbols are equal, so are the pictures: the difference in bits is the difference in rate at equal
quality.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from PIL import Image

from benchmarks.coding import SHAPE, WIDEST, drawn_hyper
from benchmarks.everywhere import lively
from benchmarks.harness import Row, alternate, publish
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.rate_coder import coder_of
from codec.bitstream.rows import RowCoder, Rows, bits
from codec.checkpoint import load_codec
from codec.checkpoint.zoo import zoo_widths
from codec.files import FileCodec, Latent
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.pixels import pad, to_float
from codec.network.tables import tables_of, with_tables

PRIORS = 64
ROUNDS = 10
"""Of assigning positions to priors and fitting the priors to their positions."""
LEARNED_FROM = 40_000
"""Positions of y, of the training photographs."""
SIDE = 256
"""Of the squares of training photographs, in pixels."""
STEPS, BATCH, CROP = 1_500, 16, 12
"""Of the training of h_a and h_s; crops are in positions of y."""
REACH = 40
"""Larger symbols cost as much as an escape in the learned tables: about 20 bits."""
_ESCAPE = 20.0

Ints = NDArray[np.integer[Any]]
Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Priors:
    """Static priors, and the probability of their numbers.

    Attributes:
        costs: bits of each symbol -REACH..REACH, [priors, channels, 2 * REACH + 2]; the last entry is an escape.
        both: bits of a number [left, above, number]; beyond the border, neighbours have the number `priors`.
    """

    costs: Costs
    both: Costs


def entries(y: Ints) -> Ints:
    """The places of symbols in a prior's tables."""
    found: Ints = np.where(np.abs(y) <= REACH, y + REACH, 2 * REACH + 1)
    return found


def histograms(y: Ints, chosen: Ints, count: int) -> Costs:
    """How often each symbol occurs, [count, channels, 2 * REACH + 2], in y [channels, positions] of each prior."""
    size = 2 * REACH + 2
    flat = (chosen[None] * len(y) + np.arange(len(y))[:, None]) * size + entries(y)
    return np.bincount(flat.ravel(), minlength=count * len(y) * size).reshape(count, len(y), size).astype(np.float64)


def free(found: Costs) -> Costs:
    """Bits of a table for each prior and channel: histograms, drawn to the channel's where few symbols were seen."""
    spread = np.exp(-np.abs(np.arange(-REACH, REACH + 2)) / 4.0)
    whole = found.sum(0) + spread / spread.sum()
    mixed = found + 8 * (whole / whole.sum(-1, keepdims=True))
    costs: Costs = -np.log2(mixed / mixed.sum(-1, keepdims=True))
    costs[..., -1] += _ESCAPE
    return costs


def shared(gaussians: Rows) -> Callable[[Costs], Costs]:
    """Bits with the Gaussian that is best for each prior and channel, of those that h_s chooses from."""
    every = np.arange(-REACH, REACH + 1, dtype=np.int32)
    costs = np.array(
        [
            [bits(gaussians, every[i : i + 1], np.array([row])) for i in range(len(every))]
            for row in range(len(gaussians.offsets))
        ]
    )
    costs = np.concatenate([costs, np.full((len(costs), 1), _ESCAPE)], 1)

    def fit(found: Costs) -> Costs:
        best: Costs = costs[(found @ costs.T).argmin(-1)]
        return best

    return fit


def costs_of(y: Ints, costs: Costs) -> Costs:
    """Bits of y [channels, positions] with each prior, [priors, positions]."""
    total = np.zeros((len(costs), y.shape[1]))
    for channel, row in enumerate(entries(y)):
        total += costs[:, channel, row]
    return total


def learned(pictures: Sequence[Ints], fit: Callable[[Costs], Costs], count: int) -> Priors:
    """Priors for y of pictures [channels, h, w]: k-means with the bits as the distance."""
    y = np.concatenate([each.reshape(len(each), -1) for each in pictures], 1)
    some = y[:, np.random.default_rng(0).permutation(y.shape[1])[:LEARNED_FROM]]
    energy = np.abs(some).sum(0)
    chosen = (energy.argsort().argsort() * count) // some.shape[1]  # begins with classes of equal energy
    for _ in range(ROUNDS):
        costs = fit(histograms(some, chosen, count))
        weight = np.bincount(chosen, minlength=count) + 0.5
        chosen = (costs_of(some, costs) - np.log2(weight / weight.sum())[:, None]).argmin(0)
    costs = fit(histograms(some, chosen, count))
    both = np.full((count + 1, count + 1, count), np.log2(count))
    for _ in range(3):  # the choice depends on the bits of the numbers, and they on the choice
        maps = [choose(each, Priors(costs, both))[0] for each in pictures]
        both = number_bits(maps, count)
    return Priors(costs, both)


def number_bits(maps: Sequence[Ints], count: int) -> Costs:
    """Bits of a prior's number by its left neighbour's and the one's above: counts, drawn to those of one neighbour."""
    seen = np.zeros((count + 1, count + 1, count))
    for each in maps:
        around = np.pad(each, ((1, 0), (1, 0)), constant_values=count)
        np.add.at(seen, (around[1:, :-1], around[:-1, 1:], each), 1)
    alone = seen.sum((0, 1)) + 0.5
    left, above = (seen.sum(axis) + 4 * alone / alone.sum() for axis in (1, 0))
    product = (left / left.sum(-1, keepdims=True))[:, None] * (above / above.sum(-1, keepdims=True))[None] / alone
    mixed = seen + 16 * product / product.sum(-1, keepdims=True)
    found: Costs = -np.log2(mixed / mixed.sum(-1, keepdims=True))
    return found


def choose(y: Ints, priors: Priors) -> tuple[Ints, float]:
    """The number of the prior at each position of y [channels, h, w], from left to right and down, and all bits."""
    height, width = y.shape[1:]
    costs = costs_of(y.reshape(len(y), -1), priors.costs).reshape(-1, height, width)
    count = len(costs)
    chosen = np.full((height + 1, width + 1), count)
    total = 0.0
    for row in range(height):
        for column in range(width):
            here = costs[:, row, column] + priors.both[chosen[row + 1, column], chosen[row, column + 1]]
            chosen[row + 1, column + 1] = best = int(here.argmin())
            total += here[best]
    return chosen[1:, 1:], total


def latents(coded: FileCodec, folder: Path) -> Iterator[Latent]:
    """The symbols of a folder's pictures."""
    for picture in opened(folder):
        yield coded.latents(picture)[0]


@torch.no_grad()
def floats(codec: Codec, folder: Path) -> Iterator[torch.Tensor]:
    """y [M, h, w] of the middle squares of a folder's pictures, before it is rounded."""
    for picture in opened(folder, SIDE):
        yield codec.g_a(pad(to_float(picture, torch.device("cpu"))))[0]


def opened(folder: Path, side: int = 0) -> Iterator[torch.Tensor]:
    """A folder's pictures, or their middle squares, uint8 [1, 3, h, w]."""
    for path in sorted(each for each in folder.rglob("*") if each.suffix.lower() in (".png", ".jpg", ".jpeg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        if side:
            top, left = ((length - side) // 2 if length > side else 0 for length in pixels.shape[:2])
            pixels = pixels[top : top + side, left : left + side]
        yield torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def trained_on(codec: HyperCodec, pictures: Sequence[torch.Tensor]) -> HyperCodec:
    """The codec with h_a, h_s and both entropy models trained for `STEPS` steps to code y [M, h, w] in few bits."""
    codec = copy.deepcopy(codec).train()
    codec.forget_tables()
    parts = [codec.h_a, codec.h_s, codec.entropy_bottleneck]
    parameters = [each.requires_grad_() for part in parts for each in part.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, STEPS)
    random = np.random.default_rng(0)
    pictures = [each for each in pictures if min(each.shape[1:]) >= CROP]
    for step in range(STEPS):
        batch = []
        for number in random.integers(len(pictures), size=BATCH):
            top, left = (random.integers(side - CROP + 1) for side in pictures[number].shape[1:])
            batch.append(pictures[number][:, top : top + CROP, left : left + CROP])
        y = torch.stack(batch)
        z = codec.h_a(codec.seen_by_h_a(y))
        z_hat, of_z, aux_loss = codec.entropy_bottleneck(z, noise_keys(0, step, torch.arange(BATCH)))
        scales, means = codec.predict(z_hat, y)
        _, of_y = codec.gaussian_conditional(y, scales, means)
        loss = -(of_y.log2().sum() + of_z.log2().sum()) / y[:, 0].numel() + aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return with_tables(codec)


def compared(checkpoint: Path, photographs: Path, pictures: Path) -> Iterator[Row]:
    """The rows of a codec."""
    codec = load_codec(checkpoint)[0]
    tables = tables_of(codec)
    assert isinstance(codec, HyperCodec)
    assert isinstance(tables, HyperTables)
    coded = FileCodec(codec)
    y_of_photographs = list(floats(codec, photographs))
    train = [np.rint(each.numpy()).astype(np.int32) for each in y_of_photographs]
    held_out = list(latents(coded, pictures))
    pixels = 256 * sum(each.y[0].size for each in held_out)
    ours, sides = np.inf, dict[str, float]()
    again = trained_on(codec, y_of_photographs)
    for name, each_codec in (("h_s and z", codec), ("h_s and z, trained on", again)):
        coder = FileCodec(each_codec).coder
        assert isinstance(coder, HyperCoder)
        files = [
            (each.y, latent.z) for each, latent in zip(held_out, latents(FileCodec(each_codec), pictures), strict=True)
        ]
        whole = sum(8 * len(coder.encode(y, z)) for y, z in files)
        of_y = sum(coder.bits_of_y(y, z) for y, z in files if z is not None)
        sides |= {f"{name}, bpp": whole / pixels, f"{name}, z alone, bpp": (whole - of_y) / pixels}
        ours = min(ours, whole)
    gaussians = shared(tables.y)
    found = {}
    for name, fit, count in (
        ("factorized: one table a channel", free, 1),
        (f"{PRIORS} priors of shared Gaussians", gaussians, PRIORS),
        (f"{PRIORS} priors of learned tables", free, PRIORS),
    ):
        priors = learned(train, fit, count)
        chosen = [choose(each.y, priors) for each in held_out]
        found[name] = sum(total for _, total in chosen)
        numbers = sum(
            priors.both[around[1:, :-1], around[:-1, 1:], each].sum()
            for each, _ in chosen
            for around in [np.pad(each, ((1, 0), (1, 0)), constant_values=count)]
        )
        found[f"{name}, the numbers alone"] = numbers
    what = f"{checkpoint.parent.name}: bits of y in the best competition of priors, over z and the integer h_s"
    best = min(total for name, total in found.items() if "priors of" in name and "alone" not in name)
    sides |= {f"{name}, bpp": total / pixels for name, total in found.items()}
    yield Row(what, 100 * (best / ours - 1), "%", sides=sides, note=f"{len(held_out)} pictures")


def host_time() -> Iterator[Row]:
    """What decoding costs with the integer h_s, and with static priors of shared Gaussians, for 768x512 pixels."""
    coder = coder_of(tables_of(lively("bmshj2018_hyperprior", *zoo_widths(8), widest=WIDEST)))
    assert isinstance(coder, HyperCoder)
    symbols, z = drawn_hyper(coder.tables, *SHAPE)
    payload = coder.encode(symbols, z)
    picked, _ = coder.context(z, *SHAPE)
    random = np.random.default_rng(0)
    rows = RowCoder(coder.tables.y)
    # The priors' numbers: one symbol after the other, each with the table that its neighbours name.
    probabilities = random.dirichlet(np.full(PRIORS, 0.1), 256) + 1e-4
    models = [stream.model.Categorical(each / each.sum(), perfect=False) for each in probabilities]
    numbers = random.integers(PRIORS, size=SHAPE[0] * SHAPE[1])
    table = random.permutation(picked.reshape(len(picked), -1).T)[:PRIORS]
    map_of = table[numbers].T.ravel()
    both = stream.stack.AnsCoder()
    rows.push_picked(both, symbols.ravel(), map_of)
    for number in numbers[::-1].tolist():
        both.encode_reverse(number, models[number * 4])
    words = both.get_compressed()

    def compete() -> Any:
        taken = stream.stack.AnsCoder(words)
        seen = np.array([taken.decode(models[number * 4]) for number in numbers.tolist()])
        return rows.pop_picked(taken, table[seen].T.ravel())

    found = alternate({"h_s": lambda: coder.decode(payload, *SHAPE), "priors": compete}, 21, warmup=2)
    yield Row(
        "decoding of 768x512 pixels, N=192, M=320: the competition of priors over the integer h_s",
        found["priors"] / found["h_s"],
        "x",
        sides={f"{name}, ms": 1e3 * seconds for name, seconds in found.items()},
    )


def main() -> None:
    """All checkpoints, then the time."""
    photographs, pictures, *checkpoints = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    publish(
        "priors", [row for each in checkpoints for row in compared(each, photographs, pictures)] + list(host_time())
    )


if __name__ == "__main__":
    main()
