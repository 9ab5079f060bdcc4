"""The pretrained weights of CompressAI's model zoo."""

from pathlib import Path

import torch
from torch import Tensor

from coco224.files import FULL, in_words
from codec.errors import InputError


def zoo_widths(quality: int) -> tuple[int, int]:
    """(N, M) of bmshj2018_factorized in CompressAI's zoo at quality 1..8."""
    return (128, 192) if quality <= 5 else (192, 320)


def zoo_state(quality: int) -> dict[str, Tensor]:
    """The zoo's weights of bmshj2018_factorized (MSE), downloaded once into torch's hub cache.

    Raises:
        InputError: the weights cannot be downloaded, or the file in the cache is damaged.
    """
    from compressai.zoo import bmshj2018_factorized

    cached = Path(torch.hub.get_dir(), "checkpoints", _file_name(quality))
    was_there = cached.exists()
    try:
        state: dict[str, Tensor] = bmshj2018_factorized(quality, pretrained=True, progress=False).state_dict()
    except Exception as error:  # on damaged data the unpickler raises any exception, also OSError
        if isinstance(error, OSError) and (error.errno in FULL or error.filename):
            raise InputError(f"--pretrained true: {in_words(error)}; TORCH_HOME names another cache") from error
        if isinstance(error, OSError) and not was_there:  # URLError and every time-out below it
            raise InputError(
                f"--pretrained true: CompressAI's weights of quality {quality} cannot be downloaded ({error}); use "
                "--pretrained false to start from random weights or --init_checkpoint FILE to start from a file"
            ) from error
        if not cached.exists():
            raise
        raise InputError(
            f"--pretrained true: {cached} is damaged (an interrupted download): remove it, and the next run fetches it "
            "again"
        ) from error
    return state


def _file_name(quality: int) -> str:
    """The file name of the weights in torch's hub cache."""
    from compressai.zoo.image import model_urls

    return str(model_urls["bmshj2018-factorized"]["mse"][quality]).rpartition("/")[2]
