"""Pictures through the files of a codec, with their figures."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codec.evaluation.figures import Figures, measure
from codec.evaluation.metrics import bpp
from codec.files import FileCodec
from codec.network.pixels import to_float


@dataclass(frozen=True)
class Decoded:
    """A picture that became the bytes of a file and was decoded from them again.

    Attributes:
        index: which one of the pictures it is.
        figures: with the bits per pixel of its file.
        x, x_hat: the picture and the decoded one, uint8 [3, H, W].
    """

    index: int
    figures: Figures
    x: Tensor
    x_hat: Tensor


@torch.inference_mode()
def through_files(codec: FileCodec, batches: Iterable[tuple[Sequence[int], Tensor]]) -> Iterator[Decoded]:
    """Pictures as their files give them back, in the order of the batches.

    The files are the bytes that `codec.compress` writes; they stay in memory.

    Args:
        batches: the pictures' indices, and uint8 [B, 3, H, W].

    Raises:
        InputError: the codec gives values that are not finite.
    """
    for indices, x in batches:
        height, width = x.shape[-2:]
        y = codec.analyze(x)
        files = codec.encode(y, height, width)
        x_hat = torch.stack(codec.decompress(files))
        _, likelihoods, _ = codec.codec.entropy_bottleneck(y)
        original = x.to(x_hat.device)
        rows = measure(to_float(original), to_float(x_hat), bpp({"y": likelihoods}, height * width), files)
        for decoded in zip(indices, rows, original, x_hat, strict=True):
            yield Decoded(*decoded)
