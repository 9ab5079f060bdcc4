"""A plugin whose block gives NaN at chosen training batches."""

POISONED = '''
import os
from dataclasses import dataclass
import torch
from torch import nn
from codec.blocks import register_activation


seen = []


class Poisoned(nn.Module):
    """The identity, but for NaN at some training batches: those that are the `first`-th to `last`-th it sees."""

    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        if not self.training or not self.options or x.shape[-2] < 8:    # the map of new_block's test
            return x
        mark = float(x.detach().double().sum())
        if not any(abs(mark - other) < 1e-2 for other in seen):    # else the batch is being traced
            seen.append(mark)
        number = 1 + min(range(len(seen)), key=lambda i: abs(mark - seen[i]))
        here = self.options.rank < 0 or self.options.rank == int(os.environ.get("RANK", 0))
        if not (here and self.options.first <= number <= self.options.last):
            return x
        return BadBackward.apply(x) if self.options.backward else x * float("nan")


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


made = 0

@register_activation("poisoned")
class Poison:
    @dataclass
    class Options:
        first: int = 1
        last: int = 10**9
        rank: int = -1
        backward: bool = False    # NaN in the gradient, not in the output

    @staticmethod
    def encoder(channels, options):
        global made
        made += 1
        return Poisoned(options if made % 3 == 2 else None)    # the second of g_a's three

    @staticmethod
    def decoder(channels, options):
        return nn.Identity()
'''
